// Middleware that asks the client's guard before a route is served.
import type { Context, Hono, MiddlewareHandler } from "hono";
import type { Hit, Verdict } from "../../../durable-objects/ip-guard.ts";
import { AppError } from "../../errors.ts";
import { errorFields, log } from "../../log.ts";
import { blockOf } from "../../model/client-name.ts";
import type { EdgeConfig } from "../config.ts";
import type { App } from "../http.ts";
import { banRefusal, secondsTo } from "./bans.ts";
import { guardOf, guardUnavailable, inGuardTime, learnBan } from "./guard.ts";
import { LIMITS, type LimitedRoute, limitOf, limitSentence, type Rule, stateLimit } from "./limits.ts";
import { knownOverrun, rememberOverrun } from "./overruns.ts";
import { screenUrl } from "./screening.ts";

const HOUR_SECONDS = 3_600;

/** The route that each limiter counts; null: the path has no limit. */
const routesOf = new WeakMap<MiddlewareHandler<App>, LimitedRoute | null>();
const limiter = (route: LimitedRoute | null, handler: MiddlewareHandler<App>): MiddlewareHandler<App> => {
  routesOf.set(handler, route);
  return handler;
};

/** What a request counts as: the first limiter that it would meet. Null where it has no limit. */
export function limitedRouteOf(router: Hono<App>["router"], method: string, path: string): LimitedRoute | null {
  // Hono serves a HEAD as a GET.
  const [handlers] = router.match(method === "HEAD" ? "GET" : method, path);
  for (const [[handler]] of handlers) {
    const route = routesOf.get(handler as MiddlewareHandler<App>);
    if (route !== undefined) return route;
  }
  return null;
}

/** In the place of a limiter, on a path that has none. */
export const unlimited = limiter(null, (_c, next) => next());

/** Counts the request, states the limit in the answer, refuses above it (429) and while banned (403). */
export const limited = (route: LimitedRoute): MiddlewareHandler<App> =>
  limiter(route, async (c, next) => {
    await admit(c, route);
    await screenUrl(c);
    await next();
  });

/**
 * The same while the route already reads: the handler awaits `admitted` before it does more than read a row or two of our
 * own tables, and no answer leaves before the limiter's.
 */
export const limitedBeside = (route: LimitedRoute): MiddlewareHandler<App> =>
  limiter(route, async (c, next) => {
    const admitted = admit(c, route).then(() => screenUrl(c));
    // Awaited below, whatever the handler does.
    admitted.catch(() => undefined);
    c.set("admitted", admitted);
    await next();
    await admitted;
  });

/** The same for a caller who can show that the ban is not meant for it: until when it is banned is in `bannedUntil`. */
export const limitedEvenIfBanned = (route: LimitedRoute): MiddlewareHandler<App> =>
  limiter(route, async (c, next) => {
    c.set("bannedUntil", await admit(c, route, true));
    await screenUrl(c);
    await next();
  });

/**
 * `x402`: payments that would be claimed. `lookups`: token ids that are not known here, and are asked of the chain: one /48
 * could use up what the nodes give us, and the scan would be without them. `looks`: payments that are about to be refused, and
 * signatures that only a contract can confirm, or that are not of a token's owner.
 */
type Capped = "wallets" | "x402" | "lookups" | "looks";

/**
 * Caps over a /48 and over everybody, for what writes, and for what makes us ask the chain about a stranger's words: an IPv6
 * client has as many addresses as it likes. What does neither uses up nobody else's allowance (hard case 44).
 */
export async function requireRoom(
  { config, client }: Pick<App["Variables"], "config" | "client">,
  what: Capped,
): Promise<void> {
  if (config.UNLIMITED_CLIENTS.has(client)) return;
  // One after the other: what its own block refuses must not use up what everybody shares.
  for (const [route, name] of capsOf(client, what)) {
    const until = await count(config, route, name);
    if (until !== null) throw tooMany(until, Date.now());
  }
}

/** Where this isolate knows that there is no room, without counting: the refusal; null elsewhere. */
export function knownFull(
  { config, client }: Pick<App["Variables"], "config" | "client">,
  what: Capped,
): AppError | null {
  if (config.UNLIMITED_CLIENTS.has(client)) return null;
  const now = Date.now();
  const until = Math.max(...capsOf(client, what).map(([route, name]) => knownOverrun(config, name, route, now) ?? 0));
  return until === 0 ? null : tooMany(until, now);
}

function capsOf(client: string, what: Capped) {
  const block = blockOf(client);
  return [...(block === null ? [] : [[`${what}_block`, block] as const]), [`${what}_all`, "everybody"] as const];
}

/** The same, in front of a route whose every request writes. */
export const capped =
  (what: Capped): MiddlewareHandler<App> =>
  async (c, next) => {
    await requireRoom(c.var, what);
    await next();
  };

/**
 * Orders a new key within the limit of a token's owner: each has his own, so that a seller uses up none of his buyer's. What
 * comes to nothing (null, or an error) is not counted.
 */
export async function countRotation<Ordered>(
  c: Context<App>,
  tokenId: string,
  owner: string,
  order: () => Promise<Ordered | null>,
): Promise<Ordered | null> {
  const name = `token:${tokenId}:${owner}`;
  const until = await count(c.var.config, "rotations", name);
  if (until !== null) {
    const now = Date.now();
    const retryAfterSeconds = secondsTo(until, now);
    stateLimit(c.header, "rotations", limitOf(c.get("config"), "rotations"), 0, until, now);
    const sentence = `Token ${tokenId} had too many new keys lately; try again in ${retryAfterSeconds} seconds.`;
    throw new AppError("rate_limited", sentence, { retryAfterSeconds });
  }
  let ordered: Ordered | null = null;
  try {
    ordered = await order();
    return ordered;
  } finally {
    if (ordered === null) await giveBack(c, "rotations", name);
  }
}

/** What was counted last came to nothing. */
async function giveBack(c: Context<App>, route: LimitedRoute, name: string): Promise<void> {
  try {
    await inGuardTime(guardOf(c.get("config"), name).giveBack(route));
  } catch (error) {
    log("error", "guard_unavailable", { route, ...errorFields(error) });
  }
}

/** Counts by another name than the client's. Until when nothing more passes, or null. */
async function count(config: EdgeConfig, route: LimitedRoute, name: string): Promise<number | null> {
  const now = Date.now();
  const known = knownOverrun(config, name, route, now);
  if (known !== null) return known;
  const verdict = await ask(config, route, name, false);
  if (verdict === null || verdict.allowed) return null;
  rememberOverrun(config, name, route, verdict.resetAt, now);
  log("warn", "cap_reached", { route, client: name });
  return verdict.resetAt;
}

async function admit(c: Context<App>, route: LimitedRoute, evenIfBanned = false): Promise<number | null> {
  const config = c.get("config");
  const client = c.get("client");
  if (config.UNLIMITED_CLIENTS.has(client)) return null;
  const verdict = await ask(config, route, client, evenIfBanned);
  if (verdict === null) return null;
  const now = Date.now();
  const { bannedUntil } = verdict;
  const limit = limitOf(config, route);
  if (bannedUntil !== null) {
    learnBan(config, client, route, bannedUntil, verdict.bansNow);
    if (!evenIfBanned) {
      stateLimit(c.header, route, limit, 0, bannedUntil, now);
      throw banRefusal(bannedUntil, now);
    }
  }
  stateLimit(c.header, route, limit, verdict.remaining, verdict.resetAt, now);
  c.set("budget", { remaining: verdict.remaining, windowSeconds: limit.windowSeconds });
  if (verdict.allowed) return bannedUntil;
  rememberOverrun(config, client, route, verdict.resetAt, now);
  // One line for each violation: whoever floods us must not flood the audit.
  if (verdict.violates) log("security", "rate_limited", { address: client, route });
  throw tooMany(verdict.resetAt, now);
}

/** Null where the guard can't be asked and the route is served all the same. */
async function ask(
  config: EdgeConfig,
  route: LimitedRoute,
  name: string,
  evenIfBanned: boolean,
): Promise<Verdict | null> {
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
    return await inGuardTime(guardOf(config, name).hit(hit));
  } catch (error) {
    log("error", "guard_unavailable", { route, served: closed !== true, ...errorFields(error) });
    if (closed !== true) return null;
    throw guardUnavailable("Requests can't be counted right now; try again in a few seconds.", error);
  }
}

const tooMany = (resetAt: number, now: number): AppError =>
  new AppError("rate_limited", limitSentence(resetAt, now), { retryAfterSeconds: secondsTo(resetAt, now) });
