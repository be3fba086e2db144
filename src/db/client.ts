// The one way to D1. Every statement has a time limit; what D1 did not answer is `DatabaseUnavailable`, and a read gets one
// more try. A write gets none here: where its answer is lost it may have happened, or may yet, and only its caller knows
// what that means. Background work counts its statements, since D1 takes so many from one invocation.
import { AsyncLocalStorage } from "node:async_hooks";
import { type Column, SQL, sql } from "drizzle-orm";
import { drizzle } from "drizzle-orm/d1";
import { SQLiteAsyncDialect } from "drizzle-orm/sqlite-core";
import { DatabaseUnavailable, isTransient } from "../errors.ts";
import { inTime } from "../in-time.ts";

/** Of a request's statement, and of an object's: both tries together. D1 itself stalls for 30 to 80 seconds at times. */
export const STATEMENT_LIMIT_MS = 5_000;
/** Of the cron's and the consumer's, whose batches are large and for which nobody waits. D1 ends a query after 30 seconds. */
export const BACKGROUND_LIMIT_MS = 20_000;
/** D1 takes 1,000 from an invocation; whether a batch counts once is documented nowhere, so each of its statements counts. */
export const MAX_STATEMENTS = 900;
/** What one more piece of work may need, beside its neighbours in a batch. */
const ROOM_STATEMENTS = 200;
/** Between two tries. */
const RETRY_MS = { least: 50, most: 150 };

type Invocation = { statements: number };
const invocations = new AsyncLocalStorage<Invocation>();

/** Runs an invocation of the cron or the consumer: its statements are counted and may take longer than a request's. */
export const inBackground = <T>(work: () => T): T => invocations.run({ statements: 0 }, work);

/** How many statements this invocation may still make. A request's are not counted: it makes few. */
export const statementsLeft = (): number => MAX_STATEMENTS - (invocations.getStore()?.statements ?? 0);

/** Whether another piece of work may begin in this invocation. */
export const hasRoom = (): boolean => statementsLeft() >= ROOM_STATEMENTS;

const opened = new WeakMap<D1Database, ReturnType<typeof drizzle<Record<string, never>, D1Database>>>();

/** Drizzle over a D1 binding, one per isolate. Every query of the product is in this folder. */
export function openDatabase(binding: D1Database) {
  const known = opened.get(binding) ?? drizzle(new WatchedDatabase(binding) as unknown as D1Database);
  opened.set(binding, known);
  return known;
}
export type Database = ReturnType<typeof openDatabase>;

/** As much of D1's interface as drizzle and this folder use. */
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
  /** It changes nothing. */
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
 * One round trip, of a read twice where the first brought nothing. Throws `DatabaseUnavailable` where D1 does not answer,
 * and D1's own error where it refuses.
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
      `This invocation has made ${invocation.statements} statements; the next one goes on.`,
    );
  invocation.statements += statements;
}

/** What is built over a database once: building a statement takes longer than running it. */
export function once<T>(build: (db: Database) => T): (db: Database) => T {
  const built = new WeakMap<Database, { value: T }>();
  return (db) => {
    const known = built.get(db) ?? { value: build(db) };
    built.set(db, known);
    return known.value;
  };
}

/** A row as a SELECT: an INSERT that depends on a condition. */
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
