// What buyers are owed. Every move is a compare-and-set on the state it leaves, against the retry of a purchase as well
// (hard case 17).
import { and, asc, desc, eq, getTableColumns, inArray, ne, sql } from "drizzle-orm";
import { SECONDS_PER_DAY } from "../chain/contract.ts";
import { type RefundState, requireRefundMove } from "../model/refund-life.ts";
import type { Database } from "./client.ts";
import type { Payment } from "./payments.ts";
import { purchases, refunds, vms } from "./schema.ts";
import { hasStatus } from "./stages.ts";

export type Refund = typeof refunds.$inferSelect;
export type RefundKey = Pick<Refund, "incarnation" | "kind">;

type Owed = {
  kind: Refund["kind"];
  state: RefundState;
  reason: string | null;
  owedSeconds: number | null;
  now: number;
};

/** The share of a price that so many seconds of its time are worth; all of it for null. Rounded down. */
export function shareOf(totalCost: bigint, durationDays: number, owedSeconds: number | null): bigint {
  const paid = BigInt(durationDays * SECONDS_PER_DAY);
  const owed = owedSeconds === null || BigInt(owedSeconds) > paid ? paid : BigInt(owedSeconds);
  return (totalCost * owed) / paid;
}

/** Sold over x402, what was paid is the payment, for the days that were ordered (hard case 33). */
export const paidByOrder = ({ amount, durationDays }: Pick<Payment, "amount" | "durationDays">) => ({
  totalCost: BigInt(amount),
  durationDays: durationDays ?? 1,
});

export type NewRefund = typeof refunds.$inferInsert;

/** What is owed for a purchase, or for the order that it serves, by our own rows: before it is paid the chain is asked. */
export async function oweRefund(
  db: Database,
  { incarnation, tokenId }: Pick<Refund, "incarnation" | "tokenId">,
  { now, ...owed }: Owed,
  order: Pick<Payment, "amount" | "durationDays"> | null,
): Promise<NewRefund> {
  const { totalCost, durationDays } = purchases;
  const isOwn = eq(purchases.incarnation, incarnation);
  const purchase = await db.select({ totalCost, durationDays }).from(purchases).where(isOwn).get();
  const paid = order === null ? purchase : paidByOrder(order);
  const amount = paid === undefined ? 0n : shareOf(BigInt(paid.totalCost), paid.durationDays, owed.owedSeconds);
  const wakeAt = owed.state === "due" ? now : null;
  return { incarnation, tokenId, ...owed, amount: String(amount), wakeAt, createdAt: now };
}

/** When the time ends that a purchase has paid for, renewals aside: unix seconds of the chain. */
export async function boughtUntil(
  db: Database,
  { incarnation, expiresAt }: { incarnation: string; expiresAt: number },
): Promise<number> {
  const { purchaseDate, durationDays } = purchases;
  const isOwn = eq(purchases.incarnation, incarnation);
  const purchase = await db.select({ purchaseDate, durationDays }).from(purchases).where(isOwn).get();
  if (purchase === undefined) return expiresAt;
  return Math.min(expiresAt, purchase.purchaseDate + purchase.durationDays * SECONDS_PER_DAY);
}

/** Books it, in a batch with what it is owed for. One that was cancelled is owed again. */
export const bookRefund = (db: Database, refund: NewRefund) =>
  db
    .insert(refunds)
    .values(refund)
    .onConflictDoUpdate({
      target: [refunds.incarnation, refunds.kind],
      set: { ...refund, payTo: null, recipient: null, txHash: null },
      setWhere: eq(refunds.state, "cancelled"),
    });

export const loadRefund = async (db: Database, key: RefundKey): Promise<Refund | null> =>
  (await db.select().from(refunds).where(isRefund(key)).get()) ?? null;

/**
 * The last look before money moves: false where the purchase went back to work, or somebody else decided meanwhile. From
 * here on nothing takes it back.
 */
export async function beginPaying(db: Database, key: RefundKey, to: string, amount: bigint): Promise<boolean> {
  requireRefundMove(["due"], "paying");
  const result = await db
    .update(refunds)
    .set({ state: "paying", recipient: to, amount: String(amount), txHash: null })
    .where(
      and(
        isRefund(key),
        eq(refunds.state, "due"),
        key.kind === "late"
          ? undefined
          : sql`EXISTS (SELECT 1 FROM vms WHERE vms.incarnation = ${key.incarnation} AND ${hasStatus("failed")})`,
      ),
    );
  return result.meta.changes === 1;
}

/** Moves on from one state; false where it is in another by now. Throws `ForbiddenMove` where a refund has no such move. */
export async function moveRefund(
  db: Database,
  key: RefundKey,
  from: readonly RefundState[],
  to: Partial<Pick<Refund, "state" | "reason" | "payTo" | "txHash" | "wakeAt" | "settledAt">>,
): Promise<boolean> {
  if (to.state !== undefined) requireRefundMove(from, to.state);
  const result = await db
    .update(refunds)
    .set(to)
    .where(and(isRefund(key), inArray(refunds.state, from)));
  return result.meta.changes === 1;
}

/** The token's owner asks for what is held because the buyer no longer owns it. False where nothing is. */
export async function claimRefund(db: Database, incarnation: string, owner: string, now: number): Promise<boolean> {
  requireRefundMove(["held"], "due");
  const result = await db
    .update(refunds)
    .set({ state: "due", reason: null, payTo: owner, wakeAt: now })
    .where(
      and(
        eq(refunds.incarnation, incarnation),
        eq(refunds.state, "held"),
        inArray(refunds.reason, ["owner_is_not_the_buyer", "owner_changed"]),
      ),
    );
  return result.meta.changes > 0;
}

/** Of what an incarnation is owed, the most telling: that it failed before that it was late. */
export const refundOf = async (db: Database, incarnation: string): Promise<Refund | null> =>
  (await db
    .select()
    .from(refunds)
    .where(and(eq(refunds.incarnation, incarnation), ne(refunds.state, "cancelled")))
    .orderBy(asc(refunds.kind))
    .get()) ?? null;

/** Where a page of `listRefunds` ended: a token may have several. */
export type RefundPosition = { tokenId: number; rowid: number };

/** For operators: by state, newest token first, behind a position. */
export const listRefunds = (
  db: Database,
  state: RefundState | undefined,
  after: RefundPosition | undefined,
  limit: number,
) =>
  db
    .select({ ...getTableColumns(refunds), rowid: sql<number>`rowid` })
    .from(refunds)
    .where(
      and(
        after === undefined ? undefined : sql`(${refunds.tokenId}, rowid) < (${after.tokenId}, ${after.rowid})`,
        state === undefined ? undefined : eq(refunds.state, state),
      ),
    )
    .orderBy(desc(refunds.tokenId), desc(sql`rowid`))
    .limit(limit)
    .all();

/** The refund of a token's current incarnation. */
export const refundOfToken = async (db: Database, tokenId: number, kind: Refund["kind"]): Promise<Refund | null> =>
  (
    await db
      .select({ refund: refunds })
      .from(refunds)
      .innerJoin(vms, eq(vms.incarnation, refunds.incarnation))
      .where(and(eq(refunds.tokenId, tokenId), eq(refunds.kind, kind), eq(vms.current, true)))
      .get()
  )?.refund ?? null;

/**
 * Those that were paid by one of these transactions; what was paid back for the purchase in all, of several kinds, and what had
 * been paid for it: on the contract, or over x402.
 */
export const refundsOfTransactions = async (db: Database, hashes: readonly string[]) =>
  hashes.length === 0
    ? []
    : db
        .select({
          txHash: refunds.txHash,
          amount: refunds.amount,
          total: sql<string>`(SELECT SUM(CAST(other.amount AS INTEGER)) FROM refunds AS other
            WHERE other.incarnation = ${refunds.incarnation} AND other.tx_hash IS NOT NULL)`,
          paidFor: sql<string>`COALESCE(
            (SELECT amount FROM payments WHERE payments.incarnation = ${refunds.incarnation} ORDER BY created_at DESC LIMIT 1),
            (SELECT total_cost FROM purchases WHERE purchases.incarnation = ${refunds.incarnation}), '0')`,
        })
        .from(refunds)
        .where(sql`${refunds.txHash} IN (SELECT value FROM json_each(${JSON.stringify(hashes)}))`)
        .all();

const isRefund = ({ incarnation, kind }: RefundKey) =>
  and(eq(refunds.incarnation, incarnation), eq(refunds.kind, kind));
