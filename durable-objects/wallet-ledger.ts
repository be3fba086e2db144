// The operator wallet's storage: rows of orders, one per transaction, and the transactions that were signed for them.
import type { Address, Hex } from "viem";
import { callsOf, identityOf, type WalletOrder } from "../src/chain/orders.ts";

/** A waiting refund is forgotten after this time without a request; the sweep requests it once a minute. */
const FORGOTTEN_MS = 300_000;

/** The prefix of the ids of refunds that operators approved. */
export const APPROVED = "refund/approved/";
const REVERTED = "/reverted/";

/** One transaction of an order. A purchase's approval has a row of its own, `<id>/approve`. */
export type OrderRow = {
  id: string;
  /** `fill`: a transaction that does nothing, at a nonce that is free. */
  kind: WalletOrder["kind"] | "approve" | "fill";
  /** The order's identity, as JSON (see `identityOf`). */
  body: string;
  to_address: Address;
  data: Hex;
  /** The USDC that it takes from the wallet, in 10^-6 USDC. */
  amount: string;
  /** The payment or purchase that the order is for. */
  account: string;
  nonce: number;
  state: "sent" | "final" | "reverted";
  hash: Hex;
  created_at: number;
};
export type NewRow = Pick<OrderRow, "id" | "kind" | "body" | "to_address" | "data" | "amount" | "account">;
export type SignedRow = {
  hash: Hex;
  raw: Hex;
  gas: string;
  max_fee: string;
  priority_fee: string;
  linked: number;
  signed_at: number;
  /** 1: the transaction does nothing, and replaces one that every node refuses. */
  void: number;
};

// Rows from before the column `account`: their ids contain the account.
const ACCOUNT_OF_ID = `CASE
  WHEN id LIKE 'refund/payment/%' THEN substr(id, 16)
  WHEN id LIKE 'refund/failed/%' THEN substr(id, 15 + instr(substr(id, 15), '/'))
  WHEN id LIKE 'refund/late/%' THEN substr(id, 13 + instr(substr(id, 13), '/'))
  WHEN id LIKE 'purchase/%' THEN substr(id, 10, 32)
  WHEN id LIKE 'capture/%' THEN substr(id, 9, 32) WHEN id LIKE 'transfer/%' THEN substr(id, 10, 32) ELSE '' END`;

/** The rows of an order's transactions, in nonce order. `account`: the payment or purchase that the order is for. */
export function rowsOf(order: WalletOrder, account: string, addresses: Parameters<typeof callsOf>[1]): NewRow[] {
  const amount = order.kind === "pay" ? order.amount : order.kind === "purchase" ? order.cost : "0";
  const calls = callsOf(order, addresses);
  return calls.map(({ to, data }, i) => {
    const isLast = i === calls.length - 1;
    return {
      id: isLast ? order.id : `${order.id}/approve`,
      kind: isLast ? order.kind : "approve",
      body: identityOf(order),
      to_address: to,
      data,
      amount: isLast ? amount : "0",
      account,
    };
  });
}

export class WalletLedger {
  readonly #storage: DurableObjectStorage;

  constructor(storage: DurableObjectStorage) {
    this.#storage = storage;
    const { sql } = storage;
    sql.exec(`CREATE TABLE IF NOT EXISTS wallet_orders (id TEXT PRIMARY KEY, kind TEXT NOT NULL, body TEXT NOT NULL,
      to_address TEXT NOT NULL, data TEXT NOT NULL, amount TEXT NOT NULL, nonce INTEGER NOT NULL, state TEXT NOT NULL,
      hash TEXT NOT NULL, created_at INTEGER NOT NULL)`);
    sql.exec("CREATE INDEX IF NOT EXISTS wallet_orders_open ON wallet_orders (nonce) WHERE state = 'sent'");
    sql.exec("CREATE INDEX IF NOT EXISTS wallet_orders_recent ON wallet_orders (kind, created_at)");
    sql.exec(`CREATE TABLE IF NOT EXISTS signed (hash TEXT PRIMARY KEY, id TEXT NOT NULL, nonce INTEGER NOT NULL,
      raw TEXT NOT NULL, gas TEXT NOT NULL, max_fee TEXT NOT NULL, priority_fee TEXT NOT NULL,
      linked INTEGER NOT NULL DEFAULT 0, signed_at INTEGER NOT NULL)`);
    sql.exec("CREATE INDEX IF NOT EXISTS signed_by_order ON signed (id)");
    this.#addColumn("signed", "void", "INTEGER NOT NULL DEFAULT 0");
    if (this.#addColumn("wallet_orders", "account", "TEXT NOT NULL DEFAULT ''"))
      sql.exec(`UPDATE wallet_orders SET account = ${ACCOUNT_OF_ID}`);
    sql.exec("CREATE INDEX IF NOT EXISTS wallet_orders_by_account ON wallet_orders (account)");
    sql.exec(`CREATE TABLE IF NOT EXISTS waiting (id TEXT PRIMARY KEY, recipient TEXT NOT NULL, amount INTEGER NOT NULL,
      since INTEGER NOT NULL, asked_at INTEGER NOT NULL)`);
  }

  /** Adds a column. False when the column exists already. */
  #addColumn(table: string, name: string, type: string): boolean {
    const { sql } = this.#storage;
    const columns = sql.exec<{ name: string }>(`SELECT name FROM pragma_table_info('${table}')`).toArray();
    if (columns.some((column) => column.name === name)) return false;
    sql.exec(`ALTER TABLE ${table} ADD COLUMN ${name} ${type}`);
    return true;
  }

  /** Stores a row and its signed transaction. For a known row, stores another transaction, at another nonce or fee. */
  store(row: NewRow & Pick<OrderRow, "nonce" | "hash" | "created_at">, signed: Omit<SignedRow, "linked">): void {
    const { sql } = this.#storage;
    this.#storage.transactionSync(() => {
      sql.exec(
        `INSERT INTO wallet_orders (id, kind, body, to_address, data, amount, account, nonce, state, hash, created_at)
          VALUES (?, ?, ?, ?, ?, ?, ?, ?, 'sent', ?, ?)
          ON CONFLICT (id) DO UPDATE SET nonce = excluded.nonce, hash = excluded.hash`,
        ...[row.id, row.kind, row.body, row.to_address, row.data, row.amount, row.account],
        ...[row.nonce, row.hash, row.created_at],
      );
      sql.exec(
        `INSERT INTO signed (hash, id, nonce, raw, gas, max_fee, priority_fee, signed_at, void)
          VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT (hash) DO NOTHING`,
        ...[signed.hash, row.id, row.nonce, signed.raw],
        ...[signed.gas, signed.max_fee, signed.priority_fee, signed.signed_at, signed.void],
      );
      sql.exec("DELETE FROM waiting WHERE id = ?", row.id);
    });
  }

  /** Records that the database has the link from a purchase's hash to its payment. */
  markLinked(hash: Hex): void {
    this.#storage.sql.exec("UPDATE signed SET linked = 1 WHERE hash = ?", hash);
  }

  end({ id }: OrderRow, state: "final" | "reverted", hash: Hex): void {
    this.#storage.transactionSync(() => {
      this.#storage.sql.exec("UPDATE wallet_orders SET state = ?, hash = ? WHERE id = ?", state, hash, id);
      this.#storage.sql.exec("DELETE FROM signed WHERE id = ?", id);
    });
  }

  /** Frees a reverted order's id: its row stays, under an id that ends in its nonce. */
  release({ id, nonce }: OrderRow): void {
    this.#storage.sql.exec(
      "UPDATE wallet_orders SET id = ? WHERE id = ? AND state = 'reverted'",
      `${id}${REVERTED}${nonce}`,
      id,
    );
  }

  /** The number of times that an order has reverted. */
  reverts(id: string): number {
    return this.#storage.sql
      .exec<{ count: number }>(
        "SELECT COUNT(*) AS count FROM wallet_orders WHERE state = 'reverted' AND (id = ?1 OR substr(id, 1, length(?1) + length(?2)) = ?1 || ?2)",
        ...[id, REVERTED],
      )
      .one().count;
  }

  row(id: string): OrderRow | undefined {
    return this.#storage.sql.exec<OrderRow>("SELECT * FROM wallet_orders WHERE id = ?", id).toArray()[0];
  }

  /** Rows that final history does not show yet, in nonce order. */
  open(): OrderRow[] {
    return this.#storage.sql
      .exec<OrderRow>("SELECT * FROM wallet_orders WHERE state = 'sent' ORDER BY nonce")
      .toArray();
  }

  /** The transactions that were signed for a row, newest first. */
  signed(id: string): SignedRow[] {
    return this.#storage.sql
      .exec<SignedRow>("SELECT * FROM signed WHERE id = ? ORDER BY signed_at DESC, rowid DESC", id)
      .toArray();
  }

  /** The highest nonce that was assigned; -1 when none was. */
  get lastNonce(): number {
    return (
      this.#storage.sql.exec<{ nonce: number | null }>("SELECT MAX(nonce) AS nonce FROM wallet_orders").one().nonce ??
      -1
    );
  }

  /** The USDC (10^-6) that orders of a kind have taken since a time (unix milliseconds). */
  spentSince = (kind: OrderRow["kind"], since: number): bigint =>
    this.#sum("kind = ? AND created_at > ?", ...[kind, since]);

  /** The USDC (10^-6) that left since a time as refunds without an approval: in all, or to one recipient (lower case). */
  refundedSince(since: number, recipient?: string): bigint {
    return this.#sum(
      `kind = 'pay' AND id NOT LIKE '${APPROVED}%' AND created_at > ? AND (? IS NULL OR lower(json_extract(body, '$.to')) = ?)`,
      ...[since, recipient ?? null, recipient ?? null],
    );
  }

  /** The USDC (10^-6) that left since a time as refunds that operators approved. */
  approvedSince = (since: number): bigint => this.#sum(`id LIKE '${APPROVED}%' AND created_at > ?`, since);

  /** The USDC (10^-6) of all refunds for a payment or a purchase, sent or final. */
  paidFor = (account: string): bigint => this.#sum("account = ? AND kind = 'pay'", account);

  #sum(where: string, ...values: (string | number | null)[]): bigint {
    return this.#storage.sql
      .exec<{ amount: string }>(`SELECT amount FROM wallet_orders WHERE state <> 'reverted' AND ${where}`, ...values)
      .toArray()
      .reduce((sum, { amount }) => sum + BigInt(amount), 0n);
  }

  /** Orders of a kind for a payment or a purchase that have not reverted. */
  ordersFor(account: string, kind: OrderRow["kind"]): OrderRow[] {
    return this.#storage.sql
      .exec<OrderRow>(
        "SELECT * FROM wallet_orders WHERE account = ? AND kind = ? AND state <> 'reverted'",
        account,
        kind,
      )
      .toArray();
  }

  /**
   * Whether a token was transferred for a payment. If the payment has no transfer, one to its payer for another payment counts.
   */
  wasHandedOver(tokenId: number, { account, payer }: { account: string; payer: string }): boolean {
    const own = this.ordersFor(account, "transfer");
    const tokenOf = ({ body }: OrderRow) => (JSON.parse(body) as { tokenId: number }).tokenId;
    if (own.length > 0) return own.some((row) => tokenOf(row) === tokenId);
    const others = this.#storage.sql.exec(
      `SELECT 1 FROM wallet_orders WHERE state <> 'reverted' AND kind = 'transfer'
        AND json_extract(body, '$.tokenId') = ? AND lower(json_extract(body, '$.to')) = ? LIMIT 1`,
      tokenId,
      payer.toLowerCase(),
    );
    return others.toArray().length > 0;
  }

  /** Records a refund that waits for room in the day's limit. A refund that is not requested again is forgotten. */
  keepWaiting(id: string, recipient: string, amount: bigint, now: number): void {
    this.#storage.sql.exec(
      `INSERT INTO waiting (id, recipient, amount, since, asked_at) VALUES (?, ?, ?, ?, ?)
        ON CONFLICT (id) DO UPDATE SET asked_at = excluded.asked_at`,
      ...[id, recipient, Number(amount), now, now],
    );
    this.#storage.sql.exec("DELETE FROM waiting WHERE asked_at < ?", now - FORGOTTEN_MS);
  }

  /** The time for which a refund has waited, in milliseconds; 0 when it does not wait. */
  waitsFor(id: string, now: number): number {
    const [row] = this.#storage.sql
      .exec<{ since: number }>("SELECT since FROM waiting WHERE id = ? AND asked_at >= ?", id, now - FORGOTTEN_MS)
      .toArray();
    return row === undefined ? 0 : now - row.since;
  }

  /** The sum (10^-6 USDC) of the waiting refunds before one: smaller refunds, and older ones of the same amount. */
  waitingBefore(id: string, amount: bigint, now: number): bigint {
    const { total } = this.#storage.sql
      .exec<{ total: number }>(
        `SELECT COALESCE(SUM(amount), 0) AS total FROM waiting WHERE id <> ?1 AND asked_at >= ?2
          AND (amount < ?3 OR (amount = ?3 AND since < COALESCE((SELECT since FROM waiting WHERE id = ?1), ?4)))`,
        ...[id, now - FORGOTTEN_MS, Number(amount), now],
      )
      .one();
    return BigInt(total);
  }
}
