// All that leaves passes here and starts its clock in its turn. Cloudflare lets an invocation have six connections that wait
// for their answer, sockets among them, and queues the seventh: a clock that began before may run out for a request that was
// never sent, and a node or a vendor gets the blame (hard case 52).
//
// Turns are an invocation's, as the limit is. Those of an isolate would let strangers' requests wait for each other, and
// hang them: what one invocation waits for must not be left to another that may end first. An object has one I/O context
// for all of its calls, and so one `Connections`. Beside these, an invocation has the queue's `send`, which has no clock,
// and the log book its webhook, one call at a time. The command line has no limit, and passes straight through.
import { AsyncLocalStorage } from "node:async_hooks";

const MAX_CONNECTIONS = 6;
/** The others are left to requests: a socket that nobody accepts is open for some 21 seconds more than anybody waits for it. */
const MAX_SOCKETS = 3;

/** So many at a time, in the order of asking. */
class Turns {
  #free: number;
  readonly #waiting: (() => void)[] = [];

  constructor(most: number) {
    this.#free = most;
  }

  /** Undefined where it is free at once. */
  take(): Promise<void> | undefined {
    if (this.#free === 0) return new Promise((resolve) => this.#waiting.push(resolve));
    this.#free -= 1;
    return undefined;
  }

  give(): void {
    const next = this.#waiting.shift();
    if (next === undefined) this.#free += 1;
    else next();
  }
}

const invocations = new AsyncLocalStorage<Connections | undefined>();

/** The connections of an invocation, or of an object. */
export class Connections {
  readonly all = new Turns(MAX_CONNECTIONS);
  readonly sockets = new Turns(MAX_SOCKETS);

  /** Runs work whose requests share these. */
  run<T>(work: () => T): T {
    return invocations.run(this, work);
  }
}

/**
 * Sends a request and takes its answer in, once it has its turn. A time limit belongs into `send`. What `send` itself sends
 * by this is in the same turn, and goes one after the other.
 */
export async function inTurn<T>(send: () => Promise<T>): Promise<T> {
  const turns = invocations.getStore()?.all;
  const turn = turns?.take();
  if (turn !== undefined) await turn;
  try {
    return await invocations.run(undefined, send);
  } finally {
    turns?.give();
  }
}

/** Waits for a socket's turn. Call what it resolves with once the socket is closed. */
export async function takeSocket(): Promise<() => void> {
  const connections = invocations.getStore();
  await connections?.sockets.take();
  await connections?.all.take();
  return () => {
    connections?.all.give();
    connections?.sockets.give();
  };
}
