// Writes of a key's delivery. Each is conditional, and its row count says which caller may deliver (hard case 21).
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
  /** Erases the stored key in the same statement. */
  erase: boolean;
  /** The row's `deliveredAt` as the caller read it. */
  before: number | null;
  /** The payment that the delivery answers. Its row is written in the same batch. */
  payment: string | null;
};

/**
 * Marks an owner's first delivery. True for exactly one caller; never true for the fixed form of signature once the owner has
 * used the fresh form.
 */
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
  /** The owner's address in lower case. */
  owner: string;
  /** The private key, encrypted to the owner's public key. */
  sealed: string;
  payment: string;
  now: number;
};

/**
 * Stores a sealed key for its owner, and marks the payment as served in the same batch. Resolves with the owner's sealed key of
 * this attempt, which may be an earlier sale's; null when the machine is another owner's, its key is gone, or the payment is
 * not settled.
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

/** From now on this owner gets keys only by the fresh form of signature. */
export const markFreshOwner = (db: Database, incarnation: string, owner: string) =>
  db.update(vms).set({ freshOwner: owner }).where(eq(vms.incarnation, incarnation));

/** The owner has acknowledged the key of an attempt: erases the stored key and the sealed copies. */
export const acknowledge = (db: Database, vm: Pick<Vm, "incarnation" | "attempt">, now: number) =>
  db.batch([
    db
      .update(vms)
      .set({ sshPrivateKey: null, acknowledgedAt: sql`COALESCE(${vms.acknowledgedAt}, ${now})` })
      .where(and(eq(vms.incarnation, vm.incarnation), eq(vms.attempt, vm.attempt))),
    forgetSealed(db, vm.incarnation, vm.attempt),
  ]);

/** Erases the sealed copies of an attempt's key: the key opens nothing any more, or its owner has it. */
export const forgetSealed = (db: Database, incarnation: string, attempt: number | SQLWrapper) =>
  db
    .update(keyHolders)
    .set({ sealed: null })
    .where(and(eq(keyHolders.incarnation, incarnation), eq(keyHolders.attempt, attempt)));

/** Columns of a row without a published machine: the machine is gone, or gets a new address and new keys. */
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
 * Orders a rotation for the owner: the machine is reinstalled or replaced, with a deadline of its own. The old key is erased at
 * once. Null when no machine serves that owner now.
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

/** Replaces a stored key by its encrypted form, by compare-and-set: an erased key must not come back. */
export const replaceKey = (db: Database, vm: Omit<Stored, "attempt">, encrypted: string, keyId: string) =>
  db
    .update(vms)
    .set({ sshPrivateKey: encrypted, keyId })
    .where(and(eq(vms.incarnation, vm.incarnation), eq(vms.sshPrivateKey, vm.sshPrivateKey)));
