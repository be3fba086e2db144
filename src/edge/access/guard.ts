// The guards of clients, as the edge's routes reach them.
import type { Context } from "hono";
import { AppError } from "../../errors.ts";
import { inTime } from "../../in-time.ts";
import { errorFields, log } from "../../log.ts";
import type { EdgeConfig } from "../config.ts";
import type { App } from "../http.ts";
import { rememberBan } from "./bans.ts";

/** How long a request waits for its guard. */
export const GUARD_TIMEOUT_MS = 2_000;
const GUARD_RETRY_SECONDS = 5;

/** A guard by the name of whom it counts. */
export const guardOf = ({ IP_GUARD }: Pick<EdgeConfig, "IP_GUARD">, name: string) =>
  IP_GUARD.get(IP_GUARD.idFromName(name));

/** What a client reads where a guard can't be asked and nothing is served without it. */
export const guardUnavailable = (sentence: string, cause: unknown): AppError =>
  new AppError("guard_unavailable", sentence, { cause, retryAfterSeconds: GUARD_RETRY_SECONDS });

/** An operator's order to a guard. */
export async function orderGuard<T>(work: Promise<T>): Promise<T> {
  try {
    return await inGuardTime(work);
  } catch (error) {
    log("error", "guard_unavailable", { route: "admin", served: false, ...errorFields(error) });
    throw guardUnavailable("A guard did not answer in time: look at the list of bans, and try again.", error);
  }
}

/** Tells the client's guard of something that counts towards a ban beside the limits. One request counts once. */
export async function violate(c: Context<App>, what: string): Promise<void> {
  const { config, client, violated } = c.var;
  if (violated || config.UNLIMITED_CLIENTS.has(client)) return;
  c.set("violated", true);
  await countViolations(config, client, what, 1);
}

/** Tells the client's guard of refusals that it did not see. */
export async function tellGuard(config: EdgeConfig, client: string, route: string, violations: number): Promise<void> {
  log("security", "rate_limited", { address: client, route });
  await countViolations(config, client, route, violations);
}

async function countViolations(config: EdgeConfig, client: string, what: string, violations: number): Promise<void> {
  try {
    const { bannedUntil, bansNow } = await inGuardTime(guardOf(config, client).violate(what, Date.now(), violations));
    if (bannedUntil !== null) learnBan(config, client, what, bannedUntil, bansNow);
  } catch (error) {
    log("error", "guard_unavailable", { route: what, ...errorFields(error) });
  }
}

/** The isolate knows the ban from here on; the audit, once. */
export function learnBan(config: EdgeConfig, client: string, route: string, until: number, isNew: boolean): void {
  rememberBan(client, until, Date.now(), config.BAN_CACHE_SECONDS);
  if (isNew) log("security", "ip_banned", { address: client, route, until: new Date(until).toISOString() });
}

/** A guard that hangs is one that can't be asked. */
export const inGuardTime = <T>(work: Promise<T>): Promise<T> =>
  inTime(work, GUARD_TIMEOUT_MS, () => new GuardTimeout());

class GuardTimeout extends Error {
  override readonly name = "GuardTimeout";
}
