// The ledger of money out: what is owed for purchases and for payments. Every move is a compare-and-set on the state it leaves,
// against the retry of a purchase as well (hard case 17); a payment moves with its refund, both or neither.
import { and, asc, desc, eq, getTableColumns, inArray, ne, type SQL, sql } from "drizzle-orm";
import type { Settlement } from "../chain/authorization.ts";
import { SECONDS_PER_DAY } from "../chain/contract.ts";
import { type RefundState, requireRefundMove } from "../model/refund-life.ts";
import { type Database, rowWhere } from "./client.ts";
import { type Move, movePayment, type Payment, settlePayment } from "./payments.ts";
import { purchases, refunds, vms } from "./schema.ts";
import { hasStatus } from "./stages.ts";

type Row = typeof refunds.$inferSelect;
/** Of a payment that stood for no token, `tokenId` is null. */
export type Refund = Omit<Row, "tokenId"> & { tokenId: number | null };
export type NewRefund = Omit<typeof refunds.$inferInsert, "tokenId"> & Pick<Refund, "tokenId">;
export type RefundKey = Pick<Refund, "subject" | "kind">;
export type RefundChange = Partial<
  Pick<Refund, "state" | "reason" | "payTo" | "recipient" | "amount" | "txHash" | "wakeAt" | "settledAt">
>;

const NO_TOKEN = -1;
const refundIn = <R extends Pick<Row, "tokenId">>(row: R) => ({
  ...row,
  tokenId: row.tokenId === NO_TOKEN ? null : row.tokenId,
});

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

/** What is owed for a purchase, or for the order that it serves, by our own rows: before it is paid the chain is asked. */
export async function oweRefund(
  db: Database,
  { incarnation, tokenId }: { incarnation: string; tokenId: number },
  { now, ...owed }: Owed,
  order: Pick<Payment, "amount" | "durationDays"> | null,
): Promise<NewRefund> {
  const { totalCost, durationDays } = purchases;
  const isOwn = eq(purchases.incarnation, incarnation);
  const purchase = await db.select({ totalCost, durationDays }).from(purchases).where(isOwn).get();
  const paid = order === null ? purchase : paidByOrder(order);
  const amount = paid === undefined ? 0n : shareOf(BigInt(paid.totalCost), paid.durationDays, owed.owedSeconds);
  const wakeAt = owed.state === "due" ? now : null;
  return { subject: incarnation, tokenId, ...owed, amount: String(amount), wakeAt, createdAt: now };
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
export function bookRefund(db: Database, refund: NewRefund, when: SQL = sql`true`) {
  const row = { ...refund, tokenId: refund.tokenId ?? NO_TOKEN };
  return db
    .insert(refunds)
    .select(rowWhere(getTableColumns(refunds), row, when))
    .onConflictDoUpdate({
      target: [refunds.subject, refunds.kind],
      set: { payTo: null, recipient: null, txHash: null, settledAt: null, ...row },
      setWhere: eq(refunds.state, "cancelled"),
    });
}

/**
 * Books the refund of a payment, which moves along: null where it has moved meanwhile, or where the ledger has a refund for it
 * that was not cancelled.
 */
export const bookForPayment = (db: Database, payment: Payment, to: Move, refund: NewRefund): Promise<Payment | null> =>
  movePayment(db, payment, to, {
    when: sql`NOT EXISTS (SELECT 1 FROM refunds WHERE ${isRefund(refund)} AND refunds.state <> 'cancelled')`,
    also: (hasMoved) => [bookRefund(db, refund, hasMoved)],
  });

/** A payment without a refund was paid back by hand. */
export const notePaidByHand = (db: Database, payment: Payment, txHash: string, now: number): Promise<Payment | null> =>
  bookForPayment(
    db,
    payment,
    { state: "refunded", step: "idle", refundTx: txHash, endedAt: now },
    {
      subject: payment.id,
      kind: "payment",
      tokenId: payment.tokenId,
      amount: payment.amount,
      state: "paid",
      reason: "by_hand",
      txHash,
      createdAt: now,
      settledAt: now,
    },
  );

export async function loadRefund(db: Database, key: RefundKey): Promise<Refund | null> {
  const row = await db.select().from(refunds).where(isRefund(key)).get();
  return row === undefined ? null : refundIn(row);
}

const PAYING = { state: "paying", txHash: null } as const;

/**
 * The last look before money moves: false where the purchase went back to work, or somebody else decided meanwhile. From
 * here on nothing takes it back.
 */
export const beginPaying = (db: Database, key: RefundKey, to: string, amount: bigint): Promise<boolean> =>
  moveRefund(
    db,
    key,
    ["due"],
    { ...PAYING, recipient: to, amount: String(amount) },
    key.kind === "late"
      ? undefined
      : sql`EXISTS (SELECT 1 FROM vms WHERE vms.incarnation = ${key.subject} AND ${hasStatus("failed")})`,
  );

/** The same for a payment, which the transfer that paid it is written to. */
export async function beginPayingBack(
  db: Database,
  key: RefundKey,
  payment: Payment,
  use: Settlement,
  recipient: string,
): Promise<boolean> {
  const to = { ...PAYING, recipient, amount: payment.amount };
  return (await settlePayment(db, payment, use, { refundTx: null }, movedWith(db, key, ["due"], to))) !== null;
}

function moving(db: Database, key: RefundKey, from: readonly RefundState[], to: RefundChange, when?: SQL) {
  if (to.state !== undefined) requireRefundMove(from, to.state);
  return db
    .update(refunds)
    .set(to)
    .where(and(isRefund(key), inArray(refunds.state, from), when));
}

/** Moves on from one state; false where it is in another by now. Throws `ForbiddenMove` where a refund has no such move. */
export async function moveRefund(
  db: Database,
  key: RefundKey,
  from: readonly RefundState[],
  to: RefundChange,
  when?: SQL,
): Promise<boolean> {
  return (await moving(db, key, from, to, when)).meta.changes === 1;
}

/** The move of a refund that its payment's depends on. */
const movedWith = (db: Database, key: RefundKey, from: readonly RefundState[], to: RefundChange) => ({
  when: sql`EXISTS (SELECT 1 FROM refunds WHERE ${and(isRefund(key), inArray(refunds.state, from))})`,
  also: (hasMoved: SQL) => [moving(db, key, from, to, hasMoved)],
});

/** A refund and its payment move, both or neither: the payment as it is from here on, or null. */
export const moveWithPayment = (
  db: Database,
  key: RefundKey,
  [from, to]: [readonly RefundState[], RefundChange],
  payment: Payment,
  paymentTo: Move,
): Promise<Payment | null> => movePayment(db, payment, paymentTo, movedWith(db, key, from, to));

/** The token's owner asks for what is held because the buyer no longer owns it. False where nothing is. */
export async function claimRefund(db: Database, incarnation: string, owner: string, now: number): Promise<boolean> {
  requireRefundMove(["held"], "due");
  const result = await db
    .update(refunds)
    .set({ state: "due", reason: null, payTo: owner, wakeAt: now })
    .where(
      and(
        eq(refunds.subject, incarnation),
        eq(refunds.state, "held"),
        inArray(refunds.reason, ["owner_is_not_the_buyer", "owner_changed"]),
      ),
    );
  return result.meta.changes > 0;
}

/** Of what an incarnation is owed, the most telling: that it failed before that it was late. */
export async function refundOf(db: Database, incarnation: string): Promise<Refund | null> {
  const row = await db
    .select()
    .from(refunds)
    .where(and(eq(refunds.subject, incarnation), ne(refunds.state, "cancelled")))
    .orderBy(asc(refunds.kind))
    .get();
  return row === undefined ? null : refundIn(row);
}

/** Where a page of `listRefunds` ended: a token may have several, and payments without a token come last. */
export type RefundPosition = { tokenId: number | null; rowid: number };

/** For operators: by state, newest token first, behind a position. */
export async function listRefunds(
  db: Database,
  state: RefundState | undefined,
  after: RefundPosition | undefined,
  limit: number,
) {
  const rows = await db
    .select({ ...getTableColumns(refunds), rowid: sql<number>`rowid` })
    .from(refunds)
    .where(
      and(
        after && sql`(${refunds.tokenId}, rowid) < (${after.tokenId ?? NO_TOKEN}, ${after.rowid})`,
        state === undefined ? undefined : eq(refunds.state, state),
      ),
    )
    .orderBy(desc(refunds.tokenId), desc(sql`rowid`))
    .limit(limit)
    .all();
  return rows.map(refundIn);
}

/** The refund of a token's current incarnation. */
export async function refundOfToken(db: Database, tokenId: number, kind: Refund["kind"]): Promise<Refund | null> {
  const row = await db
    .select({ refund: refunds })
    .from(refunds)
    .innerJoin(vms, eq(vms.incarnation, refunds.subject))
    .where(and(eq(refunds.tokenId, tokenId), eq(refunds.kind, kind), eq(vms.current, true)))
    .get();
  return row === undefined ? null : refundIn(row.refund);
}

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
            WHERE other.incarnation = ${refunds.subject} AND other.tx_hash IS NOT NULL)`,
          paidFor: sql<string>`COALESCE(
            (SELECT amount FROM payments WHERE payments.incarnation = ${refunds.subject} ORDER BY created_at DESC LIMIT 1),
            (SELECT total_cost FROM purchases WHERE purchases.incarnation = ${refunds.subject}), '0')`,
        })
        .from(refunds)
        .where(sql`${refunds.txHash} IN (SELECT value FROM json_each(${JSON.stringify(hashes)}))`)
        .all();

const isRefund = ({ subject, kind }: RefundKey) => and(eq(refunds.subject, subject), eq(refunds.kind, kind));
