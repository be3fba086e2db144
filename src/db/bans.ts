// Bans as operators list them. The guards decide; these rows are their mirror.
import { desc, eq, gt, lte } from "drizzle-orm";
import type { Database } from "./client.ts";
import { bans } from "./schema.ts";

export type BanRow = typeof bans.$inferSelect;

/** Writes a client's ban over any earlier one. */
export const saveBan = (db: Database, ban: BanRow) =>
  db.insert(bans).values(ban).onConflictDoUpdate({ target: bans.client, set: ban });

export const deleteBan = (db: Database, client: string) => db.delete(bans).where(eq(bans.client, client));

/** Bans in force, the longest first. */
export const listBans = (db: Database, now: number, limit: number): Promise<BanRow[]> =>
  db.select().from(bans).where(gt(bans.until, now)).orderBy(desc(bans.until)).limit(limit).all();

/** Rows of bans that are over. */
export const deleteOldBans = (db: Database, now: number) => db.delete(bans).where(lte(bans.until, now));
