// The only access to D1. Every statement has a time limit; a statement without an answer throws `DatabaseUnavailable`. A read
// is tried once more. A write is not: a write whose answer is lost may have happened, or may happen yet, and only the caller
// knows how to go on. Background work counts its statements, since D1 limits them per invocation (hard case 54).
import { AsyncLocalStorage } from "node:async_hooks";
import { type Column, SQL, sql } from "drizzle-orm";
import { drizzle } from "drizzle-orm/d1";
import { SQLiteAsyncDialect } from "drizzle-orm/sqlite-core";
import { DatabaseUnavailable, isTransient } from "../errors.ts";
import { inTime } from "../in-time.ts";

/** Time limit of a statement in a request or an object, for both tries together. D1 stalls for 30 to 80 seconds at times. */
export const STATEMENT_LIMIT_MS = 5_000;
/** Time limit in the cron and the consumer, which run large batches that no client waits for. D1 ends a query after 30 s. */
export const BACKGROUND_LIMIT_MS = 20_000;
/**
 * The most statements of one invocation. D1 allows 1,000. Its documentation does not say whether a batch counts once, so each
 * statement of a batch counts here.
 */
export const MAX_STATEMENTS = 900;
/** Statements that one more piece of work may need, beside the other messages of its batch. */
const ROOM_STATEMENTS = 200;
/** The pause between two tries. */
const RETRY_MS = { least: 50, most: 150 };

type Invocation = { statements: number };
const invocations = new AsyncLocalStorage<Invocation>();

/** Runs an invocation of the cron or the consumer: its statements are counted and have the longer time limit. */
export const inBackground = <T>(work: () => T): T => invocations.run({ statements: 0 }, work);

/** The number of statements that this invocation may still run. A request's statements are few and not counted. */
export const statementsLeft = (): number => MAX_STATEMENTS - (invocations.getStore()?.statements ?? 0);

/** Whether this invocation has statements left for another piece of work. */
export const hasRoom = (): boolean => statementsLeft() >= ROOM_STATEMENTS;

const opened = new WeakMap<D1Database, ReturnType<typeof drizzle<Record<string, never>, D1Database>>>();

/** Drizzle over a D1 binding, one per isolate. All queries are in this folder. */
export function openDatabase(binding: D1Database) {
  const known = opened.get(binding) ?? drizzle(new WatchedDatabase(binding) as unknown as D1Database);
  opened.set(binding, known);
  return known;
}
export type Database = ReturnType<typeof openDatabase>;

/** The part of D1's interface that Drizzle and this folder use. */
class WatchedDatabase implements Pick<D1Database, "prepare" | "batch"> {
  readonly #binding: D1Database;

  constructor(binding: D1Database) {
    this.#binding = binding;
  }

  prepare(sql: string): D1PreparedStatement {
    return new WatchedStatement(this.#binding.prepare(sql), isRead(sql)) as unknown as D1PreparedStatement;
  }

  batch<T>(statements: D1PreparedStatement[]): Promise<D1Result<T>[]> {
    const watched = statements as unknown as WatchedStatement[];
    const reads = watched.every((one) => one.reads);
    return ask(reads, watched.length, () => this.#binding.batch<T>(watched.map((one) => one.native)));
  }
}

const isRead = (sql: string): boolean =>
  /^\s*(?:select|with)\b/i.test(sql) && !/\b(?:insert|update|delete|replace)\b/i.test(sql);

class WatchedStatement implements Pick<D1PreparedStatement, "run" | "all"> {
  readonly native: D1PreparedStatement;
  /** The statement changes nothing. */
  readonly reads: boolean;

  constructor(native: D1PreparedStatement, reads: boolean) {
    this.native = native;
    this.reads = reads;
  }

  bind(...values: unknown[]): WatchedStatement {
    return new WatchedStatement(this.native.bind(...values), this.reads);
  }

  run<T>(): Promise<D1Result<T>> {
    return ask(this.reads, 1, () => this.native.run<T>());
  }

  all<T>(): Promise<D1Result<T>> {
    return ask(this.reads, 1, () => this.native.all<T>());
  }

  raw<T extends unknown[]>(): Promise<T[]> {
    return ask(this.reads, 1, () => this.native.raw<T>());
  }
}

/**
 * One round trip to D1; a read without an answer gets a second one. Throws `DatabaseUnavailable` when D1 does not answer, and
 * D1's own error when D1 refuses.
 */
async function ask<T>(reads: boolean, statements: number, send: () => Promise<T>): Promise<T> {
  const until = Date.now() + (invocations.getStore() === undefined ? STATEMENT_LIMIT_MS : BACKGROUND_LIMIT_MS);
  for (let isLast = !reads; ; isLast = true) {
    try {
      count(statements);
      return await inTime(send(), until - Date.now(), () => new DatabaseUnavailable("D1 did not answer in time."));
    } catch (error) {
      if (error instanceof DatabaseUnavailable || !isTransient(error)) throw error;
      const pause = RETRY_MS.least + Math.random() * (RETRY_MS.most - RETRY_MS.least);
      if (isLast || Date.now() + pause >= until) throw new DatabaseUnavailable("D1 did not answer.", { cause: error });
      await new Promise((resolve) => setTimeout(resolve, pause));
    }
  }
}

function count(statements: number): void {
  const invocation = invocations.getStore();
  if (invocation === undefined) return;
  if (invocation.statements + statements > MAX_STATEMENTS)
    throw new DatabaseUnavailable(
      `This invocation has run ${invocation.statements} D1 statements; the next invocation continues its work.`,
    );
  invocation.statements += statements;
}

/** Builds a value once per database: building a statement takes longer than running it. */
export function once<T>(build: (db: Database) => T): (db: Database) => T {
  const built = new WeakMap<Database, { value: T }>();
  return (db) => {
    const known = built.get(db) ?? { value: build(db) };
    built.set(db, known);
    return known.value;
  };
}

/** A row's values as a SELECT with a condition, for an INSERT that depends on it. */
export function rowWhere(columns: Readonly<Record<string, Column>>, row: object, condition: SQL): SQL {
  const given = row as Record<string, unknown>;
  const values = Object.entries(columns).map(([name, column]) =>
    sql.param(given[name] ?? column.default ?? null, column),
  );
  return sql`SELECT ${sql.join(values, sql`, `)} WHERE ${condition}`;
}

export type Statement = SQL | { toSQL(): { sql: string; params: unknown[] } };

const dialect = new SQLiteAsyncDialect();

/**
 * Runs one D1 batch, all or nothing, of built queries and raw SQL alike (Drizzle's own `batch` can't bind the parameters of raw
 * SQL). Resolves with each statement's rows, under SQLite's column names.
 */
export async function runBatch(db: Database, statements: readonly Statement[]): Promise<unknown[][]> {
  const prepared = statements.map((statement) => {
    const { sql, params } = statement instanceof SQL ? dialect.sqlToQuery(statement) : statement.toSQL();
    return db.$client.prepare(sql).bind(...params);
  });
  const results = await db.$client.batch(prepared);
  return results.map((result) => result.results);
}
