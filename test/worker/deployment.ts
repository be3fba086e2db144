// A deployment of both Workers inside workerd for one test: a database of its own, its own name at the vendors, the real
// chain and vendors of `parts.ts`. The queue is a list that the test drains itself, so that every order of messages can
// be played; the real queue runs in the end-to-end tests.
import { reset } from "cloudflare:test";
import { secp256k1 } from "@noble/curves/secp256k1.js";
import { bytesToHex, randomBytes } from "@noble/hashes/utils.js";
import type { SQLiteTable } from "drizzle-orm/sqlite-core";
import { connectChain } from "../../src/chain/client.ts";
import { makeAdminKey } from "../../src/credentials/admin-key.ts";
import { keyRing } from "../../src/credentials/key-ring.ts";
import { openDatabase } from "../../src/db/client.ts";
import { publishDataKeys } from "../../src/db/data-keys.ts";
import { takeScanLease } from "../../src/db/scan.ts";
import { pauses } from "../../src/db/schema.ts";
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
import { insertRows } from "../rows.ts";
import { CONTRACT_ADDRESS } from "../world/addresses.ts";
import { buy } from "../world/agent.ts";
import { Weather, weatheredDatabase } from "../world/bad-day.ts";
import { bindings, parts } from "./bindings.ts";
import { agent, chain, operator } from "./chain.ts";
import { addFault, clearFaults } from "./faults.ts";
import { asInvocation, limitStatements } from "./meter.ts";
import { clearMachines, listMachines } from "./vendors.ts";
import { configureWallet } from "./wallet-object.ts";

limitStatements(bindings.DB);

/** How long a test waits for what comes by itself: a busy machine is slow. */
export const PATIENCE_MS = 20_000;
/** Delays of jobs are cut to this. */
const DELAY_MS = 15;

type Sent = { body: Job; delaySeconds: number };

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
  await Promise.all([clearFaults(), clearMachines()]);
  // What a test that failed has left to be mined has the nonces of this one.
  await chain.dropAll();
  await chain.node.setAutomine(true);
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
        if (Date.now() > end) throw new Error(`the queue does not drain: ${JSON.stringify(sent)}`);
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
        if (job.kind === "refund") await followRefund(context, { subject: job.incarnation, kind: job.of });
      }),
    /** Until a token's machine is ordered and was looked for so often. */
    drainToBoot: async (tokenId: number, looks = 1) => {
      let seen = 0;
      await deployment.drain(async () => (await deployment.vm(tokenId))?.["step"] === "boot" && ++seen > looks);
    },
    vm: (tokenId: number) =>
      bindings.DB.prepare("SELECT * FROM vms WHERE token_id = ? AND current = 1").bind(tokenId).first<Row>(),
    /** Empty where there is none. */
    payment: async (id: string): Promise<Row> =>
      (await bindings.DB.prepare("SELECT * FROM payments WHERE id = ?").bind(id).first<Row>()) ?? {},
    payments: () => deployment.rows("SELECT * FROM payments ORDER BY rowid"),
    rows: async (query: string, ...params: unknown[]) =>
      (
        await bindings.DB.prepare(query)
          .bind(...params)
          .all<Row>()
      ).results,
    insert: <T extends SQLiteTable>(table: T, ...rows: readonly T["$inferInsert"][]) =>
      insertRows(bindings.DB, table, rows),
    /** As an operator's pause leaves it, from 1970 on unless told; none lengthens a deadline when it is lifted here. */
    pause: (what: "provisioning" | "payouts", since = 1) =>
      deployment.insert(pauses, { what, since, reason: "incident", by: "test" }),
    liftPauses: () => bindings.DB.prepare("DELETE FROM pauses").run(),
    /** Machines that are not there yet come too late, or that of one token. */
    missDeadlines: (tokenId?: number) =>
      bindings.DB.prepare(
        "UPDATE vms SET deadline = created_at - 1 WHERE status = 'provisioning' AND token_id = COALESCE(?, token_id)",
      )
        .bind(tokenId ?? null)
        .run(),
    /** The machines that exist at a vendor under this deployment's name. */
    machines: async (vendor: VendorName) => {
      const list = await listMachines(vendor);
      return list.filter((one) => (one.label ?? one.name ?? "").startsWith(`clawcloud-${edge.DEPLOYMENT_ID}-`));
    },
  };
  await startCursor({ db, chain: edgeChain, config: edge, now: Date.now() });
  await publishDataKeys(db, keyRing(edge), Date.now());
  return deployment;
}

/** A machine of tier 0 that runs, for an agent; resolves with its token. */
export async function buyAndRun(world: Deployment, index: number): Promise<number> {
  const { tokenId } = await world.buy(index);
  await world.scan();
  await world.drain();
  await chain.mine(1);
  return tokenId;
}

/** A purchase that no vendor serves by its deadline; resolves with its token. */
export async function buyAndFail(world: Deployment, index = 0): Promise<number> {
  await addFault("vultr", { call: "create", kind: "sold_out" });
  const { tokenId } = await world.buy(index);
  await world.scan();
  await world.missDeadlines();
  await world.drain();
  const { status, failure } = (await world.vm(tokenId)) ?? {};
  if (failure !== "no_machine_in_time") throw new Error(`token ${tokenId} is ${status}: ${failure}`);
  return tokenId;
}

// Rows as SQLite gives them; a test names the columns that it looks at.
// biome-ignore lint/suspicious/noExplicitAny: a row of any query
export type Row = Record<string, any>;
