// The operators' API keys: hashes, expiry and revocation. A live key is neither revoked nor expired.
import { and, desc, eq, gt, isNull, lt, or, sql } from "drizzle-orm";
import { type Database, runBatch } from "./client.ts";
import { adminKeys } from "./schema.ts";

export type AdminKey = typeof adminKeys.$inferSelect;

/** The live key with a hash, or null. */
export const findLiveKey = async (db: Database, hash: string, now: number): Promise<AdminKey | null> =>
  (await db
    .select()
    .from(adminKeys)
    .where(and(eq(adminKeys.hash, hash), isLive(now)))
    .get()) ?? null;

export const insertKey = (db: Database, key: AdminKey) => db.insert(adminKeys).values(key);

/** Inserts the first key. False, and nothing inserted, when a live key exists. */
export async function insertFirstKey(db: Database, key: AdminKey, now: number): Promise<boolean> {
  const [rows] = await runBatch(db, [
    sql`INSERT INTO admin_keys (id, name, hash, created_at, expires_at)
      SELECT ${key.id}, ${key.name}, ${key.hash}, ${key.createdAt}, ${key.expiresAt}
      WHERE NOT EXISTS (SELECT 1 FROM admin_keys WHERE revoked_at IS NULL AND expires_at > ${now})
      RETURNING id`,
  ]);
  return rows?.length === 1;
}

export const hasLiveKey = async (db: Database, now: number): Promise<boolean> =>
  (await db.select({ id: adminKeys.id }).from(adminKeys).where(isLive(now)).limit(1).get()) !== undefined;

export const listKeys = (db: Database, limit: number): Promise<AdminKey[]> =>
  db.select().from(adminKeys).orderBy(desc(adminKeys.createdAt)).limit(limit).all();

/** Revokes a key. False when no live key has that id. */
export async function revokeKey(db: Database, id: string, now: number): Promise<boolean> {
  const result = await db
    .update(adminKeys)
    .set({ revokedAt: now })
    .where(and(eq(adminKeys.id, id), isLive(now)));
  return result.meta.changes === 1;
}

/** Stores a key's last use, at most once in `everyMs`. */
export const touchKey = (db: Database, id: string, now: number, everyMs: number) =>
  db
    .update(adminKeys)
    .set({ lastUsedAt: now })
    .where(and(eq(adminKeys.id, id), or(isNull(adminKeys.lastUsedAt), lt(adminKeys.lastUsedAt, now - everyMs))));

const isLive = (now: number) => and(isNull(adminKeys.revokedAt), gt(adminKeys.expiresAt, now));
