// `npm run dev`: the local world at ports that stay the same, kept between runs; the Workers are built and started anew when a
// source changes. Options: --port, --reset.
import { stat } from "node:fs/promises";
import { enableCompileCache } from "node:module";
import { join } from "node:path";
import { setTimeout as wait } from "node:timers/promises";
import { fileURLToPath } from "node:url";
import { parseArgs } from "node:util";
import { sourceFiles } from "./build-cache.ts";
import { takeLock } from "./dev-lock.ts";
import { tellError } from "./http.ts";
import { readable } from "./log-lines.ts";
import { color, makeNarrator } from "./narrator.ts";
import { claimPorts } from "./ports.ts";
import { onSignals } from "./signals.ts";
import type { World } from "./world.ts";

const USAGE = `Usage: npm run dev                    the local world, as the last run left it
       npm run dev -- --reset         begin another world
       npm run dev -- --port 9000     the API there, and the world's other servers at the ports behind it`;

const ROOT = fileURLToPath(new URL("../../", import.meta.url).href);
const FOLDER = join(ROOT, ".wrangler/dev");
/** Beside the folder, which --reset removes. */
const LOCK = `${FOLDER}.lock`;
/** The world's settings as an operator's checkout has them, for his commands. */
const CHECKOUT = ".wrangler/dev/checkout";
const WATCHED = ["src", "durable-objects", "migrations", "wrangler.toml"];
const FIRST_PORT = 8787;
/** `fs.watch` loses a file that another one replaces, as editors, sed and git do: the few hundred files are looked at instead. */
const LOOK_MS = 500;
/** An editor writes a file in several steps, and a checkout many files. */
const SETTLE_MS = 150;
const SAVE_MS = 5_000;

enableCompileCache(join(ROOT, "node_modules/.cache/node"));
const options = readOptions();
const narrator = makeNarrator();
const { say } = narrator;
const holder = takeLock(LOCK);
if (holder !== undefined) {
  console.error(
    `npm run dev runs in this checkout already: end process ${holder} first, or remove ${LOCK} if that is another program`,
  );
  process.exit(2);
}
let starting: Promise<World> | undefined;
let stopping: Promise<void> | undefined;
onSignals(() => void stop(0));
// Whoever started us may be killed without a word: an orphan ends as well.
const parent = process.ppid;
setInterval(() => process.ppid !== parent && void stop(0), 1_000).unref();

try {
  const ports = await claimPorts(options.port);
  say(options.reset ? "beginning another world" : `the world of ${FOLDER}: half a minute the first time, then seconds`);
  narrator.begin("loading the local world");
  const sources = await stateOfSources();
  const [{ startWorld, workerVariables }, { openKept }, { printChecks, printGuide }, { writeCheckout }] =
    await Promise.all([import("./world.ts"), import("./kept.ts"), import("./guide.ts"), import("./checkout.ts")]);
  const kept = await openKept(FOLDER, options.reset);
  starting = startWorld({
    ports,
    kept,
    onLine: (line) => {
      const text = readable(line);
      if (text !== undefined) console.log(text);
    },
    tell: (done, next) => {
      say(done);
      narrator.begin(next);
    },
  });
  const world = await starting;
  narrator.begin(undefined);
  await writeCheckout(join(ROOT, CHECKOUT), workerVariables(world, world.url, kept.state.dataKey), {
    databaseId: "local",
  });
  printGuide(world);
  printChecks(world, CHECKOUT);
  setInterval(() => world.keep(), SAVE_MS).unref();
  say(`watching ${WATCHED.join(", ")}`);
  await followSources(world, sources);
} catch (error) {
  if (stopping === undefined) console.error(color("red", `failed: ${tellError(error)}`));
  await stop(1);
}

/** Reloads after each change, one reload at a time. */
async function followSources(world: World, started: string): Promise<void> {
  for (let seen = started; stopping === undefined; await wait(LOOK_MS)) {
    if ((await stateOfSources()) === seen) continue;
    await wait(SETTLE_MS);
    // Before the build reads them: what changes meanwhile is another change.
    seen = await stateOfSources();
    await reload(world);
  }
}

async function reload(world: World): Promise<void> {
  if (stopping !== undefined) return;
  narrator.begin("building the Workers");
  try {
    const from = performance.now();
    if (await world.reload()) say(color("green", `reloaded in ${((performance.now() - from) / 1_000).toFixed(1)} s`));
    else say("the Workers run these sources already");
  } catch (error) {
    if (stopping === undefined) console.error(color("red", `not reloaded: ${tellError(error)}`));
  }
  narrator.begin(undefined);
}

/** Differs where a source was written, came or went. */
async function stateOfSources(): Promise<string> {
  const stateOf = async (file: string) => {
    const { mtimeMs, size, ino } = await stat(file);
    return [file, mtimeMs, size, ino].join();
  };
  try {
    return (await Promise.all((await sourceFiles(WATCHED)).map(stateOf))).join("\n");
  } catch (error) {
    // A file that goes between two looks at it.
    return String(error);
  }
}

/** Ends everything and the process; the world is saved. */
function stop(code: number): Promise<void> {
  stopping ??= (async () => {
    if (code === 0) say("saving the world and stopping everything");
    narrator.stop();
    // Nobody waits for a build any more.
    if (starting !== undefined) (await import("./bare-workers.ts")).endBuilds();
    // A start that failed was told.
    const world = await starting?.catch(() => undefined);
    await world?.stop().catch((error: unknown) => console.error(color("red", `while stopping: ${tellError(error)}`)));
    process.exit(code);
  })();
  return stopping;
}

function readOptions() {
  try {
    const { values } = parseArgs({
      options: {
        port: { type: "string", default: String(FIRST_PORT) },
        reset: { type: "boolean", default: false },
        help: { type: "boolean" },
      },
    });
    if (values.help) {
      console.log(USAGE);
      process.exit(0);
    }
    const port = Number(values.port);
    if (!/^\d{4,5}$/.test(values.port) || port < 1_024 || port > 65_000)
      throw new Error(`--port takes a number from 1024 to 65000, not "${values.port}"`);
    return { port, reset: values.reset };
  } catch (error) {
    console.error(`${error instanceof Error ? error.message : error}\n${USAGE}`);
    process.exit(2);
  }
}
