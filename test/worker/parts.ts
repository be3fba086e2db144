// Started once in Node, before the tests in workerd: the chain, the vendors, the machines' SSH. Tests reach them by URL.
import type { TestProject } from "vitest/node";
import { startParts } from "../world/world.ts";

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
};

declare module "vitest" {
  interface ProvidedContext {
    parts: PartsInfo;
  }
}

export default async function setup(project: TestProject): Promise<() => Promise<void>> {
  const parts = await startParts({
    chain: { blockTimeSeconds: 0 },
    vultr: {
      latencyMs: 2,
      listLagMs: 0,
      requestsPerSecond: 10_000,
      bootMs: { active: 100, ok: 200, sshd: 250, configured: 400 },
    },
    runpod: {
      latencyMs: 2,
      listLagMs: 0,
      requestsPerMinute: 1_000_000,
      bootMs: { starting: 50, running: 200, sshd: 350 },
    },
  });
  project.provide("parts", {
    chainUrl: parts.chain.url,
    proxyUrl: parts.proxy.url,
    proxyControlUrl: parts.proxy.controlUrl,
    rpcUrls: parts.rpcUrls,
    vultrUrl: parts.vultr.apiUrl,
    vultrControlUrl: parts.vultr.controlUrl,
    vultrKey: parts.keys.vultr,
    runpodUrl: parts.runpod.apiUrl,
    runpodControlUrl: parts.runpod.controlUrl,
    runpodKey: parts.keys.runpod,
    sshPort: parts.sshPort,
  });
  return parts.stop;
}

/** The provisioner's variables as the vendors' gate reads them in the tests. */
export const gateVariables = (parts: PartsInfo) => ({
  DEPLOYMENT_ID: "gate",
  RPC_URLS: parts.rpcUrls.join(","),
  DATA_PUBLIC_KEY: `02${"79be667ef9dcbbac55a06295ce870b07029bfcdb2dce28d959f2815b16f81798"}`,
  VULTR_API_KEY: parts.vultrKey,
  VULTR_API_URL: parts.vultrUrl,
  VULTR_SSH_PORT: String(parts.sshPort),
  RUNPOD_API_KEY: parts.runpodKey,
  RUNPOD_API_URL: parts.runpodUrl,
  RUNPOD_REQUESTS_PER_MINUTE: "100000",
  VENDOR_TIMEOUT_MS: "500",
});
