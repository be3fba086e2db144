// Handing out a private key, once. The first 200 may come by either form of signature; until the owner acknowledges or the
// grace ends, the owner gets it again by the fresh form alone; then it is erased (hard case 21).

import { SecretUnreadable } from "../credentials/ecies.ts";
import { keyRing } from "../credentials/key-ring.ts";
import { formatPrivateKey } from "../credentials/ssh-keys.ts";
import type { Database } from "../db/client.ts";
import * as store from "../db/delivery.ts";
import { markServed } from "../db/payments.ts";
import type { Vm } from "../db/schema.ts";
import { loadVm } from "../db/vms.ts";
import { AppError } from "../errors.ts";
import type { EdgeConfig } from "./config.ts";

export type DeliveryContext = {
  db: Database;
  config: Pick<EdgeConfig, "DATA_PRIVATE_KEY" | "RETIRED_DATA_KEYS" | "KEY_GRACE_SECONDS">;
  /** Lower-case address of the owner who asks. */
  owner: string;
  fresh: boolean;
  /** Unix milliseconds. */
  now: number;
  /** The payment that the key is handed out for: it counts as served by the same write, or neither happens. */
  payment?: string;
};

/**
 * What the rules say before anything is read or written: pure, so that every combination can be tested. An owner who got
 * the token after its key was delivered has a first delivery of his own, by the fresh form and while the key is there.
 */
export function deliveryDecision(
  vm: Pick<Vm, "sshPrivateKey" | "deliveredAt" | "deliveredTo" | "freshOwner">,
  {
    owner,
    fresh,
    now,
    config,
  }: Pick<DeliveryContext, "owner" | "fresh" | "now"> & { config: { KEY_GRACE_SECONDS: number } },
): "first" | "again" | "withheld" {
  if (vm.sshPrivateKey === null) return "withheld";
  if (vm.deliveredAt === null) return fresh || vm.freshOwner !== owner ? "first" : "withheld";
  const inGrace = now < vm.deliveredAt + config.KEY_GRACE_SECONDS * 1_000;
  if (!fresh || !inGrace) return "withheld";
  return vm.deliveredTo === owner ? "again" : "first";
}

/** The key as text where the rules give it, and when it was first handed out. */
export async function deliverKey(
  vm: Vm,
  context: DeliveryContext,
): Promise<{ privateKey: string | null; deliveredAt: number | null }> {
  const { db, config, owner, fresh, now, payment = null } = context;
  const decision = deliveryDecision(vm, context);
  const stored = vm.sshPrivateKey;
  if (decision === "withheld" || stored === null) return { privateKey: null, deliveredAt: vm.deliveredAt };
  const { secret, legacy } = await openKey(vm, stored, config);
  const kept = { incarnation: vm.incarnation, attempt: vm.attempt, sshPrivateKey: stored };
  const delivery = { owner, fresh, now, erase: config.KEY_GRACE_SECONDS === 0, before: vm.deliveredAt, payment };
  if (decision === "first" && !(await store.markDelivered(db, kept, delivery))) {
    // The key was sealed anew under another data key between the read and the mark: nobody has it yet.
    const row = await loadVm(db, vm.incarnation);
    const resealed = row !== null && row.deliveredAt === vm.deliveredAt && row.sshPrivateKey !== stored;
    if (resealed && row.sshPrivateKey !== null) return deliverKey(row, context);
    // Two first requests at once: the other one won, and this one gets nothing. By the fresh form it may ask again.
    return { privateKey: null, deliveredAt: vm.deliveredAt ?? now };
  }
  if (decision === "again" && payment !== null && (await markServed(db, payment, now)) === null)
    return { privateKey: null, deliveredAt: vm.deliveredAt };
  if (legacy && config.KEY_GRACE_SECONDS > 0) {
    const { sealed, keyId } = await keyRing(config).seal(secretContext(vm), secret);
    await store.replaceKey(db, kept, sealed, keyId);
  }
  return { privateKey: formatPrivateKey(secret), deliveredAt: decision === "first" ? now : vm.deliveredAt };
}

/** The key as text, without any rule or its counting as a delivery; null where none is kept. */
export async function readStoredKey(vm: Vm, config: DeliveryContext["config"]): Promise<string | null> {
  const stored = vm.sshPrivateKey;
  return stored === null ? null : formatPrivateKey((await openKey(vm, stored, config)).secret);
}

const secretContext = ({ incarnation, attempt }: Vm) => ({ kind: "ssh", subject: incarnation, attempt }) as const;

async function openKey(vm: Vm, stored: string, config: DeliveryContext["config"]) {
  try {
    return await keyRing(config).open(secretContext(vm), stored, vm.keyId);
  } catch (cause) {
    if (!(cause instanceof SecretUnreadable)) throw cause;
    throw new AppError(
      "key_unreadable",
      `The key of token ${vm.tokenId} can't be read, and we know of it: POST /credentials/${vm.tokenId}/rotate gives the machine another one.`,
      { cause },
    );
  }
}
