import { createRoute, z } from "@hono/zod-openapi";
import type { Router } from "../app.ts";
import { askFirst, type Head, readHead } from "../chain/client.ts";
import { VERSION } from "../config.ts";
import { queries } from "../db/reads.ts";
import { errorFields, log } from "../log.ts";
import { isoOf } from "./schemas.ts";

const CHECK_TIMEOUT_MS = 2_000;
const HEAD_CACHE_MS = 5_000;
/** A scan that stands still for this long serves no purchase any more. */
const SCAN_STALE_MS = 120_000;
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
      provisioning: z.object({ pending: z.number().nullable(), oldestSeconds: z.number().nullable() }),
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
    200: { description: "Serving; `degraded` when slow", content },
    503: { description: "A purchase could not be served now", content },
  },
});

let cachedHead: { head: Head; at: number } | undefined;

export function mountHealth(app: Router): void {
  app.openapi(route, async (c) => {
    const { db, chain, config } = c.var;
    const began = Date.now();
    const [rows, head] = await Promise.all([
      within(db.batch([queries.cursor(db), queries.pending(db), queries.oldestPending(db)])),
      cachedHead !== undefined && began - cachedHead.at < HEAD_CACHE_MS
        ? cachedHead.head
        : within(askFirst(chain, (node) => readHead(node))),
    ]);
    const latencyMs = Date.now() - began;
    if (head !== null && head !== cachedHead?.head) cachedHead = { head, at: began };
    const [cursor] = rows?.[0] ?? [];
    const [pending] = rows?.[1] ?? [];
    const [oldest] = rows?.[2] ?? [];
    const lagSeconds =
      head === null || cursor === undefined ? null : Math.max(0, head.timestamp - cursor.blockTimestamp);
    const oldestSeconds =
      oldest === undefined ? 0 : Math.max(0, (cursor?.blockTimestamp ?? oldest.createdAt) - oldest.createdAt);
    const scanning = cursor !== undefined && began - cursor.scannedAt < SCAN_STALE_MS;
    const serving = rows !== null && head !== null && scanning;
    const slow = (lagSeconds ?? 0) > LAG_DEGRADED_SECONDS || oldestSeconds > PENDING_DEGRADED_SECONDS;
    c.header("Cache-Control", "no-store");
    return c.json(
      {
        status: serving && !slow ? ("ok" as const) : ("degraded" as const),
        version: VERSION,
        timestamp: isoOf(began) ?? "",
        checks: {
          database: { ok: rows !== null, latencyMs: rows === null ? CHECK_TIMEOUT_MS : latencyMs },
          chain: {
            ok: head !== null && scanning,
            chainId: config.CHAIN_ID,
            head: head?.number ?? null,
            scanned: cursor?.blockNumber ?? null,
            lagSeconds,
          },
          provisioning: { pending: pending?.value ?? null, oldestSeconds: rows === null ? null : oldestSeconds },
        },
      },
      serving ? 200 : 503,
    );
  });
}

/** The answer, or null when it failed or took longer than a check may. */
async function within<T>(work: Promise<T>): Promise<T | null> {
  let timer: ReturnType<typeof setTimeout> | undefined;
  const late = new Promise<null>((resolve) => {
    timer = setTimeout(() => resolve(null), CHECK_TIMEOUT_MS);
  });
  try {
    return await Promise.race([work, late]);
  } catch (error) {
    log("warn", "health_check_failed", errorFields(error));
    return null;
  } finally {
    clearTimeout(timer);
  }
}
