// Who may call how often: the one table of limits, and the middleware that asks the address's guard.
import type { Context, MiddlewareHandler } from "hono";
import type { Limit } from "../../durable-objects/ip-guard.ts";
import type { App } from "../app.ts";
import { AppError } from "../errors.ts";
import { log } from "../log.ts";

const MINUTE = 60;
const HOUR = 3_600;

/** Requests per span and address; reference, "Rate limits". `/health` has none. */
export const LIMITS = {
  tiers: { requests: 100, windowSeconds: MINUTE },
  credentials: { requests: 30, windowSeconds: HOUR },
  vms: { requests: 30, windowSeconds: MINUTE },
  status: { requests: 100, windowSeconds: MINUTE },
  documents: { requests: 100, windowSeconds: MINUTE },
  unknown: { requests: 60, windowSeconds: MINUTE },
} as const satisfies Record<string, Limit>;

export type LimitedRoute = keyof typeof LIMITS;

// Known bans, so that a banned address costs no call: what the isolate remembers, and for how long.
const bans = new Map<string, { until: number; forgetAt: number }>();

/** Counts the request, sets the `X-RateLimit-*` headers, refuses above the limit (429) and while banned (403). */
export const limited =
  (route: LimitedRoute): MiddlewareHandler<App> =>
  async (c, next) => {
    const address = clientAddress(c.req.header("cf-connecting-ip"));
    refuseKnownBan(c, route, address);
    await admit(c, route, address);
    await next();
  };

/**
 * The same while the route already reads: the handler awaits `admitted` before it does more than read a row or two of our
 * own tables, and no answer leaves before the limiter's. A ban that the isolate knows lets nothing begin.
 */
export const limitedBeside =
  (route: LimitedRoute): MiddlewareHandler<App> =>
  async (c, next) => {
    const address = clientAddress(c.req.header("cf-connecting-ip"));
    refuseKnownBan(c, route, address);
    const admitted = admit(c, route, address);
    // Awaited below, whatever the handler does.
    admitted.catch(() => undefined);
    c.set("admitted", admitted);
    await next();
    await admitted;
  };

async function admit(c: Context<App>, route: LimitedRoute, address: string): Promise<void> {
  const { IP_GUARD, BAN_CACHE_SECONDS } = c.get("config");
  const now = Date.now();
  const verdict = await IP_GUARD.get(IP_GUARD.idFromName(address)).hit(route, limitOf(c, route), now);
  if (verdict.kind === "banned") {
    bans.set(address, { until: verdict.until, forgetAt: Math.min(verdict.until, now + BAN_CACHE_SECONDS * 1_000) });
    log("security", "ip_refused", { requestId: c.get("requestId"), address, route });
    return refuseBanned(c, route, verdict.until, now);
  }
  stateLimit(c, verdict.limit, verdict.remaining, verdict.resetAt);
  if (verdict.kind === "allowed") return;
  log("security", "rate_limited", { requestId: c.get("requestId"), address, route });
  const retryAfterSeconds = Math.max(1, verdict.resetAt - Math.floor(now / 1_000));
  throw new AppError("rate_limited", `Too many requests; try again in ${retryAfterSeconds} seconds.`, {
    retryAfterSeconds,
  });
}

const limitOf = (c: Context<App>, route: LimitedRoute): Limit => c.get("config").RATE_LIMITS[route] ?? LIMITS[route];

function stateLimit(c: Context<App>, limit: number, remaining: number, resetAt: number): void {
  c.header("X-RateLimit-Limit", String(limit));
  c.header("X-RateLimit-Remaining", String(remaining));
  c.header("X-RateLimit-Reset", String(resetAt));
}

function refuseKnownBan(c: Context<App>, route: LimitedRoute, address: string): void {
  const known = bans.get(address);
  if (known === undefined) return;
  const now = Date.now();
  if (known.forgetAt > now) refuseBanned(c, route, known.until, now);
  bans.delete(address);
}

function refuseBanned(c: Context<App>, route: LimitedRoute, until: number, now: number): never {
  stateLimit(c, limitOf(c, route).requests, 0, Math.ceil(until / 1_000));
  throw banned(until, now);
}

/**
 * The address that counts: Cloudflare's header alone, never one that a client can set; an IPv6 client counts as its /64,
 * the smallest block that is handed out.
 */
export function clientAddress(header: string | undefined): string {
  if (header === undefined || header === "") return "unknown";
  if (!header.includes(":")) return header;
  const [head = "", tail] = header.toLowerCase().split("::");
  const left = head === "" ? [] : head.split(":");
  const right = tail === undefined || tail === "" ? [] : tail.split(":");
  const zeros =
    tail === undefined ? [] : Array.from({ length: Math.max(0, 8 - left.length - right.length) }, () => "0");
  const groups = [...left, ...zeros, ...right].slice(0, 4).map((group) => Number.parseInt(group, 16).toString(16));
  return `${groups.join(":")}::/64`;
}

const banned = (until: number, now: number): AppError => {
  const retryAfterSeconds = Math.max(1, Math.ceil((until - now) / 1_000));
  return new AppError("ip_banned", "This address is banned for a while: it went over its limits too often.", {
    retryAfterSeconds,
  });
};
