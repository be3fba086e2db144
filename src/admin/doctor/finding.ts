// What the doctor finds: a row of its table and, where a person has to act, the sentence that says how.
import { redactText } from "../../redact.ts";
import { WORKERS } from "../environment.ts";
import { isSecretName, type Settings } from "../settings.ts";
import { reasonOf } from "./reason.ts";

export const PARTS = ["chain", "vultr", "runpod", "cloudflare", "x402"] as const;
export type PartName = (typeof PARTS)[number];

/** `todo`: what to do, in one sentence. `note`: worth reading, and well. */
export type Finding = { what: string; answer: string } & ({ state: "ok" | "note" } | { state: "todo"; todo: string });
type Needed = Extract<Finding, { state: "todo" }>;
/** Never rejects for what a service answers, or does not. `now`: unix milliseconds. */
export type Part = (settings: Settings, now: () => number) => Promise<Finding[]>;

export const well = (what: string, answer: string): Finding => ({ what, answer, state: "ok" });
export const note = (what: string, answer: string): Finding => ({ what, answer, state: "note" });
export const needed = (what: string, answer: string, todo: string): Needed => ({ what, answer, state: "todo", todo });

export const unread = (what: string, error: unknown): Finding =>
  needed(what, `not read: ${reasonOf(error)}`, `Mend what keeps the doctor from reading this, and ask again: ${what}.`);

/** A setting that a part can't do without, as the finding that it is missing; null where it is there. */
export function missing(settings: Settings, worker: "edge" | "provisioner", name: string): Needed | null {
  const why = settings[worker].wrong.get(name);
  if (why === undefined) return null;
  const isSecret = isSecretName(name);
  const file = isSecret ? WORKERS[worker].secrets : WORKERS[worker].file;
  if (settings.environments[worker].secrets !== null || !isSecret) {
    return needed(name, why, `Set ${name} in ${file}: it ${why}.`);
  }
  const todo = `There is no ${file}: make it with "npm run keys" and fill in ${name}; secrets are read from there alone.`;
  return needed(name, `there is no ${file}`, todo);
}

/** Text without anything secret. */
export function hideSecrets(text: string, secrets: readonly string[]): string {
  let safe = text;
  for (const secret of secrets) safe = safe.replaceAll(secret, "[secret]");
  // Private addresses are the operator's own.
  return redactText(safe, "address");
}
