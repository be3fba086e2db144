// What the nodes, the vendors and the facilitator of this workerd get wrong, by a test's order. All is well when it begins.
import type { VendorName } from "../../src/model/stock.ts";
import type { FacilitatorFault } from "../world/facilitator.ts";
import type { LogRequest, RpcFault } from "../world/rpc-proxy.ts";
import type { Fault } from "../world/vendor-server.ts";
import { parts } from "./bindings.ts";
import { controlUrl } from "./vendors.ts";

async function post(url: string, body: object): Promise<void> {
  const answer = await fetch(url, { method: "POST", body: JSON.stringify(body) });
  if (!answer.ok) throw new Error(`${url} answered ${answer.status}: ${await answer.text()}`);
}

/** Switches a fault on at a vendor; all are off at the start of a test. */
export const addFault = (vendor: VendorName, fault: Fault) => post(`${controlUrl(vendor)}/faults`, fault);
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
