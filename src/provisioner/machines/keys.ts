// The login key of a machine: one that we make, or the payer's own.
import { generateSshKeyPair, type SshKeyPair } from "../../credentials/ssh-keys.ts";
import type { Vm } from "../../db/schema.ts";
import { log } from "../../log.ts";
import type { Terms } from "../../model/terms.ts";
import { type Context, isNobodys } from "../context.ts";

/** Without a private key where the login is the buyer's own. */
export type LoginKey = SshKeyPair | (Pick<SshKeyPair, "publicKey"> & { privateKey: null; broughtBy: string });

/** The payer's own key, while the machine is the payer's or on its way there. */
export function ownKeyOf(context: Context, vm: Vm, terms: Terms | null): LoginKey | null {
  if (terms === null || terms.sshPublicKey === null) return null;
  const isPayers = vm.owner === terms.payer || isNobodys(context, vm);
  return isPayers ? { publicKey: terms.sshPublicKey, broughtBy: terms.payer, privateKey: null } : null;
}

/** RSA takes most of a second of CPU. Locally the log says how much; at Cloudflare the clock stands while a Worker computes. */
export async function makeKeys({ config, now }: Context, vm: Vm): Promise<SshKeyPair> {
  const began = now();
  const pair = await generateSshKeyPair(config.SSH_KEY_ALGORITHM);
  log("info", "ssh_key_made", { tokenId: vm.tokenId, algorithm: config.SSH_KEY_ALGORITHM, ms: now() - began });
  return pair;
}
