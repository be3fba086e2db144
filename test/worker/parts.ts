// The chain, the vendors and the machines' SSH that tests in workerd reach by URL: a process of its own for each workerd, so
// that files can run side by side and share nothing.
import { spawn } from "node:child_process";
import type { Socket } from "node:net";
import { createInterface } from "node:readline";

export type PartsInfo = {
  chainUrl: string;
  proxyUrl: string;
  proxyControlUrl: string;
  /** Of the third RPC URL, for tests where two nodes are faulty. */
  secondProxyControlUrl: string;
  rpcUrls: string[];
  vultrUrl: string;
  vultrControlUrl: string;
  vultrKey: string;
  runpodUrl: string;
  runpodControlUrl: string;
  runpodKey: string;
  sshPort: number;
  /** Where no connection is ever made. */
  silentPort: number;
  operatorKey: string;
  pagerUrl: string;
  facilitatorUrl: string;
  facilitatorControlUrl: string;
  /** What the facilitator's errors give away. */
  facilitatorRpcKey: string;
};

/** How long Vultr keeps a new machine locked. */
export const LOCKED_MS = 50;
/** After this pause a machine that is there can be deleted: the vendor's clock is the same machine's. */
export const unlocked = () => new Promise<void>((resolve) => setTimeout(resolve, 2 * LOCKED_MS));

/** Starts them. They end with this process: their standard input closes then. */
export async function startPartsProcess(): Promise<PartsInfo> {
  const server = spawn(process.execPath, ["test/worker/parts-server.ts"], { stdio: ["pipe", "pipe", "inherit"] });
  const ended = new Promise<never>((_, reject) => {
    server.once("error", reject);
    server.once("exit", (code) => reject(new Error(`test/worker/parts-server.ts ended with code ${code}`)));
  });
  ended.catch(() => undefined);
  const line = await Promise.race([ended, firstLine(server.stdout)]);
  server.once("exit", (code) => console.error(`the tests' chain and vendors ended with code ${code}`));
  // Nothing of it keeps the test run alive.
  server.unref();
  for (const stream of [server.stdin, server.stdout]) (stream as Socket).unref();
  return JSON.parse(line) as PartsInfo;
}

async function firstLine(stream: NodeJS.ReadableStream): Promise<string> {
  for await (const line of createInterface(stream)) return line;
  throw new Error("test/worker/parts-server.ts printed nothing");
}

export const PAGER_SECRET = "whsec_YSBzZWNyZXQgb2YgdGhlIHdvcmtlciB0ZXN0cyBvbmx5";

/** What the log book, an object, runs with. */
export const bookVariables = (parts: PartsInfo) => ({
  ALERT_WEBHOOK_URL: `${parts.pagerUrl}/page`,
  ALERT_WEBHOOK_SECRET: PAGER_SECRET,
});

/** The provisioner's variables as the vendors' gate reads them in the tests. */
export const gateVariables = (parts: PartsInfo) => ({
  DEPLOYMENT_ID: "gate",
  PUBLIC_URLS: "https://api.example",
  RPC_URLS: parts.rpcUrls.join(","),
  // The generator point: a valid public key whose private half, 1, protects nothing.
  DATA_PUBLIC_KEY: "0279be667ef9dcbbac55a06295ce870b07029bfcdb2dce28d959f2815b16f81798",
  VULTR_API_KEY: parts.vultrKey,
  VULTR_API_URL: parts.vultrUrl,
  VULTR_SSH_PORT: String(parts.sshPort),
  RUNPOD_API_KEY: parts.runpodKey,
  RUNPOD_API_URL: parts.runpodUrl,
  RUNPOD_REQUESTS_PER_MINUTE: "100000",
  VENDOR_TIMEOUT_MS: "5000",
  OPERATOR_PRIVATE_KEY: parts.operatorKey,
  CHAIN_MAX_AHEAD_SECONDS: "100000000",
});
