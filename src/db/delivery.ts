// Writes of a key's delivery. Each is one conditional statement whose row count decides (hard case 21).
import { and, eq, exists, isNull, type SQLWrapper, sql } from "drizzle-orm";
import { stagesThat } from "../model/machine-life.ts";
import { type Database, runBatch } from "./client.ts";
import { isServed, serving } from "./payments.ts";
import type { Vm } from "./schema.ts";
import { keyHolders, vms } from "./schema.ts";
import { hasStatus, moveMachines } from "./stages.ts";
import { type QueuedVm, WAKE_AFTER_MS } from "./wake.ts";

type Stored = Pick<Vm, "incarnation" | "attempt"> & { sshPrivateKey: string };

export type Delivery = {
  owner: string;
  fresh: boolean;
  now: number;
  /** The stored key goes in the same statement. */
  erase: boolean;
  /** `deliveredAt` as it was read. */
  before: number | null;
  /** The payment that the delivery answers: both are written, or neither. */
  payment: string | null;
};

/** Marks an owner's first delivery; true for exactly one caller, and by the fixed form only if it still may. */
export async function markDelivered(db: Database, vm: Stored, delivery: Delivery): Promise<boolean> {
  const { owner, fresh, now, erase, before, payment } = delivery;
  const isDue = and(
    eq(vms.incarnation, vm.incarnation),
    before === null ? isNull(vms.deliveredAt) : eq(vms.deliveredAt, before),
    eq(vms.sshPrivateKey, vm.sshPrivateKey),
    fresh ? undefined : sql`${vms.freshOwner} IS NOT ${owner}`,
  );
  const marked = db
    .update(vms)
    .set({
      deliveredAt: now,
      deliveredTo: owner,
      knownToFormer: sql`${vms.knownToFormer} OR COALESCE(${vms.deliveredTo} <> ${owner}, 0)`,
      ...(erase ? { sshPrivateKey: null } : {}),
    })
    .where(and(isDue, payment === null ? undefined : isServed(payment)))
    .returning({ incarnation: vms.incarnation });
  const noted = sql`INSERT INTO key_holders (incarnation, attempt, address, clear_at)
    SELECT incarnation, ${vm.attempt}, delivered_to, delivered_at FROM vms
    WHERE incarnation = ${vm.incarnation} AND delivered_to = ${owner} AND delivered_at = ${now}
    ON CONFLICT DO UPDATE SET clear_at = COALESCE(clear_at, excluded.clear_at)`;
  const paid = payment === null ? [] : [serving(db, payment, now, exists(db.select().from(vms).where(isDue)))];
  const results = await runBatch(db, [...paid, marked, noted]);
  return results[paid.length]?.length === 1;
}

export type SealedSale = {
  /** Lower case. */
  owner: string;
  /** The key, for the owner's eyes alone. */
  sealed: string;
  payment: string;
  now: number;
};

/**
 * Gives a sealed key for a payment, together with the note of what the payment was for. Resolves with what this owner has
 * been given of this attempt, which may be of an earlier sale; null where there is nothing to give any more.
 */
export async function giveSealed(
  db: Database,
  { incarnation, attempt }: Pick<Vm, "incarnation" | "attempt">,
  { owner, sealed, payment, now }: SealedSale,
): Promise<string | null> {
  const isHeld = sql`EXISTS (SELECT 1 FROM key_holders AS held WHERE held.incarnation = ${incarnation}
    AND held.attempt = ${attempt} AND held.address = ${owner} AND held.sealed IS NOT NULL)`;
  const isThere = sql`EXISTS (SELECT 1 FROM vms WHERE incarnation = ${incarnation} AND attempt = ${attempt} AND owner = ${owner}
    AND current = 1 AND ${hasStatus("running", "expired")} AND (ssh_private_key IS NOT NULL OR ${isHeld}))`;
  const [, given] = await runBatch(db, [
    serving(db, payment, now, isThere),
    sql`INSERT INTO key_holders (incarnation, attempt, address, sealed_at, sealed)
      SELECT ${incarnation}, ${attempt}, ${owner}, ${now}, ${sealed} WHERE ${isServed(payment)} AND ${isThere}
      ON CONFLICT DO UPDATE SET sealed = COALESCE(sealed, excluded.sealed), sealed_at = COALESCE(sealed_at, excluded.sealed_at)
      RETURNING sealed`,
    db
      .update(vms)
      .set({ sealedAt: sql`COALESCE(${vms.sealedAt}, ${now})` })
      .where(and(eq(vms.incarnation, incarnation), eq(vms.attempt, attempt), isServed(payment), isThere)),
  ]);
  return (given as { sealed: string }[])[0]?.sealed ?? null;
}

/** From here on this owner gets keys by the fresh form alone. */
export const markFreshOwner = (db: Database, incarnation: string, owner: string) =>
  db.update(vms).set({ freshOwner: owner }).where(eq(vms.incarnation, incarnation));

/** The owner has the key of this attempt: erase ours, and what was sealed. */
export const acknowledge = (db: Database, vm: Pick<Vm, "incarnation" | "attempt">, now: number) =>
  db.batch([
    db
      .update(vms)
      .set({ sshPrivateKey: null, acknowledgedAt: sql`COALESCE(${vms.acknowledgedAt}, ${now})` })
      .where(and(eq(vms.incarnation, vm.incarnation), eq(vms.attempt, vm.attempt))),
    forgetSealed(db, vm.incarnation, vm.attempt),
  ]);

/** What was sealed of a key that opens nothing any more, or that its owner has. */
export const forgetSealed = (db: Database, incarnation: string, attempt: number | SQLWrapper) =>
  db
    .update(keyHolders)
    .set({ sealed: null })
    .where(and(eq(keyHolders.incarnation, incarnation), eq(keyHolders.attempt, attempt)));

/** No address and no key: those of a machine that is gone, or that is about to have others. */
export const UNPUBLISHED = {
  sshHost: null,
  sshPort: null,
  sshPrivateKey: null,
  deliveredAt: null,
  deliveredTo: null,
  knownToFormer: false,
  acknowledgedAt: null,
  sealedAt: null,
} as const;

const rotation = moveMachines(stagesThat("serves"), "provisioning/rotate");

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
      ...rotation.set,
      generation: sql`${vms.generation} + 1`,
      wakeAt: now + WAKE_AFTER_MS,
      deadline: sql`(SELECT block_timestamp FROM cursors) + ${deadlineSeconds}`,
      ...UNPUBLISHED,
    })
    .where(and(eq(vms.incarnation, incarnation), eq(vms.owner, owner), eq(vms.current, true), rotation.of))
    .returning({ incarnation: vms.incarnation, generation: vms.generation })
    .get()) ?? null;

/** Replaces a stored value by its encrypted form, unless it changed meanwhile: an erased key must not come back. */
export const replaceKey = (db: Database, vm: Omit<Stored, "attempt">, encrypted: string, keyId: string) =>
  db
    .update(vms)
    .set({ sshPrivateKey: encrypted, keyId })
    .where(and(eq(vms.incarnation, vm.incarnation), eq(vms.sshPrivateKey, vm.sshPrivateKey)));
