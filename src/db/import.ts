// Rows of the old backend as SQL text, for `npm run admin -- import`: it is run by wrangler and not through a binding, so
// values stand in the text, escaped by the query builder.
import { drizzle } from "drizzle-orm/d1";
import { SQLiteAsyncDialect } from "drizzle-orm/sqlite-core";
import { agentWallets, attempts, vms } from "./schema.ts";

export type ImportedRows = {
  vms: (typeof vms.$inferInsert)[];
  attempts: (typeof attempts.$inferInsert)[];
  wallets: (typeof agentWallets.$inferInsert)[];
};

/** Counts what would make an import too late: rows that the scan has written, or a scan that has begun. */
export const BEGUN_SQL = "SELECT (SELECT count(*) FROM cursors) + (SELECT count(*) FROM purchases) AS begun";

/** One INSERT per row; a row that is there already stays as it is. */
export function importSql(rows: ImportedRows): string {
  const dialect = new SQLiteAsyncDialect();
  const db = drizzle({} as D1Database);
  const inserts = [
    ...rows.vms.map((row) => db.insert(vms).values(row).onConflictDoNothing()),
    ...rows.attempts.map((row) => db.insert(attempts).values(row).onConflictDoNothing()),
    ...rows.wallets.map((row) => db.insert(agentWallets).values(row).onConflictDoNothing()),
  ];
  return inserts.map((insert) => `${dialect.sqlToQuery(insert.getSQL().inlineParams()).sql};\n`).join("");
}
