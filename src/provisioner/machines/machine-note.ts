// /root/CLAWCLOUD.md: what whoever works on a machine has to know about it. It has no secret, and what may change after the
// installation it leaves to the API.

import type { Vm } from "../../db/schema.ts";
import type { VendorName } from "../../model/stock.ts";
import type { ProvisionerConfig } from "../config.ts";

export const NOTE_PATH = "/root/CLAWCLOUD.md";

type Settings = Pick<
  ProvisionerConfig,
  "PUBLIC_URLS" | "CONTRACT_ADDRESS" | "CHAIN_ID" | "VULTR_OS" | "VULTR_SSH_PORT" | "RUNPOD_IMAGE"
>;

/** ASCII, so that its base64 is what it looks like. */
export function machineNote(
  config: Settings,
  { tokenId, tier, expiresAt }: Pick<Vm, "tokenId" | "tier" | "expiresAt">,
  vendor: VendorName,
  ports: readonly number[],
): string {
  const api = config.PUBLIC_URLS[0] ?? "";
  const isPod = vendor === "runpod";
  const what = isPod ? `a container of ${config.RUNPOD_IMAGE} with a GPU` : config.VULTR_OS;
  const open = [isPod ? 22 : config.VULTR_SSH_PORT, ...ports].join(", ");
  const guard = isPod
    ? `RunPod maps each to another public port: \`ports\` of ${api}/status/${tokenId}, SSH in /credentials.`
    : "The vendor's firewall and ufw both let in these alone; ufw by itself opens nothing.";
  const lines = [
    `# ClawCloud token ${tokenId}, tier ${tier}`,
    "",
    `Whoever owns token ${tokenId} of contract ${config.CONTRACT_ADDRESS} on chain ${config.CHAIN_ID} owns this machine.`,
    `This was written when it was installed. What is true now: GET ${api}/status/${tokenId}`,
    "",
    `- Runs: ${what}. Of ours there are sshd's settings (/etc/ssh/sshd_config.d/*clawcloud*) and this file, and no agent.`,
    `- Ends: ${new Date(expiresAt * 1_000).toISOString()}, unless renewed since: /status has it as expiresAt. The disk goes with it.`,
    `- Open to the world: TCP ${open}${ports.length === 0 ? " (SSH) alone" : ""}. ${guard}`,
    "- More ports: they are chosen with an order by x402 (`ports`), for another machine. For yourself: ssh -L 8080:localhost:8080",
    "- Renew, or end early: the token's owner, on the contract, where it has a function for that; we follow its events",
    "  VMRenewed and VMTerminated. A shutdown from inside ends nothing, and nothing is paid back for it.",
    `- New keys: POST ${api}/credentials/${tokenId}/rotate, signed by the owner. Wipes the machine.`,
    `- All of it: ${api}/llms.txt and ${api}/docs`,
    "",
  ];
  return lines.join("\n").replace(/[^\n\x20-\x7e]/g, "?");
}
