// What a person reads while the local world works: a line for each step with the seconds since the start, and a sign of life
// where a step takes long. The signs come from a thread of their own: modules that load, and much else, hold this one.
import { fileURLToPath } from "node:url";
import { styleText } from "node:util";
import { Worker } from "node:worker_threads";

/** A person takes more than five silent seconds for a hang. */
const MAX_SILENCE_MS = 4_000;

const SIGNS = fileURLToPath(new URL("signs-of-life.ts", import.meta.url).href);

/** Unix milliseconds; `step` is what goes on. */
export type Telling = { began: number; lastAt: number; step: { name: string; since: number } | undefined };
export type Narrator = ReturnType<typeof makeNarrator>;

export const color = (format: Parameters<typeof styleText>[0], text: string) =>
  styleText(format, text, { stream: process.stdout, validateStream: true });

const seconds = (from: number, now: number) => `${((now - from) / 1_000).toFixed(1)} s`;
const lineOf = (began: number, now: number, text: string) =>
  `${color("dim", seconds(began, now).padStart(7))}  ${text}`;

/** A line where a step goes on and nothing was said for long. */
export function signOfLife({ began, lastAt, step }: Telling, now: number): string | undefined {
  if (step === undefined || now - lastAt < MAX_SILENCE_MS) return undefined;
  return lineOf(began, now, color("dim", `… ${step.name}, for ${seconds(step.since, now)} so far`));
}

/** Of a silent one nothing is printed. */
export function makeNarrator({ silent = false } = {}) {
  const telling: Telling = { began: Date.now(), lastAt: Date.now(), step: undefined };
  const thread = silent ? undefined : new Worker(SIGNS);
  thread?.unref();
  const say = (text: string) => {
    if (silent) return;
    telling.lastAt = Date.now();
    console.log(lineOf(telling.began, telling.lastAt, text));
    thread?.postMessage(telling);
  };
  return {
    say,
    /** Names what goes on from here; undefined where nothing does. */
    begin: (name: string | undefined) => {
      telling.step = name === undefined ? undefined : { name, since: Date.now() };
      thread?.postMessage(telling);
    },
    stop: () => thread?.postMessage({ ...telling, step: undefined } satisfies Telling),
  };
}
