import { createRoute, z } from "@hono/zod-openapi";
import type { Router } from "../app.ts";
import { type Chain, type Head, readHead } from "../chain/client.ts";
import { VERSION } from "../config.ts";
import { readTogether, statementsOf } from "../db/reads.ts";
import { errorFields, log } from "../log.ts";
import { SCAN_STALE_MS } from "../vms/shop.ts";

const CHECK_TIMEOUT_MS = 2_000;
const HEAD_CACHE_MS = 5_000;
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
  summary: "Status of the service and what it depends on",
  description: "Never rate limited. 503, with the same body, when a purchase could not be served now.",
  responses: {
    200: { description: "Serving; `degraded` when slow or paused", content },
    503: { description: "A purchase could not be served now", content },
  },
});

type Checked<T> = { value: T | null; tookMs: number };
// Failures are remembered too: an unlimited route must not become a load on nodes that are down.
let cachedHead: { head: Head | null; at: number } | undefined;

export function mountHealth(app: Router): void {
  app.openapi(route, async (c) => {
    const db = c.get("db");
    const chain = c.get("chain");
    const config = c.get("config");
    const now = Date.now();
    const reads = statementsOf(db);
    const [database, head] = await Promise.all([
      within(readTogether(db, [reads.cursor, reads.pending, reads.oldestPending])),
      currentHead(chain, now),
    ]);
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

async function currentHead(chain: Chain, now: number): Promise<Head | null> {
  if (cachedHead !== undefined && now - cachedHead.at < HEAD_CACHE_MS) return cachedHead.head;
  // All nodes at once: a first one that hangs must not look like an outage.
  const { value: head } = await within(Promise.any(chain.nodes.map((node) => readHead(node))));
  cachedHead = { head, at: now };
  return head;
}

/** The answer, or null when it failed or took longer than a check may; and how long that took. */
async function within<T>(work: Promise<T>): Promise<Checked<T>> {
  const began = Date.now();
  let timer: ReturnType<typeof setTimeout> | undefined;
  const late = new Promise<null>((resolve) => {
    timer = setTimeout(() => resolve(null), CHECK_TIMEOUT_MS);
  });
  try {
    const value = await Promise.race([work, late]);
    return { value, tookMs: Date.now() - began };
  } catch (error) {
    log("warn", "health_check_failed", errorFields(error));
    return { value: null, tookMs: Date.now() - began };
  } finally {
    clearTimeout(timer);
  }
}
