// Middleware that asks the client's guard before a route is served.
import type { Context, MiddlewareHandler } from "hono";
import type { Hit, Verdict } from "../../durable-objects/ip-guard.ts";
import type { App } from "../app.ts";
import { AppError } from "../errors.ts";
import { errorFields, log } from "../log.ts";
import { banRefusal } from "./bans.ts";
import { blockOf } from "./client-name.ts";
import { guardOf, guardUnavailable, inTime, learnBan } from "./guard.ts";
import { LIMITS, type LimitedRoute, limitOf, type Rule, stateLimit } from "./limits.ts";
import { screenUrl } from "./screening.ts";

const HOUR_SECONDS = 3_600;

/** Counts the request, states the limit in the answer, refuses above it (429) and while banned (403). */
export const limited =
  (route: LimitedRoute): MiddlewareHandler<App> =>
  async (c, next) => {
    await admit(c, route);
    await screenUrl(c);
    await next();
  };

/**
 * The same while the route already reads: the handler awaits `admitted` before it does more than read a row or two of our
 * own tables, and no answer leaves before the limiter's.
 */
export const limitedBeside =
  (route: LimitedRoute): MiddlewareHandler<App> =>
  async (c, next) => {
    const admitted = admit(c, route).then(() => screenUrl(c));
    // Awaited below, whatever the handler does.
    admitted.catch(() => undefined);
    c.set("admitted", admitted);
    await next();
    await admitted;
  };

/** The same for a caller who can show that the ban is not meant for it: until when it is banned is in `bannedUntil`. */
export const limitedEvenIfBanned =
  (route: LimitedRoute): MiddlewareHandler<App> =>
  async (c, next) => {
    c.set("bannedUntil", await admit(c, route, true));
    await screenUrl(c);
    await next();
  };

/** Caps over a /48 and over everybody, for routes that write: an IPv6 client has as many addresses as it likes. */
export const capped =
  (what: "wallets" | "x402"): MiddlewareHandler<App> =>
  async (c, next) => {
    if (c.get("config").UNLIMITED_CLIENTS.has(c.get("client"))) return next();
    const block = blockOf(c.get("client"));
    // One after the other: what its own block refuses must not use up what everybody shares.
    if (block !== null) await count(c, `${what}_block`, block);
    await count(c, `${what}_all`, "everybody");
    await next();
  };

async function count(c: Context<App>, route: LimitedRoute, name: string): Promise<void> {
  const verdict = await ask(c, route, name, false);
  if (verdict === null || verdict.allowed) return;
  log("warn", "cap_reached", { route, client: name });
  throw tooMany(verdict.resetAt, Date.now());
}

async function admit(c: Context<App>, route: LimitedRoute, evenIfBanned = false): Promise<number | null> {
  const config = c.get("config");
  const client = c.get("client");
  if (config.UNLIMITED_CLIENTS.has(client)) return null;
  const verdict = await ask(c, route, client, evenIfBanned);
  if (verdict === null) return null;
  const now = Date.now();
  const { bannedUntil } = verdict;
  const limit = limitOf(config, route);
  if (bannedUntil !== null) {
    learnBan(c, route, bannedUntil, verdict.bansNow);
    if (!evenIfBanned) {
      stateLimit(c.header, route, limit, 0, bannedUntil, now);
      throw banRefusal(bannedUntil, now);
    }
  }
  stateLimit(c.header, route, limit, verdict.remaining, verdict.resetAt, now);
  c.set("budget", { remaining: verdict.remaining, windowSeconds: limit.windowSeconds });
  if (verdict.allowed) return bannedUntil;
  // One line for each violation: whoever floods us must not flood the audit.
  if (verdict.violates) log("security", "rate_limited", { address: client, route });
  throw tooMany(verdict.resetAt, now);
}

/** Null where the guard can't be asked and the route is served all the same. */
async function ask(c: Context<App>, route: LimitedRoute, name: string, evenIfBanned: boolean): Promise<Verdict | null> {
  const config = c.get("config");
  const { kept, polled, closed, shared }: Rule = LIMITS[route];
  const limit = limitOf(config, route);
  const hit: Hit = {
    bucket: route,
    limit,
    kept: kept === true || limit.windowSeconds >= HOUR_SECONDS,
    counts: shared ? "never" : polled ? "once" : "each",
    evenIfBanned,
    now: Date.now(),
  };
  try {
    return await inTime(guardOf(config, name).hit(hit));
  } catch (error) {
    log("error", "guard_unavailable", { route, served: closed !== true, ...errorFields(error) });
    if (closed !== true) return null;
    throw guardUnavailable("Requests can't be counted right now; try again in a few seconds.", error);
  }
}

function tooMany(resetAt: number, now: number): AppError {
  const retryAfterSeconds = Math.max(1, Math.ceil((resetAt - now) / 1_000));
  return new AppError("rate_limited", `Too many requests; try again in ${retryAfterSeconds} seconds.`, {
    retryAfterSeconds,
  });
}
