// The old backend's rows as SQL text, for `npm run admin -- import`. Wrangler runs the text without a binding, so the query
// builder escapes the values and puts them inline.
import { drizzle } from "drizzle-orm/d1";
import { SQLiteAsyncDialect } from "drizzle-orm/sqlite-core";
import { agentWallets, attempts, vms } from "./schema.ts";

export type ImportedRows = {
  vms: (typeof vms.$inferInsert)[];
  attempts: (typeof attempts.$inferInsert)[];
  wallets: (typeof agentWallets.$inferInsert)[];
};

/** Counts the rows that make an import too late: those of a scan that has begun, or of an earlier import. */
export const BEGUN_SQL =
  "SELECT (SELECT count(*) FROM cursors) + (SELECT count(*) FROM purchases) + (SELECT count(*) FROM vms) + (SELECT count(*) FROM agent_wallets) AS begun";

/**
 * One INSERT per row. A conflict fails the whole file: the sweep would end the machine of a half-imported row as one without a
 * token.
 */
export function importSql(rows: ImportedRows): string {
  const dialect = new SQLiteAsyncDialect();
  const db = drizzle({} as D1Database);
  const inserts = [
    ...rows.vms.map((row) => db.insert(vms).values(row)),
    ...rows.attempts.map((row) => db.insert(attempts).values(row)),
    ...rows.wallets.map((row) => db.insert(agentWallets).values(row)),
  ];
  return inserts.map((insert) => `${dialect.sqlToQuery(insert.getSQL().inlineParams()).sql};\n`).join("");
}
