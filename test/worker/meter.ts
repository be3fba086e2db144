// Counts what D1 is asked for. Every statement of every client passes one method of the binding, below drizzle.
import { env } from "cloudflare:workers";

type Answer = { meta?: { rows_read?: number; rows_written?: number } };
type Session = { _send: (...args: unknown[]) => Promise<Answer | Answer[]> };

export type Bill = { rowsRead: number; rowsWritten: number; roundTrips: number };

/** Runs the work and returns what it cost. */
export async function billOf(work: () => Promise<unknown>): Promise<Bill> {
  const session = (env as unknown as { DB: { alwaysPrimarySession: Session } }).DB.alwaysPrimarySession;
  const original = session._send;
  const bill: Bill = { rowsRead: 0, rowsWritten: 0, roundTrips: 0 };
  session._send = async function (this: Session, ...args: unknown[]) {
    const answer = await original.apply(this, args);
    bill.roundTrips += 1;
    for (const { meta } of Array.isArray(answer) ? answer : [answer]) {
      bill.rowsRead += meta?.rows_read ?? 0;
      bill.rowsWritten += meta?.rows_written ?? 0;
    }
    return answer;
  };
  try {
    await work();
    return bill;
  } finally {
    session._send = original;
  }
}
