// Payments by x402. Every move is a compare-and-set on the generation it was read at.
import { and, asc, desc, eq, gt, inArray, type SQL, sql } from "drizzle-orm";
import { type Database, once } from "./client.ts";
import { paymentLinks, payments, quotes } from "./schema.ts";

export type Payment = typeof payments.$inferSelect;
export type NewPayment = typeof payments.$inferInsert;
type Move = Partial<Omit<Payment, "id" | "generation">>;

const WAKE_AFTER_MS = 60_000;
const HOUR_MS = 3_600_000;
const OPEN = sql`state IN ('claimed', 'authorized', 'settling')`;

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

export const paymentByNonce = async (db: Database, nonce: string): Promise<Payment | null> =>
  (await db.select().from(payments).where(eq(payments.nonce, nonce)).get()) ?? null;

/** What a claim of a purchase has to stay within; 10^-6 USDC. */
export type Limits = {
  /** The payer's balance: what it has signed and we have not taken must be covered (hard case 18). */
  balance: bigint;
  /** What the operator wallet has. */
  float: bigint;
  /** What may be bought and not paid for within an hour. */
  uncaptured: bigint;
};

/** Inserts the claim, unless there is one of that authorization or identifier. True for exactly one caller. */
export async function claimPayment(db: Database, payment: NewPayment): Promise<boolean> {
  const result = await db.insert(payments).values(payment).onConflictDoNothing();
  return result.meta.changes === 1;
}

// One order is open to a payer that has never paid; several, within its balance, to one that has. Only what was claimed
// before counts: of many at once the first one passes.
const sumOf = sql`COALESCE(SUM(CAST(amount AS INTEGER)), 0)`;
const uncapturedOf = (now: number) =>
  sql`(SELECT ${sumOf} FROM payments WHERE kind = 'compute' AND rowid < self.at AND state <> 'settled' AND (bought_at > ${now - HOUR_MS} OR (bought_at IS NULL AND ${OPEN})))`;

export type Exceeded = "payer_refused" | "order_open" | "balance" | "float" | "uncaptured";

/** Which limit a claim goes beyond, by the rows that there are; null where it stays within all. */
export async function exceededLimit(
  db: Database,
  { id, payer, amount }: Pick<Payment, "id" | "payer" | "amount">,
  { balance, float, uncaptured }: Limits,
  now: number,
): Promise<Exceeded | null> {
  const [row] = await db.all<{
    refused: number;
    open: number;
    open_sum: number;
    paid: number;
    unbought: number;
    uncaptured: number;
  }>(sql`WITH self AS (SELECT rowid AS at FROM payments WHERE id = ${id}) SELECT
    EXISTS (SELECT 1 FROM payments WHERE payer = ${payer} AND reason = 'capture_refused') AS refused,
    EXISTS (SELECT 1 FROM payments WHERE payer = ${payer} AND rowid < self.at AND kind = 'compute' AND ${OPEN}) AS open,
    (SELECT ${sumOf} FROM payments WHERE payer = ${payer} AND rowid < self.at AND ${OPEN}) AS open_sum,
    EXISTS (SELECT 1 FROM payments WHERE payer = ${payer} AND kind = 'compute' AND state = 'settled') AS paid,
    (SELECT ${sumOf} FROM payments WHERE rowid < self.at AND kind = 'compute' AND bought_at IS NULL AND ${OPEN}) AS unbought,
    ${uncapturedOf(now)} AS uncaptured FROM self`);
  if (row === undefined) throw new Error("a query without rows");
  const sum = BigInt(amount);
  if (row.refused === 1) return "payer_refused";
  if (row.open === 1 && row.paid === 0) return "order_open";
  if (BigInt(row.open_sum) + sum > balance) return "balance";
  if (BigInt(row.unbought) + sum > float) return "float";
  if (BigInt(row.uncaptured) + sum > uncaptured) return "uncaptured";
  return null;
}

/** The row as it is from here on; null where it has moved since it was read. */
export const movePayment = async (
  db: Database,
  { id, generation }: Pick<Payment, "id" | "generation">,
  to: Move,
): Promise<Payment | null> =>
  (await db
    .update(payments)
    .set({ ...to, generation: generation + 1 })
    .where(and(eq(payments.id, id), eq(payments.generation, generation)))
    .returning()
    .get()) ?? null;

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
    .where(and(eq(payments.id, id), eq(payments.state, "settled"), when))
    .returning();

export const markServed = async (db: Database, id: string, now: number): Promise<Payment | null> =>
  (await serving(db, id, now).get()) ?? null;

/** For statements of the same batch, behind `serving`. */
export const isServed = (id: string): SQL =>
  sql`EXISTS (SELECT 1 FROM payments WHERE id = ${id} AND state = 'settled' AND served_at IS NOT NULL)`;

/** Those whose turn has come; each is left alone for a minute from here on. */
export const wakePayments = (db: Database, now: number, limit: number) =>
  db
    .update(payments)
    .set({ wakeAt: now + WAKE_AFTER_MS, generation: sql`${payments.generation} + 1` })
    .where(
      sql`id IN (SELECT id FROM payments WHERE wake_at IS NOT NULL AND wake_at <= ${now} ORDER BY wake_at LIMIT ${limit})`,
    )
    .returning({ payment: payments.id, generation: payments.generation });

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

/** A token that is ours with nobody to give it to, good until then at least. `owner`: we, lower case. */
export const heldToken = async (
  db: Database,
  tier: number,
  owner: string,
  untilChainTime: number,
): Promise<Payment | null> =>
  (
    await db
      .select({ payment: payments })
      .from(payments)
      .where(
        and(
          eq(payments.held, true),
          eq(payments.tier, tier),
          sql`EXISTS (SELECT 1 FROM vms WHERE vms.incarnation = ${payments.incarnation} AND owner = ${owner} AND current = 1 AND instance_id IS NULL
            AND status IN ('failed', 'terminated') AND step = 'idle' AND expires_at >= ${untilChainTime})`,
        ),
      )
      .orderBy(asc(payments.createdAt))
      .get()
  )?.payment ?? null;

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
      and(
        inArray(payments.state, ["settled", "refund_due", "refunding", "refunded"]),
        sql`${payments.fromBlock} BETWEEN ${fromBlock} AND ${toBlock}`,
      ),
    )
    .all();
