// How fast a scan that starts from nothing catches up: from the cron's call until the rows are written and the queue has
// taken a job for each. Nothing consumes the queue.
import { type Abi, type Address, encodeFunctionData, type Hex } from "viem";
import { type BareLog, startBareWorkers } from "../world/bare-workers.ts";
import { artifacts, type Chain, startChain } from "../world/chain.ts";
import { type LogRequest, startRpcProxy } from "../world/rpc-proxy.ts";
import { inRounds, median, printRows } from "./figures.ts";

const PURCHASES_PER_BLOCK = 5;
/** One with purchases, the rest empty. */
const BLOCKS_PER_STEP = 5;
const TIMEOUT_MS = 120_000;

/** What a plan's node gives in one request for logs; undefined: whatever is asked for, and nothing counts the requests. */
const PLANS = [undefined, 2_000, 100, 10];
/** The most that the scan asks for by itself. */
const MAX_RANGE = 2_000;

/** Prints purchases per second of `rounds` scans over one history for each plan, each into a database of its own. */
export async function benchCatchUp(purchases: number, rounds: number): Promise<void> {
  const chain = await startChain({ blockTimeSeconds: 0 });
  const proxy = await startRpcProxy(chain.url);
  try {
    const [buyer] = chain.agents;
    if (buyer === undefined) throw new Error("the chain has no accounts");
    const contract = await deploySales(chain);
    const startBlock = Number(await chain.reader.getBlockNumber()) + 1;
    await purchaseMany(chain, contract, buyer.address, purchases);
    const blocks = Number(await chain.reader.getBlockNumber()) - startBlock + 1;
    const rate = (taken: number) => Math.round(purchases / taken);
    const header = ["blocks/request", "purchases", "blocks", "seconds", "purchases/s", "min-max"];
    await printRows([...header, "requests", "fewest", "ratio"], PLANS, async (plan) => {
      if (plan !== undefined) proxy.setFaults({ kind: "max_range", blocks: plan });
      const scans = await inRounds(rounds, () => {
        proxy.logRequests.length = 0;
        return scanAll(plan === undefined ? chain.url : proxy.url, contract, startBlock, purchases, () => [
          ...proxy.logRequests,
        ]);
      });
      const seconds = scans.map((scan) => scan.seconds);
      const requests = median(scans.map((scan) => scan.requests.length));
      const fewest = Math.ceil(blocks / Math.min(plan ?? MAX_RANGE, MAX_RANGE));
      return [
        plan ?? "any",
        purchases,
        blocks,
        median(seconds).toFixed(2),
        rate(median(seconds)),
        `${rate(Math.max(...seconds))}-${rate(Math.min(...seconds))}`,
        ...(plan === undefined ? ["-", fewest, "-"] : [requests, fewest, (requests / fewest).toFixed(2)]),
      ];
    });
  } finally {
    await proxy.stop();
    await chain.stop();
  }
}

const sales = artifacts.SalesHistory;

async function deploySales(chain: Chain): Promise<Address> {
  const wallet = chain.wallet(chain.deployer);
  const hash = await wallet.deployContract({ abi: sales.abi as Abi, bytecode: sales.bytecode as Hex });
  const { contractAddress } = await chain.reader.waitForTransactionReceipt({ hash });
  if (contractAddress == null) throw new Error("the contract was not deployed");
  return contractAddress;
}

async function purchaseMany(chain: Chain, contract: Address, buyer: Address, purchases: number): Promise<void> {
  await chain.node.setBalance({ address: buyer, value: 10n ** 24n });
  await chain.node.setAutomine(false);
  const data = encodeFunctionData({ abi: sales.abi as Abi, functionName: "purchaseVM", args: [0, 1] });
  for (let done = 0; done < purchases; done += PURCHASES_PER_BLOCK) {
    for (let i = 0; i < PURCHASES_PER_BLOCK; i++) {
      // The node signs: an account of its own costs a tenth of what a wallet here would.
      await chain.node.sendTransaction({ account: buyer, to: contract, data, gas: 200_000n, chain: null });
    }
    await chain.node.mine({ blocks: BLOCKS_PER_STEP });
  }
}

/** Seconds until all is queued, and the requests for logs that this took, as `requestsOf` has them. */
async function scanAll(
  rpcUrl: string,
  contract: Address,
  startBlock: number,
  purchases: number,
  requestsOf: () => LogRequest[],
): Promise<{ seconds: number; requests: LogRequest[] }> {
  let queued = 0;
  let finished: (at: number) => void = () => {};
  const end = new Promise<number>((resolve) => {
    finished = resolve;
  });
  const onLog = ({ message }: BareLog) => {
    const line = JSON.parse(message) as { time: string; level: string; event: string; purchases?: number };
    if (line.event === "scan_pass") queued += line.purchases ?? 0;
    if (queued >= purchases) finished(Date.parse(line.time));
  };
  const workers = await startBareWorkers(
    [
      {
        name: "edge",
        config: "wrangler.toml",
        variables: {
          DEPLOYMENT_ID: "bench",
          CHAIN_ID: "8453",
          CONTRACT_ADDRESS: contract,
          RPC_URLS: rpcUrl,
          START_BLOCK: String(startBlock),
          CONFIRMATIONS: "0",
          PUBLIC_URLS: "https://api.example",
          DATA_PRIVATE_KEY: "11".repeat(32),
        },
        objects: { IP_GUARD: { className: "IpGuard" }, LOG_BOOK: { className: "LogBook" } },
      },
    ],
    onLog,
  );
  try {
    const edge = await workers.miniflare.getWorker("edge");
    const began = Date.now();
    // It keeps polling for its minute; the bench has what it wants before.
    void edge.scheduled({ cron: "* * * * *" }).catch(() => undefined);
    const late = setTimeout(() => finished(Number.NaN), TIMEOUT_MS);
    const seconds = ((await end) - began) / 1_000;
    const requests = requestsOf();
    clearTimeout(late);
    const row = await workers.database.prepare("SELECT count(*) AS vms FROM vms").first<{ vms: number }>();
    if (Number.isNaN(seconds) || row?.vms !== purchases) {
      throw new Error(`the scan queued ${queued} and wrote ${row?.vms} of ${purchases} purchases`);
    }
    return { seconds, requests };
  } finally {
    await workers.stop();
  }
}
