// Counts what D1 is asked for, and refuses what D1 would. Every statement of every client passes one method of the binding,
// below drizzle.

import { env } from "cloudflare:workers";
import { AsyncLocalStorage } from "node:async_hooks";

type Answer = { meta?: { rows_read?: number; rows_written?: number } };
type Session = { _send: (...args: unknown[]) => Promise<Answer | Answer[]> };

export type Bill = { rowsRead: number; rowsWritten: number; roundTrips: number };

export type Trip = Omit<Bill, "roundTrips"> & { statements: number };

/** What Cloudflare lets an invocation ask of D1, and how it refuses more. */
const MAX_STATEMENTS = 1_000;
const TOO_MANY_STATEMENTS = "D1_ERROR: Too many API requests by single Worker invocation.";
const invocations = new AsyncLocalStorage<{ statements: number }>();

/** Runs work as an invocation, which D1 takes a thousand statements from. */
export const asInvocation = <T>(work: () => T): T => invocations.run({ statements: 0 }, work);

/** Counts the statements of each invocation from here on. */
export function limitStatements(database: D1Database): void {
  const session = (database as unknown as { alwaysPrimarySession: Session }).alwaysPrimarySession;
  const original = session._send;
  session._send = async function (this: Session, ...args: unknown[]) {
    const [, statements] = args;
    const invocation = invocations.getStore();
    if (invocation !== undefined) {
      invocation.statements += Array.isArray(statements) ? statements.length : 1;
      if (invocation.statements > MAX_STATEMENTS) throw new Error(TOO_MANY_STATEMENTS);
    }
    return original.apply(this, args);
  };
}
/** Tells of every round trip of a database until the returned function is called. */
export function meterDatabase(database: D1Database, onTrip: (trip: Trip) => void): () => void {
  const session = (database as unknown as { alwaysPrimarySession: Session }).alwaysPrimarySession;
  const original = session._send;
  session._send = async function (this: Session, ...args: unknown[]) {
    const answer = await original.apply(this, args);
    const results = Array.isArray(answer) ? answer : [answer];
    const sum = (field: "rows_read" | "rows_written") =>
      results.reduce((total, { meta }) => total + (meta?.[field] ?? 0), 0);
    onTrip({ statements: results.length, rowsRead: sum("rows_read"), rowsWritten: sum("rows_written") });
    return answer;
  };
  return () => {
    session._send = original;
  };
}

/** Runs the work and returns what it cost. */
export async function billOf(work: () => Promise<unknown>): Promise<Bill> {
  const bill: Bill = { rowsRead: 0, rowsWritten: 0, roundTrips: 0 };
  const stop = meterDatabase((env as unknown as { DB: D1Database }).DB, ({ rowsRead, rowsWritten }) => {
    bill.roundTrips += 1;
    bill.rowsRead += rowsRead;
    bill.rowsWritten += rowsWritten;
  });
  try {
    await work();
    return bill;
  } finally {
    stop();
  }
}
