// Bursts of purchases, from the first cron until all have a machine: what each takes and costs must not depend on how
// many there are. Both Workers as built for upload, real queues, one database; the vendor is fast (fast-vendors.ts), so
// what is measured is ours. Seconds depend on the machine, counts hardly.
import { secp256k1 } from "@noble/curves/secp256k1.js";
import { encodeFunctionData, type Hex, maxUint256, parseAbi } from "viem";
import { CONTRACT_ADDRESS, USDC_ADDRESS } from "../world/addresses.ts";
import { type BareWorkers, startBareWorkers } from "../world/bare-workers.ts";
import { type Chain, startChain } from "../world/chain.ts";
import { startFastVendors } from "./fast-vendors.ts";
import { printRows, tellOnChange } from "./figures.ts";
import type { Totals } from "./totals.ts";

const PURCHASES_PER_BLOCK = 200;
const TIERS = [4, 5, 6, 7];
const BLOCK_SECONDS = 2;
/** Every scan reads the last blocks again: the bill is complete when the burst is deeper. */
const DEEP_BLOCKS = 12;
/** One batch runs at a time here: a larger one stands for the consumers that run side by side at Cloudflare. */
const BATCH_SIZE = 100;
const LOOK_MS = 250;
const TIMEOUT_MS = 400_000;

const abi = parseAbi([
  "function approve(address spender, uint256 amount)",
  "function mint(address to, uint256 amount)",
  "function purchaseVM(uint8 tier, uint16 durationDays)",
]);

/** Prints seconds, purchases per second and the bill per purchase of each burst. */
export async function benchScale(bursts: readonly number[]): Promise<void> {
  const header = ["purchases", "seconds", "purchases/s", "D1 statements", "trips", "rows read", "rows written"];
  try {
    await printRows([...header, "messages", "RPC calls", "creates", "other vendor calls"], bursts, runBurst);
  } finally {
    console.log("\nseconds until all run; from the fourth column on per purchase, both Workers together");
  }
}

async function runBurst(purchases: number): Promise<string[]> {
  const [chain, vendors] = await Promise.all([startChain({ blockTimeSeconds: 0 }), startFastVendors()]);
  let workers: BareWorkers | undefined;
  let stopping = false;
  try {
    const lastBlock = await purchaseMany(chain, purchases);
    workers = await startWorkers(chain.url, vendors);
    const { miniflare } = workers;
    const edge = await miniflare.getWorker("edge");
    const began = Date.now();
    const tellCron = tellOnChange("a cron failed, the next one follows:");
    const crons = (async () => {
      while (!stopping) {
        await edge.scheduled({ cron: "* * * * *" }).catch(async (error: unknown) => {
          if (!stopping) tellCron(error);
          await wait(LOOK_MS);
        });
      }
    })();
    const seconds = (await untilAllRun(workers, purchases, began)) / 1_000;
    while (Number(await chain.reader.getBlockNumber()) < lastBlock + DEEP_BLOCKS) await wait(LOOK_MS);
    const spent = addUp(await Promise.all([totalsOf(workers, "edge"), totalsOf(workers, "provisioner")]));
    stopping = true;
    await crons;
    const { create, ...others } = vendors.calls;
    const otherCalls = Object.values(others).reduce((sum, calls) => sum + calls, 0);
    const each = (total: number) => (total / purchases).toFixed(2);
    return [
      String(purchases),
      seconds.toFixed(1),
      (purchases / seconds).toFixed(1),
      each(spent.statements),
      each(spent.roundTrips),
      each(spent.rowsRead),
      each(spent.rowsWritten),
      each(spent.messagesSent),
      each(spent.rpcCalls),
      each(create),
      each(otherCalls),
    ];
  } finally {
    stopping = true;
    await workers?.stop();
    await vendors.stop();
    await chain.stop();
  }
}

/** All of them mined before anybody looks, many to a block. Resolves with the last one's block. */
async function purchaseMany(chain: Chain, purchases: number): Promise<number> {
  const { node, agents, deployer } = chain;
  const [buyer] = agents;
  if (buyer === undefined) throw new Error("the chain has no accounts");
  const send = (from: Hex, to: Hex, data: Hex, gas: bigint) =>
    node.sendTransaction({ account: from, to, data, gas, chain: null });
  await node.setBalance({ address: buyer.address, value: 10n ** 24n });
  const mint = encodeFunctionData({ abi, functionName: "mint", args: [buyer.address, 10n ** 15n] });
  await send(deployer.address, USDC_ADDRESS, mint, 200_000n);
  const approve = encodeFunctionData({ abi, functionName: "approve", args: [CONTRACT_ADDRESS, maxUint256] });
  await send(buyer.address, USDC_ADDRESS, approve, 200_000n);
  await node.setAutomine(false);
  for (let done = 0; done < purchases; ) {
    const last = Math.min(purchases, done + PURCHASES_PER_BLOCK);
    for (; done < last; done++) {
      const args = [TIERS[done % TIERS.length] ?? 4, 1] as const;
      const data = encodeFunctionData({ abi, functionName: "purchaseVM", args });
      await send(buyer.address, CONTRACT_ADDRESS, data, 250_000n);
    }
    await node.mine({ blocks: 1 });
  }
  const lastBlock = Number(await chain.reader.getBlockNumber());
  // The block that confirms; then blocks come by themselves, since a chain that stands still is not believed.
  await node.mine({ blocks: 1 });
  await node.setIntervalMining({ interval: BLOCK_SECONDS });
  return lastBlock;
}

type Vendors = Awaited<ReturnType<typeof startFastVendors>>;

function startWorkers(chainUrl: string, { vultrUrl, runpodUrl }: Vendors): Promise<BareWorkers> {
  const dataKey = secp256k1.keygen();
  const shared = {
    DEPLOYMENT_ID: "bench",
    CHAIN_ID: "8453",
    CONTRACT_ADDRESS,
    RPC_URLS: chainUrl,
    PUBLIC_URLS: "https://api.example",
  };
  return startBareWorkers([
    {
      name: "edge",
      config: "wrangler.toml",
      entry: "test/bench/scale-edge.ts",
      variables: {
        ...shared,
        START_BLOCK: "0",
        SCAN_RUN_SECONDS: "10",
        DATA_PRIVATE_KEY: Buffer.from(dataKey.secretKey).toString("hex"),
      },
      objects: { IP_GUARD: { className: "IpGuard" }, LOG_BOOK: { className: "LogBook" } },
    },
    {
      name: "provisioner",
      config: "src/provisioner/wrangler.toml",
      entry: "test/bench/scale-provisioner.ts",
      variables: {
        ...shared,
        DATA_PUBLIC_KEY: Buffer.from(dataKey.publicKey).toString("hex"),
        REFUNDS: "manual",
        SSH_KEY_ALGORITHM: "ed25519",
        VULTR_API_KEY: "none",
        VULTR_API_URL: vultrUrl,
        RUNPOD_API_KEY: "bench",
        RUNPOD_API_URL: runpodUrl,
        RUNPOD_REQUESTS_PER_MINUTE: "1000000",
        LOW_VULTR_USD: "0",
        LOW_RUNPOD_USD: "0",
      },
      objects: {
        VENDOR_GATE: { className: "VendorGate" },
        OPERATOR_WALLET: { className: "OperatorWallet" },
        LOG_BOOK: { className: "LogBook", of: "edge" },
      },
      consumes: true,
      batchSize: BATCH_SIZE,
    },
  ]);
}

/** Milliseconds from `began` to the last machine's start, by our own rows. */
async function untilAllRun({ database }: BareWorkers, purchases: number, began: number): Promise<number> {
  const tellRead = tellOnChange("how many run could not be read, and is read again:");
  const read = async (query: string) => (await database.prepare(query).first<{ value: number }>())?.value ?? 0;
  let running = 0;
  for (;;) {
    try {
      running = await read("SELECT value FROM counters WHERE name = 'published'");
      if (running === purchases) return (await read("SELECT MAX(running_at) AS value FROM vms")) - began;
    } catch (error) {
      tellRead(error);
    }
    if (Date.now() - began > TIMEOUT_MS) throw new Error(`${running} of ${purchases} machines run`);
    await wait(LOOK_MS);
  }
}

const wait = (ms: number) => new Promise((resolve) => setTimeout(resolve, ms));

const totalsOf = async (workers: BareWorkers, name: string): Promise<Totals> =>
  (await (await fetch(`${workers.url(name)}/totals`)).json()) as Totals;

function addUp(list: readonly Totals[]): Totals {
  const [first, ...rest] = list;
  if (first === undefined) throw new Error("there is nothing to add up");
  const sum = { ...first };
  for (const one of rest) for (const name of Object.keys(sum) as (keyof Totals)[]) sum[name] += one[name];
  return sum;
}
