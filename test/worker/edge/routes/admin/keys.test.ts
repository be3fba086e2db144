import { afterEach, beforeEach, expect, test, vi } from "vitest";
import { isWellFormedKey, makeAdminKey } from "../../../../../src/credentials/admin-key.ts";
import { type Deployment, deploy } from "../../../deployment.ts";
import { billOf } from "../../../meter.ts";
import { operator } from "./operator.ts";

const DAY = 86_400_000;
let world: Deployment;
beforeEach(async () => {
  world = await deploy();
});
afterEach(() => {
  vi.useRealTimers();
});
type Key = {
  id: string;
  key: string;
  name: string;
  expiresAt: string;
  lastUsedAt: string | null;
  revokedAt: string | null;
};

test("the deployment's secret makes the first key, and nothing else ever (hard case 23)", async () => {
  const bootstrap = operator(world, world.bootstrapKey);
  expect(await bootstrap("GET", "/admin/bans")).toMatchObject({ status: 401, body: { code: "api_key_invalid" } });
  const first = await bootstrap<Key>("POST", "/admin/keys", { name: "alice" });
  expect(first.status).toBe(201);
  expect(isWellFormedKey(first.body.key)).toBe(true);
  expect(await bootstrap("POST", "/admin/keys", { name: "mallory" })).toMatchObject({ status: 401 });
  const alice = operator(world, first.body.key);
  const second = await alice<Key>("POST", "/admin/keys", { name: "bob" });
  expect(second.status).toBe(201);
  // Only when no key works any more it opens the door again.
  for (const { id } of [first.body, second.body])
    expect((await alice("DELETE", `/admin/keys/${id}`)).status).toBe(id === first.body.id ? 200 : 401);
  expect((await bootstrap("POST", "/admin/keys", { name: "carol" })).status).toBe(401);
  await operator(world, second.body.key)("DELETE", `/admin/keys/${second.body.id}`);
  expect((await bootstrap("POST", "/admin/keys", { name: "carol" })).status).toBe(201);
});

test("ten requests with the deployment's secret at once make one key", async () => {
  const bootstrap = operator(world, world.bootstrapKey);
  const answers = await Promise.all(
    Array.from({ length: 10 }, (_, i) => bootstrap("POST", "/admin/keys", { name: `${i}` })),
  );
  expect(answers.filter(({ status }) => status === 201)).toHaveLength(1);
  for (const { status } of answers) expect([201, 401, 409]).toContain(status);
});

test("a key is shown once and stored as a hash; its use is remembered", async () => {
  const key = await world.operatorKey("alice");
  const alice = operator(world, key);
  const [row] = await world.rows("SELECT * FROM admin_keys");
  expect(JSON.stringify(row)).not.toContain(key.split("_")[1]);
  const { body } = await alice<{ keys: Key[] }>("GET", "/admin/keys");
  expect(body.keys).toMatchObject([{ name: "alice", lastUsedAt: expect.any(String), revokedAt: null }]);
  expect(JSON.stringify(body)).not.toContain(key.split("_")[1]);
  expect(Date.parse(body.keys[0]?.expiresAt ?? "") - Date.now()).toBeGreaterThan(89.9 * DAY);
});

test("a key expires after 90 days, and says so from its 76th day on", async () => {
  const alice = operator(world, await world.operatorKey());
  const at = async (days: number) => {
    await world.sql
      .prepare("UPDATE admin_keys SET created_at = ?1, expires_at = ?1 + 7776000000")
      .bind(Date.now() - days * DAY)
      .run();
    const { status, headers } = await alice("GET", "/admin/bans");
    return [status, headers.get("x-api-key-expires") !== null];
  };
  expect(await at(0)).toEqual([200, false]);
  expect(await at(75.99)).toEqual([200, false]);
  expect(await at(76.01)).toEqual([200, true]);
  expect(await at(89.99)).toEqual([200, true]);
  expect(await at(90.01)).toEqual([401, false]);
});

test("a revoked key works no more; a key may come as a Bearer token", async () => {
  const key = await world.operatorKey();
  const alice = operator(world, key);
  const { body } = await alice<Key>("POST", "/admin/keys", { name: "bob" });
  const bearer = () => world.request("/admin/bans", { headers: { authorization: `Bearer ${body.key}` } });
  expect((await bearer()).status).toBe(200);
  expect((await alice("DELETE", `/admin/keys/${body.id}`)).status).toBe(200);
  expect((await bearer()).status).toBe(401);
  expect(await alice("DELETE", `/admin/keys/${body.id}`)).toMatchObject({
    status: 404,
    body: { code: "api_key_not_found" },
  });
});

test("a mistyped key costs no row (hard case 23); wrong keys ban their address after ten, a missing one counts nothing", async () => {
  const address = "198.51.100.90";
  const ask = (key?: string) =>
    world.request("/admin/bans", {
      headers: { "cf-connecting-ip": address, ...(key === undefined ? {} : { "x-api-key": key }) },
    });
  for (let count = 0; count < 5; count++) expect((await ask()).status).toBe(401);
  const bill = await billOf(async () => {
    for (const wrong of ["x", "claw_", `${makeAdminKey().slice(0, -1)}g`]) expect((await ask(wrong)).status).toBe(401);
  });
  expect(bill.rowsRead).toBe(0);
  for (let count = 0; count < 7; count++) expect((await ask(makeAdminKey())).status).toBe(401);
  expect((await ask("x")).status).toBe(403);
  expect((await ask()).status).toBe(403);
});

test("a valid key works from a banned address, within the limit, and lifts the ban", async () => {
  const key = await world.operatorKey();
  const address = "198.51.100.91";
  const ask = (path: string, method = "GET", sent = key) =>
    world.request(path, { method, headers: { "cf-connecting-ip": address, "x-api-key": sent } });
  for (let count = 0; count < 10; count++) await ask("/admin/bans", "GET", makeAdminKey());
  expect((await ask("/tiers")).status).toBe(403);
  expect((await ask("/admin/bans", "GET", makeAdminKey())).status).toBe(403);
  expect((await ask("/admin/bans")).status).toBe(200);
  expect((await ask(`/admin/bans/${address}`, "DELETE")).status).toBe(200);
  expect((await ask("/tiers")).status).toBe(200);
});

test("operators are limited to 20 calls a minute", async () => {
  const key = await world.operatorKey();
  const headers = { "x-api-key": key, "cf-connecting-ip": "198.51.100.92" };
  const statuses = [];
  for (let count = 0; count < 21; count++) statuses.push((await world.request("/admin/pauses", { headers })).status);
  expect(statuses).toEqual([...Array.from({ length: 20 }, () => 200), 429]);
});

test("every path under /admin asks for a key before it says what there is", async () => {
  for (const path of ["/admin/keys", "/admin/nothing", "/admin/logs/combined"]) {
    expect((await world.request(path)).status, path).toBe(401);
  }
  const alice = operator(world, await world.operatorKey());
  expect((await alice("GET", "/admin/nothing")).status).toBe(404);
});

test("a wrong method under /admin asks for a key as well, keeps to the operators' limit and is audited", async () => {
  for (const [method, path] of [
    ["PATCH", "/admin/keys"],
    ["POST", "/admin/logs/combined"],
    ["PUT", "/admin/bans/203.0.113.1"],
  ] as const) {
    const answer = await world.request(path, { method });
    expect([answer.status, answer.headers.get("allow")], path).toEqual([401, null]);
    expect(answer.headers.get("ratelimit-policy")).toBe('"admin";q=20;w=60');
  }
  const key = await world.operatorKey();
  const calls: Record<string, unknown>[] = [];
  vi.spyOn(console, "warn").mockImplementation((line: string) => void calls.push(JSON.parse(line) as never));
  const answer = await operator(world, key)("PATCH", "/admin/keys");
  await operator(world, key)("GET", "/admin/nothing");
  vi.restoreAllMocks();
  expect([answer.status, answer.headers.get("allow")]).toEqual([405, "POST, GET, OPTIONS"]);
  expect(calls).toMatchObject([
    { event: "admin_call", method: "PATCH", route: "/admin/keys", status: 405 },
    { event: "admin_call", method: "GET", route: "/admin/*", path: "/admin/nothing", status: 404 },
  ]);
});
