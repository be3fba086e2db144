// The product as a run drives it: both Workers' handlers over bindings that lead to whichever run is under way.
import type { DatabaseSync, StatementSync } from "node:sqlite";
import { privateKeyToAccount } from "viem/accounts";
import { OperatorWallet } from "../../durable-objects/operator-wallet.ts";
import { VendorGate } from "../../durable-objects/vendor-gate.ts";
import { openDatabase } from "../../src/db/client.ts";
import { createApp } from "../../src/edge/app.ts";
import { edgeConfig } from "../../src/edge/config.ts";
import { pollChain } from "../../src/edge/cron.ts";
import { setLogLevel } from "../../src/log.ts";
import { provisionerConfig } from "../../src/provisioner/config.ts";
import provisioner from "../../src/provisioner/index.ts";
import { CONTRACT_ADDRESS } from "../world/addresses.ts";
import { createDatabase, StandInD1 } from "./d1.ts";
import { ObjectNamespace } from "./objects.ts";
import { type Batch, SimulatedQueue } from "./queue.ts";
import type { Runtime } from "./runtime.ts";

const OPERATOR_KEY = "5a".repeat(32);
export const OPERATOR = privateKeyToAccount(`0x${OPERATOR_KEY}`).address.toLowerCase();
/** What the operator wallet begins with: 10^-6 USDC. */
export const FLOAT = 10_000_000_000n;
export const RPC_HOSTS = ["rpc-0.sim", "rpc-1.sim", "rpc-2.sim"] as const;
export const DEPLOYMENT_ID = "sim";
export const CONTRACT = CONTRACT_ADDRESS.toLowerCase();
export const FACILITATOR_HOST = "facilitator.sim";
/** Of what is sold over x402, this is paid for before there is a machine. */
export const CAPTURE_FIRST_TIER = 2;
/** What may be bought and not paid for within an hour, 10^-6 USDC. */
const OPEN_LIMIT = 500_000_000n;
const CLIENT = "192.0.2.1";
/** How old a machine without a row has to be. */
export const ORPHAN_GRACE_SECONDS = 600;

type Bound = { runtime: Runtime; jobs: SimulatedQueue; gates: ObjectNamespace; wallets: ObjectNamespace };

let bound: Bound | undefined;
const current = (): Bound => {
  if (bound === undefined) throw new Error("no run is under way");
  return bound;
};

export const database: DatabaseSync = createDatabase();
const statements = new Map<string, StatementSync>();
/** A statement of the checks' own, prepared once. */
export function prepared(sql: string): StatementSync {
  const known = statements.get(sql) ?? database.prepare(sql);
  statements.set(sql, known);
  return known;
}

const d1 = new StandInD1(database, (what, statements, effect) =>
  current().runtime.crossDatabase(what, statements, effect),
);

const namespace = (of: "gates" | "wallets") => ({
  idFromName: (name: string) => ({ name, toString: () => name }),
  get: (id: { name: string }) => current()[of].get(id),
});
const shared = {
  DB: d1,
  JOBS: {
    send: (body: unknown, options?: { delaySeconds?: number }) => current().jobs.send(body, options),
    sendBatch: (messages: Iterable<{ body: unknown }>) => current().jobs.sendBatch(messages),
  },
  LOG_BOOK: { idFromName: () => "book", get: () => ({ append: async () => undefined }) },
  LOG_LEVEL: "error",
  DEPLOYMENT_ID,
  CONTRACT_ADDRESS,
  PUBLIC_URLS: "https://api.sim",
  RPC_URLS: RPC_HOSTS.map((host) => `http://${host}`).join(","),
  CAPTURE_FIRST_TIERS: String(CAPTURE_FIRST_TIER),
};
const edgeSettings = edgeConfig({
  ...shared,
  IP_GUARD: { idFromName: () => "guard" },
  START_BLOCK: "1",
  SCAN_RUN_SECONDS: "1",
  SWEEP_INTERVAL_SECONDS: "60",
  PROVISION_DEADLINE_SECONDS: "600",
  CATALOG_SECONDS: "1800",
  UNCAPTURED_LIMIT_USDC_PER_HOUR: String(OPEN_LIMIT / 1_000_000n),
  DATA_PRIVATE_KEY: "11".repeat(32),
  X402_PAY_TO: OPERATOR,
  FACILITATOR_URL: `http://${FACILITATOR_HOST}`,
  UNLIMITED_CLIENTS: CLIENT,
});
const provisionerEnv = {
  ...shared,
  VENDOR_GATE: namespace("gates"),
  OPERATOR_WALLET: namespace("wallets"),
  OPERATOR_PRIVATE_KEY: OPERATOR_KEY,
  DATA_PUBLIC_KEY: "0279be667ef9dcbbac55a06295ce870b07029bfcdb2dce28d959f2815b16f81798",
  SSH_KEY_ALGORITHM: "ed25519",
  VULTR_API_KEY: "vultr",
  VULTR_API_URL: "http://vultr.sim/v2",
  VULTR_REGIONS: "ewr,lax",
  RUNPOD_API_KEY: "runpod",
  RUNPOD_API_URL: "http://runpod.sim",
  RUNPOD_REQUESTS_PER_MINUTE: "600",
  // Nobody's account is empty there, and each call draws from the same numbers as its faults.
  LOW_VULTR_USD: "0",
  LOW_RUNPOD_USD: "0",
  POLL_SECONDS: "15",
  BOOT_TIMEOUT_SECONDS: "240",
  LATE_REFUNDS: "pay",
  ORPHAN_GRACE_SECONDS: String(ORPHAN_GRACE_SECONDS),
};
setLogLevel(provisionerConfig(provisionerEnv).LOG_LEVEL);

/** The queue and the objects of a run, empty; the database as its migrations left it. */
export function bind(runtime: Runtime): Bound {
  // What the product remembers of a configuration belongs to one run.
  config.edge = { ...edgeSettings };
  const variables = { ...provisionerEnv };
  // The handler's own types are Cloudflare's; here are what stands in for them.
  const consume = (batch: Batch) =>
    (provisioner.queue as unknown as (batch: Batch, env: object, ctx: object) => Promise<void>)(batch, variables, {
      waitUntil: () => undefined,
    });
  // As in src/provisioner/wrangler.toml.
  const settings = { batchSize: 5, maxRetries: 10 };
  const dead = new SimulatedQueue(runtime, { name: "clawcloud-jobs-dead", ...settings, deadLetters: null }, consume);
  const jobs = new SimulatedQueue(runtime, { name: "clawcloud-jobs", ...settings, deadLetters: dead }, consume);
  const env = () => variables;
  bound = {
    runtime,
    jobs,
    gates: new ObjectNamespace(runtime, "the gate of", VendorGate as never, env),
    wallets: new ObjectNamespace(runtime, "the wallet", OperatorWallet as never, env),
  };
  return bound;
}

export const db = openDatabase(d1 as unknown as D1Database);
export const config = { edge: edgeSettings };
/** One request to the edge, as its Worker serves it. */
export async function serve(path: string, init: RequestInit & { headers: Record<string, string> }): Promise<Response> {
  if (app?.of !== config.edge) app = { of: config.edge, router: createApp(config.edge) };
  return app.router.request(path, { ...init, headers: { "cf-connecting-ip": CLIENT, ...init.headers } });
}
let app: { of: object; router: ReturnType<typeof createApp> } | undefined;

export const cron = (): Promise<void> => pollChain(config.edge);
