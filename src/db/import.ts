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

/** Counts what would make an import too late: a scan that has begun, or an import before this one. */
export const BEGUN_SQL =
  "SELECT (SELECT count(*) FROM cursors) + (SELECT count(*) FROM purchases) + (SELECT count(*) FROM vms) + (SELECT count(*) FROM agent_wallets) AS begun";

/** One INSERT per row. A conflict fails the whole file: half a machine would be ended as nobody's. */
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
