// The vendors of this workerd: what they rent out, what they were asked, and the gates that they are asked through.
import { evictDurableObject, runInDurableObject } from "cloudflare:test";
import type { VendorName } from "../../src/model/stock.ts";
import { bindings, parts } from "./bindings.ts";

/** For tests of a vendor's call that gets no answer. */
export const IMPATIENT = { provisioner: { VENDOR_TIMEOUT_MS: "1000" } };

export const vendorGate = (vendor: VendorName) => bindings.VENDOR_GATE.get(bindings.VENDOR_GATE.idFromName(vendor));

/** The vendors' gates give out their last lists for some seconds: here they end, and the next ones ask anew. */
export async function forgetLists(): Promise<void> {
  for (const vendor of ["vultr", "runpod"] as const) {
    const gate = vendorGate(vendor);
    // Only what runs can be evicted.
    await runInDurableObject(gate, () => undefined);
    await evictDurableObject(gate);
  }
}

type VendorMachine = { id: string; label?: string; name?: string; status: string; main_ip?: string };

export const controlUrl = (vendor: VendorName) => (vendor === "vultr" ? parts.vultrControlUrl : parts.runpodControlUrl);

export const listMachines = async (vendor: VendorName): Promise<VendorMachine[]> =>
  (await (await fetch(`${controlUrl(vendor)}/machines`)).json()) as VendorMachine[];

/** What earlier tests rented would make every list longer. */
export async function clearMachines(): Promise<void> {
  for (const vendor of ["vultr", "runpod"] as const)
    await fetch(`${controlUrl(vendor)}/machines`, { method: "DELETE" });
}

/** The traffic that a vendor saw since `from` (unix milliseconds). */
export async function journal(vendor: VendorName, from: number) {
  const all = (await (await fetch(`${controlUrl(vendor)}/journal`)).json()) as {
    method: string;
    path: string;
    status: number;
    at: number;
    // biome-ignore lint/suspicious/noExplicitAny: a test names the fields that it looks at
    requestBody: Record<string, any>;
  }[];
  return all.filter((one) => one.at >= from);
}
