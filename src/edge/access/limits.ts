// The one table of limits, and how an answer states them.
import type { Limit } from "../../../durable-objects/ip-guard.ts";
import { secondsTo } from "./bans.ts";

const MINUTE = 60;
const HOUR = 3_600;
const DAY = 86_400;

export type Rule = Limit & {
  /** Every request is written before it is answered; the others are written within five seconds. */
  kept?: true;
  /** Polled: running over its limit counts once per window towards a ban (hard case 22). */
  polled?: true;
  /** Refused while the guard can't be asked. The others are public reads and served. */
  closed?: true;
  /** Counted by another name than a client's, as a /48 or a token: going over it is nobody's violation. */
  shared?: true;
};

/**
 * Requests per span and client; those of version 1.3.0 of the API come first. `/health` has none. Of the last nine, eight are
 * caps over many clients, and `rotations` is of a token and its owner.
 */
export const LIMITS = {
  tiers: { requests: 100, windowSeconds: MINUTE },
  credentials: { requests: 30, windowSeconds: HOUR, kept: true, polled: true, closed: true },
  vms: { requests: 30, windowSeconds: MINUTE, polled: true },
  status: { requests: 100, windowSeconds: MINUTE, polled: true },
  wallets: { requests: 3, windowSeconds: MINUTE, kept: true, closed: true },
  admin: { requests: 20, windowSeconds: MINUTE, kept: true, closed: true },
  x402: { requests: 60, windowSeconds: MINUTE, polled: true, closed: true },
  documents: { requests: 100, windowSeconds: MINUTE },
  unknown: { requests: 60, windowSeconds: MINUTE },
  wallets_block: { requests: 30, windowSeconds: MINUTE, kept: true, closed: true, shared: true },
  x402_block: { requests: 300, windowSeconds: MINUTE, closed: true, shared: true },
  x402_all: { requests: 6_000, windowSeconds: MINUTE, closed: true, shared: true },
  wallets_all: { requests: 600, windowSeconds: MINUTE, kept: true, closed: true, shared: true },
  lookups_block: { requests: 60, windowSeconds: MINUTE, shared: true },
  lookups_all: { requests: 600, windowSeconds: MINUTE, shared: true },
  looks_block: { requests: 60, windowSeconds: MINUTE, shared: true },
  looks_all: { requests: 600, windowSeconds: MINUTE, shared: true },
  rotations: { requests: 6, windowSeconds: DAY, kept: true, closed: true, shared: true },
} as const satisfies Record<string, Rule>;

export type LimitedRoute = keyof typeof LIMITS;

export const limitOf = (config: { RATE_LIMITS: Readonly<Record<string, Limit>> }, route: LimitedRoute): Limit =>
  config.RATE_LIMITS[route] ?? LIMITS[route];

export const limitSentence = (resetAt: number, now: number): string =>
  `Too many requests; try again in ${secondsTo(resetAt, now)} seconds.`;

/**
 * `X-RateLimit-*` (reset in unix seconds) and the fields of draft-ietf-httpapi-ratelimit-headers (in seconds from now).
 * The window slides: what is stated is when the next request is given back, not all of them.
 */
export function stateLimit(
  set: (name: string, value: string) => void,
  route: LimitedRoute,
  limit: Limit,
  remaining: number,
  resetAt: number,
  now: number,
): void {
  set("X-RateLimit-Limit", String(limit.requests));
  set("X-RateLimit-Remaining", String(remaining));
  set("X-RateLimit-Reset", String(Math.ceil(resetAt / 1_000)));
  set("RateLimit-Policy", `"${route}";q=${limit.requests};w=${limit.windowSeconds}`);
  set("RateLimit", `"${route}";r=${remaining};t=${Math.max(0, Math.ceil((resetAt - now) / 1_000))}`);
}
