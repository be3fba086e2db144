// Turns for all outgoing requests. A request's time limit starts when its turn comes. Cloudflare allows an invocation six
// connections that wait for an answer, sockets included, and queues the seventh: with a time limit that starts earlier, a
// request can time out before it is sent, and the node or vendor gets the blame (hard case 52).
//
// Turns are per invocation, like Cloudflare's limit. With turns per isolate, requests of different clients would wait for each
// other and hang: an invocation may end before it passes its turn on. A Durable Object has one I/O context for all its calls,
// and therefore one `Connections`. Two kinds of requests take no turn: the queue's `send`, which has no time limit, and the log
// book's webhook, which is one call at a time. The command line has no limit on connections, so its requests start at once.
import { AsyncLocalStorage } from "node:async_hooks";

const MAX_CONNECTIONS = 6;
/** The other connections are for requests: a socket that nobody accepts stays open for about 21 s after its time limit. */
const MAX_SOCKETS = 3;

/** A semaphore: up to `most` turns at a time, in the order of the calls. */
class Turns {
  #free: number;
  readonly #waiting: (() => void)[] = [];

  constructor(most: number) {
    this.#free = most;
  }

  /** Takes a turn; undefined when one is free at once. */
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

/** The connections of one invocation, or of one Durable Object. */
export class Connections {
  readonly all = new Turns(MAX_CONNECTIONS);
  readonly sockets = new Turns(MAX_SOCKETS);

  /** Runs work whose requests share these turns. */
  run<T>(work: () => T): T {
    return invocations.run(this, work);
  }
}

/**
 * Waits for a turn, then sends a request and reads its answer. `send` sets the time limit. Requests that `send` makes by
 * `inTurn` run within the same turn, so they have to be sequential.
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

/** Waits for a socket's turn. Resolves with a function to call once the socket is closed. */
export async function takeSocket(): Promise<() => void> {
  const connections = invocations.getStore();
  await connections?.sockets.take();
  await connections?.all.take();
  return () => {
    connections?.all.give();
    connections?.sockets.give();
  };
}
