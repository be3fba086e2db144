// The guard by itself: exact windows, what survives an eviction, bans, and an end without a trace.
import { evictDurableObject, runDurableObjectAlarm, runInDurableObject } from "cloudflare:test";
import { env } from "cloudflare:workers";
import { beforeEach, expect, test, vi } from "vitest";
import type { Hit, IpGuard } from "../../../durable-objects/ip-guard.ts";
import { LIMITS, type LimitedRoute, type Rule } from "../../../src/access/limits.ts";
import { deleteBan, deleteOldBans, saveBan } from "../../../src/db/bans.ts";
import { type Deployment, deploy } from "../deployment.ts";

const HOUR = 3_600_000;
const FLUSHED = 5_200;
const guards = (env as unknown as { IP_GUARD: DurableObjectNamespace<IpGuard> }).IP_GUARD;
const guard = (name: string = crypto.randomUUID()) => guards.get(guards.idFromName(name));
type Guard = ReturnType<typeof guard>;
const wait = (ms: number) => new Promise<void>((resolve) => setTimeout(resolve, ms));

let world: Deployment;
beforeEach(async () => {
  world = await deploy();
});

const hit = (fields: Partial<Hit> = {}): Hit => ({
  bucket: "tiers",
  limit: { requests: 3, windowSeconds: 60 },
  kept: false,
  counts: "each",
  evenIfBanned: false,
  now: Date.now(),
  ...fields,
});
const rule = (route: LimitedRoute, now = Date.now()): Hit => {
  const { requests, windowSeconds, kept, polled }: Rule = LIMITS[route];
  return hit({
    bucket: route,
    limit: { requests, windowSeconds },
    kept: kept === true,
    counts: polled ? "once" : "each",
    now,
  });
};
const passes = async (stub: Guard, hits: readonly Hit[]) => {
  const verdicts = await Promise.all(hits.map((one) => stub.hit(one)));
  return verdicts.filter(({ allowed }) => allowed).length;
};
const stored = (stub: Guard) =>
  runInDurableObject(stub as never, (_object: unknown, state: DurableObjectState) => [...state.storage.kv.list()]);

test.each(Object.keys(LIMITS) as LimitedRoute[])("of N + 5 requests at once exactly N pass: %s", async (route) => {
  const { requests } = LIMITS[route];
  const now = Date.now();
  expect(
    await passes(
      guard(),
      Array.from({ length: requests + 5 }, () => rule(route, now)),
    ),
  ).toBe(requests);
});

test.each(Object.keys(LIMITS) as LimitedRoute[])("the window slides, to the millisecond: %s", async (route) => {
  const stub = guard();
  const { requests, windowSeconds } = LIMITS[route];
  const began = Date.now();
  // One at the beginning, the rest in its middle.
  await stub.hit(rule(route, began));
  await passes(
    stub,
    Array.from({ length: requests - 1 }, () => rule(route, began + windowSeconds * 500)),
  );
  const end = began + windowSeconds * 1_000;
  expect(await stub.hit({ ...rule(route, end - 1), counts: "never" })).toMatchObject({ allowed: false, resetAt: end });
  // Only the first one is given back.
  expect(await passes(stub, [rule(route, end), { ...rule(route, end), counts: "never" }])).toBe(1);
});

test("a refused request takes nothing from the window: who waits as told gets in", async () => {
  const stub = guard();
  const now = Date.now();
  await passes(
    stub,
    Array.from({ length: 3 }, () => hit({ now })),
  );
  for (let second = 10; second < 60; second += 10) {
    expect((await stub.hit(hit({ now: now + second * 1_000, counts: "never" }))).allowed).toBe(false);
  }
  expect((await stub.hit(hit({ now: now + 60_000 }))).allowed).toBe(true);
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
  await wait(FLUSHED);
  for (const one of used.filter(({ route }) => !isKept(route))) await checkEdge(one);
});

test("minute windows of public reads are written by a timer: not on the way of an answer, once for five seconds", async () => {
  const stub = guard();
  const now = Date.now();
  expect(
    await passes(
      stub,
      Array.from({ length: 60 }, () => rule("status", now)),
    ),
  ).toBe(60);
  expect(
    await passes(
      stub,
      Array.from({ length: 20 }, () => rule("vms", now)),
    ),
  ).toBe(20);
  expect(await stored(stub)).toEqual([]);
  await wait(FLUSHED);
  expect((await stored(stub)).map(([key]) => key)).toEqual(["minutes"]);
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

test("ten violations within an hour ban for an hour, over evictions", async () => {
  const stub = guard();
  const now = Date.now();
  const kept = (at: number) => hit({ kept: true, now: at });
  await passes(
    stub,
    Array.from({ length: 3 }, () => kept(now)),
  );
  for (let count = 1; count <= 9; count++) {
    expect(await stub.hit(kept(now + count))).toMatchObject({ allowed: false, bannedUntil: null });
    if (count % 3 === 0) await evictDurableObject(stub as never);
  }
  expect(await stub.hit(kept(now + 10))).toMatchObject({ bansNow: true, bannedUntil: now + 10 + HOUR });
  await evictDurableObject(stub as never);
  expect(await stub.hit(kept(now + HOUR))).toMatchObject({ bannedUntil: now + 10 + HOUR });
  expect(await stub.hit(kept(now + 11 + HOUR))).toMatchObject({ allowed: true, bannedUntil: null });
});

test("violations of different hours do not add up", async () => {
  const stub = guard();
  const now = Date.now();
  for (let count = 0; count < 9; count++) await stub.violate("injection", now + count);
  expect((await stub.violate("injection", now + HOUR + 5)).bansNow).toBe(false);
});

test("a poller that overruns its window collects one violation for it, not a ban (hard case 22)", async () => {
  const stub = guard();
  const began = Date.now();
  const seen = new Set<number | null>();
  for (let count = 0; count < 400; count++) {
    seen.add((await stub.hit(rule("credentials", began + count * 5_000))).bannedUntil);
    if (count % 100 === 50) await evictDurableObject(stub as never);
  }
  expect([...seen]).toEqual([null]);
});

test("a banned client that may show who it is is counted, and collects nothing", async () => {
  const stub = guard();
  const now = Date.now();
  await stub.ban({ until: now + HOUR, since: now, reason: "test", by: "key_1" });
  const verdicts = [];
  for (let count = 0; count < 5; count++) verdicts.push((await stub.hit(hit({ evenIfBanned: true, now }))).allowed);
  expect(verdicts).toEqual([true, true, true, false, false]);
  expect((await stub.hit(hit({ now }))).allowed).toBe(false);
});

test("a ban is in the operators' list before its call returns, and gone after it was lifted", async () => {
  const name = "198.51.100.77";
  const now = Date.now();
  await guard(name).ban({ until: now + HOUR, since: now, reason: "test", by: "key_1" });
  expect(await world.rows("SELECT client, reason, by FROM bans")).toEqual([
    { client: name, reason: "test", by: "key_1" },
  ]);
  await guard(name).lift();
  expect(await world.rows("SELECT * FROM bans")).toEqual([]);
  expect((await guard(name).hit(hit())).allowed).toBe(true);
});

test("an automatic ban whose row could not be written is written by the alarm", async () => {
  const stub = guard("198.51.100.78");
  await world.sql.prepare("ALTER TABLE bans RENAME TO hidden").run();
  for (let count = 0; count < 10; count++) await stub.violate("injection", Date.now());
  await wait(50);
  await world.sql.prepare("ALTER TABLE hidden RENAME TO bans").run();
  expect(await world.rows("SELECT * FROM bans")).toEqual([]);
  expect(await runDurableObjectAlarm(stub as never)).toBe(true);
  expect(await world.rows("SELECT client, by FROM bans")).toEqual([{ client: "198.51.100.78", by: "auto" }]);
});

test("a ban lifted while the database does not answer is over at once, and its row goes with the next alarm", async () => {
  const name = "198.51.100.79";
  const now = Date.now();
  await guard(name).ban({ until: now + HOUR, since: now, reason: "test", by: "key_1" });
  await world.sql.prepare("ALTER TABLE bans RENAME TO hidden").run();
  await guard(name).lift();
  expect((await guard(name).hit(hit())).allowed).toBe(true);
  // Whatever else is over, the object stays until the row is gone.
  expect(await runDurableObjectAlarm(guard(name) as never)).toBe(true);
  await evictDurableObject(guard(name) as never);
  await world.sql.prepare("ALTER TABLE hidden RENAME TO bans").run();
  expect(await world.rows("SELECT client FROM bans")).toEqual([{ client: name }]);
  expect(await runDurableObjectAlarm(guard(name) as never)).toBe(true);
  expect(await world.rows("SELECT client FROM bans")).toEqual([]);
  expect((await stored(guard(name))).map(([key]) => key)).not.toContain("lifted");
});

test("a client banned anew after such a lift keeps its new row", async () => {
  const name = "198.51.100.80";
  const now = Date.now();
  const ban = (reason: string) => guard(name).ban({ until: now + HOUR, since: now, reason, by: "key_1" });
  await ban("first");
  await world.sql.prepare("ALTER TABLE bans RENAME TO hidden").run();
  await guard(name).lift();
  await world.sql.prepare("ALTER TABLE hidden RENAME TO bans").run();
  await ban("second");
  await runDurableObjectAlarm(guard(name) as never);
  expect(await world.rows("SELECT reason FROM bans")).toEqual([{ reason: "second" }]);
});

test("a late write of an automatic ban does not overwrite an operator's newer row", async () => {
  const client = "198.51.100.81";
  const row = (since: number, by: string) => ({ client, since, until: since + HOUR, reason: "test", by });
  const now = Date.now();
  await saveBan(world.db, row(now, "key_1"));
  await saveBan(world.db, row(now - 1, "auto"));
  expect(await world.rows("SELECT by FROM bans")).toEqual([{ by: "key_1" }]);
  await deleteBan(world.db, client, now - 1);
  expect(await world.rows("SELECT by FROM bans")).toEqual([{ by: "key_1" }]);
  // Of one guard, the later ban is newer whatever the isolates' clocks say.
  for (let count = 0; count < 10; count++) await guard(client).violate("injection", now + 60_000);
  await guard(client).ban({ until: now + HOUR, since: now, reason: "by hand", by: "key_2" });
  await wait(50);
  expect(await world.rows("SELECT by FROM bans")).toEqual([{ by: "key_2" }]);
});

test("what an object logs is in the log book: nothing else would send it", async () => {
  const book = world.edge.LOG_BOOK.get(world.edge.LOG_BOOK.idFromName("book"));
  await world.sql.prepare("ALTER TABLE bans RENAME TO hidden").run();
  await guard("198.51.100.82").ban({ until: Date.now() + HOUR, since: Date.now(), reason: "test", by: "key_1" });
  await vi.waitFor(async () => expect(String(await book.read("error", 0))).toContain('"event":"ban_not_mirrored"'));
  await world.sql.prepare("ALTER TABLE hidden RENAME TO bans").run();
});

test("a thousand clients, one after another, leave nothing behind once their alarms have rung", async () => {
  const long = Date.now() - 2 * HOUR;
  const routes = ["wallets", "credentials", "status", "admin"] as const;
  const stubs: Guard[] = [];
  for (let count = 0; count < 1_000; count++) {
    const stub = guard(`client-${count}`);
    stubs.push(stub);
    // Each as it would be two hours later: the alarm goes by the clock.
    await stub.hit(rule(routes[count % routes.length] ?? "tiers", long));
    if (count % 10 === 0) await stub.violate("injection", long);
    if (count % 25 === 0) await stub.ban({ since: long, until: long + HOUR, reason: "test", by: "key_1" });
  }
  // What the timers write has to be there before it can be gone.
  await wait(FLUSHED);
  expect((await stored(guard("client-2"))).map(([key]) => key)).toEqual(["minutes"]);
  for (const [count, stub] of stubs.entries()) {
    expect(await runDurableObjectAlarm(stub as never), `client-${count}`).toBe(true);
    expect(await stored(stub), `client-${count}`).toEqual([]);
    expect(await runDurableObjectAlarm(stub as never)).toBe(false);
    await evictDurableObject(stub as never);
  }
  await deleteOldBans(world.db, Date.now());
  expect(await world.rows("SELECT * FROM bans")).toEqual([]);
}, 90_000);

test("an alarm keeps what is still in force", async () => {
  const stub = guard();
  const now = Date.now();
  await passes(
    stub,
    Array.from({ length: 30 }, () => rule("credentials", now)),
  );
  expect(await runDurableObjectAlarm(stub as never)).toBe(true);
  expect((await stub.hit(rule("credentials", now))).allowed).toBe(false);
  expect(await runDurableObjectAlarm(stub as never)).toBe(true);
});
