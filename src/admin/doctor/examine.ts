// The doctor's parts, side by side: none waits for another one or fails with it.
import { inTime } from "../../in-time.ts";
import { readSettings, type Settings } from "../settings.ts";
import { examineChain } from "./chain.ts";
import { examineCloudflare } from "./cloudflare.ts";
import { type Finding, hideSecrets, needed, type Part, type PartName } from "./finding.ts";
import { reasonOf } from "./reason.ts";
import { examineRunpod } from "./runpod.ts";
import { examineVultr } from "./vultr.ts";
import { examineX402 } from "./x402.ts";

type Row = { part: PartName | "settings"; what: string; answer: string; state: Finding["state"]; todo?: string };
/** `todo`: every sentence of the rows, in their order. */
export type Report = { well: boolean; findings: Row[]; todo: string[] };

const EXAMINERS: Readonly<Record<PartName, Part>> = {
  chain: examineChain,
  vultr: examineVultr,
  runpod: examineRunpod,
  cloudflare: examineCloudflare,
  x402: examineX402,
};
/** Beyond every limit of its calls: what is still open then hangs. */
const PART_MS = 300_000;

/** `folder`: the checkout, where it is not the working directory. */
export async function examine(parts: readonly PartName[], folder?: string): Promise<Report> {
  let settings: Settings;
  try {
    settings = readSettings(folder);
  } catch (error) {
    const todo = `Mend wrangler.toml, src/provisioner/wrangler.toml or .secrets: ${reasonOf(error)}`;
    return toReport([{ part: "settings", ...needed("files", reasonOf(error), todo) }], []);
  }
  const found = await Promise.all(
    parts.map(async (part) => {
      const findings = await examineOne(part, settings);
      return findings.map((finding): Row => ({ part, ...finding }));
    }),
  );
  return toReport(found.flat(), settings.secrets);
}

async function examineOne(part: PartName, settings: Settings): Promise<Finding[]> {
  try {
    const late = () => new Error(`no end within ${PART_MS / 1_000} s`);
    return await inTime(EXAMINERS[part](settings, Date.now), PART_MS, late);
  } catch (error) {
    const todo = `Report this as a defect: the part ${part} could not be examined (${reasonOf(error)}).`;
    return [needed("examination", reasonOf(error), todo)];
  }
}

function toReport(rows: readonly Row[], secrets: readonly string[]): Report {
  const findings = rows.map((row) => ({
    ...row,
    what: hideSecrets(row.what, secrets),
    answer: hideSecrets(row.answer, secrets),
    ...(row.todo === undefined ? {} : { todo: hideSecrets(row.todo, secrets) }),
  }));
  const todo = findings.flatMap((row) => row.todo ?? []);
  return { well: todo.length === 0, findings, todo };
}
