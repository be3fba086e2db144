// `npm run sim`: seeded runs on every core. The first that breaks a rule is printed with its seed, its history and the
// shortest history that breaks the same rule; the exit code is 1 then.
import { fork } from "node:child_process";
import { createHash } from "node:crypto";
import { availableParallelism } from "node:os";
import { program } from "commander";
import { PLANT_NAMES } from "./plants.ts";

type Tally = { runs: number; strikes: Record<string, number>; digest: string };
type Message = { tally: Tally } | { broken: string } | { held: number };
type Options = {
  seed: number;
  runs: number;
  seeds?: number[];
  jobs: number;
  plant?: string;
  shrink: boolean;
  history?: boolean;
  digest?: boolean;
};

const number = (text: string): number => {
  const value = Number(text);
  if (!Number.isSafeInteger(value) || value < 0) program.error(`"${text}" is no whole number`);
  return value;
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
  .option("--no-shrink", "don't look for the shortest history that breaks the rule")
  .option("--history", "print what happens in each run")
  .option("--digest", "print a digest of all histories: equal where everything repeated exactly")
  .parse();
const options = program.opts<Options>();
const write = process.stdout.write.bind(process.stdout);

if (process.send === undefined) await conduct();
else await play();

/** One process for each job: each plays every so-manieth seed. */
async function conduct(): Promise<void> {
  const began = performance.now();
  const children = Array.from({ length: options.jobs }, (_, job) => {
    const { execArgv, argv, env } = process;
    const child = fork(argv[1] ?? "", argv.slice(2), {
      execArgv,
      env: { ...env, SIM_JOB: String(job), ...(options.plant === undefined ? {} : { SIM_PLANT: options.plant }) },
    });
    const ended = new Promise<Tally | null>((resolve) => {
      child.on("message", (message: Message) => {
        if ("tally" in message) return resolve(message.tally);
        if ("held" in message) return write(`Seed ${message.held}: every rule held.\n`);
        write(message.broken);
        process.exitCode = 1;
        if (options.seeds !== undefined) return;
        for (const other of children) other.child.kill();
      });
      child.on("exit", (code, signal) => {
        if (code !== 0 && signal === null) process.exitCode = 1;
        resolve(null);
      });
    });
    return { child, ended };
  });
  const tallies = (await Promise.all(children.map(({ ended }) => ended))).filter((one) => one !== null);
  const sum = (of: (tally: Tally) => number) => tallies.reduce((total, tally) => total + of(tally), 0);
  if (process.exitCode === 1) return;
  const strikes = [...new Set(tallies.flatMap((tally) => Object.keys(tally.strikes)))].sort();
  const seconds = ((performance.now() - began) / 1_000).toFixed(1);
  write(`${sum((tally) => tally.runs)} runs in ${seconds} s, every rule held. What went wrong in them:\n`);
  for (const kind of strikes) write(`  ${kind} ${sum((tally) => tally.strikes[kind] ?? 0)}\n`);
  if (options.digest) write(`digest ${tallies.map(({ digest }) => digest).join(" ")}\n`);
}

async function play(): Promise<void> {
  const { install } = await import("./install.ts");
  const { runSeed } = await import("./world.ts");
  const { shrink } = await import("./shrink.ts");
  install();
  const hash = createHash("sha256");
  const tally: Tally = { runs: 0, strikes: {}, digest: "" };
  const job = Number(process.env["SIM_JOB"]);
  const { seed: first, runs, seeds = Array.from({ length: runs }, (_, i) => first + i) } = options;
  for (let i = job; i < seeds.length; i += options.jobs) {
    const seed = seeds[i] ?? 0;
    const { violation, history, faults } = await runSeed(seed);
    tally.runs += 1;
    for (const { kind } of faults.drawn) tally.strikes[kind] = (tally.strikes[kind] ?? 0) + 1;
    hash.update(history.join("\n"));
    if (options.history) write(`seed ${seed}\n${history.join("\n")}\n\n`);
    if (violation === null) {
      if (options.seeds !== undefined) process.send?.({ held: seed });
      continue;
    }
    const report = [
      `Seed ${seed} breaks "${violation.rule}", after ${tally.runs} runs of this process: ${violation.text}`,
      history.join("\n"),
    ];
    if (options.shrink) {
      const shortest = await shrink(seed, violation);
      report.push("The shortest history that breaks the same rule:", shortest.history.join("\n"));
    }
    process.send?.({ broken: `${report.join("\n\n")}\n` });
    if (options.seeds === undefined) return;
  }
  process.send?.({ tally: { ...tally, digest: hash.digest("hex") } });
  process.disconnect();
}
