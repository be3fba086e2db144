// What a guard writes and when: what survives an eviction, and an end without a trace.
import { evictDurableObject, runDurableObjectAlarm } from "cloudflare:test";
import { beforeEach, expect, test, vi } from "vitest";
import { deleteOldBans } from "../../../../src/db/bans.ts";
import { LIMITS, type LimitedRoute, type Rule } from "../../../../src/edge/access/limits.ts";
import { type Deployment, deploy, PATIENCE_MS } from "../../deployment.ts";
import { type Guard, guard, HOUR, hit, passes, rule, stored } from "./guards.ts";

type Minutes = Record<string, { times: number[] }>;
const keysOf = async (stub: Guard) => (await stored(stub)).map(([key]) => key);
/** Once a timer has written so many requests of a bucket, five seconds after the first that it has not written yet. */
const flushed = (stub: Guard, bucket: LimitedRoute, requests: number) =>
  vi.waitFor(
    async () => {
      const minutes = (await stored(stub)).find(([key]) => key === "minutes")?.[1] as Minutes | undefined;
      expect(minutes?.[bucket]?.times).toHaveLength(requests);
    },
    { timeout: PATIENCE_MS, interval: 200 },
  );

let world: Deployment;
beforeEach(async () => {
  world = await deploy();
});

test("every limit is the same at its edge after an eviction: kept windows at once, the others once they are flushed", async () => {
  const now = Date.now();
  const routes = Object.keys(LIMITS) as LimitedRoute[];
  const used = await Promise.all(
    routes.map(async (route) => {
      const stub = guard();
      const before = Array.from({ length: LIMITS[route].requests - 1 }, () => rule(route, now));
      expect(await passes(stub, before), route).toBe(before.length);
      return { route, stub };
    }),
  );
  const isKept = (route: LimitedRoute) => (LIMITS[route] as Rule).kept === true;
  const checkEdge = async ({ route, stub }: { route: LimitedRoute; stub: Guard }) => {
    await evictDurableObject(stub as never);
    const after = Array.from({ length: 4 }, () => rule(route, now));
    expect(await passes(stub, after), route).toBe(1);
  };
  for (const one of used.filter(({ route }) => isKept(route))) await checkEdge(one);
  for (const one of used.filter(({ route }) => !isKept(route))) {
    await flushed(one.stub, one.route, LIMITS[one.route].requests - 1);
    await checkEdge(one);
  }
});

test("minute windows of public reads are written by a timer: not on the way of an answer, once for five seconds", async () => {
  const stub = guard();
  const now = Date.now();
  await stub.hit(rule("status", now));
  expect(await stored(stub)).toEqual([]);
  expect(
    await passes(
      stub,
      Array.from({ length: 59 }, () => rule("status", now)),
    ),
  ).toBe(59);
  expect(
    await passes(
      stub,
      Array.from({ length: 20 }, () => rule("vms", now)),
    ),
  ).toBe(20);
  await flushed(stub, "status", 60);
  await flushed(stub, "vms", 20);
  expect(await keysOf(stub)).toEqual(["minutes"]);
  await evictDurableObject(stub as never);
  expect(
    await passes(
      stub,
      Array.from({ length: 50 }, () => rule("status", now)),
    ),
  ).toBe(40);
  expect(
    await passes(
      stub,
      Array.from({ length: 20 }, () => rule("vms", now)),
    ),
  ).toBe(10);
});

test("a crash forgives what the timer had not written yet, and nothing else", async () => {
  const stub = guard();
  await passes(
    stub,
    Array.from({ length: 3 }, () => hit()),
  );
  await stub.violate("injection", Date.now());
  await evictDurableObject(stub as never);
  expect((await stub.hit(hit())).allowed).toBe(true);
  let banned = false;
  for (let count = 0; count < 9; count++) ({ bansNow: banned } = await stub.violate("injection", Date.now()));
  expect(banned).toBe(true);
});

test("a hundred clients, one after another, leave nothing behind once their alarms have rung", async () => {
  const long = Date.now() - 2 * HOUR;
  const routes = ["wallets", "credentials", "status", "admin"] as const;
  const stubs: Guard[] = [];
  for (let count = 0; count < 100; count++) {
    const stub = guard(`client-${count}`);
    stubs.push(stub);
    // Each as it would be two hours later: the alarm goes by the clock.
    await stub.hit(rule(routes[count % routes.length] ?? "tiers", long));
    if (count % 10 === 0) await stub.violate("injection", long);
    if (count % 25 === 0) await stub.ban({ since: long, until: long + HOUR, reason: "test", by: "key_1" });
  }
  // What the timers write has to be there before it can be gone.
  await flushed(guard("client-98"), "status", 1);
  expect(await keysOf(guard("client-2"))).toEqual(["minutes"]);
  for (const [count, stub] of stubs.entries()) {
    expect(await runDurableObjectAlarm(stub as never), `client-${count}`).toBe(true);
    expect(await stored(stub), `client-${count}`).toEqual([]);
    expect(await runDurableObjectAlarm(stub as never)).toBe(false);
  }
  await deleteOldBans(world.db, Date.now());
  expect(await world.rows("SELECT * FROM bans")).toEqual([]);
});
