// Bans as operators list them. The guards decide; these rows are their mirror.
import { and, desc, eq, getTableColumns, gt, lt, lte, sql } from "drizzle-orm";
import type { Database } from "./client.ts";
import { bans } from "./schema.ts";

export type BanRow = typeof bans.$inferSelect;

/** Writes a client's ban over any earlier one. A write that was overtaken by a later ban's changes nothing. */
export const saveBan = (db: Database, ban: BanRow) =>
  db
    .insert(bans)
    .values(ban)
    .onConflictDoUpdate({ target: bans.client, set: ban, setWhere: lte(bans.since, ban.since) });

/** Deletes a client's row, unless a ban that began after `since` has it by now. */
export const deleteBan = (db: Database, client: string, since: number) =>
  db.delete(bans).where(and(eq(bans.client, client), lte(bans.since, since)));

/** Bans in force, the client that was banned last first, below a row's number. */
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

/** Rows of bans that are over. */
export const deleteOldBans = (db: Database, now: number) => db.delete(bans).where(lte(bans.until, now));
