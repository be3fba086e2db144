import { beforeEach, expect, test, vi } from "vitest";
import { type Deployment, deploy } from "../../../deployment.ts";
import { type Operator, operator } from "./operator.ts";

let world: Deployment;
let ask: Operator;
beforeEach(async () => {
  world = await deploy({ edge: { BAN_CACHE_SECONDS: "0" } });
  ask = operator(world, await world.operatorKey());
});
type Ban = { client: string; reason: string; by: string; until: string };
const clients = async () =>
  (await ask<{ bans: Ban[] }>("GET", "/admin/bans")).body.bans.map(({ client }) => client).sort();
const visit = async (address: string, more: Record<string, string> = {}) =>
  (await world.request("/tiers", { headers: { "cf-connecting-ip": address, ...more } })).status;

test("a ban by hand holds at once, for what web pages send too, is listed with its reason, and can be lifted", async () => {
  const ban = { address: "203.0.113.50", durationSeconds: 600, reason: "scraping" };
  const made = await ask<Ban>("POST", "/admin/bans", ban);
  expect(made).toMatchObject({
    status: 201,
    body: { client: "203.0.113.50", reason: "scraping", by: expect.stringMatching(/^key_/) },
  });
  expect(Date.parse(made.body.until) - Date.now()).toBeGreaterThan(590_000);
  expect(await clients()).toEqual(["203.0.113.50", "203.0.113.50#cross-site"]);
  expect(await visit("203.0.113.50")).toBe(403);
  expect(await visit("203.0.113.50", { "sec-fetch-site": "cross-site" })).toBe(403);
  expect(await visit("203.0.113.51")).toBe(200);
  expect((await ask("DELETE", "/admin/bans/203.0.113.50")).status).toBe(200);
  expect(await clients()).toEqual([]);
  expect(await visit("203.0.113.50")).toBe(200);
});

test("the answer to a lift was the same whether there was a ban or none", async () => {
  const lift = () => ask("DELETE", "/admin/bans/203.0.113.55");
  expect(await lift()).toMatchObject({ status: 200, body: { client: "203.0.113.55", wasBanned: false } });
  await ask("POST", "/admin/bans", { address: "203.0.113.55", durationSeconds: 600, reason: "x" });
  expect(await lift()).toMatchObject({ status: 200, body: { client: "203.0.113.55", wasBanned: true } });
  expect(await lift()).toMatchObject({ status: 200, body: { client: "203.0.113.55", wasBanned: false } });
});

test("an IPv6 address stands for its /64, in any spelling", async () => {
  const { body } = await ask<Ban>("POST", "/admin/bans", {
    address: "2001:db8:7:8::1",
    durationSeconds: 60,
    reason: "x",
  });
  expect(body.client).toBe("2001:db8:7:8::/64");
  expect(await visit("2001:0db8:7:8:ffff::2")).toBe(403);
  expect((await ask("DELETE", `/admin/bans/${encodeURIComponent("2001:db8:7:8::/64")}`)).status).toBe(200);
  expect(await visit("2001:db8:7:8::1")).toBe(200);
});

test("the list comes in pages, whatever is lifted between them", async () => {
  for (let count = 0; count < 3; count++) {
    await ask("POST", "/admin/bans", { address: `203.0.113.${60 + count}`, durationSeconds: 600, reason: "x" });
  }
  type Page = { bans: Ban[]; nextCursor?: string };
  const first = await ask<Page>("GET", "/admin/bans?limit=2");
  expect(first.body.bans.map(({ client }) => client.replace("#cross-site", ""))).toEqual([
    "203.0.113.62",
    "203.0.113.62",
  ]);
  await ask("DELETE", "/admin/bans/203.0.113.62");
  const rest = await ask<Page>("GET", `/admin/bans?cursor=${first.body.nextCursor}`);
  expect(rest.body.bans).toHaveLength(4);
  expect(rest.body.nextCursor).toBeUndefined();
  expect((await ask("GET", "/admin/bans?cursor=x")).status).toBe(400);
});

test("a guard that can't be reached is 503 with a sentence, and no ban is claimed", async () => {
  const client = "203.0.113.70";
  const id = world.edge.IP_GUARD.idFromName(client).toString();
  const guards = {
    idFromName: (name: string) => world.edge.IP_GUARD.idFromName(name),
    get: (one: DurableObjectId) => {
      if (one.toString() === id)
        return { ban: () => Promise.reject(new Error("overloaded")), lift: () => new Promise(() => {}) };
      return world.edge.IP_GUARD.get(one);
    },
  };
  world.app = world.appOf({ ...world.edge, IP_GUARD: guards as never });
  const ban = await ask<{ error: string }>("POST", "/admin/bans", {
    address: client,
    durationSeconds: 60,
    reason: "x",
  });
  expect([ban.status, ban.body.code, ban.headers.get("retry-after")]).toEqual([503, "guard_unavailable", "5"]);
  expect(ban.body.error).toBe("A guard did not answer in time: look at the list of bans, and try again.");
  expect(await ask("DELETE", `/admin/bans/${client}`)).toMatchObject({
    status: 503,
    body: { code: "guard_unavailable" },
  });
});

test("automatic bans are in the list", async () => {
  for (let count = 0; count < 10; count++) {
    await world.request("/tiers?x=<script>", { headers: { "cf-connecting-ip": "203.0.113.52" } });
  }
  const { body } = await ask<{ bans: Ban[] }>("GET", "/admin/bans");
  expect(body.bans).toMatchObject([
    { client: "203.0.113.52", by: "auto", reason: expect.stringContaining("injection") },
  ]);
});

test.each([
  [{ address: "nobody", durationSeconds: 60, reason: "x" }],
  [{ address: "203.0.113.1", durationSeconds: 0, reason: "x" }],
  [{ address: "203.0.113.1", durationSeconds: 60 }],
  [{ address: "203.0.113.1/24", durationSeconds: 60, reason: "x" }],
  [{ address: "203.0.113.1/64", durationSeconds: 60, reason: "x" }],
])("%j is malformed", async (body) => {
  expect((await ask("POST", "/admin/bans", body)).status).toBe(400);
  expect(await clients()).toEqual([]);
});

test("the audit names the operator's address and not the lifted one", async () => {
  const lines: string[] = [];
  vi.spyOn(console, "warn").mockImplementation((line: string) => void lines.push(line));
  await ask("DELETE", "/admin/bans/203.0.113.54");
  vi.restoreAllMocks();
  const call = JSON.parse(lines.find((line) => line.includes("admin_call")) ?? "{}") as Record<string, unknown>;
  expect(call).toMatchObject({ lifted: "203.0.113.54", address: expect.stringMatching(/^10\./) });
});

test("an operator may write what looks like an attack: the schema takes it", async () => {
  const reason = "sent ' OR '1'='1' -- and <script>";
  expect((await ask("POST", "/admin/bans", { address: "203.0.113.53", durationSeconds: 60, reason })).status).toBe(201);
  const { body } = await ask<{ bans: Ban[] }>("GET", "/admin/bans");
  expect(body.bans[0]?.reason).toBe(reason);
});
