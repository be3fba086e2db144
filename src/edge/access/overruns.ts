// Clients over a limit, as an isolate knows them. A guard's refusal holds until the time that it named: until then no request
// passes, so nobody is asked again. What the guard does not see of a client it is told in batches.
import type { EdgeConfig } from "../config.ts";
import { makeRoom } from "./bounded.ts";
import { LIMITS, type LimitedRoute, type Rule } from "./limits.ts";

type Overrun = {
  /** Unix milliseconds at which the guard gives the next request back. */
  until: number;
  /** Refusals that the guard was not told of. */
  untold: number;
  /** When the first of them was: unix milliseconds. */
  since: number;
};
type Overruns = Map<string, Map<LimitedRoute, Overrun>>;

/** Of an attacker with many addresses those that were refused longest ago are forgotten first. */
const MAX_CLIENTS = 50_000;
/** A guard forgets violations after as long. */
const COUNT_MS = 3_600_000;
/** Of the polled routes, whose refusals are one violation per window, each further hundred is another (hard cases 22, 44). */
const POLLED_BATCH = 100;
/** On the others each refusal is one. The guard has counted the first of ten by itself. */
const BATCH = 9;

// By environment: an isolate has one, a test many.
const overruns = new WeakMap<EdgeConfig, Overruns>();

/** Whether any client of this isolate, or this one, is known to be over a limit, or was. */
export function knowsOverruns(config: EdgeConfig, name?: string): boolean {
  const known = overruns.get(config);
  return known !== undefined && (name === undefined || known.has(name));
}

/** Notes a guard's refusal. */
export function rememberOverrun(
  config: EdgeConfig,
  name: string,
  route: LimitedRoute,
  until: number,
  now: number,
): void {
  const known: Overruns = overruns.get(config) ?? new Map();
  overruns.set(config, known);
  const routes = known.get(name) ?? new Map<LimitedRoute, Overrun>();
  const before = routes.get(route);
  const { untold, since } = before !== undefined && now - before.since < COUNT_MS ? before : { untold: 0, since: now };
  const { polled }: Rule = LIMITS[route];
  routes.set(route, { until, untold: untold + (polled ? 1 : 0), since });
  // Those of longest ago are in front: what is over, and nothing is to be told of, goes.
  for (const [other, theirs] of known) {
    if (![...theirs.values()].every((one) => one.until <= now && now - one.since >= COUNT_MS)) break;
    known.delete(other);
  }
  // Behind all others.
  known.delete(name);
  makeRoom(known, MAX_CLIENTS);
  known.set(name, routes);
}

/** Until when this isolate refuses these requests by itself, or null. */
export function knownOverrun(config: EdgeConfig, name: string, route: LimitedRoute, now: number): number | null {
  const until = overruns.get(config)?.get(name)?.get(route)?.until ?? 0;
  return until > now ? until : null;
}

/** Counts a refusal that the guard did not see. Says how many violations the guard is to be told of now. */
export function countOverrun(config: EdgeConfig, name: string, route: LimitedRoute): number {
  const overrun = overruns.get(config)?.get(name)?.get(route);
  const { polled }: Rule = LIMITS[route];
  if (overrun === undefined) return 0;
  overrun.untold += 1;
  const batch = polled ? POLLED_BATCH : BATCH;
  if (overrun.untold < batch) return 0;
  overrun.untold = 0;
  return polled ? 1 : BATCH;
}
