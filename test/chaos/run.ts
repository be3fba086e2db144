// `npm run chaos`: purchases while everything breaks, then calm; in the end each has its machine or its money back.
// test/README.md, "Chaos", describes it. Exits 1 and names what is wrong where anything is.
import { mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { InvalidArgumentError, program } from "commander";
import { createRandom } from "../sim/random.ts";
import { type Parts, startParts } from "../world/world.ts";
import { drawPlan, type Happening } from "./plan.ts";
import { judge, type Verdict } from "./verdict.ts";
import { openWallets, type Wallets } from "./wallets.ts";
import { prepareWorkers, type Workers } from "./workers.ts";

/** Two epochs below the head history is final; reorgs stay above. */
const EPOCH_BLOCKS = 4;
const BLOW_SECONDS = 20;
const SHOWN_LOG_LINES = 8;
/** Longer than the scan's lease: under that of each dead one nobody would scan, and no fault would meet a call. */
const OUTAGE_SECONDS = 60;
/** For what is under way when the deadline comes. */
const LAST_SECONDS = 30;

type Options = {
  seed: number;
  purchases: number;
  seconds: number;
  kills?: number;
  reorgs?: number;
  outage: number;
  deadline: number;
};

program
  .name("npm run chaos --")
  .description("Buys machines while Workers are killed, vendors and nodes fail and blocks are taken back.")
  .option("--seed <number>", "draws the same blows again", count, Math.floor(Math.random() * 1e9))
  .option("--purchases <number>", "how many", count, 100)
  .option("--seconds <number>", "how long it blows", count, 240)
  .option("--kills <number>", "default: one in twenty seconds", count)
  .option("--reorgs <number>", "default: one in twenty seconds", count)
  .option(
    "--outage <seconds>",
    "how much longer than real time they seem to be down for after a kill",
    count,
    OUTAGE_SECONDS,
  )
  .option("--deadline <seconds>", "for everything", count, 900)
  .action(async (options: Options) => {
    process.exitCode = await run(options);
  });
await program.parseAsync();
process.exit();

async function run(options: Options): Promise<number> {
  const { seed, purchases, seconds, outage, deadline } = options;
  const blows = Math.round(seconds / BLOW_SECONDS);
  const { kills = blows, reorgs = blows } = options;
  const began = Date.now();
  const say = (text: string) => console.log(`${((Date.now() - began) / 1_000).toFixed(1).padStart(6)} s  ${text}`);
  say(`seed ${seed}: ${purchases} purchases, ${kills} kills and ${reorgs} reorgs in ${seconds} s`);

  const random = createRandom(seed);
  const plan = drawPlan(random, { purchases, seconds, kills, reorgs });
  const folder = await mkdtemp(join(tmpdir(), "clawcloud-chaos-"));
  const ends: (() => Promise<unknown>)[] = [];
  let stopping: Promise<void> | undefined;
  const stop = () => {
    stopping ??= (async () => {
      for (const end of ends.reverse()) await end();
    })();
    return stopping;
  };
  for (const signal of ["SIGINT", "SIGTERM"] as const) {
    process.once(signal, () => void stop().finally(() => process.exit(130)));
  }
  // Whatever hangs, nothing lasts longer.
  const overdue = () => {
    console.error("it did not come to its end in time");
    void stop();
    setTimeout(() => process.exit(1), LAST_SECONDS * 1_000);
  };
  setTimeout(overdue, (deadline + LAST_SECONDS) * 1_000).unref();

  try {
    const parts = await startParts({
      chain: { epochBlocks: EPOCH_BLOCKS },
      vultr: { requestsPerSecond: 30 },
      runpod: { requestsPerMinute: 1_200 },
    });
    ends.push(parts.stop);
    const workers = await prepareWorkers(parts, folder, outage);
    ends.push(workers.kill);
    const [wallets] = await Promise.all([openWallets(parts.chain, random), workers.start()]);
    ends.push(wallets.close);
    say("the world is up; it begins to blow");

    const { restarts } = await blow(plan, { parts, workers, wallets });
    parts.vultr.server.clearFaults();
    parts.runpod.server.clearFaults();
    parts.proxy.setFaults();
    say("calm; waiting until every purchase has its end");
    const until = began + deadline * 1_000;
    await wallets.settle(until);
    const verdict = await judge({ parts, workers, expected: purchases, until, say });
    printSummary(verdict, { parts, wallets, restarts, seconds: (Date.now() - began) / 1_000 });
    if (verdict.wrong.length > 0) printWrong(verdict, workers, seed);
    await stop();
    if (verdict.wrong.length === 0) await rm(folder, { recursive: true, force: true });
    else console.log(`the Workers' log and state are kept in ${folder}`);
    return verdict.wrong.length === 0 ? 0 : 1;
  } catch (error) {
    console.error(error);
    await stop();
    console.log(`what there is of the Workers' log and state is kept in ${folder}`);
    return 1;
  }
}

type Scene = { parts: Parts; workers: Workers; wallets: Wallets };

/** Lets everything happen at its time. Kills and reorgs wait for the one before; nothing else waits for anything. */
async function blow(plan: readonly Happening[], { parts, workers, wallets }: Scene): Promise<{ restarts: number }> {
  const began = Date.now();
  let restarts = 0;
  let kills: Promise<void> = Promise.resolve();
  let reorgs: Promise<void> = Promise.resolve();
  const buys: Promise<void>[] = [];
  // What fails before all are awaited must not end the process, which has others to end: an interrupt makes them fail.
  const keep = (promise: Promise<void>) => {
    promise.catch(() => undefined);
    return promise;
  };
  for (const one of plan) {
    await wait(began + one.atMs - Date.now());
    if (one.kind === "purchase") buys.push(keep(wallets.buy(one.agent, one.tier)));
    else if (one.kind === "reorg") reorgs = keep(reorgs.then(() => wallets.reorg(one.depth, one.kept)));
    else if (one.kind === "kill") {
      const kill = async () => {
        await workers.kill();
        await wait(one.downMs);
        await workers.start();
        restarts += 1;
      };
      kills = keep(kills.then(kill));
    } else if (one.kind === "rpc") parts.proxy.setFaults(...one.faults);
    else {
      const { server } = parts[one.vendor];
      server.clearFaults();
      for (const fault of one.faults) server.addFault(fault);
    }
  }
  await Promise.all([kills, reorgs, ...buys]);
  return { restarts };
}

type Figures = { parts: Parts; wallets: Wallets; restarts: number; seconds: number };

function printSummary(verdict: Verdict, { parts, wallets, restarts, seconds }: Figures): void {
  const { counts } = wallets;
  const met = new Map(parts.vultr.server.met);
  for (const [kind, times] of parts.runpod.server.met) met.set(kind, (met.get(kind) ?? 0) + times);
  const faults = [...met].sort(([a], [b]) => a.localeCompare(b)).map(([kind, times]) => `${kind} ${times}`);
  const lines: [string, string | number][] = [
    ["purchases that stand", verdict.sales.length],
    ["running, SSH answers", verdict.running],
    ["refunded on chain", verdict.refunded],
    ["orders at vendors", verdict.attempts],
    ["Workers killed and started again", restarts],
    ["reorgs", `${counts.reorgs} (${counts.blocks} blocks, ${counts.dropped} transactions dropped)`],
    ["purchases sent again, replaced", `${counts.resent}, ${counts.replaced}`],
    ["faults that met a call", faults.join(", ")],
    ["seconds", seconds.toFixed(0)],
  ];
  console.log(`\n${lines.map(([name, value]) => `${name.padEnd(34)}${value}`).join("\n")}`);
}

function printWrong({ wrong, sales }: Verdict, workers: Workers, seed: number): void {
  console.log(`\nwrong, with seed ${seed}:`);
  for (const text of wrong) {
    console.log(`- ${text}`);
    const tokenId = Number(/^token (\d+)/.exec(text)?.[1] ?? Number.NaN);
    const sale = sales.find((one) => one.tokenId === tokenId);
    if (sale === undefined) continue;
    const lines = workers.readLog(`"tokenId":${tokenId},`, `-${tokenId}-${sale.txHash.slice(2, 10)}-`, sale.txHash);
    for (const line of lines.slice(-SHOWN_LOG_LINES)) console.log(`    ${line}`);
  }
}

function count(text: string): number {
  if (!/^\d+$/.test(text)) throw new InvalidArgumentError("It has to be a whole number.");
  return Number(text);
}

function wait(ms: number): Promise<void> {
  return new Promise((resolve) => setTimeout(resolve, Math.max(0, ms)));
}
