// The queue between the Workers: at least once, in any order, late. What was not acknowledged comes back.
import type { Runtime } from "./runtime.ts";

export type Batch = {
  queue: string;
  messages: readonly Message[];
  retryAll(options?: { delaySeconds?: number }): void;
};
type Message = {
  id: string;
  timestamp: Date;
  body: unknown;
  attempts: number;
  ack(): void;
  retry(options?: { delaySeconds?: number }): void;
};
type Kept = { id: string; body: unknown; attempts: number };
type Settings = { name: string; batchSize: number; maxRetries: number; deadLetters: SimulatedQueue | null };

const MAX_LATENCY_MS = 500;
const MAX_EXTRA_DELAY_MS = 90_000;
/** How long a message whose consumer died stays away. */
const REDELIVERY_MS = 20_000;

export class SimulatedQueue {
  readonly #runtime: Runtime;
  readonly #settings: Settings;
  readonly #consume: (batch: Batch) => Promise<unknown>;
  readonly #ready: Kept[] = [];
  #flushing = false;
  #sent = 0;
  /** Messages sent and not yet done with. */
  open = 0;

  constructor(runtime: Runtime, settings: Settings, consume: (batch: Batch) => Promise<unknown>) {
    this.#runtime = runtime;
    this.#settings = settings;
    this.#consume = consume;
  }

  send = (body: unknown, options: { delaySeconds?: number } = {}): Promise<void> =>
    this.#runtime.cross("the queue", () => this.put(body, options.delaySeconds));

  sendBatch = (messages: Iterable<{ body: unknown; delaySeconds?: number }>): Promise<void> =>
    this.#runtime.cross("the queue", () => {
      for (const { body, delaySeconds } of messages) this.put(body, delaySeconds);
    });

  put(body: unknown, delaySeconds = 0): void {
    const { faults } = this.#runtime;
    const copies = faults.strikes("queue_duplicates") ? 2 : 1;
    for (let copy = 0; copy < copies; copy++) {
      this.#sent += 1;
      this.#later({ id: `m${this.#sent}`, body: structuredClone(body), attempts: 1 }, delaySeconds * 1_000);
    }
  }

  #later(message: Kept, ms: number): void {
    const { clock, random, faults } = this.#runtime;
    this.open += 1;
    const extra = faults.strikes("queue_delays") ? random.int(0, MAX_EXTRA_DELAY_MS) : 0;
    clock.after(ms + random.int(0, MAX_LATENCY_MS) + extra, () => {
      this.#ready.push(message);
      if (this.#flushing) return;
      this.#flushing = true;
      clock.after(0, () => {
        this.#flushing = false;
        while (this.#ready.length > 0) void this.#deliver(this.#ready.splice(0, this.#settings.batchSize));
      });
    });
  }

  async #deliver(kept: readonly Kept[]): Promise<void> {
    const { name } = this.#settings;
    const verdicts = new Map<Kept, "ack" | number>();
    const messages = kept.map((one) => ({
      ...one,
      timestamp: new Date(this.#runtime.clock.now),
      ack: () => void verdicts.set(one, "ack"),
      retry: ({ delaySeconds = 0 }: { delaySeconds?: number } = {}) => void verdicts.set(one, delaySeconds),
    }));
    const batch = {
      queue: name,
      messages,
      retryAll: (options?: { delaySeconds?: number }) => {
        for (const message of messages) message.retry(options);
      },
    };
    const end = await this.#runtime.run(`a consumer of ${name}`, () => this.#consume(batch));
    for (const one of kept) {
      this.open -= 1;
      const verdict = verdicts.get(one);
      // What a dying consumer had acknowledged counts for nothing.
      if (end === "crashed") this.#again(one, REDELIVERY_MS);
      else if (typeof verdict === "number") this.#again(one, verdict * 1_000);
      else if (verdict === undefined && end === "failed") this.#again(one, 0);
    }
  }

  #again(message: Kept, ms: number): void {
    if (message.attempts <= this.#settings.maxRetries) this.#later({ ...message, attempts: message.attempts + 1 }, ms);
    else this.#settings.deadLetters?.put(message.body);
  }
}
