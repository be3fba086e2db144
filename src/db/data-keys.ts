// The published data keys, and the sealed values of each key (hard case 8).
import { and, asc, count, eq, gt, isNotNull, isNull, sql } from "drizzle-orm";
import { type Database, once, runBatch } from "./client.ts";
import { agentWallets, attempts, dataKeys, vms } from "./schema.ts";

export const SEALED_IN = ["vms", "attempts", "wallets"] as const;
export type SealedIn = (typeof SEALED_IN)[number];
export type SealedCount = { table: SealedIn; keyId: string | null; rows: number };
/** A row's sealed value. `subject` and `attempt` are its context (see `SecretContext`). */
export type SealedRow = { rowid: number; subject: string; attempt: number; sealed: string };

const allKeys = once((db) => db.select().from(dataKeys).prepare());

export const publishedKeys = async (db: Database): Promise<string[]> => (await allKeys(db).all()).map(({ id }) => id);

/** Publishes the ids of the edge's data keys and of the one that seals. Writes nothing when the rows say so already. */
export async function publishDataKeys(
  db: Database,
  { current, ids }: { current: string; ids: readonly string[] },
  now: number,
): Promise<void> {
  const rows = await allKeys(db).all();
  const same =
    rows.length === ids.length && rows.every((row) => ids.includes(row.id) && row.current === (row.id === current));
  if (same) return;
  await runBatch(db, [
    sql`DELETE FROM data_keys`,
    ...ids.map(
      (id) => sql`INSERT INTO data_keys (id, current, published_at) VALUES (${id}, ${id === current ? 1 : 0}, ${now})`,
    ),
  ]);
}

/** Counts sealed values by table and data key; `keyId` is null in rows from before key ids. */
export async function countSealed(db: Database): Promise<SealedCount[]> {
  const [inVms, inAttempts, inWallets] = await db.batch([
    db.select({ keyId: vms.keyId, rows: count() }).from(vms).where(isNotNull(vms.sshPrivateKey)).groupBy(vms.keyId),
    db
      .select({ keyId: attempts.keyId, rows: count() })
      .from(attempts)
      .where(isNotNull(attempts.privateKey))
      .groupBy(attempts.keyId),
    db.select({ keyId: agentWallets.keyId, rows: count() }).from(agentWallets).groupBy(agentWallets.keyId),
  ]);
  const named = (table: SealedIn, rows: { keyId: string | null; rows: number }[]) =>
    rows.map((row) => ({ table, ...row }));
  return [...named("vms", inVms), ...named("attempts", inAttempts), ...named("wallets", inWallets)];
}

const rowid = sql<number>`rowid`;

/** Sealed values of one table under one data key, behind the rowid `after`. */
export function listSealed(
  db: Database,
  { table, keyId }: Pick<SealedCount, "table" | "keyId">,
  after: number,
  limit: number,
): Promise<SealedRow[]> {
  const page = { where: gt(rowid, after), order: asc(rowid) };
  if (table === "vms") {
    const fields = { rowid, subject: vms.incarnation, attempt: vms.attempt, sealed: sql<string>`${vms.sshPrivateKey}` };
    const of = and(isNotNull(vms.sshPrivateKey), keyId === null ? isNull(vms.keyId) : eq(vms.keyId, keyId), page.where);
    return db.select(fields).from(vms).where(of).orderBy(page.order).limit(limit).all();
  }
  if (table === "attempts") {
    const fields = {
      rowid,
      subject: attempts.incarnation,
      attempt: attempts.number,
      sealed: sql<string>`${attempts.privateKey}`,
    };
    const of = and(isNotNull(attempts.privateKey), eq(attempts.keyId, keyId ?? ""), page.where);
    return db.select(fields).from(attempts).where(of).orderBy(page.order).limit(limit).all();
  }
  const fields = { rowid, subject: agentWallets.agentId, attempt: sql<number>`0`, sealed: agentWallets.privateKey };
  const of = and(keyId === null ? isNull(agentWallets.keyId) : eq(agentWallets.keyId, keyId), page.where);
  return db.select(fields).from(agentWallets).where(of).orderBy(page.order).limit(limit).all();
}

/** Replaces a sealed value by compare-and-set: an erased key must not come back. False when the value has changed since. */
export async function replaceSealed(
  db: Database,
  table: SealedIn,
  row: SealedRow,
  sealed: string,
  keyId: string,
): Promise<boolean> {
  const write = {
    vms: () =>
      db
        .update(vms)
        .set({ sshPrivateKey: sealed, keyId })
        .where(and(eq(vms.incarnation, row.subject), eq(vms.sshPrivateKey, row.sealed))),
    attempts: () =>
      db
        .update(attempts)
        .set({ privateKey: sealed, keyId })
        .where(
          and(
            eq(attempts.incarnation, row.subject),
            eq(attempts.number, row.attempt),
            eq(attempts.privateKey, row.sealed),
          ),
        ),
    wallets: () =>
      db
        .update(agentWallets)
        .set({ privateKey: sealed, keyId })
        .where(and(eq(agentWallets.agentId, row.subject), eq(agentWallets.privateKey, row.sealed))),
  };
  return (await write[table]()).meta.changes === 1;
}
