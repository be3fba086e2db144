// What both vendor simulators share: a real HTTP server with a journal of its traffic, a rate, vendor-like delays, and
// faults that tests and scripts switch on over the simulator's own control URL.
import { type Context, Hono } from "hono";
import { z } from "zod";
import { type Listening, listen } from "./server.ts";

export const FAULT_KINDS = [
  "sold_out",
  "rate_limited",
  "error_before",
  "error_after",
  "timeout_before",
  "timeout_after",
  "never_boots",
  "late_address",
  "wrong_mark",
  "unconfigured",
  "lagging_list",
  "locked",
  "hidden",
  "counts_deleted",
  "slow_delete",
  "silent_address",
  "no_address",
  "ports_only",
  "hanging_pull",
  "moved_port",
  "odd_neighbours",
  "no_balance",
  "wrong_address",
  "few_rights",
  "prose_before",
  "prose_after",
  "odd_after",
  "answer",
] as const;
export type FaultKind = (typeof FAULT_KINDS)[number];

/**
 * A fault on one kind of call. `times` counts down; `region` narrows it to one region or cloud; `ms` is its length. What is wrong
 * with the API key meets `any` call.
 */
const faultSchema = z.strictObject({
  call: z.enum(["create", "get", "list", "delete", "catalog", "change", "reinstall", "account", "any"]),
  kind: z.enum(FAULT_KINDS),
  times: z.int().min(1).optional(),
  region: z.string().optional(),
  ms: z.int().min(0).optional(),
  /** For `answer`: what is answered instead of the effect, or where `effect` is true in place of its answer. `text` is no JSON. */
  effect: z.boolean().optional(),
  text: z.string().optional(),
  status: z.int().min(200).max(599).optional(),
  body: z.unknown().optional(),
  headers: z.record(z.string(), z.string()).optional(),
});
export type Fault = z.input<typeof faultSchema>;

/** How long a fault lasts that is taken: for ever without `ms`. */
export const durationOf = (fault: Fault | undefined): number =>
  fault === undefined ? 0 : (fault.ms ?? Number.POSITIVE_INFINITY);

export type Exchange = {
  method: string;
  path: string;
  requestBody: unknown;
  status: number;
  contentType: string | null;
  responseBody: unknown;
  at: number;
};

export type VendorServerOptions = {
  latencyMs?: number;
  /** The most that one page of a list holds, whatever is asked for; tests of paging lower it. */
  maxPage?: number;
  port?: number;
};

const MAX_JOURNAL = 5_000;
const HANG_MS = 120_000;
/** What stands before a vendor's API answers in its place. */
const GATEWAY_PAGE = "<html><head><title>502 Bad Gateway</title></head><body><center>nginx</center></body></html>";
const GATEWAY_STATUSES = [500, 502, 503, 504];

export class VendorServer {
  readonly app = new Hono();
  readonly journal: Exchange[] = [];
  /** How often each kind of fault has met a call. */
  readonly met = new Map<FaultKind, number>();
  readonly #faults: Fault[] = [];
  readonly #latencyMs: number;
  readonly #hanging = new Set<() => void>();
  readonly #port: number | undefined;
  #pages = 0;
  #listening: Listening | undefined;

  constructor(options: VendorServerOptions, controls: { machines: () => unknown; clear: () => Promise<void> }) {
    this.#latencyMs = options.latencyMs ?? 40;
    this.#port = options.port;
    this.app.use(async (c, next) => {
      if (c.req.path.startsWith("/control")) return next();
      const requestBody = await jsonOf(c.req.raw);
      await this.pause(this.#latencyMs * (0.5 + Math.random()));
      await next();
      const { pathname, search } = new URL(c.req.url);
      this.journal.push({
        method: c.req.method,
        path: pathname + search,
        requestBody,
        status: c.res.status,
        contentType: c.res.headers.get("content-type"),
        // A stream does not end.
        responseBody: c.res.headers.get("content-type") === "text/event-stream" ? null : await jsonOf(c.res),
        at: Date.now(),
      });
      if (this.journal.length > MAX_JOURNAL) this.journal.shift();
    });
    this.app.get("/control/machines", (c) => c.json(controls.machines() as object));
    // As if nobody had ever rented anything.
    this.app.delete("/control/machines", async (c) => {
      await controls.clear();
      return c.body(null, 204);
    });
    this.app.get("/control/journal", (c) => c.json(this.journal));
    this.app.get("/control/faults", (c) => c.json(this.#faults));
    this.app.post("/control/faults", async (c) => {
      const fault = faultSchema.safeParse(await c.req.json().catch(() => null));
      if (!fault.success) return c.json({ error: z.prettifyError(fault.error) }, 400);
      this.#faults.push(fault.data);
      return c.json(fault.data, 201);
    });
    this.app.delete("/control/faults", (c) => {
      this.clearFaults();
      return c.body(null, 204);
    });
  }

  get origin(): string {
    return `http://127.0.0.1:${this.#listening?.port}`;
  }

  addFault(fault: Fault): void {
    this.#faults.push({ ...fault });
  }

  clearFaults(): void {
    this.#faults.length = 0;
  }

  /** That fault where it is on; it is not used up. */
  findFault(call: string, kind: FaultKind): Fault | undefined {
    return this.#faults.find((fault) => fault.call === call && fault.kind === kind);
  }

  /** The fault of that kind for this call, used up by one. */
  takeFault(call: string, kinds: readonly FaultKind[], region?: string): Fault | undefined {
    const index = this.#faults.findIndex(
      (fault) =>
        fault.call === call && kinds.includes(fault.kind) && (fault.region === undefined || fault.region === region),
    );
    const fault = this.#faults[index];
    if (fault === undefined) return undefined;
    if (fault.times !== undefined && --fault.times <= 0) this.#faults.splice(index, 1);
    this.met.set(fault.kind, (this.met.get(fault.kind) ?? 0) + 1);
    return { ...fault };
  }

  /** Runs a call with the faults that every call can have, before or after its effect. */
  async withFaults(
    c: Context,
    call: string,
    answers: { rateLimited: () => Response; failed: () => Response },
    effect: () => Promise<Response> | Response,
    region?: string,
  ): Promise<Response> {
    const before = this.takeFault(
      call,
      ["rate_limited", "error_before", "timeout_before", "prose_before", "answer"],
      region,
    );
    if (before?.kind === "answer") {
      if (before.effect === true) await effect();
      const { status = 500, text = JSON.stringify(before.body ?? {}) } = before;
      const headers = { "content-type": "application/json", ...before.headers };
      return new Response(text === "" ? null : text, { status, headers });
    }
    if (before?.kind === "rate_limited") return answers.rateLimited();
    if (before?.kind === "error_before") return answers.failed();
    if (before?.kind === "prose_before") return this.#prose();
    if (before?.kind === "timeout_before") return this.#hang(c, before.ms);
    const response = await effect();
    const after = this.takeFault(call, ["error_after", "timeout_after", "prose_after", "odd_after"], region);
    if (after?.kind === "error_after") return answers.failed();
    if (after?.kind === "prose_after") return this.#prose();
    if (after?.kind === "odd_after") return new Response("", { status: 200 });
    if (after?.kind === "timeout_after") return this.#hang(c, after.ms);
    return response;
  }

  pause(ms: number): Promise<void> {
    return new Promise((resolve) => {
      const timer = setTimeout(resolve, ms);
      timer.unref();
    });
  }

  async start(): Promise<void> {
    this.#listening = await listen(this.app.fetch, this.#port);
  }

  async stop(): Promise<void> {
    for (const release of this.#hanging) release();
    await this.#listening?.stop();
  }

  #prose(): Response {
    this.#pages += 1;
    const status = GATEWAY_STATUSES[this.#pages % GATEWAY_STATUSES.length] ?? 502;
    return new Response(GATEWAY_PAGE, { status, headers: { "content-type": "text/html" } });
  }

  async #hang(c: Context, ms = HANG_MS): Promise<Response> {
    await new Promise<void>((resolve) => {
      const release = () => {
        clearTimeout(timer);
        this.#hanging.delete(release);
        resolve();
      };
      const timer = setTimeout(release, ms);
      this.#hanging.add(release);
      c.req.raw.signal.addEventListener("abort", release);
    });
    return c.body("", 504);
  }
}

async function jsonOf(message: Request | Response): Promise<unknown> {
  try {
    const text = await message.clone().text();
    return text === "" ? null : JSON.parse(text);
  } catch {
    return null;
  }
}
