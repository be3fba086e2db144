// Writes of a key's delivery. Each is one conditional statement whose row count decides (hard case 21).
import { and, eq, isNotNull, isNull, sql } from "drizzle-orm";
import type { Database } from "./client.ts";
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
    .set({ deliveredAt: now, deliveredTo: owner, ...(erase ? { sshPrivateKey: null } : {}) })
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

/** The owner has the key: erase ours. */
export const acknowledge = (db: Database, incarnation: string, now: number) =>
  db
    .update(vms)
    .set({ sshPrivateKey: null, acknowledgedAt: sql`COALESCE(${vms.acknowledgedAt}, ${now})` })
    .where(and(eq(vms.incarnation, incarnation), isNotNull(vms.deliveredAt)));

/** Replaces a stored value by its encrypted form, unless it changed meanwhile: an erased key must not come back. */
export const replaceKey = (db: Database, vm: Stored, encrypted: string, keyId: string) =>
  db
    .update(vms)
    .set({ sshPrivateKey: encrypted, keyId })
    .where(and(eq(vms.incarnation, vm.incarnation), eq(vms.sshPrivateKey, vm.sshPrivateKey)));
