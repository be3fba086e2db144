// The whole world in one call: a chain, three RPC URLs, a facilitator of payments, two vendors with machines that answer SSH,
// and both Workers in workerd with D1, queues and objects. Tests and `npm start` use the same.
import { randomBytes } from "node:crypto";
import { type HttpBindings, type ServerType, serve } from "@hono/node-server";
import { secp256k1 } from "@noble/curves/secp256k1.js";
import { makeAdminKey } from "../../src/access/admin-key.ts";
import { CONTRACT_ADDRESS, USDC_ADDRESS } from "./addresses.ts";
import { type ChainOptions, startChain } from "./chain.ts";
import { type FacilitatorOptions, startFacilitator } from "./facilitator.ts";
import { startPager } from "./pager.ts";
import { freePort } from "./ports.ts";
import { startRpcProxy } from "./rpc-proxy.ts";
import { type RunpodOptions, startRunpod } from "./runpod.ts";
import { startVultr, type VultrOptions } from "./vultr.ts";

export type PartsOptions = {
  chain?: ChainOptions;
  vultr?: Partial<VultrOptions>;
  runpod?: Partial<RunpodOptions>;
  facilitator?: FacilitatorOptions;
};
export type WorldOptions = PartsOptions & {
  /** Over the Workers' variables. */
  edge?: Record<string, string>;
  provisioner?: Record<string, string>;
};

const ROOT = new URL("../../", import.meta.url);
const SCHEDULE_PAUSE_MS = 200;

// Wrangler reads these when it is loaded: no calls home, no chatter between our lines.
Object.assign(process.env, {
  CLOUDFLARE_CF_FETCH_ENABLED: "false",
  WRANGLER_SEND_METRICS: "false",
  WRANGLER_SEND_ERROR_REPORTS: "false",
  WRANGLER_HIDE_BANNER: "true",
  WRANGLER_LOG: "error",
});
const { createTestHarness } = await import("wrangler");

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
    facilitator,
    sshPort,
    keys,
    /** The first passes the proxy with faults; the others are honest. */
    rpcUrls: [`${proxy.url}/v2/${keys.rpc}`, chain.url, second.url],
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

/** The first operator's key, made with the deployment's own secret as an operator would. */
async function makeOperatorKey(
  request: (path: string, init: { method: string; headers: Record<string, string>; body: string }) => Promise<unknown>,
  bootstrapKey: string,
): Promise<string> {
  const headers = { "x-api-key": bootstrapKey, "content-type": "application/json" };
  const answer = (await request("/admin/keys", {
    method: "POST",
    headers,
    body: '{"name":"local world"}',
  })) as Response;
  if (answer.status !== 201) throw new Error(`/admin/keys answered ${answer.status}: ${await answer.text()}`);
  return ((await answer.json()) as { key: string }).key;
}

/** Starts everything. `stop` leaves no process and no file behind. */
export async function startWorld(options: WorldOptions = {}) {
  const parts = await startParts(options);
  const port = await freePort();
  const url = `http://127.0.0.1:${port}`;
  const variables = workerVariables(parts, url);
  const bootstrapKey = makeAdminKey();
  const workers = createTestHarness({
    root: ROOT.pathname,
    workers: [
      { configPath: "wrangler.toml", vars: { ...variables.edge, ADMIN_API_KEY: bootstrapKey, ...options.edge } },
      { configPath: "src/provisioner/wrangler.toml", vars: { ...variables.provisioner, ...options.provisioner } },
    ],
  });
  await workers.listen();
  const edge = workers.getWorker("clawcloud-edge");
  await edge.applyD1Migrations("DB");
  const adminKey = await makeOperatorKey((path, init) => workers.fetch(`${url}${path}`, init), bootstrapKey);

  // Cloudflare in front of the Worker: a port known beforehand, and the client's address in its header.
  const front = await new Promise<ServerType>((resolve) => {
    const server = serve(
      {
        fetch: async (request, env) => {
          const { method } = request;
          // What fetch can't pass on, Cloudflare refuses as well.
          if (method === "TRACE" || method === "CONNECT") return new Response(null, { status: 405 });
          const headers = new Headers(request.headers);
          headers.set("cf-connecting-ip", (env as HttpBindings).incoming.socket.remoteAddress ?? "127.0.0.1");
          const body = method === "GET" || method === "HEAD" ? null : await request.arrayBuffer();
          const answer = await workers.fetch(request.url, { method, headers: [...headers], body, redirect: "manual" });
          const empty = answer.body === null;
          return new Response(empty ? null : await answer.arrayBuffer(), {
            status: answer.status,
            headers: [...answer.headers] as [string, string][],
          });
        },
        hostname: "127.0.0.1",
        port,
      },
      () => resolve(server),
    );
  });

  // Local crons never fire by themselves.
  let stopping = false;
  const crons = (async () => {
    while (!stopping) {
      await edge.scheduled({ cron: "* * * * *", scheduledTime: new Date() }).catch((error: unknown) => {
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
      if ("closeAllConnections" in front) front.closeAllConnections();
      await new Promise((resolve) => front.close(resolve));
      await workers.close();
      await parts.stop();
    },
  };
}
export type World = Awaited<ReturnType<typeof startWorld>>;
