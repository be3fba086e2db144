// Our own share of the time from a purchase's block to `running`, in the whole local world with its real queue, under the
// settings of production. What the vendor needs to boot is known, since the simulator is told; what a key takes is in
// the provisioner's log. Both are subtracted and shown apart. The wait for the next block, which confirms, is ours.
import { encodeFunctionData, type Hex, parseAbi, parseEventLogs } from "viem";
import { CONTRACT_ADDRESS, USDC_ADDRESS } from "../world/addresses.ts";
import { startWorld, type World } from "../world/world.ts";
import { type Sight, watchBlocks } from "./blocks.ts";
import { median, missing, percentile, table, tellOnChange } from "./figures.ts";

const BASE_BLOCK_SECONDS = 2;
const VULTR_BOOT_MS = { active: 900, ok: 1_800, sshd: 2_400, configured: 3_200 };
const RUNPOD_BOOT_MS = { starting: 300, running: 1_500, sshd: 2_500 };
const TIMEOUT_MS = 240_000;

const abi = parseAbi([
  "function approve(address spender, uint256 amount)",
  "function purchaseVM(uint8 tier, uint16 durationDays)",
  "event Transfer(address indexed from, address indexed to, uint256 indexed tokenId)",
]);

export type Load = { name: string; tiers: readonly number[]; purchases: number; everyMs: number; bootMs: number };
/** What is known of one purchase; each field may be missing where something was slow or failed. */
export type Purchase = {
  tokenId?: number | undefined;
  block?: Sight | undefined;
  /** Unix milliseconds. */
  runningAt?: number | undefined;
  keyMs?: number | undefined;
};

const CPU = { tiers: [0, 1, 2, 3], bootMs: VULTR_BOOT_MS.configured };
const GPU = { tiers: [4, 5, 6, 7], bootMs: RUNPOD_BOOT_MS.sshd };

/** Prints p50, p95 and the most of our own seconds for each load; boot and key making beside them. */
export async function benchOverhead(purchases: number, gpus: number): Promise<void> {
  const paced = { ...CPU, name: `${purchases} CPU, one a second, rsa-4096`, purchases, everyMs: 1_000 };
  const burst = { ...CPU, name: `${purchases} CPU at once, ed25519`, purchases, everyMs: 0 };
  const pods = { ...GPU, name: `${gpus} GPU at once, ed25519, 60 requests/min`, purchases: gpus, everyMs: 0 };
  const missed: string[] = [];
  const worlds = [
    { algorithm: "rsa-4096", loads: [paced] },
    { algorithm: "ed25519", loads: [burst, pods] },
  ];
  const failures: unknown[] = [];
  const rows: string[][] = [];
  for (const { algorithm, loads } of worlds) {
    try {
      await inWorld(algorithm, async (world, blocks) => {
        for (const load of loads) {
          const bought = await run(world, blocks, load).catch((error: unknown) => {
            failures.push(error);
            return [];
          });
          const figures = summarize(load, bought);
          rows.push(figures.row);
          missed.push(...figures.missed);
        }
      });
    } catch (error) {
      failures.push(error);
    }
  }
  console.log(table(HEADER, rows));
  for (const line of missed) console.log(line);
  if (failures.length > 0) throw new AggregateError(failures, "not every load was measured");
}

const HEADER = ["load", "own p50 s", "p95", "max", "key p50 s", "max", "boot s", "block to running p95 s"];
const seconds = (ms: number): string => (Number.isFinite(ms) ? (ms / 1_000).toFixed(1) : "-");

/** The row of a load from those purchases of which enough is known, and what is not known of the others. */
export function summarize(load: Load, purchases: readonly Purchase[]): { row: string[]; missed: string[] } {
  const without = (field: keyof Purchase) => purchases.filter((one) => one[field] === undefined).length;
  const keys = purchases.flatMap(({ keyMs }) => (keyMs === undefined ? [] : [keyMs]));
  const totals = purchases.flatMap(({ block, runningAt, keyMs }) =>
    block === undefined || runningAt === undefined ? [] : [{ total: runningAt - block.at, keyMs }],
  );
  const own = totals.flatMap(({ total, keyMs }) => (keyMs === undefined ? [] : [total - keyMs - load.bootMs]));
  const late = purchases.filter(({ block }) => block?.late === true).length;
  const missed = [
    ...missing(load.purchases - purchases.length, load.purchases, "not sent"),
    ...missing(without("tokenId"), load.purchases, "without a token"),
    ...missing(without("block"), load.purchases, "without a block time"),
    ...missing(late, load.purchases, "with a block that was seen late: their times are too long, if anything"),
    ...missing(without("runningAt"), load.purchases, "without a machine"),
    ...missing(without("keyMs"), load.purchases, "without the time of their key"),
  ];
  const row = [
    load.name,
    seconds(median(own)),
    seconds(percentile(own, 0.95)),
    seconds(Math.max(...own)),
    seconds(median(keys)),
    seconds(Math.max(...keys)),
    seconds(load.bootMs),
    seconds(
      percentile(
        totals.map(({ total }) => total),
        0.95,
      ),
    ),
  ];
  return { row, missed: missed.map((line) => `${load.name}: ${line}`) };
}

type Blocks = ReturnType<typeof watchBlocks>;

async function inWorld(algorithm: string, work: (world: World, blocks: Blocks) => Promise<void>): Promise<void> {
  const world = await startWorld({
    chain: { blockTimeSeconds: BASE_BLOCK_SECONDS },
    vultr: { bootMs: VULTR_BOOT_MS },
    runpod: { bootMs: RUNPOD_BOOT_MS },
    edge: { SWEEP_INTERVAL_SECONDS: "30", CATALOG_SECONDS: "120" },
    provisioner: {
      SSH_KEY_ALGORITHM: algorithm,
      POLL_SECONDS: "2",
      VENDOR_TIMEOUT_MS: "30000",
      LISTING_LAG_MS: "30000",
      BOOT_TIMEOUT_SECONDS: "600",
    },
  });
  const blocks = watchBlocks(world.chain);
  try {
    await work(world, blocks);
  } finally {
    await blocks.stop();
    await world.stop();
  }
}

async function run(world: World, blocks: Blocks, load: Load): Promise<Purchase[]> {
  const { chain } = world;
  const send = (from: Hex, to: Hex, data: Hex): Promise<Hex> =>
    chain.node.sendTransaction({ account: from, to, data, gas: 400_000n, chain: null });
  const approve = encodeFunctionData({ abi, functionName: "approve", args: [CONTRACT_ADDRESS, 2n ** 255n] });
  for (const agent of chain.agents) {
    await chain.reader.waitForTransactionReceipt({ hash: await send(agent.address, USDC_ADDRESS, approve) });
  }
  const hashes: Hex[] = [];
  for (let count = 0; count < load.purchases; count++) {
    const began = Date.now();
    const from = chain.agents[count % chain.agents.length]?.address ?? "0x";
    const tier = load.tiers[count % load.tiers.length] ?? 0;
    const data = encodeFunctionData({ abi, functionName: "purchaseVM", args: [tier, 1] });
    await send(from, CONTRACT_ADDRESS, data).then((hash) => hashes.push(hash), tellLeftOut);
    await wait(load.everyMs - (Date.now() - began));
  }
  const purchases: Purchase[] = [];
  for (const hash of hashes) {
    const found = await lookUp(world, blocks, hash).catch(tellLeftOut);
    purchases.push(found ?? {});
  }
  const bought = purchases.flatMap(({ tokenId }) => (tokenId === undefined ? [] : [tokenId]));
  const runningAt = await waitUntilRunning(world, bought);
  const keyMs = keyTimes(world);
  return purchases.map((one) =>
    one.tokenId === undefined ? one : { ...one, runningAt: runningAt.get(one.tokenId), keyMs: keyMs.get(one.tokenId) },
  );
}

const tellLeftOut = (error: unknown): void => console.error("a purchase is left out:", error);

async function lookUp({ chain }: World, blocks: Blocks, hash: Hex): Promise<Purchase> {
  const receipt = await chain.reader.waitForTransactionReceipt({ hash });
  const [minted] = parseEventLogs({ abi, eventName: "Transfer", logs: receipt.logs }).filter(
    (entry) => entry.address.toLowerCase() === CONTRACT_ADDRESS.toLowerCase(),
  );
  const block = await blocks.sightOf(Number(receipt.blockNumber));
  return { tokenId: minted === undefined ? undefined : Number(minted.args.tokenId), block };
}

/** When each machine began to run; those that do not in time are left out. */
async function waitUntilRunning(world: World, tokens: readonly number[]): Promise<Map<number, number>> {
  const until = Date.now() + TIMEOUT_MS;
  const tellRead = tellOnChange("which machines run could not be read, and is read again:");
  let known: { token_id: number; running_at: number }[] = [];
  for (;;) {
    const { results } = await world.workers.database
      .prepare(
        "SELECT token_id, running_at FROM vms WHERE status = 'running' AND token_id IN (SELECT value FROM json_each(?))",
      )
      .bind(JSON.stringify(tokens))
      .all<{ token_id: number; running_at: number }>()
      .catch((error: unknown) => {
        tellRead(error);
        // What the last read has shown still counts.
        return { results: known };
      });
    known = results;
    if (known.length === tokens.length || Date.now() > until)
      return new Map(known.map((row) => [row.token_id, row.running_at]));
    await wait(1_000);
  }
}

/** What the provisioner's log says each token's key took. */
function keyTimes({ lines }: World): Map<number, number> {
  const told = lines.filter((line) => line.includes('"ssh_key_made"'));
  return new Map(
    told.map((line) => {
      const { tokenId, ms } = JSON.parse(line) as { tokenId: number; ms: number };
      return [tokenId, ms];
    }),
  );
}

const wait = (ms: number) => new Promise((resolve) => setTimeout(resolve, Math.max(0, ms)));
