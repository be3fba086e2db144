// Our own share of the time from a purchase's block to `running`, in the whole local world with its real queue, under the
// settings of production. What the vendor needs to boot is known, since the simulator is told; what a key takes is in
// the provisioner's log. Both are subtracted and shown apart. The wait for the next block, which confirms, is ours.
import { encodeFunctionData, type Hex, parseAbi, parseEventLogs } from "viem";
import { CONTRACT_ADDRESS, USDC_ADDRESS } from "../world/addresses.ts";
import type { Chain } from "../world/chain.ts";
import { startWorld, type World } from "../world/world.ts";
import { median, percentile, table } from "./figures.ts";

const BASE_BLOCK_SECONDS = 2;
const VULTR_BOOT_MS = { active: 900, ok: 1_800, sshd: 2_400, configured: 3_200 };
const RUNPOD_BOOT_MS = { starting: 300, running: 1_500, sshd: 2_500 };
const TIMEOUT_MS = 240_000;

const abi = parseAbi([
  "function approve(address spender, uint256 amount)",
  "function purchaseVM(uint8 tier, uint16 durationDays)",
  "event Transfer(address indexed from, address indexed to, uint256 indexed tokenId)",
]);

type Load = { name: string; tiers: readonly number[]; purchases: number; everyMs: number; bootMs: number };
type Measured = { totalMs: number; keyMs: number; ownMs: number };

const CPU = { tiers: [0, 1, 2, 3], bootMs: VULTR_BOOT_MS.configured };
const GPU = { tiers: [4, 5, 6, 7], bootMs: RUNPOD_BOOT_MS.sshd };

/** Prints p50, p95 and the most of our own seconds for each load; boot and key making beside them. */
export async function benchOverhead(purchases: number, gpus: number): Promise<void> {
  const paced = { ...CPU, name: `${purchases} CPU, one a second, rsa-4096`, purchases, everyMs: 1_000 };
  const burst = { ...CPU, name: `${purchases} CPU at once, ed25519`, purchases, everyMs: 0 };
  const pods = { ...GPU, name: `${gpus} GPU at once, ed25519, 60 requests/min`, purchases: gpus, everyMs: 0 };
  const rows = [...(await inWorld("rsa-4096", [paced])), ...(await inWorld("ed25519", [burst, pods]))];
  console.log(table(["load", "own p50 s", "p95", "max", "key p50 s", "max", "boot s", "block to running p95 s"], rows));
}

async function inWorld(algorithm: string, loads: readonly Load[]): Promise<string[][]> {
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
    const rows: string[][] = [];
    for (const load of loads) {
      const measured = await run(world, blocks.seenAt, load);
      const seconds = (ms: number) => (ms / 1_000).toFixed(1);
      const of = (field: keyof Measured) => measured.map((one) => one[field]);
      rows.push([
        load.name,
        seconds(median(of("ownMs"))),
        seconds(percentile(of("ownMs"), 0.95)),
        seconds(Math.max(...of("ownMs"))),
        seconds(median(of("keyMs"))),
        seconds(Math.max(...of("keyMs"))),
        seconds(load.bootMs),
        seconds(percentile(of("totalMs"), 0.95)),
      ]);
    }
    return rows;
  } finally {
    blocks.stop();
    await world.stop();
  }
}

/** When each block was first seen here: its own timestamp has whole seconds. */
function watchBlocks(chain: Chain) {
  const seenAt = new Map<number, number>();
  const timer = setInterval(() => {
    void chain.reader.getBlockNumber({ cacheTime: 0 }).then(
      (number) => seenAt.has(Number(number)) || seenAt.set(Number(number), Date.now()),
      () => undefined,
    );
  }, 25);
  return { seenAt, stop: () => clearInterval(timer) };
}

async function run(world: World, seenAt: ReadonlyMap<number, number>, load: Load): Promise<Measured[]> {
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
    hashes.push(
      await send(from, CONTRACT_ADDRESS, encodeFunctionData({ abi, functionName: "purchaseVM", args: [tier, 1] })),
    );
    await wait(load.everyMs - (Date.now() - began));
  }
  const minedAt = new Map<number, number>();
  for (const hash of hashes) {
    const receipt = await chain.reader.waitForTransactionReceipt({ hash });
    const [minted] = parseEventLogs({ abi, eventName: "Transfer", logs: receipt.logs }).filter(
      (entry) => entry.address.toLowerCase() === CONTRACT_ADDRESS.toLowerCase(),
    );
    const at = seenAt.get(Number(receipt.blockNumber));
    if (minted === undefined || at === undefined) throw new Error(`the purchase ${hash} has no token or no block`);
    minedAt.set(Number(minted.args.tokenId), at);
  }
  const runningAt = await waitUntilRunning(world, [...minedAt.keys()]);
  const keyMs = keyTimes(world);
  return [...minedAt].map(([tokenId, from]) => {
    const totalMs = (runningAt.get(tokenId) ?? Number.NaN) - from;
    const key = keyMs.get(tokenId) ?? Number.NaN;
    return { totalMs, keyMs: key, ownMs: totalMs - key - load.bootMs };
  });
}

async function waitUntilRunning(world: World, tokens: readonly number[]): Promise<Map<number, number>> {
  const { DB } = await world.workers.getWorker<{ DB: D1Database }>("clawcloud-edge").getEnv();
  const until = Date.now() + TIMEOUT_MS;
  for (;;) {
    const { results } = await DB.prepare(
      "SELECT token_id, running_at FROM vms WHERE status = 'running' AND token_id IN (SELECT value FROM json_each(?))",
    )
      .bind(JSON.stringify(tokens))
      .all<{ token_id: number; running_at: number }>();
    if (results.length === tokens.length) return new Map(results.map((row) => [row.token_id, row.running_at]));
    if (Date.now() > until) throw new Error(`${results.length} of ${tokens.length} machines run`);
    await wait(1_000);
  }
}

/** What the provisioner's log says each token's key took. */
function keyTimes(world: World): Map<number, number> {
  const all = world.workers.getLogs().flatMap(({ message }) => message.split("\n"));
  const lines = all.filter((line) => line.includes('"ssh_key_made"'));
  return new Map(
    lines.map((line) => {
      const { tokenId, ms } = JSON.parse(line) as { tokenId: number; ms: number };
      return [tokenId, ms];
    }),
  );
}

const wait = (ms: number) => new Promise((resolve) => setTimeout(resolve, Math.max(0, ms)));
