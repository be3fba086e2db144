// D1 and Durable Objects on a bad day: bindings over the real ones that fail and stall as told. In tests in workerd, and
// behind the local world's Workers.

/**
 * `fails`: before the call takes effect; `loses`: after it took effect; `stalls`: no answer and no effect until the stall is
 * over, which is after `forMs` or with the next fault.
 */
export type BadDay = {
  kind: "fails" | "loses" | "stalls";
  /** In the platform's words. */
  message?: string;
  forMs?: number;
  /** Calls that pass before it begins, and how many it meets then; all of them unless told. */
  after?: number;
  times?: number;
  /** How many of the calls that it meets suffer; all of them unless told. */
  share?: number;
};

const LOST = "Network connection lost.";

/** What the calls of some bindings have to pass. */
export class Weather {
  #day: BadDay | null = null;
  #calls = 0;
  #clear: () => void = () => {};
  #cleared: Promise<void> = Promise.resolve();

  /** Ends the day before, and counts calls from here on. */
  set(day: BadDay | null): void {
    this.#clear();
    this.#cleared = new Promise((resolve) => {
      this.#clear = resolve;
    });
    this.#day = day;
    this.#calls = 0;
  }

  /** Since the day was set. */
  get calls(): number {
    return this.#calls;
  }

  /** `marks`: what the runtime adds to its errors. */
  async pass<T>(send: () => Promise<T>, marks: object = {}): Promise<T> {
    const day = this.#day;
    const number = this.#calls++;
    if (day === null) return send();
    const { kind, message = LOST, forMs, after = 0, times = Number.POSITIVE_INFINITY, share = 1 } = day;
    if (number < after || number >= after + times || Math.random() >= share) return send();
    if (kind === "stalls")
      await (forMs === undefined ? this.#cleared : new Promise((resolve) => setTimeout(resolve, forMs)));
    const fault = Object.assign(new Error(message), marks);
    if (kind === "fails") throw fault;
    const answer = await send();
    if (kind === "loses") throw fault;
    return answer;
  }
}

/** As much of D1's interface as the product uses. */
export function weatheredDatabase(binding: D1Database, weather: Weather): D1Database {
  const wrap = (native: D1PreparedStatement) => ({
    native,
    bind: (...values: unknown[]) => wrap(native.bind(...values)),
    run: () => weather.pass(() => native.run()),
    all: () => weather.pass(() => native.all()),
    raw: () => weather.pass(() => native.raw()),
    first: (column: string) => weather.pass(() => native.first(column)),
  });
  const database = {
    prepare: (sql: string) => wrap(binding.prepare(sql)),
    batch: (statements: ReturnType<typeof wrap>[]) =>
      weather.pass(() => binding.batch(statements.map(({ native }) => native))),
  };
  return database as unknown as D1Database;
}

/** Objects whose every call passes the weather. */
export function weatheredObjects<Namespace extends DurableObjectNamespace>(
  namespace: Namespace,
  weather: Weather,
): Namespace {
  type Stub = Record<string, (...args: unknown[]) => unknown>;
  const get = (id: DurableObjectId) => {
    const stub = namespace.get(id) as unknown as Stub;
    const call =
      (method: string) =>
      (...args: unknown[]) =>
        weather.pass(async () => stub[method]?.(...args), { remote: true, retryable: true });
    return new Proxy(stub, {
      get: (_stub, method) => (typeof method === "string" && method !== "then" ? call(method) : undefined),
    });
  };
  return { idFromName: (name: string) => namespace.idFromName(name), get } as unknown as Namespace;
}

/** Of this Worker: over its database and over the objects that it calls. */
const here = { database: new Weather(), objects: new Weather() };
export type WorkerWeather = Partial<Record<keyof typeof here, BadDay | null>>;
const OBJECTS = ["IP_GUARD", "VENDOR_GATE", "OPERATOR_WALLET"] as const;
const made = new WeakMap<object, object>();

/** A Worker's bindings under its weather. One environment per isolate, since Workers keep what they parsed by it. */
export function underWeather<Env extends object>(env: Env): Env {
  const known = made.get(env);
  if (known !== undefined) return known as Env;
  const under = { ...env } as Record<string, unknown>;
  under["DB"] = weatheredDatabase(under["DB"] as D1Database, here.database);
  for (const name of OBJECTS) {
    if (name in under) under[name] = weatheredObjects(under[name] as DurableObjectNamespace, here.objects);
  }
  made.set(env, under);
  return under as Env;
}

/** Where a Worker's weather is set: `POST` of a `WorkerWeather`. */
export const WEATHER_PATH = "/weather";
export async function setWeather(request: Request): Promise<Response> {
  const weather = (await request.json()) as WorkerWeather;
  for (const part of ["database", "objects"] as const) if (weather[part] !== undefined) here[part].set(weather[part]);
  return new Response();
}
