// `npm run sim`: seeded runs on every core. The first that breaks a rule is printed with its seed, its history and the
// shortest history that breaks the same rule; the exit code is 1 then.
import { type ChildProcess, fork } from "node:child_process";
import { createHash } from "node:crypto";
import { appendFileSync, existsSync, readFileSync } from "node:fs";
import { availableParallelism } from "node:os";
import { program } from "commander";
import { KINDS, type Kind } from "./faults.ts";
import { OFTEN, PLANT_NAMES, type PlantName } from "./plants.ts";

type Tally = { runs: number; written: number; strikes: Record<string, number>; digest: string };
type Broken = { seed: number; rule: string; text: string; written: boolean; report: string };
type Message = { tally: Tally } | { broken: Broken } | { held: number };
type Options = {
  seed: number;
  runs: number;
  seeds?: number[];
  jobs: number;
  plant?: PlantName;
  often?: Kind[];
  goOn?: boolean;
  shrink: boolean;
  history?: boolean;
  digest?: boolean;
  tally?: string;
};
/** A line of the file that `--tally` names. */
type Slice = { first: number; runs: number; written: number; broken: { seed: number; rule: string }[] };

/** So many runs to a process: what a run leaves behind goes with it. */
const PIECE = 500;
/** Long searches say how far they are after so many. */
const PROGRESS = 1_000;

const number = (text: string): number => {
  const value = Number(text);
  if (!Number.isSafeInteger(value) || value < 0) program.error(`"${text}" is no whole number`);
  return value;
};

const kinds = (list: string): Kind[] => {
  const named = list.split(",");
  const unknown = named.find((name) => !Object.hasOwn(KINDS, name));
  if (unknown !== undefined) program.error(`there is no "${unknown}"; ${Object.keys(KINDS).join(", ")}`);
  return named as Kind[];
};

program
  .name("npm run sim --")
  .description("Runs the product against a model world, over and over, and checks what must always hold.")
  .option("--seed <number>", "of the first run", number, 1)
  .option("--runs <number>", "how many, each with the next seed", number, 1_000)
  .option("--seeds <list>", "play these seeds and report each; a broken rule does not stop the others", (list) =>
    list.split(",").map(number),
  )
  .option("--jobs <number>", "processes", number, availableParallelism())
  .option("--plant <bug>", `with a bug put in, to see it found: ${PLANT_NAMES.join(", ")}`)
  .option(
    "--often <list>",
    "what strikes in every run, at its most; for a bug that is put in, what it takes to be noticed",
    kinds,
  )
  .option("--go-on", "report each run that breaks a rule in a line, and play the others; a total by rule at the end")
  .option("--no-shrink", "don't look for the shortest history that breaks the rule")
  .option("--history", "print what happens in each run")
  .option("--tally <file>", "add this search to those of the file, and print the total of all: a long one in slices")
  .option("--digest", "print a digest of all histories: equal where everything repeated exactly")
  .parse();
const options = program.opts<Options>();
const { seed: first, seeds, jobs } = options;
const total = seeds?.length ?? options.runs;
const seedAt = (index: number): number => seeds?.[index] ?? first + index;
const write = process.stdout.write.bind(process.stdout);

if (options.tally !== undefined && process.send === undefined) {
  if (seeds !== undefined || options.plant !== undefined) program.error("a tally takes neither --seeds nor --plant");
  const overlap = slicesOf(options.tally).find((one) => one.first < first + total && first < one.first + one.runs);
  if (overlap !== undefined)
    program.error(`the tally has seeds ${overlap.first} to ${overlap.first + overlap.runs - 1}`);
  // A search that stops at its first find has no total.
  options.goOn = true;
}
if (process.send === undefined) await conduct();
else await play();

/** Each process plays a piece of the seeds and makes room for the next one. */
async function conduct(): Promise<void> {
  const began = performance.now();
  const tallies: Tally[] = [];
  const broken: Broken[] = [];
  const children = new Set<ChildProcess>();
  const size = Math.max(1, Math.min(PIECE, Math.ceil(total / jobs)));
  const sum = (of: (tally: Tally) => number) => tallies.reduce((all, tally) => all + of(tally), 0);
  let next = 0;
  let told = 0;
  const isOver = () => broken.length > 0 && options.goOn !== true && seeds === undefined;
  const stop = () => {
    for (const child of children) child.kill();
  };
  const report = (one: Broken) => {
    broken.push(one);
    process.exitCode = 1;
    write(
      options.goOn
        ? `Seed ${one.seed} breaks "${one.rule}"${one.written ? ", written" : ""}: ${one.text}\n`
        : one.report,
    );
    if (isOver()) stop();
  };
  const tell = () => {
    const runs = sum((tally) => tally.runs);
    if (total < 2 * PROGRESS || runs - told < PROGRESS) return;
    told = runs;
    const left = ((performance.now() - began) / 3_600_000 / runs) * (total - runs);
    write(`${runs} of ${total} runs, ${broken.length} broke a rule, ${left.toFixed(1)} h to go\n`);
  };
  const work = async () => {
    while (next < total && !isOver()) {
      const piece = next;
      next += size;
      const tally = await playPiece(piece, Math.min(total, piece + size), children, report);
      // It was ended, since another one has found something, or by whoever watches.
      if (tally === null) return;
      tallies[piece / size] = tally;
      tell();
    }
  };
  await Promise.all(Array.from({ length: jobs }, work));
  const seconds = ((performance.now() - began) / 1_000).toFixed(1);
  if (broken.length > 0 && options.goOn !== true) return;
  const runs = sum((tally) => tally.runs);
  const written = sum((tally) => tally.written);
  const outcome = broken.length === 0 ? "every rule held" : `${broken.length} broke a rule`;
  write(`${runs} runs in ${seconds} s, ${outcome}. What went wrong in them:\n`);
  const strikes = [...new Set(tallies.flatMap((tally) => Object.keys(tally.strikes)))].sort();
  for (const kind of strikes) write(`  ${kind} ${sum((tally) => tally.strikes[kind] ?? 0)}\n`);
  write(`In ${written} of them somebody wrote the database: there, coins alone were counted.\n`);
  const rules = Map.groupBy(broken, ({ rule }) => rule);
  for (const [rule, all] of rules) write(`"${rule}" ${all.length}: ${all.map(({ seed }) => seed).join(" ")}\n`);
  if (broken.length > 0) write(`${((broken.length / runs) * 10_000).toFixed(0)} of 10,000 worlds break a rule.\n`);
  if (options.digest) write(`digest ${tallies.map(({ digest }) => digest).join(" ")}\n`);
  if (options.tally)
    writeTotal(options.tally, { first, runs, written, broken: broken.map(({ seed, rule }) => ({ seed, rule })) });
}

function slicesOf(file: string): Slice[] {
  if (!existsSync(file)) return [];
  const lines = readFileSync(file, "utf8").trim().split("\n");
  return lines.map((line) => JSON.parse(line) as Slice);
}

/** A slice that was cut short counts as far as it got; a world counts once. */
function writeTotal(file: string, slice: Slice): void {
  appendFileSync(file, `${JSON.stringify(slice)}\n`);
  const slices = slicesOf(file);
  const sum = (of: (slice: Slice) => number) => slices.reduce((all, one) => all + of(one), 0);
  const runs = sum((one) => one.runs);
  const failed = slices.flatMap((one) => one.broken);
  const rate = ((failed.length / runs) * 10_000).toFixed(1);
  write(`Total of ${slices.length} slices: ${runs} worlds, ${sum((one) => one.written)} of them with somebody `);
  write(`who writes the database; ${failed.length} broke a rule, ${rate} of 10,000.\n`);
  for (const { seed, rule } of failed) write(`  seed ${seed}: "${rule}"\n`);
}

function playPiece(
  from: number,
  to: number,
  children: Set<ChildProcess>,
  report: (broken: Broken) => void,
): Promise<Tally | null> {
  const { execArgv, argv, env } = process;
  const child = fork(argv[1] ?? "", argv.slice(2), {
    execArgv,
    env: { ...env, SIM_PIECE: `${from} ${to}`, ...(options.plant === undefined ? {} : { SIM_PLANT: options.plant }) },
  });
  children.add(child);
  return new Promise((resolve) => {
    let tally: Tally | null = null;
    child.on("message", (message: Message) => {
      if ("tally" in message) tally = message.tally;
      else if ("held" in message) write(`Seed ${message.held}: every rule held.\n`);
      else report(message.broken);
    });
    child.on("exit", (code, signal) => {
      children.delete(child);
      if (code !== 0 && signal === null) process.exitCode = 1;
      resolve(tally);
    });
  });
}

async function play(): Promise<void> {
  const { install } = await import("./install.ts");
  const { runSeed } = await import("./world.ts");
  const { shrink } = await import("./shrink.ts");
  const { strikeOften } = await import("./faults.ts");
  strikeOften(options.often ?? (options.plant === undefined ? [] : (OFTEN[options.plant] ?? [])));
  install();
  const hash = createHash("sha256");
  const tally: Tally = { runs: 0, written: 0, strikes: {}, digest: "" };
  const [from = 0, to = 0] = (process.env["SIM_PIECE"] ?? "").split(" ").map(Number);
  for (let index = from; index < to; index++) {
    const seed = seedAt(index);
    const { violation, history, faults, written } = await runSeed(seed);
    tally.runs += 1;
    if (written) tally.written += 1;
    for (const { kind } of faults.drawn) tally.strikes[kind] = (tally.strikes[kind] ?? 0) + 1;
    hash.update(history.join("\n"));
    if (options.history) write(`seed ${seed}\n${history.join("\n")}\n\n`);
    if (violation === null) {
      if (seeds !== undefined) process.send?.({ held: seed });
      continue;
    }
    const report = [
      `Seed ${seed} breaks "${violation.rule}", after ${tally.runs} runs of this process: ${violation.text}`,
      history.join("\n"),
    ];
    if (options.shrink && options.goOn !== true) {
      const shortest = await shrink(seed, violation);
      report.push("The shortest history that breaks the same rule:", shortest.history.join("\n"));
    }
    process.send?.({ broken: { seed, ...violation, written, report: `${report.join("\n\n")}\n` } });
    if (seeds === undefined && options.goOn !== true) break;
  }
  process.send?.({ tally: { ...tally, digest: hash.digest("hex") } });
  process.disconnect();
}
