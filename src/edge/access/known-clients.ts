// What an isolate refuses by itself, before anything is routed to a handler, read or asked: clients that it knows as banned,
// or as over the limit of what they ask for. They must cost next to nothing, in the log too.

import { isWellFormedKey, readKey } from "../../credentials/admin-key.ts";
import { STATUS_OF } from "../../errors.ts";
import { log } from "../../log.ts";
import { clientName } from "../../model/client-name.ts";
import { Tally } from "../../tally.ts";
import type { EdgeConfig } from "../config.ts";
import type { Router } from "../http.ts";
import { chargedField } from "../payments/charged.ts";
import { limitedRouteOf } from "./admission.ts";
import { banSentence, knownBan, knowsBans, secondsTo } from "./bans.ts";
import { makeRoom } from "./bounded.ts";
import { tellGuard } from "./guard.ts";
import { type LimitedRoute, limitOf, limitSentence, stateLimit } from "./limits.ts";
import { countOverrun, knownOverrun, knowsOverruns } from "./overruns.ts";

const banned = new Tally<string>();
const limited = new Tally<string>();

type Front = {
  app: Pick<Router, "router" | "getPath">;
  config: EdgeConfig;
  /** Of every answer. */
  headers: Readonly<Record<string, string>>;
  /** What refusals have had beside their id, by what they say. */
  refusals: Map<string, Headers>;
};

/** Those of each second up to a window's end, of many routes. */
const MAX_REFUSALS = 1_000;

/**
 * The answer to a client that this isolate knows as banned or over its limit, or null: it isn't, or it may show that the ban
 * is not meant for it (an operator with a key; the owner of a token with a signature), or what it asks for has no limit.
 */
export function refuseKnown(
  front: Front,
  request: Request,
  waitUntil: (work: Promise<unknown>) => void,
): Response | null {
  const { app, config } = front;
  if (!knowsBans() && !knowsOverruns(config)) return null;
  const client = clientName(request.headers);
  const now = Date.now();
  const bannedUntil = knownBan(client, now);
  if (bannedUntil === null && !knowsOverruns(config, client)) return null;
  const path = app.getPath(request);
  const route = limitedRouteOf(app.router, request.method, path);
  if (route === null) return null;
  const answer = (code: "ip_banned" | "rate_limited", sentence: string, until: number): Response => {
    const requestId = crypto.randomUUID();
    const status = STATUS_OF[code];
    const charged = chargedField(path, request.headers, null);
    // No error is thrown for it: its stack would cost more than the rest.
    const body = JSON.stringify({ error: sentence, code, requestId, ...charged });
    const refusal = new Response(body, { status, headers: headersOf(front, route, until, now) });
    refusal.headers.set("X-Request-Id", requestId);
    return refusal;
  };
  if (bannedUntil !== null && !mayPassBan(request.headers, route)) {
    banned.add(client);
    return answer("ip_banned", banSentence(bannedUntil), bannedUntil);
  }
  const until = knownOverrun(config, client, route, now);
  if (until === null) return null;
  limited.add(client);
  const violations = countOverrun(config, client, route);
  if (violations > 0) waitUntil(tellGuard(config, client, route, violations));
  return answer("rate_limited", limitSentence(until, now), until);
}

/** Kept, since to make them takes longer than all else that a refusal does. */
function headersOf(
  { config, headers, refusals }: Pick<Front, "config" | "headers" | "refusals">,
  route: LimitedRoute,
  until: number,
  now: number,
): Headers {
  const seconds = secondsTo(until, now);
  const key = `${route} ${Math.ceil(until / 1_000)} ${seconds}`;
  const known = refusals.get(key);
  if (known !== undefined) return known;
  const made = new Headers({ ...headers, "Content-Type": "application/json", "Retry-After": String(seconds) });
  stateLimit((name, value) => made.set(name, value), route, limitOf(config, route), 0, until, now);
  makeRoom(refusals, MAX_REFUSALS);
  refusals.set(key, made);
  return made;
}

const mayPassBan = (headers: Headers, route: LimitedRoute): boolean =>
  (route === "credentials" && headers.has("authorization")) || (route === "admin" && isWellFormedKey(readKey(headers)));

/**
 * Tells of the refusals, once a minute. Whoever goes on in spite of a ban or a limit, from however many addresses, must not
 * wash the rest of the audit away.
 */
export function logRefusals(now: number): void {
  const told = [
    ["banned_requests", banned],
    ["limited_requests", limited],
  ] as const;
  for (const [event, tally] of told) {
    for (const one of tally.take(now)) {
      const fields = "name" in one ? { address: one.name } : { clients: one.names };
      log("security", event, { ...fields, count: one.count });
    }
  }
}
