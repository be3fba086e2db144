// A deployment of both Workers inside workerd for one test: a database of its own, its own name at the vendors, the real
// chain and vendors of `parts.ts`. The queue is a list that the test drains itself, so that every order of messages can
// be played; the real queue runs in the end-to-end tests.
import { type D1Migration, evictDurableObject, reset, runInDurableObject } from "cloudflare:test";
import { env } from "cloudflare:workers";
import { secp256k1 } from "@noble/curves/secp256k1.js";
import { bytesToHex, randomBytes } from "@noble/hashes/utils.js";
import {
  createPublicClient,
  createTestClient,
  createWalletClient,
  defineChain,
  encodeFunctionData,
  type Hex,
  http,
  parseAbi,
  publicActions,
  walletActions,
} from "viem";
import type { LocalAccount } from "viem/accounts";
import type { IpGuard } from "../../durable-objects/ip-guard.ts";
import type { OperatorWallet } from "../../durable-objects/operator-wallet.ts";
import { connectChain } from "../../src/chain/client.ts";
import { makeAdminKey } from "../../src/credentials/admin-key.ts";
import { keyRing } from "../../src/credentials/key-ring.ts";
import { openDatabase } from "../../src/db/client.ts";
import { publishDataKeys } from "../../src/db/data-keys.ts";
import { takeScanLease } from "../../src/db/scan.ts";
import { createApp } from "../../src/edge/app.ts";
import { edgeConfig } from "../../src/edge/config.ts";
import { scanPass, startCursor } from "../../src/edge/scan.ts";
import { enqueue, sweep } from "../../src/edge/sweep.ts";
import type { Job } from "../../src/model/jobs.ts";
import type { VendorName } from "../../src/model/stock.ts";
import { provisionerConfig } from "../../src/provisioner/config.ts";
import { type Context, createContext } from "../../src/provisioner/context.ts";
import { followMachine } from "../../src/provisioner/machines/run.ts";
import { followPayment } from "../../src/provisioner/payments/run.ts";
import { followRefund } from "../../src/provisioner/refunds/run.ts";
import { developmentAccount } from "../world/accounts.ts";
import { CONTRACT_ADDRESS, USDC_ADDRESS } from "../world/addresses.ts";
import { buy } from "../world/agent.ts";
import { Weather, weatheredDatabase } from "../world/bad-day.ts";
import type { FacilitatorFault } from "../world/facilitator.ts";
import type { LogRequest, RpcFault } from "../world/rpc-proxy.ts";
import type { Fault } from "../world/vendor-server.ts";
import { asInvocation, limitStatements } from "./meter.ts";
import type { PartsInfo } from "./parts.ts";

type TestBindings = {
  DB: D1Database;
  IP_GUARD: DurableObjectNamespace<IpGuard>;
  LOG_BOOK: DurableObjectNamespace;
  VENDOR_GATE: DurableObjectNamespace;
  OPERATOR_WALLET: DurableObjectNamespace<OperatorWallet>;
  MIGRATIONS: D1Migration[];
  PARTS: PartsInfo;
};
const bindings = env as unknown as TestBindings;
limitStatements(bindings.DB);
/** The chain and the vendors of this workerd. */
export const parts = bindings.PARTS;
/** How long a test waits for what comes by itself: a busy machine is slow. */
export const PATIENCE_MS = 20_000;
/** Delays of jobs are cut to this. */
const DELAY_MS = 15;

const agents = Array.from({ length: 5 }, (_, index) => developmentAccount(index));
export const operator = developmentAccount(8);
export const deployer = developmentAccount(9);
export const agent = (index: number): LocalAccount => {
  const account = agents[index];
  if (account === undefined) throw new Error(`there is no agent ${index}`);
  return account;
};

const chainDefinition = defineChain({
  id: 8453,
  name: "Base (local)",
  nativeCurrency: { name: "Ether", symbol: "ETH", decimals: 18 },
  rpcUrls: { default: { http: [parts.chainUrl] } },
});
// On a busy machine a few hundred blocks take anvil more than the ten seconds that a client waits by default.
const transport = http(parts.chainUrl, { retryCount: 0, timeout: 60_000 });
const clientOptions = { chain: chainDefinition, transport, pollingInterval: 20, cacheTime: 0 };

/** Some transactions are never mined. */
const SETTLED_MS = 2_000;

/** Until what was sent is mined: the node says that it has a transaction a moment before it mines it. */
async function settled(): Promise<void> {
  if (!(await node.getAutomine())) return;
  const end = Date.now() + SETTLED_MS;
  while ((await node.getTxpoolStatus()).pending > 0 && Date.now() < end)
    await new Promise((resolve) => setTimeout(resolve, 2));
}
const node = createTestClient({ mode: "anvil", ...clientOptions })
  .extend(publicActions)
  .extend(walletActions);
/** What a test looks at is there once it has been sent. */
const settledTransport: typeof transport = (options) => {
  const sent = transport(options);
  return {
    ...sent,
    request: async (body) => {
      if (LOOKS.has(body.method)) await settled();
      return sent.request(body);
    },
  } as typeof sent;
};
const LOOKS = new Set(["eth_call", "eth_getBalance"]);

/** The chain as a customer and as a test reach it. It mines on each transaction; `mine` adds empty blocks. */
export const chain = {
  reader: createPublicClient({ ...clientOptions, transport: settledTransport }),
  wallet: (account: LocalAccount) => createWalletClient({ ...clientOptions, account }),
  node,
  mine: (blocks = 1) => node.mine({ blocks }),
  settled,
  /** Takes the newest blocks away; what was in them waits again. */
  rollback: async (blocks: number) => {
    await chain.settled();
    await chain.node.request({ method: "anvil_rollback" as never, params: [blocks] as never });
  },
  /** What waits to be mined: whatever a test left there has the nonces of the next one. */
  dropAll: () => chain.node.request({ method: "anvil_dropAllTransactions" as never }),
};

/** For tests of a vendor's call that gets no answer. */
export const IMPATIENT = { provisioner: { VENDOR_TIMEOUT_MS: "1000" } };

type Sent = { body: Job; delaySeconds: number };

/** Other settings for the operator wallet's object than the test run's, until the runtime evicts it. */
export const configureWallet = (wallet: DurableObjectStub<OperatorWallet>, settings: Record<string, unknown>) =>
  runInDurableObject(wallet, (instance: OperatorWallet) => {
    const { env } = instance as unknown as { env: Record<string, unknown> };
    Object.assign(instance, { env: { ...env, ...settings } });
  });

export const vendorGate = (vendor: VendorName) => bindings.VENDOR_GATE.get(bindings.VENDOR_GATE.idFromName(vendor));

/** The vendors' gates give out their last lists for some seconds: here they end, and the next ones ask anew. */
export async function forgetLists(): Promise<void> {
  for (const vendor of ["vultr", "runpod"] as const) {
    const gate = vendorGate(vendor);
    // Only what runs can be evicted.
    await runInDurableObject(gate, () => undefined);
    await evictDurableObject(gate);
  }
}

export type Deployment = Awaited<ReturnType<typeof deploy>>;

/** All in one, which the local D1 takes: one by one, with a record of each, half of a test's set-up would be this. */
async function migrate(database: D1Database): Promise<void> {
  // A database that an evicted object has still open outlives a reset.
  const made = await database.prepare("SELECT 1 FROM sqlite_master WHERE name = 'vms'").first();
  if (made !== null) return;
  await database.prepare(bindings.MIGRATIONS.flatMap(({ queries }) => queries).join(";\n")).run();
}

/** A fresh deployment whose scan starts at the chain's head. */
export async function deploy(
  overrides: { edge?: Record<string, string>; provisioner?: Record<string, string>; guard?: "broken" | "hangs" } = {},
) {
  await reset();
  await migrate(bindings.DB);
  await Promise.all([clearFaults(), clearMachines(), chain.node.setAutomine(true)]);
  // A chain that was set back has its time behind the clock, by as long as that took: to the Workers it stands still.
  const timestamp = BigInt(Math.floor(Date.now() / 1_000));
  if ((await chain.reader.getBlock()).timestamp < timestamp) await chain.node.setNextBlockTimestamp({ timestamp });
  // Gas costs what it costs on a new chain: each empty block makes it an eighth cheaper.
  await chain.node.setNextBlockBaseFeePerGas({ baseFeePerGas: 1_000_000_000n });
  await chain.mine(2);
  const sent: Sent[] = [];
  const jobs = {
    send: async (body: Job, options?: { delaySeconds?: number }) => {
      sent.push({ body, delaySeconds: options?.delaySeconds ?? 0 });
    },
    sendBatch: async (messages: Iterable<{ body: Job; delaySeconds?: number }>) => {
      for (const { body, delaySeconds = 0 } of messages) sent.push({ body, delaySeconds });
    },
  };
  const dataKey = secp256k1.keygen();
  const bootstrapKey = makeAdminKey();
  const weather = new Weather();
  const shared = {
    DB: weatheredDatabase(bindings.DB, weather),
    JOBS: jobs,
    LOG_BOOK: bindings.LOG_BOOK,
    DEPLOYMENT_ID: `t-${bytesToHex(randomBytes(4))}`,
    CHAIN_ID: "8453",
    CONTRACT_ADDRESS,
    RPC_URLS: parts.rpcUrls.join(","),
    RPC_TIMEOUT_MS: "4000",
    CONFIRMATIONS: "0",
    PUBLIC_URLS: "https://api.example",
    // Tests move the chain's clock on and ours not.
    CHAIN_MAX_AHEAD_SECONDS: "100000000",
  };
  let guardCalls = 0;
  const guards = {
    idFromName: (name: string) => bindings.IP_GUARD.idFromName(name),
    get: (id: DurableObjectId) => {
      guardCalls += 1;
      if (overrides.guard === "broken") throw new Error("the object is overloaded");
      if (overrides.guard === "hangs") return { hit: () => new Promise(() => {}) };
      return bindings.IP_GUARD.get(id);
    },
  };
  const edgeVariables = {
    ...shared,
    IP_GUARD: guards,
    START_BLOCK: String(await chain.reader.getBlockNumber()),
    X402_PAY_TO: operator.address,
    FACILITATOR_URL: parts.facilitatorUrl,
    FACILITATOR_TIMEOUT_MS: "3000",
    ADMIN_API_KEY: bootstrapKey,
    DATA_PRIVATE_KEY: bytesToHex(dataKey.secretKey),
    ...overrides.edge,
  };
  const edge = edgeConfig(edgeVariables);
  const provisionerVariables = {
    ...shared,
    VENDOR_GATE: bindings.VENDOR_GATE,
    OPERATOR_WALLET: bindings.OPERATOR_WALLET,
    OPERATOR_PRIVATE_KEY: parts.operatorKey,
    DATA_PUBLIC_KEY: bytesToHex(dataKey.publicKey),
    SSH_KEY_ALGORITHM: "ed25519",
    VULTR_API_KEY: parts.vultrKey,
    VULTR_API_URL: parts.vultrUrl,
    VULTR_SSH_PORT: String(parts.sshPort),
    RUNPOD_API_KEY: parts.runpodKey,
    RUNPOD_API_URL: parts.runpodUrl,
    RUNPOD_REQUESTS_PER_MINUTE: "100000",
    VENDOR_TIMEOUT_MS: "3000",
    LISTING_LAG_MS: "200",
    POLL_SECONDS: "1",
    ...overrides.provisioner,
  };
  const provisioner = provisionerConfig(provisionerVariables);
  const wallet = bindings.OPERATOR_WALLET.get(bindings.OPERATOR_WALLET.idFromName("operator"));
  if (overrides.provisioner !== undefined) await configureWallet(wallet, overrides.provisioner);
  const app = createApp(edge);
  let aheadMs = 0;
  const context: Context = createContext(provisioner, () => Date.now() + aheadMs);
  const db = openDatabase(bindings.DB);
  const edgeChain = connectChain(edge);
  const holder = crypto.randomUUID();

  const scanContext = async (now = Date.now()) => {
    const fence = { holder, leaseUntil: now + 60_000 };
    await takeScanLease(db, fence, now);
    return { db, chain: edgeChain, config: edge, fence, now };
  };
  const deployment = {
    edge,
    provisioner,
    edgeVariables,
    provisionerVariables,
    appOf: createApp,
    context,
    db,
    sql: bindings.DB,
    /** Over both Workers' database, which can fail and stall; `sql` and `db` are well. */
    weather,
    sent,
    app,
    /** A request as Cloudflare passes it on. */
    request: (path: string, init: RequestInit = {}) =>
      asInvocation(() =>
        deployment.app.request(`https://api.example${path}`, {
          ...init,
          headers: { "cf-connecting-ip": "203.0.113.7", ...(init.headers as Record<string, string> | undefined) },
        }),
      ),
    bootstrapKey,
    /** Makes the first operator's key. */
    operatorKey: async (name = "test"): Promise<string> => {
      const answer = await app.request("https://api.example/admin/keys", {
        method: "POST",
        body: JSON.stringify({ name }),
        headers: { "x-api-key": bootstrapKey, "content-type": "application/json", "cf-connecting-ip": "192.0.2.254" },
      });
      return ((await answer.json()) as { key: string }).key;
    },
    wallet,
    guard: (client: string) => bindings.IP_GUARD.get(bindings.IP_GUARD.idFromName(client)),
    /** Counts the calls to guards from here on. */
    countGuardCalls: () => {
      const before = guardCalls;
      return () => guardCalls - before;
    },
    buy: (index: number, tier = 0) => buy(chain, agent(index), tier, 1),
    scanContext,
    /** Moves the provisioner's clock on; the edge's is the argument of `sweep`, and the chain has its own. */
    passTime: (seconds: number) => {
      aheadMs += seconds * 1_000;
    },
    /** Scans until nothing is left to read; queues what it found. */
    scan: async () => {
      await chain.settled();
      const outcomes: string[] = [];
      for (let pass = 0; pass < 50; pass++) {
        const result = await asInvocation(async () => scanPass(await scanContext()));
        outcomes.push(result.outcome);
        await enqueue(edge.JOBS, result.queued);
        if (result.caughtUp) return outcomes;
      }
      throw new Error(`the scan does not catch up: ${outcomes.join(", ")}`);
    },
    /** One message, as the consumer takes it. */
    step: (job: Job & { kind: "advance" }) => asInvocation(() => followMachine(context, job)),
    follow: (job: { payment: string; generation: number }) => asInvocation(() => followPayment(context, job)),
    sweep: (now = Date.now()) => asInvocation(async () => sweep(await scanContext(now))),
    /** Runs queued jobs, delays cut short, until the queue is empty or `until` holds. */
    drain: async (until: () => Promise<boolean> = async () => false, timeoutMs = 45_000) => {
      const end = Date.now() + timeoutMs;
      while (sent.length > 0 && !(await until())) {
        if (Date.now() > end) throw new Error("the queue does not drain");
        const next = sent.shift();
        if (next === undefined) break;
        if (next.delaySeconds > 0) await new Promise((resolve) => setTimeout(resolve, DELAY_MS));
        await deployment.run(next.body);
      }
    },
    /** One job, once. */
    run: (job: Job): Promise<void> =>
      asInvocation(async () => {
        if (job.kind === "advance") await followMachine(context, job);
        if (job.kind === "payment") await followPayment(context, job);
        if (job.kind === "refund") await followRefund(context, { incarnation: job.incarnation, kind: job.of });
      }),
    /** Until a token's machine is ordered and was looked for so often. */
    drainToBoot: async (tokenId: number, looks = 1) => {
      let seen = 0;
      await deployment.drain(async () => (await deployment.vm(tokenId))?.["step"] === "boot" && ++seen > looks);
    },
    vm: (tokenId: number) =>
      bindings.DB.prepare("SELECT * FROM vms WHERE token_id = ? AND current = 1").bind(tokenId).first<Row>(),
    rows: async (query: string, ...params: unknown[]) =>
      (
        await bindings.DB.prepare(query)
          .bind(...params)
          .all<Row>()
      ).results,
    /** The machines that exist at a vendor under this deployment's name. */
    machines: async (vendor: "vultr" | "runpod") => {
      const list = (await (await fetch(`${controlUrl(vendor)}/machines`)).json()) as VendorMachine[];
      return list.filter((one) => (one.label ?? one.name ?? "").startsWith(`clawcloud-${edge.DEPLOYMENT_ID}-`));
    },
  };
  await startCursor({ db, chain: edgeChain, config: edge, now: Date.now() });
  await publishDataKeys(db, keyRing(edge), Date.now());
  return deployment;
}

const purchaseAbi = parseAbi([
  "function approve(address spender, uint256 amount)",
  "function purchaseVM(uint8 tier, uint16 durationDays)",
]);

/** Approves the price of tier 0 for a day and signs the purchase, which a test may send more than once. */
export async function signPurchase(account: LocalAccount): Promise<Hex> {
  const wallet = chain.wallet(account);
  const approval = await wallet.writeContract({
    address: USDC_ADDRESS,
    abi: purchaseAbi,
    functionName: "approve",
    args: [CONTRACT_ADDRESS, 500_000n],
  });
  await chain.reader.waitForTransactionReceipt({ hash: approval });
  const data = encodeFunctionData({ abi: purchaseAbi, functionName: "purchaseVM", args: [0, 1] });
  return wallet.signTransaction(await wallet.prepareTransactionRequest({ to: CONTRACT_ADDRESS, data, gas: 500_000n }));
}

/** A machine of tier 0 that runs, for an agent; resolves with its token. */
export async function buyAndRun(world: Deployment, index: number): Promise<number> {
  const { tokenId } = await world.buy(index);
  await world.scan();
  await world.drain();
  await chain.mine(1);
  return tokenId;
}

// Rows as SQLite gives them; a test names the columns that it looks at.
// biome-ignore lint/suspicious/noExplicitAny: a row of any query
export type Row = Record<string, any>;
type VendorMachine = { id: string; label?: string; name?: string; status: string; main_ip?: string };

const controlUrl = (vendor: "vultr" | "runpod") =>
  vendor === "vultr" ? parts.vultrControlUrl : parts.runpodControlUrl;
async function post(url: string, body: object): Promise<void> {
  const answer = await fetch(url, { method: "POST", body: JSON.stringify(body) });
  if (!answer.ok) throw new Error(`${url} answered ${answer.status}: ${await answer.text()}`);
}

/** Switches a fault on at a vendor; all are off at the start of a test. */
export const addFault = (vendor: "vultr" | "runpod", fault: Fault) => post(`${controlUrl(vendor)}/faults`, fault);
const rpcControlUrls = { first: parts.proxyControlUrl, third: parts.secondProxyControlUrl };
/** Makes one of the three RPC URLs lag, lie or fail, the first unless told; the second is always honest. */
export const addRpcFault = (fault: RpcFault, node: keyof typeof rpcControlUrls = "first") =>
  post(`${rpcControlUrls[node]}/faults`, fault);
/** The same at both that are not always honest. */
export async function addRpcFaults(fault: RpcFault): Promise<void> {
  for (const node of ["first", "third"] as const) await addRpcFault(fault, node);
}
/** RPC_URLS without the honest one. */
export const CONTROLLED_NODES = [parts.rpcUrls[0], parts.rpcUrls[2]].join(",");
/** The requests for logs that the controlled nodes got since the last call of this. */
export async function takeLogRequests(): Promise<LogRequest[]> {
  const taken: LogRequest[] = [];
  for (const url of Object.values(rpcControlUrls)) {
    taken.push(...((await (await fetch(`${url}/logs`)).json()) as LogRequest[]));
    await fetch(`${url}/logs`, { method: "DELETE" });
  }
  return taken;
}
export const clearRpcFaults = () =>
  Promise.all(Object.values(rpcControlUrls).map((url) => fetch(`${url}/faults`, { method: "DELETE" })));
/** Makes the facilitator of payments fail, lie or lose its answers. */
export const addFacilitatorFault = (fault: FacilitatorFault) => post(`${parts.facilitatorControlUrl}/faults`, fault);
export const clearFacilitatorFaults = () => fetch(`${parts.facilitatorControlUrl}/faults`, { method: "DELETE" });

export async function clearFaults(): Promise<void> {
  const { vultrControlUrl, runpodControlUrl, facilitatorControlUrl } = parts;
  const urls = [vultrControlUrl, runpodControlUrl, facilitatorControlUrl, ...Object.values(rpcControlUrls)];
  await Promise.all(urls.map((url) => fetch(`${url}/faults`, { method: "DELETE" })));
}

/** What earlier tests rented would make every list longer. */
async function clearMachines(): Promise<void> {
  for (const vendor of ["vultr", "runpod"] as const)
    await fetch(`${controlUrl(vendor)}/machines`, { method: "DELETE" });
}

/** The traffic that a vendor saw since `from` (unix milliseconds). */
export async function journal(vendor: "vultr" | "runpod", from: number) {
  const all = (await (await fetch(`${controlUrl(vendor)}/journal`)).json()) as {
    method: string;
    path: string;
    status: number;
    at: number;
    requestBody: Row;
  }[];
  return all.filter((one) => one.at >= from);
}
