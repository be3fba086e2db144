// Bans as an isolate knows them: a banned client is refused here, before anything is routed, read or asked. An isolate
// learns of a ban from the client's guard and forgets it after BAN_CACHE_SECONDS, so that a lifted one ends everywhere.
import type { EdgeConfig } from "../config.ts";
import { AppError, STATUS_OF } from "../errors.ts";
import { isWellFormedKey, readKey } from "./admin-key.ts";
import { chargedField } from "./charged.ts";
import { clientName } from "./client-name.ts";
import { type LimitedRoute, limitOf, stateLimit } from "./limits.ts";

type Known = { until: number; forgetAt: number };

/** Of an attacker with many addresses the oldest are forgotten first: they cost a call to their guard then. */
const MAX_KNOWN = 50_000;
const known = new Map<string, Known>();
const TELL_EVERY_MS = 60_000;
const TOLD_BY_NAME = 10;
/** Refusals since they were last told of, by client. */
const refusals = new Map<string, number>();
let toldAt = 0;

export function rememberBan(client: string, until: number, now: number, seconds: number): void {
  if (known.size >= MAX_KNOWN) {
    const [oldest] = known.keys();
    if (oldest !== undefined) known.delete(oldest);
  }
  known.set(client, { until, forgetAt: Math.min(until, now + seconds * 1_000) });
}

/** An operator lifted it: at least this isolate need not wait. */
export const forgetBan = (client: string): boolean => known.delete(client);

export type Refusals = { address: string; count: number } | { clients: number; count: number };

/**
 * What is to be told of refusals: once a minute, the ten clients that were refused most, and the sum of all others. Whoever
 * goes on in spite of a ban, from however many addresses, must not wash the rest of the audit away.
 */
export function takeRefusals(now: number): Refusals[] {
  if (refusals.size === 0 || now - toldAt < TELL_EVERY_MS) return [];
  toldAt = now;
  const sorted = [...refusals].sort(([, one], [, other]) => other - one);
  refusals.clear();
  const others = sorted.slice(TOLD_BY_NAME);
  const count = others.reduce((sum, [, times]) => sum + times, 0);
  return [
    ...sorted.slice(0, TOLD_BY_NAME).map(([address, times]) => ({ address, count: times })),
    ...(others.length === 0 ? [] : [{ clients: others.length, count }]),
  ];
}

/** Words and time of the refusal. */
export const banRefusal = (until: number, now: number): AppError =>
  new AppError("ip_banned", sentenceOf(until), { retryAfterSeconds: secondsTo(until, now) });

const sentenceOf = (until: number): string =>
  `This address is banned until ${new Date(until).toISOString()}: it broke its limits or sent attacks too often.`;
const secondsTo = (until: number, now: number): number => Math.max(1, Math.ceil((until - now) / 1_000));

const ROUTES: ReadonlyMap<string, LimitedRoute> = new Map([
  ["tiers", "tiers"],
  ["credentials", "credentials"],
  ["vms", "vms"],
  ["status", "status"],
  ["agents", "wallets"],
  ["admin", "admin"],
  ["", "documents"],
  ["docs", "documents"],
  ["openapi.json", "documents"],
  ["llms.txt", "documents"],
]);

/**
 * The answer to a client that this isolate knows as banned, or null: it isn't, or it may show that the ban is not meant for
 * it (an operator with a key; the owner of a token with a signature), or it asks for `/health`.
 */
export function refuseKnownBan(
  request: Request,
  config: Pick<EdgeConfig, "RATE_LIMITS">,
  headers: Readonly<Record<string, string>>,
): Response | null {
  if (known.size === 0) return null;
  const client = clientName(request.headers);
  const ban = known.get(client);
  if (ban === undefined) return null;
  const now = Date.now();
  if (ban.forgetAt <= now) {
    known.delete(client);
    return null;
  }
  const { url } = request;
  const path = url.indexOf("/", url.indexOf("//") + 2) + 1;
  const end = url.slice(path).search(/[/?#]|$/);
  const segment = url.slice(path, path + end);
  if (segment === "health") return null;
  const route = ROUTES.get(segment) ?? "unknown";
  if (route === "credentials" && request.headers.has("authorization")) return null;
  if (route === "admin" && isWellFormedKey(readKey(request.headers))) return null;
  // A full table still counts those that are in it.
  if (refusals.size < MAX_KNOWN || refusals.has(client)) refusals.set(client, (refusals.get(client) ?? 0) + 1);
  return answer(
    ban.until,
    now,
    route,
    config,
    headers,
    chargedField(`/${url.slice(path).split(/[?#]/, 1)[0]}`, request.headers, STATUS_OF.ip_banned, null),
  );
}

function answer(
  until: number,
  now: number,
  route: LimitedRoute,
  config: Pick<EdgeConfig, "RATE_LIMITS">,
  common: Readonly<Record<string, string>>,
  more: Readonly<Record<string, unknown>>,
): Response {
  const requestId = crypto.randomUUID();
  const headers: Record<string, string> = {
    ...common,
    "Content-Type": "application/json",
    "X-Request-Id": requestId,
    "Retry-After": String(secondsTo(until, now)),
  };
  const set = (name: string, value: string) => {
    headers[name] = value;
  };
  stateLimit(set, route, limitOf(config, route), 0, until, now);
  // No error is thrown for it: its stack would cost more than the rest.
  const body = JSON.stringify({ error: sentenceOf(until), code: "ip_banned", requestId, ...more });
  return new Response(body, { status: STATUS_OF.ip_banned, headers });
}
