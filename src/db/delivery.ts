// Writes of a key's delivery. Each is one conditional statement whose row count decides (hard case 21).
import { and, eq, inArray, isNotNull, isNull, sql } from "drizzle-orm";
import { SERVING_STEPS } from "../vms/states.ts";
import type { Database } from "./client.ts";
import { type QueuedVm, WAKE_AFTER_MS } from "./scan.ts";
import { vms } from "./schema.ts";
import type { Vm } from "./vms.ts";

type Stored = Pick<Vm, "incarnation"> & { sshPrivateKey: string };

export type Delivery = {
  owner: string;
  fresh: boolean;
  now: number;
  /** The stored key goes in the same statement. */
  erase: boolean;
  /** `deliveredAt` as it was read. */
  before: number | null;
};

/** Marks an owner's first delivery; true for exactly one caller, and by the fixed form only if it still may. */
export async function markDelivered(db: Database, vm: Stored, delivery: Delivery): Promise<boolean> {
  const { owner, fresh, now, erase, before } = delivery;
  const result = await db
    .update(vms)
    .set({
      deliveredAt: now,
      deliveredTo: owner,
      knownToFormer: sql`${vms.knownToFormer} OR COALESCE(${vms.deliveredTo} <> ${owner}, 0)`,
      ...(erase ? { sshPrivateKey: null } : {}),
    })
    .where(
      and(
        eq(vms.incarnation, vm.incarnation),
        before === null ? isNull(vms.deliveredAt) : eq(vms.deliveredAt, before),
        eq(vms.sshPrivateKey, vm.sshPrivateKey),
        fresh ? undefined : sql`${vms.freshOwner} IS NOT ${owner}`,
      ),
    );
  return result.meta.changes === 1;
}

/** From here on this owner gets keys by the fresh form alone. */
export const markFreshOwner = (db: Database, incarnation: string, owner: string) =>
  db.update(vms).set({ freshOwner: owner }).where(eq(vms.incarnation, incarnation));

/** The owner has the key of this attempt: erase ours. */
export const acknowledge = (db: Database, { incarnation, attempt }: Pick<Vm, "incarnation" | "attempt">, now: number) =>
  db
    .update(vms)
    .set({ sshPrivateKey: null, acknowledgedAt: sql`COALESCE(${vms.acknowledgedAt}, ${now})` })
    .where(and(eq(vms.incarnation, incarnation), eq(vms.attempt, attempt), isNotNull(vms.deliveredAt)));

/** No address and no key: those of a machine that is gone, or that is about to have others. */
export const UNPUBLISHED = {
  sshHost: null,
  sshPort: null,
  sshPrivateKey: null,
  deliveredAt: null,
  deliveredTo: null,
  knownToFormer: false,
  acknowledgedAt: null,
} as const;

/**
 * The owner wants another key: the machine is reinstalled or replaced, with a deadline of its own. The old key goes at
 * once. Null where no machine serves that owner now.
 */
export const orderRotation = async (
  db: Database,
  { incarnation, owner }: Pick<Vm, "incarnation" | "owner">,
  now: number,
  deadlineSeconds: number,
): Promise<QueuedVm | null> =>
  (await db
    .update(vms)
    .set({
      status: "provisioning",
      step: "rotate",
      generation: sql`${vms.generation} + 1`,
      wakeAt: now + WAKE_AFTER_MS,
      deadline: sql`(SELECT block_timestamp FROM cursors) + ${deadlineSeconds}`,
      ...UNPUBLISHED,
    })
    .where(
      and(
        eq(vms.incarnation, incarnation),
        eq(vms.owner, owner),
        eq(vms.current, true),
        eq(vms.status, "running"),
        inArray(vms.step, SERVING_STEPS),
      ),
    )
    .returning({ incarnation: vms.incarnation, generation: vms.generation })
    .get()) ?? null;

/** Replaces a stored value by its encrypted form, unless it changed meanwhile: an erased key must not come back. */
export const replaceKey = (db: Database, vm: Stored, encrypted: string, keyId: string) =>
  db
    .update(vms)
    .set({ sshPrivateKey: encrypted, keyId })
    .where(and(eq(vms.incarnation, vm.incarnation), eq(vms.sshPrivateKey, vm.sshPrivateKey)));
