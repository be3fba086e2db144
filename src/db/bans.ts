// The bans that operators list. The IP guard objects enforce bans; these rows mirror them.
import { and, desc, eq, getTableColumns, gt, lt, lte, sql } from "drizzle-orm";
import type { Database } from "./client.ts";
import { bans } from "./schema.ts";

export type BanRow = typeof bans.$inferSelect;

/** Writes a client's ban over an earlier one. A write that arrives after a later ban's changes nothing. */
export const saveBan = (db: Database, ban: BanRow) =>
  db
    .insert(bans)
    .values(ban)
    .onConflictDoUpdate({ target: bans.client, set: ban, setWhere: lte(bans.since, ban.since) });

/** Deletes a client's row, unless it holds a ban that began after `since`. */
export const deleteBan = (db: Database, client: string, since: number) =>
  db.delete(bans).where(and(eq(bans.client, client), lte(bans.since, since)));

/** Bans in force, in descending order of row numbers, below the number `before`. */
export const listBans = (
  db: Database,
  now: number,
  before: number,
  limit: number,
): Promise<(BanRow & { number: number })[]> => {
  const number = sql<number>`rowid`;
  return db
    .select({ ...getTableColumns(bans), number })
    .from(bans)
    .where(and(gt(bans.until, now), lt(number, before)))
    .orderBy(desc(number))
    .limit(limit)
    .all();
};

/** Deletes the rows of bans that are over. */
export const deleteOldBans = (db: Database, now: number) => db.delete(bans).where(lte(bans.until, now));
