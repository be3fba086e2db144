// The whole world in one call: a chain, three RPC URLs, a facilitator of payments, two vendors with machines that answer SSH,
// and both Workers, as they are built for upload, in workerd with D1, queues and objects. Tests and `npm start` use the same.
import { randomBytes } from "node:crypto";
import { secp256k1 } from "@noble/curves/secp256k1.js";
import { makeAdminKey } from "../../src/access/admin-key.ts";
import { CONTRACT_ADDRESS, USDC_ADDRESS } from "./addresses.ts";
import { WEATHER_PATH, type WorkerWeather } from "./bad-day.ts";
import { buildWorkers, runWorkers, type WorkerSource } from "./bare-workers.ts";
import { type ChainOptions, startChain } from "./chain.ts";
import { type FacilitatorOptions, startFacilitator } from "./facilitator.ts";
import { startPager } from "./pager.ts";
import { freePort } from "./ports.ts";
import { startRpcProxy } from "./rpc-proxy.ts";
import { type RunpodOptions, startRunpod } from "./runpod.ts";
import { startFront } from "./server.ts";
import { startVultr, type VultrOptions } from "./vultr.ts";

export type PartsOptions = {
  chain?: ChainOptions;
  vultr?: Partial<VultrOptions>;
  runpod?: Partial<RunpodOptions>;
  facilitator?: FacilitatorOptions;
  /** Leaves the honest node out: faults may strike every one. */
  noHonestNode?: boolean;
};
export type WorldOptions = PartsOptions & {
  /** Over the Workers' variables. */
  edge?: Record<string, string>;
  provisioner?: Record<string, string>;
  /** Hears of each step of the start: what is done, and what comes next. */
  tell?: (done: string, next: string) => void;
  /** Whether the Workers' database and objects can fail and stall: `setWeather` tells them to. */
  badDays?: boolean;
};

const SCHEDULE_PAUSE_MS = 200;

/** Everything outside the Workers. */
export async function startParts(options: PartsOptions = {}) {
  const sshPort = await freePort();
  const keys = {
    vultr: `vultr-${randomBytes(12).toString("hex")}`,
    runpod: `rpa_${randomBytes(12).toString("hex")}`,
    // No rule of the log's would know it for a key: it is kept out by what is told of errors at all (hard case 23).
    rpc: randomBytes(12).toString("hex"),
  };
  const [chain, vultr, runpod, pager] = await Promise.all([
    startChain(options.chain),
    startVultr({ apiKey: keys.vultr, sshPort, ...options.vultr }),
    startRunpod({ apiKey: keys.runpod, ...options.runpod }),
    startPager(),
  ]);
  const [proxy, second, facilitator] = await Promise.all([
    startRpcProxy(chain.url),
    startRpcProxy(chain.url),
    startFacilitator(chain, options.facilitator),
  ]);
  return {
    chain,
    vultr,
    runpod,
    pager,
    proxy,
    second,
    facilitator,
    sshPort,
    keys,
    /** The first and the third pass a proxy, honest until it is given a fault; the second is the chain's own. */
    rpcUrls: [`${proxy.url}/v2/${keys.rpc}`, ...(options.noHonestNode ? [] : [chain.url]), second.url],
    stop: async () => {
      await Promise.all([vultr, runpod, pager, proxy, second, facilitator].map((part) => part.stop()));
      await chain.stop();
    },
  };
}
export type Parts = Awaited<ReturnType<typeof startParts>>;

/** The webhook's secret in the local world: "whsec_" and base64, as standardwebhooks.com has it. */
export const PAGER_SECRET = `whsec_${Buffer.from("a secret of the local world only").toString("base64")}`;

export const operatorKey = ({ chain }: Pick<Parts, "chain">): string =>
  Buffer.from(chain.operator.getHdKey().privateKey ?? []).toString("hex");

/** The variables that both Workers get in the local world. */
export function workerVariables(parts: Parts, publicUrl: string) {
  const dataKey = secp256k1.keygen();
  const shared = {
    DEPLOYMENT_ID: "local",
    CHAIN_ID: String(parts.chain.chainId),
    CONTRACT_ADDRESS,
    RPC_URLS: parts.rpcUrls.join(","),
    // Whoever plays with the local world may move the chain's clock on.
    CHAIN_MAX_AHEAD_SECONDS: "100000000",
  };
  return {
    edge: {
      ...shared,
      START_BLOCK: "0",
      SWEEP_INTERVAL_SECONDS: "5",
      CATALOG_SECONDS: "30",
      PUBLIC_URLS: publicUrl,
      FACILITATOR_URL: parts.facilitator.url,
      X402_PAY_TO: parts.chain.operator.address,
      DATA_PRIVATE_KEY: Buffer.from(dataKey.secretKey).toString("hex"),
      ALERT_WEBHOOK_URL: `${parts.pager.url}/page`,
      ALERT_WEBHOOK_SECRET: PAGER_SECRET,
    },
    provisioner: {
      ...shared,
      DATA_PUBLIC_KEY: Buffer.from(dataKey.publicKey).toString("hex"),
      OPERATOR_PRIVATE_KEY: operatorKey(parts),
      VULTR_API_KEY: parts.keys.vultr,
      VULTR_API_URL: parts.vultr.apiUrl,
      VULTR_SSH_PORT: String(parts.sshPort),
      RUNPOD_API_KEY: parts.keys.runpod,
      RUNPOD_API_URL: parts.runpod.apiUrl,
      POLL_SECONDS: "1",
      VENDOR_TIMEOUT_MS: "5000",
      LISTING_LAG_MS: "5000",
      BOOT_TIMEOUT_SECONDS: "20",
    },
  };
}

type Variables = Record<string, string>;

/** Both Workers with what they bind, over one database and one queue. */
export const bothWorkers = (variables: { edge: Variables; provisioner: Variables }): WorkerSource[] => [
  {
    name: "edge",
    config: "wrangler.toml",
    variables: variables.edge,
    objects: { IP_GUARD: { className: "IpGuard" }, LOG_BOOK: { className: "LogBook" } },
  },
  {
    name: "provisioner",
    config: "src/provisioner/wrangler.toml",
    variables: variables.provisioner,
    objects: {
      VENDOR_GATE: { className: "VendorGate" },
      OPERATOR_WALLET: { className: "OperatorWallet" },
      LOG_BOOK: { className: "LogBook", of: "edge" },
    },
    consumes: true,
  },
];

/** The first operator's key, made with the deployment's own secret as an operator would. */
async function makeOperatorKey(edgeUrl: string, bootstrapKey: string): Promise<string> {
  const headers = { "x-api-key": bootstrapKey, "content-type": "application/json" };
  const answer = await fetch(`${edgeUrl}/admin/keys`, { method: "POST", headers, body: '{"name":"local world"}' });
  if (answer.status !== 201) throw new Error(`/admin/keys answered ${answer.status}: ${await answer.text()}`);
  return ((await answer.json()) as { key: string }).key;
}

/** Starts everything. `stop` leaves no process and no file behind but the Workers' build. */
export async function startWorld(options: WorldOptions = {}) {
  const { tell = () => undefined } = options;
  const parts = await startParts(options);
  tell("the chain and the vendors are up", "building both Workers, once for all later starts");
  let edgeUrl: string | undefined;
  const front = await startFront(() => edgeUrl);
  const url = `http://127.0.0.1:${front.port}`;
  const variables = workerVariables(parts, url);
  const bootstrapKey = makeAdminKey();
  const lines: string[] = [];
  const sources = bothWorkers({
    edge: { ...variables.edge, ADMIN_API_KEY: bootstrapKey, ...options.edge },
    provisioner: { ...variables.provisioner, ...options.provisioner },
  });
  const built = await buildWorkers(
    options.badDays ? sources.map((one) => ({ ...one, entry: `test/world/bad-day-${one.name}.ts` })) : sources,
  );
  tell("both Workers are built", "starting both Workers");
  const workers = await runWorkers(built, ({ message }) => lines.push(message));
  const adminKey = await makeOperatorKey(workers.url("edge"), bootstrapKey);
  edgeUrl = workers.url("edge");
  const edge = await workers.miniflare.getWorker("edge");

  // Local crons never fire by themselves.
  let stopping = false;
  const crons = (async () => {
    while (!stopping) {
      await edge.scheduled({ cron: "* * * * *" }).catch((error: unknown) => {
        if (!stopping) console.error("the scheduled handler failed:", error);
      });
      await new Promise((resolve) => setTimeout(resolve, SCHEDULE_PAUSE_MS));
    }
  })();
  void crons;

  return {
    ...parts,
    url,
    workers,
    /** Of both Workers, in a world of `badDays`. */
    setWeather: async (weather: WorkerWeather): Promise<void> => {
      for (const name of ["edge", "provisioner"]) {
        const answer = await fetch(workers.url(name) + WEATHER_PATH, { method: "POST", body: JSON.stringify(weather) });
        if (!answer.ok) throw new Error(`the ${name}'s weather: ${answer.status} ${await answer.text()}`);
      }
    },
    /** What both Workers have printed so far, line by line. */
    lines,
    adminKey,
    /** What no log, error or answer may show. */
    secrets: [
      adminKey,
      bootstrapKey,
      variables.edge.DATA_PRIVATE_KEY,
      variables.edge.ALERT_WEBHOOK_SECRET,
      variables.provisioner.OPERATOR_PRIVATE_KEY,
      parts.keys.vultr,
      parts.keys.runpod,
      parts.keys.rpc,
      parts.facilitator.rpcKey,
    ],
    contract: CONTRACT_ADDRESS,
    usdc: USDC_ADDRESS,
    stop: async () => {
      stopping = true;
      await front.stop();
      await workers.stop();
      await parts.stop();
    },
  };
}
export type World = Awaited<ReturnType<typeof startWorld>>;
