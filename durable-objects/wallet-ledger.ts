// What the operator wallet keeps in its object's storage: orders, a transaction each, and what was signed for them.
import type { Address, Hex } from "viem";
import type { WalletOrder } from "../src/chain/orders.ts";

/** One transaction. A purchase's approval is a row of its own, `<id>/approve`. */
export type OrderRow = {
  id: string;
  /** `fill`: nothing, at a nonce that nobody uses. */
  kind: WalletOrder["kind"] | "approve" | "fill";
  /** The order, as it was given. */
  body: string;
  to_address: Address;
  data: Hex;
  /** What it takes from our USDC. */
  amount: string;
  nonce: number;
  state: "sent" | "final" | "reverted";
  hash: Hex;
  created_at: number;
};
export type NewRow = Pick<OrderRow, "id" | "kind" | "body" | "to_address" | "data" | "amount">;
export type SignedRow = {
  hash: Hex;
  raw: Hex;
  gas: string;
  max_fee: string;
  priority_fee: string;
  linked: number;
  signed_at: number;
};

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
  }

  /** An order and what was signed for it, or, of an order that is known, the next that was: at another nonce or fee. */
  store(row: NewRow & Pick<OrderRow, "nonce" | "hash" | "created_at">, signed: Omit<SignedRow, "linked">): void {
    const { sql } = this.#storage;
    this.#storage.transactionSync(() => {
      sql.exec(
        `INSERT INTO wallet_orders (id, kind, body, to_address, data, amount, nonce, state, hash, created_at)
          VALUES (?, ?, ?, ?, ?, ?, ?, 'sent', ?, ?)
          ON CONFLICT (id) DO UPDATE SET nonce = excluded.nonce, hash = excluded.hash`,
        ...[row.id, row.kind, row.body, row.to_address, row.data, row.amount, row.nonce, row.hash, row.created_at],
      );
      sql.exec(
        "INSERT INTO signed VALUES (?, ?, ?, ?, ?, ?, ?, 0, ?) ON CONFLICT (hash) DO NOTHING",
        ...[signed.hash, row.id, row.nonce, signed.raw],
        ...[signed.gas, signed.max_fee, signed.priority_fee, signed.signed_at],
      );
    });
  }

  /** The database knows whose purchase it is. */
  markLinked(hash: Hex): void {
    this.#storage.sql.exec("UPDATE signed SET linked = 1 WHERE hash = ?", hash);
  }

  end({ id }: OrderRow, state: "final" | "reverted", hash: Hex): void {
    this.#storage.transactionSync(() => {
      this.#storage.sql.exec("UPDATE wallet_orders SET state = ?, hash = ? WHERE id = ?", state, hash, id);
      this.#storage.sql.exec("DELETE FROM signed WHERE id = ?", id);
    });
  }

  row(id: string): OrderRow | undefined {
    return this.#storage.sql.exec<OrderRow>("SELECT * FROM wallet_orders WHERE id = ?", id).toArray()[0];
  }

  /** Whatever final history does not show yet, in the order of nonces. */
  open(): OrderRow[] {
    return this.#storage.sql
      .exec<OrderRow>("SELECT * FROM wallet_orders WHERE state = 'sent' ORDER BY nonce")
      .toArray();
  }

  /** What was signed for an order, newest first. */
  signed(id: string): SignedRow[] {
    return this.#storage.sql
      .exec<SignedRow>("SELECT * FROM signed WHERE id = ? ORDER BY signed_at DESC, rowid DESC", id)
      .toArray();
  }

  /** The highest that was given out; -1: none was. */
  get lastNonce(): number {
    return (
      this.#storage.sql.exec<{ nonce: number | null }>("SELECT MAX(nonce) AS nonce FROM wallet_orders").one().nonce ??
      -1
    );
  }

  /** What orders of a kind have taken from our USDC since a time, unix milliseconds. */
  spentSince(kind: OrderRow["kind"], since: number): bigint {
    return this.#storage.sql
      .exec<{ amount: string }>(
        "SELECT amount FROM wallet_orders WHERE kind = ? AND created_at > ? AND state <> 'reverted'",
        kind,
        since,
      )
      .toArray()
      .reduce((sum, { amount }) => sum + BigInt(amount), 0n);
  }
}
