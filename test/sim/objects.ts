// Durable Objects: one instance per name, storage that outlives it, alarms. An instance dies with everything it had in
// memory; whoever waited for it gets an error, and the next call makes a new one.
import { DatabaseSync, type SQLInputValue, type StatementSync } from "node:sqlite";
import type { Runtime, Task } from "./runtime.ts";

type Instance = Record<string, (...args: unknown[]) => unknown>;
type Maker = new (ctx: object, env: object) => object;
type Living = { instance: Instance; task: Task; death: Promise<never> };

const ALARM_RETRY_MS = 2_000;

export class ObjectNamespace {
  readonly #runtime: Runtime;
  readonly #kind: string;
  readonly #make: Maker;
  readonly #env: () => object;
  readonly #stubs = new Map<string, ObjectStub>();

  constructor(runtime: Runtime, kind: string, make: Maker, env: () => object) {
    this.#runtime = runtime;
    this.#kind = kind;
    this.#make = make;
    this.#env = env;
  }

  idFromName = (name: string) => ({ name, toString: () => name });

  get({ name }: { name: string }): object {
    return this.#stub(name).callable;
  }

  #stub(name: string): ObjectStub {
    const known = this.#stubs.get(name) ?? new ObjectStub(this.#runtime, this.#kind, name, this.#make, this.#env());
    this.#stubs.set(name, known);
    return known;
  }
}

class ObjectStub {
  readonly callable: object;
  readonly #runtime: Runtime;
  readonly #label: string;
  readonly #make: Maker;
  readonly #env: object;
  readonly #storage: ObjectStorage;
  readonly #name: string;
  #living: Living | undefined;

  constructor(runtime: Runtime, kind: string, name: string, make: Maker, env: object) {
    this.#runtime = runtime;
    this.#label = `${kind} ${name}`;
    this.#name = name;
    this.#make = make;
    this.#env = env;
    this.#storage = new ObjectStorage(runtime, () => void this.#alarm());
    this.callable = new Proxy(
      {},
      {
        get: (_target, method) => (typeof method === "string" && method !== "then" ? this.#caller(method) : undefined),
      },
    );
  }

  #caller =
    (method: string) =>
    (...args: unknown[]): Promise<unknown> =>
      this.#runtime.crossObject(`${this.#label}.${method}`, () => this.#call(method, structuredClone(args)));

  async #call(method: string, args: unknown[]): Promise<unknown> {
    const { instance, task, death } = this.#wake();
    const answer = this.#runtime.within(task, async () => instance[method]?.(...args));
    return structuredClone(await Promise.race([answer, death]));
  }

  #wake(): Living {
    if (this.#living !== undefined) return this.#living;
    let die: (reason: Error) => void = () => {};
    const death = new Promise<never>((_resolve, reject) => {
      die = reject;
    });
    death.catch(() => undefined);
    const task: Task = {
      name: this.#label,
      dead: false,
      connections: 0,
      onDeath: () => {
        this.#living = undefined;
        die(new Error("The Durable Object was reset."));
      },
    };
    const ctx = {
      id: { name: this.#name, toString: () => this.#name },
      storage: this.#storage,
      waitUntil: () => undefined,
    };
    const instance = this.#runtime.within(task, () => new this.#make(ctx, this.#env)) as Instance;
    this.#living = { instance, task, death };
    return this.#living;
  }

  /** At least once: one that failed or died is rung again. */
  async #alarm(): Promise<void> {
    try {
      await this.#call("alarm", []);
    } catch {
      this.#runtime.clock.after(ALARM_RETRY_MS, () => void this.#alarm());
    }
  }
}

/** Writes are there at once: nothing leaves an object before its writes are durable. */
class ObjectStorage {
  readonly #runtime: Runtime;
  readonly #ring: () => void;
  readonly #values = new Map<string, unknown>();
  readonly #prepared = new Map<string, StatementSync>();
  #database: DatabaseSync | undefined;
  #alarm: ReturnType<Runtime["clock"]["after"]> | undefined;

  constructor(runtime: Runtime, ring: () => void) {
    this.#runtime = runtime;
    this.#ring = ring;
  }

  readonly kv = {
    get: (key: string) => structuredClone(this.#values.get(key)),
    put: (key: string, value: unknown) => void this.#values.set(key, structuredClone(value)),
    delete: (key: string) => this.#values.delete(key),
    list: () => structuredClone([...this.#values]),
  };

  readonly sql = {
    exec: (query: string, ...values: SQLInputValue[]) => {
      const rows = this.#prepare(query).all(...values);
      const one = () => {
        if (rows.length !== 1) throw new Error(`expected one row, got ${rows.length}`);
        return rows[0];
      };
      return { toArray: () => rows, one, [Symbol.iterator]: () => rows[Symbol.iterator]() };
    },
  };

  #prepare(query: string): StatementSync {
    this.#database ??= new DatabaseSync(":memory:");
    const known = this.#prepared.get(query) ?? this.#database.prepare(query);
    this.#prepared.set(query, known);
    return known;
  }

  transactionSync<T>(work: () => T): T {
    this.sql.exec("SAVEPOINT work");
    try {
      const result = work();
      this.sql.exec("RELEASE work");
      return result;
    } catch (error) {
      this.sql.exec("ROLLBACK TO work");
      this.sql.exec("RELEASE work");
      throw error;
    }
  }

  async setAlarm(at: number): Promise<void> {
    this.#runtime.clock.cancel(this.#alarm);
    this.#alarm = this.#runtime.clock.after(at - this.#runtime.clock.now, this.#ring);
  }
}
