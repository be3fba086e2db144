// The guard by itself: exact windows, bans, and the list of them.
import { evictDurableObject, runDurableObjectAlarm } from "cloudflare:test";
import { beforeEach, expect, test, vi } from "vitest";
import { deleteBan, saveBan } from "../../../../src/db/bans.ts";
import { LIMITS, type LimitedRoute } from "../../../../src/edge/access/limits.ts";
import { type Deployment, deploy, PATIENCE_MS } from "../../deployment.ts";
import { guard, HOUR, hit, passes, rule, stored, wait } from "./guards.ts";

let world: Deployment;
beforeEach(async () => {
  world = await deploy();
});

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

test("an automatic ban binds the guard of the client's cross-site requests, and never shortens its ban (hard case 44)", async () => {
  const name = "198.51.100.83";
  const other = guard(`${name}#cross-site`);
  const now = Date.now();
  await guard(name).violate("injection", now, 10);
  await vi.waitFor(
    async () => expect(await other.hit(hit({ now }))).toMatchObject({ allowed: false, bannedUntil: now + HOUR }),
    PATIENCE_MS,
  );
  const longer = { until: now + 2 * HOUR, since: now, reason: "test", by: "key_1" };
  await other.ban(longer);
  await other.bind({ until: now + HOUR, since: now + 1, reason: "test", by: "auto" });
  expect((await other.hit(hit({ now }))).bannedUntil).toBe(longer.until);
});

test("what bans cross-site requests binds nothing else (hard case 22)", async () => {
  const name = "198.51.100.84";
  await guard(`${name}#cross-site`).violate("injection", Date.now(), 10);
  await vi.waitFor(async () => expect(await world.rows("SELECT client FROM bans")).toHaveLength(1), PATIENCE_MS);
  expect((await guard(name).hit(hit())).bannedUntil).toBeNull();
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
  await vi.waitFor(
    async () => expect(String(await book.read("error", 0))).toContain('"event":"ban_not_mirrored"'),
    PATIENCE_MS,
  );
  await world.sql.prepare("ALTER TABLE hidden RENAME TO bans").run();
});

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
