// Counts what D1 is asked for. Every statement of every client passes one method of the binding, below drizzle.
import { env } from "cloudflare:workers";

type Answer = { meta?: { rows_read?: number; rows_written?: number } };
type Session = { _send: (...args: unknown[]) => Promise<Answer | Answer[]> };

export type Bill = { rowsRead: number; rowsWritten: number; roundTrips: number };

export type Trip = Omit<Bill, "roundTrips"> & { statements: number };

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
