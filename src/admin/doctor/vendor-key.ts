// What to do where a vendor does not take our key.
import type { VendorName } from "../../model/stock.ts";

/** `from`: which of this machine's addresses asked. Null where the key is not at fault. */
export function keyTodo(vendor: VendorName, status: number | undefined, said: string, from = "address"): string | null {
  if (vendor === "runpod") {
    if (status === 401)
      return "Put a valid key of RunPod's into RUNPOD_API_KEY (.secrets/provisioner.json): it does not take this one.";
    if (status === 403)
      return "Give RunPod's key the permission All, or Restricted with Read/Write for pods: it may not even list them.";
    return null;
  }
  if (/unauthorized ip/i.test(said))
    return `Allow any IPv4 and any IPv6 address in the access control of Vultr's key: it refuses this machine's ${from}, and Workers leave from many addresses of both kinds.`;
  if (status === 401 || status === 403)
    return `Put a valid key of Vultr's into VULTR_API_KEY (.secrets/provisioner.json): Vultr answers ${status} to this one.`;
  return null;
}
