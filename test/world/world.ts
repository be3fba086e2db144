// The whole world in one call: a chain, three RPC URLs, a facilitator of payments, two vendors with machines that answer SSH,
// and both Workers, as they are built for upload, in workerd with D1, queues and objects. Tests and `npm start` use the same.
import { secp256k1 } from "@noble/curves/secp256k1.js";
import { makeAdminKey } from "../../src/credentials/admin-key.ts";
import { CONTRACT_ADDRESS, USDC_ADDRESS } from "./addresses.ts";
import { WEATHER_PATH, type WorkerWeather } from "./bad-day.ts";
import { type BuiltWorkers, buildWorkers, runWorkers, type WorkerSource } from "./bare-workers.ts";
import { type ChainOptions, startChain } from "./chain.ts";
import { type FacilitatorOptions, startFacilitator } from "./facilitator.ts";
import { type Kept, makeDataKey, makeIdentity } from "./kept.ts";
import { startPager } from "./pager.ts";
import type { Ports } from "./ports.ts";
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
  /** Servers at ports that stay the same; else at any free ones. */
  ports?: Ports;
  /** A world that goes on where it ended. */
  kept?: Kept;
};
export type WorldOptions = PartsOptions & {
  /** Over the Workers' variables. */
  edge?: Record<string, string>;
  provisioner?: Record<string, string>;
  /** Hears of each step of the start: what is done, and what comes next. */
  tell?: (done: string, next: string) => void;
  /** Hears each line that a Worker prints, which then is not kept in `lines`. */
  onLine?: (line: string) => void;
  /** Whether the Workers' database and objects can fail and stall: `setWeather` tells them to. */
  badDays?: boolean;
};

const SCHEDULE_PAUSE_MS = 200;

/** Everything outside the Workers. */
export async function startParts(options: PartsOptions = {}) {
  const { ports, kept } = options;
  const { sshPort, keys } = kept?.state ?? (await makeIdentity());
  const place = (name: keyof Ports) => (ports === undefined ? {} : { port: ports[name] });
  const [chain, vultr, runpod, pager] = await Promise.all([
    startChain({ ...place("chain"), ...(kept === undefined ? {} : { stateFile: kept.chainFile }), ...options.chain }),
    startVultr({ apiKey: keys.vultr, sshPort, saved: kept?.state.vultr, ...place("vultr"), ...options.vultr }),
    startRunpod({ apiKey: keys.runpod, saved: kept?.state.runpod, ...place("runpod"), ...options.runpod }),
    startPager(ports?.pager),
  ]);
  const [proxy, second, facilitator] = await Promise.all([
    startRpcProxy(chain.url, ports?.rpc),
    startRpcProxy(chain.url, ports?.secondRpc),
    startFacilitator(chain, { ...place("facilitator"), ...options.facilitator }),
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
export function workerVariables(parts: Parts, publicUrl: string, dataKey = makeDataKey()) {
  const secretKey = Buffer.from(dataKey, "hex");
  const shared = {
    DEPLOYMENT_ID: "local",
    CHAIN_ID: String(parts.chain.chainId),
    CONTRACT_ADDRESS,
    RPC_URLS: parts.rpcUrls.join(","),
    PUBLIC_URLS: publicUrl,
    // Whoever plays with the local world may move the chain's clock on.
    CHAIN_MAX_AHEAD_SECONDS: "100000000",
  };
  return {
    edge: {
      ...shared,
      START_BLOCK: "0",
      SWEEP_INTERVAL_SECONDS: "5",
      CATALOG_SECONDS: "30",
      FACILITATOR_URL: parts.facilitator.url,
      X402_PAY_TO: parts.chain.operator.address,
      DATA_PRIVATE_KEY: dataKey,
      ALERT_WEBHOOK_URL: `${parts.pager.url}/page`,
      ALERT_WEBHOOK_SECRET: PAGER_SECRET,
    },
    provisioner: {
      ...shared,
      DATA_PUBLIC_KEY: Buffer.from(secp256k1.getPublicKey(secretKey)).toString("hex"),
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
  const { kept, tell = () => undefined } = options;
  const parts = await startParts(options);
  tell("the chain and the vendors are up", "building both Workers, once for all later starts");
  let edgeUrl: string | undefined;
  const front = await startFront(() => edgeUrl, options.ports?.api);
  const url = `http://127.0.0.1:${front.port}`;
  const variables = workerVariables(parts, url, kept?.state.dataKey);
  const bootstrapKey = kept?.state.bootstrapKey ?? makeAdminKey();
  const lines: string[] = [];
  const hear = options.onLine ?? ((line) => lines.push(line));
  const sources = bothWorkers({
    edge: { ...variables.edge, ADMIN_API_KEY: bootstrapKey, ...options.edge },
    provisioner: { ...variables.provisioner, ...options.provisioner },
  });
  const build = () =>
    buildWorkers(
      options.badDays ? sources.map((one) => ({ ...one, entry: `test/world/bad-day-${one.name}.ts` })) : sources,
    );
  const run = async (built: BuiltWorkers) => {
    const running = await runWorkers(built, ({ message }) => hear(message), kept?.workersFolder);
    await kept?.migrate(running.database, built.migrations);
    return running;
  };
  let built = await build();
  tell("both Workers are built", "starting both Workers");
  let workers = await run(built);
  const adminKey = kept?.state.adminKey ?? (await makeOperatorKey(workers.url("edge"), bootstrapKey));
  edgeUrl = workers.url("edge");
  const keep = () => kept?.save({ adminKey, vultr: parts.vultr.save(), runpod: parts.runpod.save() });
  await keep();

  // Local crons never fire by themselves.
  let stopping = false;
  let reloading: Promise<boolean> | undefined;
  const crons = (async () => {
    while (!stopping) {
      const { miniflare } = workers;
      await miniflare
        .getWorker("edge")
        .then((edge) => edge.scheduled({ cron: "* * * * *" }))
        .catch((error: unknown) => {
          if (!stopping && edgeUrl !== undefined) console.error("the scheduled handler failed:", error);
        });
      await reloading?.catch(() => undefined);
      await new Promise((resolve) => setTimeout(resolve, SCHEDULE_PAUSE_MS));
    }
  })();
  void crons;

  /** Builds the Workers from the sources as they are now, and runs them in place of those that ran; false if none changed. */
  async function reload(): Promise<boolean> {
    const next = await build();
    const folders = (of: BuiltWorkers) => of.workers.map((worker) => worker.options.modulesRoot).join();
    if (folders(next) === folders(built) && next.migrations.length === built.migrations.length) return false;
    built = next;
    edgeUrl = undefined;
    await workers.stop();
    workers = await run(next);
    edgeUrl = workers.url("edge");
    return true;
  }

  return {
    ...parts,
    url,
    workers,
    keep,
    reload: async (): Promise<boolean> => {
      reloading = reload();
      try {
        return await reloading;
      } finally {
        reloading = undefined;
      }
    },
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
      await reloading?.catch(() => undefined);
      await keep();
      await front.stop();
      await workers.stop();
      await parts.stop();
    },
  };
}
export type World = Awaited<ReturnType<typeof startWorld>>;
