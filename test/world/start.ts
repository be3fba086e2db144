// `npm start`: the local world with the main job in front of the reader. Options: --once, --serve, --json, --tier.
import { mkdtempSync, rmSync } from "node:fs";
import { enableCompileCache } from "node:module";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { parseArgs } from "node:util";
import { TIERS } from "../../src/model/tiers.ts";
import { tellError } from "./http.ts";
import { color, makeNarrator } from "./narrator.ts";
import type { Phase } from "./show.ts";
import { onSignals } from "./signals.ts";
import type { World } from "./world.ts";

const tiersOf = (type: "vm" | "gpu") => [...TIERS.keys()].filter((tier) => TIERS[tier]?.type === type).join(", ");
const SOLD = `${tiersOf("vm")} (VMs) or ${tiersOf("gpu")} (GPUs)`;
const USAGE = `Usage: npm start                     buy a VM in the local world and log in, then stay up
       npm start -- --once           a VM, a GPU, a VM over x402, times per phase, then exit
       npm start -- --serve --json   bring the world up, print one line of JSON, stay up
       npm start -- --tier 2         buy that tier instead of tier 0: ${SOLD}`;

/** Measured on two quiet cores: 44 s with a build of the Workers, which later starts don't need. */
const DURATION = "this takes about 40 s on two cores, and more where they are busy: a line comes every few seconds";
const HOW_TO_GO_ON =
  "  The world stays up: buy by hand as /llms.txt says, or read on below. For another try, Ctrl-C and npm start again.";
/** How many of the Workers' last warnings are shown with a failure. */
const WARNINGS = 5;
/** How long a stop waits for a start that is under way. */
const START_PATIENCE_MS = 120_000;

const wait = (ms: number) => new Promise<void>((resolve) => setTimeout(resolve, ms));

enableCompileCache(fileURLToPath(new URL("../../node_modules/.cache/node", import.meta.url).href));
const options = readOptions();
// Of JSON there is one line, and nothing else.
const narrator = makeNarrator({ silent: options.json });
const { say } = narrator;
let starting: Promise<World> | undefined;
let stopping: Promise<void> | undefined;
const keyFolder = options.once || options.serve ? undefined : mkdtempSync(join(tmpdir(), "clawcloud-keys-"));
onSignals(() => {
  if (stopping === undefined) say("stopping everything");
  void shutDown().finally(() => process.exit(0));
});

// Whoever started us may be killed without a word: an orphan ends as well.
const parent = process.ppid;
setInterval(() => {
  if (process.ppid !== parent) void shutDown().finally(() => process.exit(0));
}, 1_000).unref();

try {
  if (!options.serve) say(DURATION);
  say("starting the chain, the vendors and both Workers");
  narrator.begin("loading the local world");
  const [{ startWorld }, { describe, printGuide }] = await Promise.all([import("./world.ts"), import("./guide.ts")]);
  starting = startWorld({ tell: tellStep });
  // Loading the clients takes seconds of one thread: not between two requests on one connection, but while processes come up.
  const loading = options.serve ? undefined : import("./show.ts");
  const [world, show] = await Promise.all([starting, loading]);
  if (stopping !== undefined) await stopped();
  narrator.begin(undefined);
  if (options.json) console.log(JSON.stringify(describe(world)));
  else say(`the API answers at ${color("cyan", world.url)}`);
  const failures = show === undefined ? 0 : await play(world, show);
  if (options.once) {
    await shutDown();
    process.exit(0);
  }
  if (show !== undefined) say(failures === 0 ? "all done" : `${failures} of 2 acts failed, as told above`);
  if (!options.json) printGuide(world);
} catch (error) {
  await end(error);
}

/** A step of the start is over, and the next one begins. */
function tellStep(done: string, next: string): void {
  if (stopping !== undefined) return;
  say(done);
  narrator.begin(next);
}

/** Acts one after the other. With --once the first that fails ends the run; else it is told, and the world stays up. */
async function play(world: World, { mainJob, paidJob }: typeof import("./show.ts")): Promise<number> {
  const stage = { world, narrator, keyFolder };
  const acts = [
    () => mainJob(stage, options.tier),
    ...(options.once ? [() => mainJob(stage, 4)] : []),
    () => paidJob(stage, options.tier),
  ];
  const phases: Phase[] = [];
  let failures = 0;
  for (const act of acts) {
    try {
      phases.push(...(await act()));
    } catch (error) {
      if (options.once || stopping !== undefined) await end(error, world);
      failures += 1;
      tellFailure(error, world);
      console.error(HOW_TO_GO_ON);
    }
  }
  if (options.once) printPhases(phases);
  return failures;
}

/** The error with all its causes, and what the Workers warned of last; no secret of this world in either. */
function tellFailure(error: unknown, world?: World): void {
  const hide = (text: string) =>
    (world?.secrets ?? [])
      .reduce((rest, secret) => rest.replaceAll(secret, "[hidden]"), text)
      .replaceAll(/-----BEGIN [\s\S]*?-----END [A-Z ]+-----/g, "[hidden]");
  console.error(color("red", `failed: ${hide(tellError(error))}`));
  const warnings = world?.lines.filter((line) => /"level":"(?:warn|error|page)"/.test(line)).slice(-WARNINGS) ?? [];
  if (warnings.length > 0)
    console.error(`  the Workers' last warnings:\n${warnings.map((line) => `    ${hide(line)}`).join("\n")}`);
}

/** Whatever fails while everything is being stopped is no failure: whoever stops it ends the process. */
async function end(error: unknown, world?: World): Promise<never> {
  if (stopping !== undefined) return stopped();
  tellFailure(error, world);
  await shutDown();
  return process.exit(1);
}

/** Never resolves: whoever stops everything ends the process. */
function stopped(): Promise<never> {
  return new Promise(() => undefined);
}

function printPhases(phases: readonly Phase[]): void {
  console.log(`\n${color("bold", "tier  phase          seconds")}`);
  for (const { tier, name, ms } of phases) {
    console.log(`${String(tier).padEnd(6)}${name.padEnd(15)}${(ms / 1_000).toFixed(2).padStart(7)}`);
  }
}

function shutDown(): Promise<void> {
  narrator.stop();
  if (keyFolder !== undefined) rmSync(keyFolder, { recursive: true, force: true });
  stopping ??= stopWorld();
  return stopping;
}

/** Also where the world is still coming up: what it has started by then would stay behind. */
async function stopWorld(): Promise<void> {
  // A start that failed is told elsewhere.
  const ended = starting?.then(({ stop }) => stop).catch(() => undefined);
  const stop = await Promise.race([ended, wait(START_PATIENCE_MS)]);
  await stop?.();
}

function readOptions() {
  try {
    const { values } = parseArgs({
      options: {
        once: { type: "boolean", default: false },
        serve: { type: "boolean", default: false },
        json: { type: "boolean", default: false },
        tier: { type: "string", default: "0" },
        help: { type: "boolean" },
      },
    });
    if (values.help) {
      console.log(USAGE);
      process.exit(0);
    }
    const tier = TIERS.findIndex((_, index) => String(index) === values.tier);
    if (tier === -1) throw new Error(`--tier takes ${SOLD}, not "${values.tier}"`);
    return { ...values, tier };
  } catch (error) {
    console.error(`${error instanceof Error ? error.message : error}\n${USAGE}`);
    process.exit(2);
  }
}
