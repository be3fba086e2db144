import { createRoute, z } from "@hono/zod-openapi";
import type { Context } from "hono";
import { type Chain, readHead } from "../../chain/client.ts";
import { VERSION } from "../../config.ts";
import type { Database } from "../../db/client.ts";
import { readTogether, statementsOf } from "../../db/reads.ts";
import { inTime } from "../../in-time.ts";
import { errorFields, log } from "../../log.ts";
import { SCAN_STALE_MS } from "../../model/shop.ts";
import { unlimited } from "../access/admission.ts";
import type { App, Router } from "../http.ts";

const CHECK_TIMEOUT_MS = 2_000;
/** How long an isolate keeps what it has read: nobody is limited here, so nobody may cost more (hard case 44). */
const ROWS_CACHE_MS = 1_000;
const HEAD_CACHE_MS = 5_000;
const LOOK_MS = 20;
const RETRY_SECONDS = 10;
const LAG_DEGRADED_SECONDS = 30;
const PENDING_DEGRADED_SECONDS = 900;

const healthSchema = z
  .object({
    status: z.enum(["ok", "degraded"]),
    version: z.string().openapi({ example: VERSION }),
    timestamp: z.string(),
    checks: z.object({
      database: z.object({ ok: z.boolean(), latencyMs: z.number() }),
      chain: z.object({
        ok: z.boolean(),
        chainId: z.number(),
        head: z.number().nullable(),
        scanned: z.number().nullable(),
        lagSeconds: z.number().nullable(),
      }),
      provisioning: z.object({
        pending: z.number().nullable(),
        oldestSeconds: z.number().nullable(),
        paused: z.boolean().openapi({ description: "Operators have paused it: no machine is made meanwhile" }),
      }),
    }),
  })
  .openapi("Health");

const content = { "application/json": { schema: healthSchema } };
const route = createRoute({
  method: "get",
  path: "/health",
  middleware: [unlimited] as const,
  summary: "Status of the service and what it depends on",
  description: "Never rate limited. 503, with the same body, when a purchase could not be served now.",
  responses: {
    200: { description: "Serving; `degraded` when slow or paused", content },
    503: { description: "A purchase could not be served now", content },
  },
});

type Checked<T> = { value: T | null; tookMs: number };

export function mountHealth(app: Router): void {
  const readRows = checkOnce(ROWS_CACHE_MS, (db: Database) => {
    const { cursor, pending, oldestPending } = statementsOf(db);
    return readTogether(db, [cursor, pending, oldestPending]);
  });
  // All nodes at once: a first one that hangs must not look like an outage.
  const readHeads = checkOnce(HEAD_CACHE_MS, ({ nodes }: Chain) => Promise.any(nodes.map((node) => readHead(node))));
  app.openapi(route, async (c) => {
    const db = c.get("db");
    const chain = c.get("chain");
    const config = c.get("config");
    const now = Date.now();
    const [database, { value: head }] = await Promise.all([readRows(c, db), readHeads(c, chain)]);
    const rows = database.value;
    const [cursor] = rows?.[0] ?? [];
    const [pending] = rows?.[1] ?? [];
    const [oldest] = rows?.[2] ?? [];
    const lagSeconds =
      head === null || cursor === undefined ? null : Math.max(0, head.timestamp - cursor.blockTimestamp);
    const oldestSeconds =
      oldest === undefined ? 0 : Math.max(0, (cursor?.blockTimestamp ?? oldest.createdAt) - oldest.createdAt);
    const scanning = cursor !== undefined && now - cursor.scannedAt < SCAN_STALE_MS;
    const serving = rows !== null && head !== null && scanning;
    const paused = cursor !== undefined && cursor.pausedSince !== null;
    const slow = paused || (lagSeconds ?? 0) > LAG_DEGRADED_SECONDS || oldestSeconds > PENDING_DEGRADED_SECONDS;
    c.header("Cache-Control", "no-store");
    if (!serving) c.header("Retry-After", String(RETRY_SECONDS));
    return c.json(
      {
        status: serving && !slow ? ("ok" as const) : ("degraded" as const),
        version: VERSION,
        timestamp: new Date(now).toISOString(),
        checks: {
          database: { ok: rows !== null, latencyMs: database.tookMs },
          chain: {
            ok: head !== null && scanning,
            chainId: config.CHAIN_ID,
            head: head?.number ?? null,
            scanned: cursor?.blockNumber ?? null,
            lagSeconds,
          },
          provisioning: {
            pending: pending?.value ?? null,
            oldestSeconds: rows === null ? null : oldestSeconds,
            paused,
          },
        },
      },
      serving ? 200 : 503,
    );
  });
}

/**
 * A check that an isolate makes at most once within `keepMs`, whatever it says: a service that is down must not be asked more
 * often. Of requests at once one makes it. The others can't await its promise, which belongs to its request, so each looks for
 * the answer by a timer of its own.
 */
function checkOnce<From, T>(keepMs: number, read: (from: From) => Promise<T>) {
  let kept: (Checked<T> & { at: number }) | undefined;
  let readingSince = 0;
  return async (c: Context<App>, from: From): Promise<Checked<T>> => {
    while (Date.now() - readingSince < CHECK_TIMEOUT_MS) await new Promise((resolve) => setTimeout(resolve, LOOK_MS));
    if (kept !== undefined && Date.now() - kept.at < keepMs) return kept;
    readingSince = Date.now();
    const checking = within(read(from)).then((checked) => {
      readingSince = 0;
      kept = { ...checked, at: Date.now() };
      return kept;
    });
    goOn(c, checking);
    return checking;
  };
}

/** Goes on although the client has hung up: others wait for it. */
function goOn(c: Context<App>, work: Promise<unknown>): void {
  try {
    c.executionCtx.waitUntil(work);
  } catch {
    // Called without a context, as tests do.
  }
}

/** The answer, or null when it failed or took longer than a check may; and how long that took. */
async function within<T>(work: Promise<T>): Promise<Checked<T>> {
  const began = Date.now();
  const late = new Error("late");
  let value: T | null = null;
  try {
    value = await inTime(work, CHECK_TIMEOUT_MS, () => late);
  } catch (error) {
    if (error !== late) log("warn", "health_check_failed", errorFields(error));
  }
  return { value, tookMs: Date.now() - began };
}
