// `npm run sim`: seeded runs on every core. The first that breaks a rule is printed with its seed, its history and the
// shortest history that breaks the same rule; the exit code is 1 then.
import { fork } from "node:child_process";
import { createHash } from "node:crypto";
import { availableParallelism } from "node:os";
import { program } from "commander";
import { PLANT_NAMES } from "./plants.ts";

type Tally = { runs: number; strikes: Record<string, number>; digest: string };
type Message = { tally: Tally } | { broken: string };
type Options = { seed: number; runs: number; jobs: number; plant?: string; history?: boolean; digest?: boolean };

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
  .option("--jobs <number>", "processes", number, availableParallelism())
  .option("--plant <bug>", `with a bug put in, to see it found: ${PLANT_NAMES.join(", ")}`)
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
        write(message.broken);
        process.exitCode = 1;
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
  for (let seed = options.seed + job; seed < options.seed + options.runs; seed += options.jobs) {
    const { violation, history, faults } = await runSeed(seed);
    tally.runs += 1;
    for (const { kind } of faults.drawn) tally.strikes[kind] = (tally.strikes[kind] ?? 0) + 1;
    hash.update(history.join("\n"));
    if (options.history) write(`seed ${seed}\n${history.join("\n")}\n\n`);
    if (violation === null) continue;
    const shortest = await shrink(seed, violation);
    const report = [
      `Seed ${seed} breaks "${violation.rule}", after ${tally.runs} runs of this process: ${violation.text}`,
      history.join("\n"),
      "The shortest history that breaks the same rule:",
      shortest.history.join("\n"),
    ];
    process.send?.({ broken: `${report.join("\n\n")}\n` });
    return;
  }
  process.send?.({ tally: { ...tally, digest: hash.digest("hex") } });
  process.disconnect();
}
