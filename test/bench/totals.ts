// What a Worker has asked for since it began: of the database, of the queue, of the chain's nodes. For Workers whose work
// no request shows; an entry that meters answers `GET /totals`.
import { meterDatabase } from "../worker/meter.ts";

const totals = {
  /** Of D1; several in one round trip count each. */
  statements: 0,
  roundTrips: 0,
  rowsRead: 0,
  rowsWritten: 0,
  messagesSent: 0,
  messagesTaken: 0,
  rpcCalls: 0,
};
export type Totals = typeof totals;

const metered = new WeakMap<object, object>();

/** The same bindings, counted. One environment per isolate, since Workers keep what they parsed by it. */
export function meterBindings<Env extends { DB: D1Database; JOBS: Queue<never> }>(env: Env): Env {
  const known = metered.get(env);
  if (known !== undefined) return known as Env;
  meterDatabase(env.DB, (trip) => {
    totals.roundTrips += 1;
    totals.statements += trip.statements;
    totals.rowsRead += trip.rowsRead;
    totals.rowsWritten += trip.rowsWritten;
  });
  const made = { ...env, JOBS: meterQueue(env.JOBS) };
  metered.set(env, made);
  return made;
}

function meterQueue<Message>(queue: Queue<Message>): Queue<Message> {
  return new Proxy(queue, {
    get(target, name) {
      const value: unknown = Reflect.get(target, name);
      if (typeof value !== "function") return value;
      return (...args: unknown[]) => {
        if (name === "send") totals.messagesSent += 1;
        if (name === "sendBatch") totals.messagesSent += (args[0] as unknown[]).length;
        return (value as (...all: unknown[]) => unknown).apply(target, args);
      };
    },
  });
}

/** Calls to the chain's nodes are POSTs that say so. */
export function meterRpc(): void {
  const send = globalThis.fetch;
  globalThis.fetch = (input: RequestInfo | URL, init?: RequestInit) => {
    if (typeof init?.body === "string" && init.body.includes('"jsonrpc"')) totals.rpcCalls += 1;
    return send(input, init);
  };
}

export const countTaken = (messages: number): void => {
  totals.messagesTaken += messages;
};

export const answerTotals = (): Response => Response.json(totals);
