// The outside world of the worker tests, as a process of its own: prints where everything is, ends with its parent.
import { startSilentPort } from "../world/silent-port.ts";
import { operatorKey, startParts } from "../world/world.ts";
import { LOCKED_MS, type PartsInfo } from "./parts.ts";

// Pages are short, so that lists have several.
const parts = await startParts({
  chain: { blockTimeSeconds: 0 },
  vultr: {
    latencyMs: 2,
    maxPage: 10,
    listLagMs: 0,
    requestsPerSecond: 10_000,
    bootMs: { active: 10, ok: 20, sshd: 30, configured: 50 },
    lockedMs: LOCKED_MS,
  },
  runpod: {
    latencyMs: 2,
    maxPage: 10,
    listLagMs: 0,
    requestsPerMinute: 1_000_000,
    bootMs: { starting: 10, running: 30, sshd: 50 },
  },
});
const silent = await startSilentPort();
const info: PartsInfo = {
  chainUrl: parts.chain.url,
  proxyUrl: parts.proxy.url,
  proxyControlUrl: parts.proxy.controlUrl,
  secondProxyControlUrl: parts.second.controlUrl,
  rpcUrls: parts.rpcUrls,
  vultrUrl: parts.vultr.apiUrl,
  vultrControlUrl: parts.vultr.controlUrl,
  vultrKey: parts.keys.vultr,
  runpodUrl: parts.runpod.apiUrl,
  runpodControlUrl: parts.runpod.controlUrl,
  runpodKey: parts.keys.runpod,
  sshPort: parts.sshPort,
  silentPort: silent.port,
  operatorKey: operatorKey(parts),
  pagerUrl: parts.pager.url,
  facilitatorUrl: parts.facilitator.url,
  facilitatorControlUrl: parts.facilitator.controlUrl,
  facilitatorRpcKey: parts.facilitator.rpcKey,
};
console.log(JSON.stringify(info));
// Standard input closes when the parent ends, however it ends.
process.stdin.on("close", () => void Promise.all([parts.stop(), silent.stop()]).then(() => process.exit(0)));
process.stdin.resume();
