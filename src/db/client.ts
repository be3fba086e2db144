import { SQL } from "drizzle-orm";
import { drizzle } from "drizzle-orm/d1";
import { SQLiteAsyncDialect } from "drizzle-orm/sqlite-core";

/** Drizzle over a D1 binding. Every query of the product is in this folder. */
export const openDatabase = (binding: D1Database) => drizzle(binding);
export type Database = ReturnType<typeof openDatabase>;

export type Statement = SQL | { toSQL(): { sql: string; params: unknown[] } };

const dialect = new SQLiteAsyncDialect();

/**
 * One D1 batch, all or nothing, of built queries and raw SQL alike (drizzle's own `batch` can't bind the parameters of
 * raw SQL). Resolves with each statement's rows as SQLite names them.
 */
export async function runBatch(db: Database, statements: readonly Statement[]): Promise<unknown[][]> {
  const prepared = statements.map((statement) => {
    const { sql, params } = statement instanceof SQL ? dialect.sqlToQuery(statement) : statement.toSQL();
    return db.$client.prepare(sql).bind(...params);
  });
  const results = await db.$client.batch(prepared);
  return results.map((result) => result.results);
}
