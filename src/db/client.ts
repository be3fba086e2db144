import { SQL } from "drizzle-orm";
import { drizzle } from "drizzle-orm/d1";
import { SQLiteAsyncDialect } from "drizzle-orm/sqlite-core";

const opened = new WeakMap<D1Database, ReturnType<typeof drizzle<Record<string, never>, D1Database>>>();

/** Drizzle over a D1 binding, one per isolate. Every query of the product is in this folder. */
export function openDatabase(binding: D1Database) {
  const known = opened.get(binding) ?? drizzle(binding);
  opened.set(binding, known);
  return known;
}
export type Database = ReturnType<typeof openDatabase>;

/** What is built over a database once: building a statement takes longer than running it. */
export function once<T>(build: (db: Database) => T): (db: Database) => T {
  const built = new WeakMap<Database, { value: T }>();
  return (db) => {
    const known = built.get(db) ?? { value: build(db) };
    built.set(db, known);
    return known.value;
  };
}

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
