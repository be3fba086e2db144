// Payments by x402. Every move is a compare-and-set on the generation it was read at.
import { and, asc, desc, eq, getTableColumns, gt, inArray, ne, type SQL, sql } from "drizzle-orm";
import type { BatchItem } from "drizzle-orm/batch";
import type { Settlement } from "../chain/authorization.ts";
import { log } from "../log.ts";
import { type FilledAt, type PaymentStage, requirePaymentMove, statesThat } from "../model/payment-life.ts";
import type { Standing } from "../model/shop.ts";
import type { StockByVendor } from "../model/stock.ts";
import { type Database, once, rowWhere } from "./client.ts";
import {
  FORGETTABLE,
  OPEN,
  PAID,
  partOf,
  paymentLinks,
  payments,
  quotes,
  settlements,
  UNBOUGHT,
  UNPAID,
  WANTED,
} from "./schema.ts";
import type { StoredTiers } from "./sweep.ts";

export type Payment = typeof payments.$inferSelect;
export type NewPayment = typeof payments.$inferInsert;
export type Move = Partial<Omit<Payment, "id" | "generation">>;
/** What else a move depends on, and what is written with it: both or neither. */
type With = {
  when?: SQL;
  /** `hasMoved`: the condition that the payment is where it goes to. */
  also?: (hasMoved: SQL) => BatchItem<"sqlite">[];
};
type Filled<Column extends keyof Payment> = { [C in Column]: NonNullable<Payment[C]> };
/** A payment at a stage, with the columns that the stage has set. */
export type PaymentAt<Stage extends PaymentStage> = Payment & Filled<FilledAt<Stage>>;
/** A payment for a machine. */
export type Order = PaymentAt<"settled/buy/choose">;
/** An order whose token is ordered from the wallet. */
export type CostedOrder = PaymentAt<"settled/buy/order">;
/** An order that a token and a machine stand for. */
export type LinkedOrder = PaymentAt<"settled/provision">;

const HOUR_MS = 3_600_000;
const DAY_MS = 24 * HOUR_MS;

const given = sql.placeholder;
const byId = once((db) =>
  db
    .select()
    .from(payments)
    .where(eq(payments.id, given("id")))
    .prepare(),
);

export const loadPayment = async (db: Database, id: string): Promise<Payment | null> =>
  (await byId(db).get({ id })) ?? null;

export const paymentByIdentifier = async (db: Database, payer: string, identifier: string): Promise<Payment | null> =>
  (await db
    .select()
    .from(payments)
    .where(and(eq(payments.payer, payer), eq(payments.identifier, identifier)))
    .get()) ?? null;

/** Of any of its transactions, each by its index: a purchase's are in the links, replaced ones too. */
export const paymentByTransaction = async (db: Database, hash: string): Promise<Payment | null> =>
  (await db
    .select()
    .from(payments)
    .where(
      sql`settle_tx = ${hash} OR transfer_tx = ${hash} OR refund_tx = ${hash}
        OR id = (SELECT payment FROM payment_links WHERE tx_hash = ${hash})`,
    )
    .get()) ?? null;

/** Payers choose their nonces: without a payer there may be several; two of them say so. */
export const paymentsByNonce = (db: Database, nonce: string, payer: string | undefined): Promise<Payment[]> =>
  db
    .select()
    .from(payments)
    .where(and(eq(payments.nonce, nonce), payer === undefined ? undefined : eq(payments.payer, payer)))
    .limit(2)
    .all();

/** An order for the same, by the same payer, that is open or served. */
type SameOrder = Pick<NewPayment, "payer" | "request"> & { since: number };

const isSame = ({ payer, request, since }: SameOrder): SQL =>
  sql`kind = 'compute' AND payer = ${payer} AND created_at > ${since} AND request = ${request}
    AND ${sql.raw(WANTED)}`;

export const sameOrder = async (db: Database, order: SameOrder): Promise<Payment | null> =>
  (await db.select().from(payments).where(isSame(order)).orderBy(asc(payments.createdAt)).limit(1).get()) ?? null;

/**
 * Inserts the claim and gives it back, for exactly one caller; null where there is one of that authorization or identifier,
 * or where the order `unless` was made since.
 */
export async function claimPayment(db: Database, payment: NewPayment, unless?: SameOrder): Promise<Payment | null> {
  const condition = unless === undefined ? sql`true` : sql`NOT EXISTS (SELECT 1 FROM payments WHERE ${isSame(unless)})`;
  const claimed = await db
    .insert(payments)
    .select(rowWhere(getTableColumns(payments), payment, condition))
    .onConflictDoNothing()
    .returning();
  return claimed[0] ?? null;
}

/** What a claim of a purchase has to stay within; 10^-6 USDC. */
export type Limits = {
  /** The payer's balance: what it has signed and we have not taken must be covered (hard case 18). */
  balance: bigint;
  /** What the operator wallet has. */
  float: bigint;
  /** What may be delivered and not be paid for yet; of no matter for an order that is captured first. */
  uncaptured: bigint;
};

export type Exceeded = "payer_refused" | "order_open" | "balance" | "float" | "uncaptured";

const sumOf = sql`COALESCE(SUM(CAST(amount AS INTEGER)), 0)`;
const unpaidSum = (now: number, more = sql``): SQL => {
  const unpaid = sql`SELECT ${sumOf} FROM ${partOf("payments_unpaid", UNPAID)} ${more}`;
  return sql`(${unpaid} AND bought_at IS NULL) + (${unpaid} AND bought_at > ${now - HOUR_MS})`;
};
const unboughtSum = (more = sql``): SQL => sql`(SELECT ${sumOf} FROM ${partOf("payments_unbought", UNBOUGHT)} ${more})`;

/**
 * Which limit a payment goes beyond, by the rows that there are; null where it stays within all. One order is open to a payer
 * that has never paid; several, within its balance, to one that has. Against `earlier` rows of many at once the first one
 * passes; one that has no row yet, or had one long before it asks, counts them `all`.
 */
export async function exceededLimit(
  db: Database,
  { id, payer, amount, captureFirst }: Pick<Payment, "id" | "payer" | "amount" | "captureFirst">,
  { balance, float, uncaptured }: Limits,
  now: number,
  rows: "all" | "earlier" = "earlier",
): Promise<Exceeded | null> {
  const others = rows === "all" ? sql`AND rowid <> self.at` : sql`AND rowid < self.at`;
  const open = sql`${partOf("payments_open", OPEN)} AND payer = ${payer} ${others}`;
  const [row] = await db.all<{
    refused: number;
    open: number;
    open_sum: number;
    paid: number;
    unbought: number;
    uncaptured: number;
  }>(sql`WITH self AS (SELECT COALESCE((SELECT rowid FROM payments WHERE id = ${id}), -1) AS at) SELECT
    EXISTS (SELECT 1 FROM ${partOf("payments_refused", "reason = 'capture_refused'")} AND payer = ${payer}) AS refused,
    EXISTS (SELECT 1 FROM ${open} AND kind = 'compute') AS open,
    (SELECT ${sumOf} FROM ${open}) AS open_sum,
    EXISTS (SELECT 1 FROM ${partOf("payments_paid", PAID)} AND payer = ${payer}) AS paid,
    ${unboughtSum(others)} AS unbought,
    ${unpaidSum(now, others)} AS uncaptured FROM self`);
  if (row === undefined) throw new Error("a query without rows");
  const sum = BigInt(amount);
  if (row.refused === 1) return "payer_refused";
  if (row.open === 1 && row.paid === 0) return "order_open";
  if (BigInt(row.open_sum) + sum > balance) return "balance";
  if (BigInt(row.unbought) + sum > float) return "float";
  if (!captureFirst && BigInt(row.uncaptured) + sum > uncaptured) return "uncaptured";
  return null;
}

/** What decides whether an order can be had, and how; amounts in 10^-6 USDC. */
export type Market = {
  standing: Standing & { blockTimestamp: number };
  /** Delivered, or to be, before it is paid. */
  unpaid: bigint;
  /** What tokens will cost that were ordered and not bought yet. */
  unbought: bigint;
  /** What tokens have cost within a day. */
  spent: bigint;
  stock: StockByVendor;
  tiers: StoredTiers;
};

export async function readMarket(db: Database, now: number): Promise<Market> {
  const [row] = await db.all<{
    pausedSince: number | null;
    scannedAt: number | null;
    blockTimestamp: number | null;
    unpaid: number;
    unbought: number;
    spent: number;
    stock: string | null;
    tiers: string | null;
  }>(sql`SELECT (SELECT since FROM pauses WHERE what = 'provisioning') AS pausedSince,
    (SELECT scanned_at FROM cursors WHERE id = 1) AS scannedAt,
    (SELECT block_timestamp FROM cursors WHERE id = 1) AS blockTimestamp,
    ${unpaidSum(now)} AS unpaid, ${unboughtSum()} AS unbought,
    (SELECT COALESCE(SUM(CAST(cost AS INTEGER)), 0) FROM ${partOf("payments_bought", "bought_at IS NOT NULL")}
      AND bought_at > ${now - DAY_MS}) AS spent,
    (SELECT stock FROM catalogs WHERE id = 1) AS stock, (SELECT tiers FROM catalogs WHERE id = 1) AS tiers`);
  if (row === undefined) throw new Error("a query without rows");
  return {
    standing: {
      pausedSince: row.pausedSince,
      scannedAt: row.scannedAt ?? 0,
      blockTimestamp: row.blockTimestamp ?? 0,
    },
    unpaid: BigInt(row.unpaid),
    unbought: BigInt(row.unbought),
    spent: BigInt(row.spent),
    stock: JSON.parse(row.stock ?? "{}"),
    tiers: JSON.parse(row.tiers ?? "[]"),
  };
}

/**
 * The row as it is from here on; null where it has moved since it was read. Throws `ForbiddenMove` where a payment's life has no
 * such move.
 */
export async function movePayment(
  db: Database,
  row: Payment,
  to: Move,
  { when, also }: With = {},
): Promise<Payment | null> {
  const move = moving(db, row, to, when);
  if (also === undefined) return (await move.get()) ?? null;
  const [moved] = await db.batch([move, ...also(hasMoved(row, to))]);
  return moved[0] ?? null;
}

function moving(db: Database, row: Payment, to: Move, when?: SQL) {
  const { id, generation } = row;
  requirePaymentMove(row, { ...row, ...to });
  return db
    .update(payments)
    .set({ ...to, generation: generation + 1 })
    .where(and(eq(payments.id, id), eq(payments.generation, generation), when))
    .returning();
}

const hasMoved = (row: Payment, to: Move): SQL => {
  const { id, generation, state, step } = { ...row, ...to };
  return sql`EXISTS (SELECT 1 FROM payments WHERE id = ${id} AND generation = ${generation + 1} AND state = ${state} AND step = ${step})`;
};

/**
 * A move to a state that says paid, with the transfer that paid. Null where the row has moved since it was read, and where
 * the transfer is another payment's: nothing is paid by it then (hard case 27).
 */
export async function settlePayment(
  db: Database,
  row: Payment,
  { txHash, logIndex }: Settlement,
  to: Move,
  { when, also }: With = {},
): Promise<Payment | null> {
  const { id } = row;
  const isOwn = sql`EXISTS (SELECT 1 FROM settlements WHERE tx_hash = ${txHash} AND log_index = ${logIndex} AND payment = ${id})`;
  const [, moved] = await db.batch([
    db
      .insert(settlements)
      .values({ txHash, logIndex, payment: id })
      .onConflictDoNothing({ target: [settlements.txHash, settlements.logIndex] })
      .onConflictDoUpdate({ target: settlements.payment, set: { txHash, logIndex } }),
    moving(db, row, { ...to, settleTx: txHash }, and(isOwn, when)),
    ...(also?.(hasMoved(row, to)) ?? []),
  ]);
  const [settled] = moved;
  if (settled !== undefined) return settled;
  const { payment } = settlements;
  const isIts = and(eq(settlements.txHash, txHash), eq(settlements.logIndex, logIndex), ne(payment, id));
  const other = await db.select({ payment }).from(settlements).where(isIts).get();
  if (other !== undefined) log("page", "transfer_of_another_payment", { payment: id, txHash, logIndex });
  return null;
}

/** An answer leaves that the payment was for. No row where it is about to be paid back: then none may leave. */
export const serving = (db: Database, id: string, now: number, when?: SQL) =>
  db
    .update(payments)
    .set({
      servedAt: sql`COALESCE(${payments.servedAt}, ${now})`,
      step: "close",
      wakeAt: now,
      generation: sql`${payments.generation} + 1`,
    })
    .where(and(eq(payments.id, id), eq(payments.kind, "credentials"), eq(payments.state, "settled"), when))
    .returning();

export const markServed = async (db: Database, id: string, now: number): Promise<Payment | null> =>
  (await serving(db, id, now).get()) ?? null;

/** For statements of the same batch, behind `serving`. */
export const isServed = (id: string): SQL =>
  sql`EXISTS (SELECT 1 FROM payments WHERE id = ${id} AND state = 'settled' AND served_at IS NOT NULL)`;

/** Deletes what final history has let go of, and of which nothing ever came. */
export const forgetPayments = (db: Database, endedBefore: number, limit: number) =>
  db.run(sql`DELETE FROM payments WHERE id IN (SELECT id FROM ${partOf("payments_to_forget", FORGETTABLE)}
    AND ended_at < ${endedBefore} ORDER BY ended_at LIMIT ${limit})`);

/** Before a transaction that buys a token leaves: whose purchase it will be (hard case 20). */
export async function linkTransaction(db: Database, txHash: string, payment: string, now: number): Promise<void> {
  await db.insert(paymentLinks).values({ txHash, payment, createdAt: now }).onConflictDoNothing();
}

/** The payment that a purchase of ours was made for. */
export const linkedPayment = async (db: Database, txHash: string): Promise<Payment | null> =>
  (
    await db
      .select({ payment: payments })
      .from(paymentLinks)
      .innerJoin(payments, eq(payments.id, paymentLinks.payment))
      .where(eq(paymentLinks.txHash, txHash))
      .get()
  )?.payment ?? null;

/** The payment that a purchase now serves: a token that was held serves another than the one that it was bought for. */
export const paymentOfPurchase = async (db: Database, incarnation: string): Promise<Payment | null> =>
  (await db
    .select()
    .from(payments)
    .where(eq(payments.incarnation, incarnation))
    .orderBy(desc(payments.createdAt))
    .get()) ?? null;

/** Prices that were quoted for a tier since then, newest first. */
export const quotedSince = (db: Database, tier: number, since: number) =>
  db
    .select()
    .from(quotes)
    .where(and(eq(quotes.tier, tier), gt(quotes.quotedAt, since)))
    .orderBy(desc(quotes.quotedAt))
    .all();

export const saveQuote = (db: Database, quote: typeof quotes.$inferInsert) =>
  db
    .insert(quotes)
    .values(quote)
    .onConflictDoUpdate({
      target: [quotes.tier, quotes.pricePerDay],
      set: { blockNumber: quote.blockNumber, quotedAt: quote.quotedAt },
    });

/** For operators: by state, newest first. */
export const listPayments = (
  db: Database,
  state: Payment["state"] | undefined,
  before: { createdAt: number; id: string } | undefined,
  limit: number,
) =>
  db
    .select()
    .from(payments)
    .where(
      and(
        state === undefined ? undefined : eq(payments.state, state),
        before === undefined ? undefined : sql`(created_at, id) < (${before.createdAt}, ${before.id})`,
      ),
    )
    .orderBy(desc(payments.createdAt), desc(payments.id))
    .limit(limit)
    .all();

/** Everything that a range's transactions of ours may be, by hash: a purchase's are in the links. */
export const paymentsOfTransactions = async (db: Database, hashes: readonly string[]): Promise<Payment[]> => {
  if (hashes.length === 0) return [];
  const listed = sql`(SELECT value FROM json_each(${JSON.stringify(hashes)}))`;
  return db
    .select()
    .from(payments)
    .where(
      sql`settle_tx IN ${listed} OR refund_tx IN ${listed}
        OR id IN (SELECT payment FROM payment_links WHERE tx_hash IN ${listed})`,
    )
    .all();
};

/** Claimed in a range and charged: what the chain has to show. */
export const movedSince = (db: Database, fromBlock: number, toBlock: number) =>
  db
    .select()
    .from(payments)
    .where(
      and(inArray(payments.state, statesThat("moved")), sql`${payments.fromBlock} BETWEEN ${fromBlock} AND ${toBlock}`),
    )
    .all();
