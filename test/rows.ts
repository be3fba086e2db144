// Rows for tests that need some without what leads to them: a factory gives each column that the test does not name.
import { getTableColumns, getTableName } from "drizzle-orm";
import type { SQLiteTable } from "drizzle-orm/sqlite-core";
import type { attempts, payments, purchases, refunds, vms } from "../src/db/schema.ts";

type NewPurchase = typeof purchases.$inferInsert;
type NewMachine = typeof vms.$inferInsert;
type NewAttempt = typeof attempts.$inferInsert;
type NewPayment = typeof payments.$inferInsert;
type NewRefund = typeof refunds.$inferInsert;

/** A purchase of tier 0 for a day, as the scan has seen it. */
export const purchaseRow = ({
  purchaseDate = 1,
  ...row
}: Partial<NewPurchase> & { incarnation: string }): NewPurchase => ({
  tokenId: 1,
  txHash: "0x1",
  ordinal: 0,
  blockNumber: 1,
  blockHash: "0x1",
  logIndex: 0,
  buyer: "0xa",
  tier: 0,
  durationDays: 1,
  purchaseDate,
  totalCost: "500000",
  seenAt: purchaseDate * 1_000,
  ...row,
});

/** The machine of a purchase that was just seen: of tier 0, for a day. */
export const machineRow = ({
  tokenId,
  createdAt = 1,
  ...row
}: Partial<NewMachine> & { tokenId: number }): NewMachine => ({
  incarnation: `machine-${tokenId}`,
  tokenId,
  owner: "0xa",
  tier: 0,
  vmType: "vm",
  txHash: "0x1",
  blockNumber: 1,
  status: "provisioning",
  step: "create",
  deadline: createdAt + 3_600,
  createdAt,
  expiresAt: createdAt + 86_400,
  ...row,
});

/** The first attempt at a machine, at Vultr, which came to run. */
export const attemptRow = (row: Partial<NewAttempt> & { incarnation: string }): NewAttempt => ({
  number: 1,
  provider: "vultr",
  region: "ewr",
  plan: "vc2-1c-1gb",
  label: row.incarnation,
  mark: "mark",
  publicKey: "ssh-ed25519 AAAA",
  keyId: "key",
  hostPublicKey: "ssh-ed25519 AAAA",
  createSentAt: 1,
  startedAt: 1,
  endedAt: 1,
  outcome: "running",
  ...row,
});

/** An order of a payer of its own that was paid for and delivered long ago. */
export const paymentRow = ({ id, ...row }: Partial<NewPayment> & { id: string }): NewPayment => ({
  id,
  kind: "compute",
  chainId: 8453,
  payer: `0x${id.padStart(40, "0")}`,
  nonce: `0x${id.padStart(64, "0")}`,
  request: "r",
  amount: "1",
  payTo: "0x",
  validAfter: 0,
  validBefore: 1,
  signature: "0x",
  state: "settled",
  step: "idle",
  fromBlock: 0,
  createdAt: 1,
  ...row,
});

/** What is owed for a machine that never came, and waits for its turn. */
export const refundRow = (row: Partial<NewRefund> & { subject: string }): NewRefund => ({
  kind: "failed",
  tokenId: 1,
  state: "due",
  amount: "1",
  createdAt: 1,
  ...row,
});

type Row = Readonly<Record<string, unknown>>;
type Conflict = "ABORT" | "IGNORE" | "REPLACE";

/**
 * An INSERT of rows by their columns' own names; the first row has them all. Its one parameter is the rows as JSON, since D1
 * takes a hundred parameters of a statement.
 */
export function rawInsertion(table: string, rows: readonly Row[], orElse: Conflict = "ABORT") {
  const columns = Object.keys(rows[0] ?? {});
  const values = columns.map((name) => `value ->> '${name}'`);
  return {
    sql: `INSERT OR ${orElse} INTO ${table} (${columns.join(", ")}) SELECT ${values.join(", ")} FROM json_each(?)`,
    json: JSON.stringify(rows),
  };
}

/** The same of rows as `schema.ts` types them. */
export function insertion<T extends SQLiteTable>(table: T, rows: readonly T["$inferInsert"][], orElse?: Conflict) {
  const columns = getTableColumns(table);
  const named = rows.map((row) =>
    Object.fromEntries(Object.entries(row).map(([key, value]) => [columns[key]?.name ?? key, value])),
  );
  return rawInsertion(getTableName(table), named, orElse);
}

/** As much of D1's interface as an INSERT needs, whoever has typed it. */
type Target = { prepare(sql: string): { bind(...values: unknown[]): { run(): Promise<unknown> } } };

/** D1 takes two megabytes in a parameter. */
const ROWS_PER_STATEMENT = 1_000;

/** Inserts rows into D1. */
export async function insertRows<T extends SQLiteTable>(
  database: Target,
  table: T,
  rows: readonly T["$inferInsert"][],
): Promise<void> {
  for (let from = 0; from < rows.length; from += ROWS_PER_STATEMENT) {
    const { sql, json } = insertion(table, rows.slice(from, from + ROWS_PER_STATEMENT));
    await database.prepare(sql).bind(json).run();
  }
}
