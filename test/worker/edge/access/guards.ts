// Clients at the guards' door, as the tests of guards play them.
import { runInDurableObject } from "cloudflare:test";
import { env } from "cloudflare:workers";
import type { Hit, IpGuard } from "../../../../durable-objects/ip-guard.ts";
import { LIMITS, type LimitedRoute, type Rule } from "../../../../src/edge/access/limits.ts";

export const HOUR = 3_600_000;
const guards = (env as unknown as { IP_GUARD: DurableObjectNamespace<IpGuard> }).IP_GUARD;
export const guard = (name: string = crypto.randomUUID()) => guards.get(guards.idFromName(name));
export type Guard = ReturnType<typeof guard>;
export const wait = (ms: number) => new Promise<void>((resolve) => setTimeout(resolve, ms));

export const hit = (fields: Partial<Hit> = {}): Hit => ({
  bucket: "tiers",
  limit: { requests: 3, windowSeconds: 60 },
  kept: false,
  counts: "each",
  evenIfBanned: false,
  now: Date.now(),
  ...fields,
});
export const rule = (route: LimitedRoute, now = Date.now()): Hit => {
  const { requests, windowSeconds, kept, polled }: Rule = LIMITS[route];
  return hit({
    bucket: route,
    limit: { requests, windowSeconds },
    kept: kept === true,
    counts: polled ? "once" : "each",
    now,
  });
};
export const passes = async (stub: Guard, hits: readonly Hit[]) => {
  const verdicts = await Promise.all(hits.map((one) => stub.hit(one)));
  return verdicts.filter(({ allowed }) => allowed).length;
};
export const stored = (stub: Guard) =>
  runInDurableObject(stub as never, (_object: unknown, state: DurableObjectState) => [...state.storage.kv.list()]);
