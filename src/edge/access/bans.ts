// Bans as an isolate knows them. It learns of a ban from the client's guard and forgets it after BAN_CACHE_SECONDS, so that a
// lifted one ends everywhere.
import { AppError } from "../../errors.ts";
import { boundBy } from "../../model/client-name.ts";
import { makeRoom } from "./bounded.ts";

type Known = { until: number; forgetAt: number };

/** Of an attacker with many addresses the oldest are forgotten first: they cost a call to their guard then. */
const MAX_KNOWN = 50_000;
const known = new Map<string, Known>();

/** `now`, `until`: unix milliseconds. */
export function rememberBan(client: string, until: number, now: number, seconds: number): void {
  for (const name of boundBy(client)) {
    makeRoom(known, MAX_KNOWN);
    known.set(name, { until, forgetAt: Math.min(until, now + seconds * 1_000) });
  }
}

/** An operator lifted it: at least this isolate need not wait. */
export const forgetBan = (client: string): boolean => known.delete(client);

/** Until when this isolate knows the client to be banned, or null. */
export function knownBan(client: string, now: number): number | null {
  const ban = known.get(client);
  if (ban === undefined) return null;
  if (ban.forgetAt > now) return ban.until;
  known.delete(client);
  return null;
}

export const knowsBans = (): boolean => known.size > 0;

/** Words and time of the refusal. */
export const banRefusal = (until: number, now: number): AppError =>
  new AppError("ip_banned", banSentence(until), { retryAfterSeconds: secondsTo(until, now) });

export const banSentence = (until: number): string =>
  `This address is banned until ${new Date(until).toISOString()}: it broke its limits or sent attacks too often.`;

export const secondsTo = (until: number, now: number): number => Math.max(1, Math.ceil((until - now) / 1_000));
