// Started once in Node, before the tests in workerd: the chain, the vendors, the machines' SSH. Tests reach them by URL.
import { spawn } from "node:child_process";
import { createInterface } from "node:readline";
import type { TestProject } from "vitest/node";

export type PartsInfo = {
  chainUrl: string;
  proxyUrl: string;
  proxyControlUrl: string;
  rpcUrls: string[];
  vultrUrl: string;
  vultrControlUrl: string;
  vultrKey: string;
  runpodUrl: string;
  runpodControlUrl: string;
  runpodKey: string;
  sshPort: number;
  operatorKey: string;
  pagerUrl: string;
  facilitatorUrl: string;
  facilitatorControlUrl: string;
  /** What the facilitator's errors give away. */
  facilitatorRpcKey: string;
};

declare module "vitest" {
  // biome-ignore lint/style/useConsistentTypeDefinitions: merges into vitest's interface
  interface ProvidedContext {
    parts: PartsInfo;
  }
}

export default async function setup(project: TestProject): Promise<() => Promise<void>> {
  const server = spawn(process.execPath, ["test/worker/parts-server.ts"], { stdio: ["pipe", "pipe", "inherit"] });
  const ended = new Promise<void>((resolve) => server.once("exit", () => resolve()));
  for await (const line of createInterface(server.stdout)) {
    project.provide("parts", JSON.parse(line) as PartsInfo);
    break;
  }
  return async () => {
    server.stdin.end();
    await ended;
  };
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
  RPC_URLS: parts.rpcUrls.join(","),
  // The generator point: a valid public key whose private half, 1, protects nothing.
  DATA_PUBLIC_KEY: "0279be667ef9dcbbac55a06295ce870b07029bfcdb2dce28d959f2815b16f81798",
  VULTR_API_KEY: parts.vultrKey,
  VULTR_API_URL: parts.vultrUrl,
  VULTR_SSH_PORT: String(parts.sshPort),
  RUNPOD_API_KEY: parts.runpodKey,
  RUNPOD_API_URL: parts.runpodUrl,
  RUNPOD_REQUESTS_PER_MINUTE: "100000",
  VENDOR_TIMEOUT_MS: "500",
  OPERATOR_PRIVATE_KEY: parts.operatorKey,
});
