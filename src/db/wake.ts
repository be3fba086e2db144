// The rows of machines, payments and refunds that are due to be queued again.
import { type SQL, sql } from "drizzle-orm";
import type { Database } from "./client.ts";
import { NOBODYS, partOf, type refunds } from "./schema.ts";

/** The time for which the sweep leaves a row alone after the row's message was sent. */
export const WAKE_AFTER_MS = 60_000;

export type QueuedVm = { incarnation: string; generation: number };
export type QueuedRefund = Pick<typeof refunds.$inferSelect, "subject" | "kind">;
export type QueuedPayment = { payment: string; generation: number };

type Waking = {
  table: "vms" | "payments" | "refunds";
  /** The key's columns, and the columns that the statement returns. */
  key: string;
  returning: string;
  /** The rows that may be due. */
  among: SQL;
};

/**
 * Returns due rows and postpones their next wake. The generation rises (refunds have none), so that older messages are stale.
 */
function wake<Row>(db: Database, { table, key, returning, among }: Waking, now: number, limit: number): Promise<Row[]> {
  const [name, columns] = [sql.raw(table), sql.raw(key)];
  const generation = sql.raw(table === "refunds" ? "" : ", generation = generation + 1");
  return db.all<Row>(sql`UPDATE ${name} SET wake_at = ${now + WAKE_AFTER_MS}${generation}
    WHERE (${columns}) IN (SELECT ${columns} FROM ${among} AND wake_at <= ${now} ORDER BY wake_at LIMIT ${limit})
    RETURNING ${sql.raw(returning)}`);
}

export const wakeMachines = (db: Database, now: number, limit: number) =>
  wake<QueuedVm>(
    db,
    {
      table: "vms",
      key: "incarnation",
      returning: "incarnation, generation",
      among: sql`vms WHERE wake_at IS NOT NULL`,
    },
    now,
    limit,
  );

export const wakeRefunds = (db: Database, now: number, limit: number) =>
  wake<QueuedRefund>(
    db,
    {
      table: "refunds",
      key: "incarnation, kind",
      returning: "incarnation AS subject, kind",
      among: sql`refunds WHERE wake_at IS NOT NULL`,
    },
    now,
    limit,
  );

/**
 * Payments without an authorization and without a purchase (`NOBODYS`), which strangers can make in any number, come last and
 * take at most a fifth of `limit`.
 */
export async function wakePayments(db: Database, now: number, limit: number): Promise<QueuedPayment[]> {
  const payments = { table: "payments", key: "id", returning: "id AS payment, generation" } as const;
  const ours = partOf("payments_to_wake", `wake_at IS NOT NULL AND NOT ${NOBODYS}`);
  const nobodys = partOf("payments_nobodys_to_wake", `wake_at IS NOT NULL AND ${NOBODYS}`);
  return [
    ...(await wake<QueuedPayment>(db, { ...payments, among: ours }, now, limit)),
    ...(await wake<QueuedPayment>(db, { ...payments, among: nobodys }, now, Math.ceil(limit / 5))),
  ];
}
