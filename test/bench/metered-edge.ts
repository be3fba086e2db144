// The edge, with a bill on every answer: what the request asked of the database, of objects and of the chain's nodes.

import type { EdgeBindings } from "../../src/edge/config.ts";
import edge, { IpGuard, LogBook } from "../../src/edge/index.ts";
import { type Bill, meterDatabase } from "../worker/meter.ts";

/** The guard, with a count of what it writes to its storage. */
class MeteredIpGuard extends IpGuard {
  constructor(ctx: DurableObjectState, env: Pick<EdgeBindings, "DB" | "LOG_BOOK" | "IP_GUARD">) {
    meterStorage(ctx.storage);
    super(ctx, env);
  }
}

export { LogBook, MeteredIpGuard as IpGuard };

/** `guardRows`: rows that guards wrote (an alarm that is set is one), `guardBytes`: of keys and values, as JSON. */
export type RequestBill = Bill & { objectCalls: number; rpcCalls: number; guardRows: number; guardBytes: number };

let bill: RequestBill = empty();
let storageIsMetered = false;
const metered = new WeakMap<object, EdgeBindings>();
const send = globalThis.fetch;
globalThis.fetch = (input: RequestInfo | URL, init?: RequestInit) => {
  bill.rpcCalls += 1;
  return send(input, init);
};

export default {
  async fetch(request, env, ctx) {
    // What timers wrote since the last request.
    if (new URL(request.url).pathname === "/bill") return Response.json(bill);
    bill = empty();
    const answer = await edge.fetch(request, meter(env), ctx);
    const headers = new Headers(answer.headers);
    headers.set("x-bill", JSON.stringify(bill));
    return new Response(answer.body, { status: answer.status, headers });
  },
  scheduled: (event, env, ctx) => edge.scheduled(event, env, ctx),
} satisfies ExportedHandler<EdgeBindings>;

function empty(): RequestBill {
  return { rowsRead: 0, rowsWritten: 0, roundTrips: 0, objectCalls: 0, rpcCalls: 0, guardRows: 0, guardBytes: 0 };
}

/** Every object of this isolate writes through these two prototypes. */
function meterStorage(storage: DurableObjectStorage): void {
  if (storageIsMetered) return;
  storageIsMetered = true;
  const kv = Object.getPrototypeOf(storage.kv) as SyncKvStorage;
  const { put } = kv;
  kv.put = function <T>(this: SyncKvStorage, key: string, value: T): void {
    bill.guardRows += 1;
    bill.guardBytes += key.length + JSON.stringify(value).length;
    put.call(this, key, value);
  };
  const whole = Object.getPrototypeOf(storage) as DurableObjectStorage;
  const { setAlarm } = whole;
  whole.setAlarm = function (this: DurableObjectStorage, ...args: Parameters<typeof setAlarm>): Promise<void> {
    bill.guardRows += 1;
    return setAlarm.apply(this, args);
  };
}

/** One environment per isolate, since the edge keeps its application by it. Requests come one at a time. */
function meter(env: EdgeBindings): EdgeBindings {
  const known = metered.get(env);
  if (known !== undefined) return known;
  meterDatabase(env.DB, (answer) => {
    bill.roundTrips += 1;
    bill.rowsRead += answer.rowsRead;
    bill.rowsWritten += answer.rowsWritten;
  });
  const guards = new Proxy(env.IP_GUARD, {
    get(target, name) {
      const value: unknown = Reflect.get(target, name);
      if (typeof value !== "function") return value;
      return (...args: unknown[]) => {
        if (name === "get") bill.objectCalls += 1;
        return (value as (...all: unknown[]) => unknown).apply(target, args);
      };
    },
  });
  const made = { ...env, IP_GUARD: guards };
  metered.set(env, made);
  return made;
}
