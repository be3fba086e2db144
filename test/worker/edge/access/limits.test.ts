// The limits as clients meet them on the routes.
import { expect, test, vi } from "vitest";
import { forgetBan } from "../../../../src/edge/access/bans.ts";
import { GUARD_TIMEOUT_MS } from "../../../../src/edge/access/guard.ts";
import { LIMITS, type LimitedRoute } from "../../../../src/edge/access/limits.ts";
import { blockOf, clientAddress, clientName, guardsOf } from "../../../../src/model/client-name.ts";
import { fixedHeaders } from "../../../world/agent.ts";
import { agent } from "../../chain.ts";
import { buyAndRun, type Deployment, deploy, PATIENCE_MS } from "../../deployment.ts";
import { billOf } from "../../meter.ts";

type Asked = [method: string, path: string, policy: string];

const from = (address: string, more: Record<string, string> = {}) => ({
  headers: { "cf-connecting-ip": address, ...more },
});
const ADDRESS = `/vms/0x${"2".repeat(40)}`;
/** Ten violations: the address is banned with the last. */
async function getBanned(world: Deployment, address: string, more: Record<string, string> = {}) {
  for (let count = 0; count < 10; count++) {
    const { status } = await world.request("/tiers?x=1'%20OR%201=1--", from(address, more));
    expect(status).toBe(400);
  }
}

test("the limits are those of version 1.3.0 of the API", () => {
  expect(LIMITS).toMatchObject({
    tiers: { requests: 100, windowSeconds: 60 },
    credentials: { requests: 30, windowSeconds: 3_600 },
    vms: { requests: 30, windowSeconds: 60 },
    status: { requests: 100, windowSeconds: 60 },
    wallets: { requests: 3, windowSeconds: 60 },
    admin: { requests: 20, windowSeconds: 60 },
    documents: { requests: 100, windowSeconds: 60 },
    unknown: { requests: 60, windowSeconds: 60 },
  });
});

test("every answer of a limited route says limit, rest and reset; the one too many is 429 with Retry-After", async () => {
  const world = await deploy({ edge: { RATE_LIMITS: "vms=2/60" } });
  const path = `/vms/0x${"2".repeat(40)}`;
  const seen = [];
  for (let count = 0; count < 3; count++) {
    const { status, headers } = await world.request(path, from("198.51.100.1"));
    seen.push([status, headers.get("x-ratelimit-limit"), headers.get("x-ratelimit-remaining")]);
    expect(Number(headers.get("x-ratelimit-reset"))).toBeGreaterThan(Date.now() / 1_000);
    if (status === 429) expect(Number(headers.get("retry-after"))).toBeLessThanOrEqual(61);
  }
  expect(seen).toEqual([
    [200, "2", "1"],
    [200, "2", "0"],
    [429, "2", "0"],
  ]);
  expect((await world.request(path, from("198.51.100.2"))).status).toBe(200);
  expect((await world.request("/status/x", from("198.51.100.1"))).status).toBe(400);
});

test("only Cloudflare's own header names the client", async () => {
  const world = await deploy({ edge: { RATE_LIMITS: "tiers=1/60" } });
  const spoofed = (fake: string) =>
    world.request("/tiers", { headers: { "cf-connecting-ip": "198.51.100.3", "x-forwarded-for": fake } });
  expect((await spoofed("10.0.0.1")).status).toBe(200);
  expect((await spoofed("10.0.0.2")).status).toBe(429);
});

test("/health has no limit", async () => {
  const world = await deploy();
  expect((await world.request("/health", from("198.51.100.4"))).headers.get("x-ratelimit-limit")).toBeNull();
});

/** What each path counts as; caps over many clients, and a token's limit, are nobody's own and are not stated. */
const POLICIES: Asked[] = [
  ["GET", "/tiers", "tiers"],
  ["GET", "/credentials/1", "credentials"],
  ["POST", "/credentials/1/ack", "credentials"],
  ["POST", "/credentials/1/rotate", "credentials"],
  ["POST", "/credentials/1/refund", "credentials"],
  ["GET", ADDRESS, "vms"],
  ["GET", "/status/999999", "status"],
  ["POST", "/agents/generate-wallet", "wallets"],
  ["GET", "/x402/vm-credentials?tokenId=1", "x402"],
  ["POST", "/x402/purchase-compute", "x402"],
  ["GET", "/x402/purchases/1", "x402"],
  ["GET", "/x402/purchases", "x402"],
  ["GET", "/.well-known/x402", "documents"],
  ["GET", "/admin/bans", "admin"],
  ["GET", "/admin/nothing", "admin"],
  ["PATCH", "/admin/bans", "admin"],
  ["GET", "/", "documents"],
  ["GET", "/docs", "documents"],
  ["GET", "/openapi.json", "documents"],
  ["GET", "/llms.txt", "documents"],
  ["GET", "/nothing", "unknown"],
  ["PUT", "/tiers", "unknown"],
  ["OPTIONS", "/tiers", "unknown"],
];

test.each(POLICIES)("%s %s counts as %s and says so", async (method, path, route) => {
  const world = await deploy();
  const { headers } = await world.request(path, { method, ...from("198.51.100.21") });
  const { requests, windowSeconds } = LIMITS[route as LimitedRoute];
  expect(headers.get("ratelimit-policy")).toBe(`"${route}";q=${requests};w=${windowSeconds}`);
  expect(headers.get("x-ratelimit-limit")).toBe(String(requests));
});

test("every row of the table has its path above", () => {
  const caps = [
    "wallets_block",
    "wallets_all",
    "x402_block",
    "x402_all",
    "lookups_block",
    "lookups_all",
    "looks_block",
    "looks_all",
    "rotations",
  ];
  const named = [...new Set(POLICIES.map(([, , route]) => route)), ...caps];
  expect(named.sort()).toEqual(Object.keys(LIMITS).sort());
});

test("preflights count as unknown paths, but for /health, and a ban holds for them too", async () => {
  const world = await deploy({ edge: { RATE_LIMITS: "unknown=2/60" } });
  const preflight = async (path: string, address: string) => {
    const { status, headers } = await world.request(path, { method: "OPTIONS", ...from(address) });
    return [status, headers.get("access-control-allow-origin")];
  };
  const statuses = [];
  for (let count = 0; count < 3; count++) statuses.push(await preflight("/credentials/1", "198.51.100.22"));
  expect(statuses).toEqual([
    [204, "*"],
    [204, "*"],
    [429, "*"],
  ]);
  expect(await preflight("/health", "198.51.100.22")).toEqual([204, "*"]);
  const now = Date.now();
  await world.guard("198.51.100.23").ban({ until: now + 60_000, since: now, reason: "test", by: "key_1" });
  expect(await preflight("/credentials/1", "198.51.100.23")).toEqual([403, "*"]);
  expect(await preflight("/health", "198.51.100.23")).toEqual([204, "*"]);
});

test("the standard fields say the same in seconds from now", async () => {
  const world = await deploy();
  const { headers } = await world.request("/tiers", from("198.51.100.20"));
  expect(headers.get("ratelimit-policy")).toBe('"tiers";q=100;w=60');
  expect(headers.get("ratelimit")).toMatch(/^"tiers";r=99;t=(60|59)$/);
});

test.each([
  ["2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64", "2001:db8:1::/48"],
  ["2001:db8:1:2::9", "2001:db8:1:2::/64", "2001:db8:1::/48"],
  ["2001:0DB8:0001:0002::", "2001:db8:1:2::/64", "2001:db8:1::/48"],
  ["::1", "0:0:0:0::/64", "0:0:0::/48"],
  ["203.0.113.7", "203.0.113.7", null],
  ["::ffff:203.0.113.7", "203.0.113.7", null],
  [null, "unknown", null],
])("%s counts as %s, in the block %s", (header, address, block) => {
  expect(clientAddress(header)).toBe(address);
  expect(blockOf(address)).toBe(block);
  expect(blockOf(`${address}#cross-site`)).toBe(block);
});

test("requests of other people's Workers share an address and count by their zone (hard case 22)", () => {
  const name = (headers: Record<string, string>) => clientName(new Headers(headers));
  const shared = "2a06:98c0:3600::103";
  expect(name({ "cf-connecting-ip": shared, "cf-worker": "Shop.example" })).toBe("worker:shop.example");
  expect(name({ "cf-connecting-ip": shared })).toBe("2a06:98c0:3600:0::/64");
  expect(name({ "cf-connecting-ip": shared, "cf-worker": "no zone" })).toBe("2a06:98c0:3600:0::/64");
  // A client of its own can't choose its name.
  expect(name({ "cf-connecting-ip": "198.51.100.1", "cf-worker": "shop.example" })).toBe("198.51.100.1");
});

test("what a web page makes its visitors send bans such requests alone (hard case 22)", async () => {
  const world = await deploy();
  const visitor = "198.51.100.30";
  const crossSite = { "sec-fetch-site": "cross-site" };
  await getBanned(world, visitor, crossSite);
  expect((await world.request(ADDRESS, from(visitor, crossSite))).status).toBe(403);
  expect((await world.request(ADDRESS, from(visitor))).status).toBe(200);
  expect((await world.request(ADDRESS, from(visitor, { "sec-fetch-site": "same-site" }))).status).toBe(200);
});

test("a client's own ban binds what web pages make its browsers send as well (hard case 44)", async () => {
  const world = await deploy();
  const banned = "198.51.100.32";
  const crossSite = from(banned, { "sec-fetch-site": "cross-site" });
  await getBanned(world, banned);
  const calls = world.countGuardCalls();
  expect((await world.request(ADDRESS, crossSite)).status).toBe(403);
  expect(calls()).toBe(0);
  // Nor does another isolate serve them.
  for (const name of guardsOf(banned)) forgetBan(name);
  await vi.waitFor(async () => expect((await world.request(ADDRESS, crossSite)).status).toBe(403), PATIENCE_MS);
  // One ban, one row: whoever lifts it lifts both.
  expect(await world.rows("SELECT client, by FROM bans")).toEqual([{ client: banned, by: "auto" }]);
});

test("a poller of credentials is told to wait, however long it goes on, and is never banned (hard case 22)", async () => {
  const world = await deploy({ edge: { RATE_LIMITS: "credentials=2/3600" } });
  const statuses = new Set<number>();
  for (let count = 0; count < 15; count++)
    statuses.add((await world.request("/credentials/1", from("198.51.100.31"))).status);
  expect([...statuses]).toEqual([401, 429]);
});

test("the Retry-After of a 202 keeps a poller inside thirty requests an hour (hard case 22)", async () => {
  const world = await deploy();
  const { tokenId } = await world.buy(0);
  await world.scan();
  const answer = await world.request(`/credentials/${tokenId}`, { headers: await fixedHeaders(agent(0), tokenId) });
  expect([answer.status, answer.headers.get("retry-after")]).toEqual([202, "10"]);
});

test("a banned address is refused with 403, its end, Retry-After and its limit's headers", async () => {
  const world = await deploy();
  await getBanned(world, "198.51.100.9");
  const answer = await world.request("/tiers", from("198.51.100.9"));
  const body = (await answer.json()) as { error: string; code: string; requestId: string };
  expect([answer.status, body.code, body.requestId]).toEqual([403, "ip_banned", answer.headers.get("x-request-id")]);
  const until = Date.parse(/until (\S+):/.exec(body.error)?.[1] ?? "");
  expect(until - Date.now()).toBeGreaterThan(3_500_000);
  expect(Number(answer.headers.get("retry-after"))).toBeGreaterThan(3_500);
  expect(answer.headers.get("x-ratelimit-limit")).toBe("100");
  expect(answer.headers.get("x-ratelimit-remaining")).toBe("0");
  expect(answer.headers.get("access-control-allow-origin")).toBe("*");
  // `/constructor` and `/__proto__` once found something in a table of routes that was an object.
  const paths = [
    "/",
    "/docs",
    "/status/1",
    ADDRESS,
    "/agents/generate-wallet",
    "/admin/bans",
    "/constructor",
    "/__proto__",
  ];
  for (const path of paths) {
    expect((await world.request(path, from("198.51.100.9"))).status, path).toBe(403);
  }
  expect((await world.request("/health", from("198.51.100.9"))).status).toBe(200);
});

test("a banned address costs no row and no object call", async () => {
  const world = await deploy();
  await getBanned(world, "198.51.100.10");
  const calls = world.countGuardCalls();
  const bill = await billOf(async () => {
    for (const path of ["/status/1", "/tiers", "/vms/x", "/nothing"]) {
      expect((await world.request(path, from("198.51.100.10"))).status).toBe(403);
    }
  });
  expect(bill).toEqual({ rowsRead: 0, rowsWritten: 0, roundTrips: 0 });
  expect(calls()).toBe(0);
});

test("a ban that its operator lifted ends within BAN_CACHE_SECONDS in every isolate", async () => {
  const world = await deploy({ edge: { BAN_CACHE_SECONDS: "1" } });
  const address = "198.51.100.11";
  await getBanned(world, address);
  await world.guard(address).lift();
  expect((await world.request("/tiers", from(address))).status).toBe(403);
  await new Promise((resolve) => setTimeout(resolve, 1_100));
  expect((await world.request("/tiers", from(address))).status).toBe(200);
});

test("a ban is in force at once where no isolate knew of it", async () => {
  const world = await deploy();
  const now = Date.now();
  await world.guard("198.51.100.12").ban({ until: now + 60_000, since: now, reason: "test", by: "key_1" });
  expect((await world.request("/tiers", from("198.51.100.12"))).status).toBe(403);
});

test("the owner of a token reads its credentials from a banned address; nobody else does (hard case 22)", async () => {
  const world = await deploy();
  const tokenId = await buyAndRun(world, 0);
  const address = "198.51.100.13";
  await getBanned(world, address);
  const ask = async (index: number, id = tokenId) => {
    const headers = { "cf-connecting-ip": address, ...(await fixedHeaders(agent(index), id)) };
    return (await world.request(`/credentials/${id}`, { headers })).status;
  };
  expect(await ask(1)).toBe(403);
  expect(await ask(0, tokenId + 1)).toBe(403);
  expect((await world.request(`/credentials/${tokenId}`, from(address))).status).toBe(403);
  expect(await ask(0)).toBe(200);
  expect((await world.request(`/status/${tokenId}`, from(address))).status).toBe(403);
  forgetBan(address);
  expect(await ask(1)).toBe(403);
  expect(await ask(0)).toBe(200);
});

test("the ban's exception keeps to the route's limit", async () => {
  const world = await deploy({ edge: { RATE_LIMITS: "credentials=1/3600" } });
  const tokenId = await buyAndRun(world, 0);
  await getBanned(world, "198.51.100.14");
  const headers = { "cf-connecting-ip": "198.51.100.14", ...(await fixedHeaders(agent(0), tokenId)) };
  expect((await world.request(`/credentials/${tokenId}`, { headers })).status).toBe(200);
  expect((await world.request(`/credentials/${tokenId}`, { headers })).status).toBe(429);
});

test("where the guard can't be asked, public reads are served and the rest waits", async () => {
  const world = await deploy({ guard: "broken" });
  expect((await world.request("/tiers")).status).toBe(200);
  expect((await world.request(ADDRESS)).status).toBe(200);
  expect((await world.request("/status/999999")).status).toBe(404);
  expect((await world.request("/llms.txt")).status).toBe(200);
  for (const [method, path] of [
    ["GET", "/credentials/1"],
    ["POST", "/credentials/1/ack"],
    ["POST", "/agents/generate-wallet"],
    ["GET", "/admin/bans"],
  ] as const) {
    const answer = await world.request(path, { method });
    expect([path, answer.status, answer.headers.get("retry-after")]).toEqual([path, 503, "5"]);
    expect(await answer.json()).toMatchObject({ code: "guard_unavailable" });
  }
});

test("a guard that hangs is one that can't be asked: public reads are served after two seconds, credentials wait", async () => {
  const world = await deploy({ guard: "hangs" });
  const answers = Promise.all([world.request("/tiers"), world.request("/credentials/1")]);
  expect(GUARD_TIMEOUT_MS).toBe(2_000);
  // Generous: a busy machine is slow, and the guard itself never answers.
  const late = new Promise<never>((_, reject) => setTimeout(reject, 20_000, new Error("nobody was answered")));
  const [tiers, credentials] = await Promise.race([answers, late]);
  expect([tiers.status, credentials.status, credentials.headers.get("retry-after")]).toEqual([200, 503, "5"]);
  expect(await credentials.json()).toMatchObject({ code: "guard_unavailable" });
});

test("a client that is not to be counted is neither limited nor banned", async () => {
  const world = await deploy({ edge: { RATE_LIMITS: "tiers=1/60", UNLIMITED_CLIENTS: "198.51.100.15, 2001:db8::1" } });
  for (let count = 0; count < 12; count++) {
    expect((await world.request("/tiers?x='or'1'='1'", from("198.51.100.15"))).status).toBe(400);
  }
  expect((await world.request("/tiers", from("198.51.100.15"))).status).toBe(200);
  expect((await world.request("/tiers", from("2001:db8::2"))).status).toBe(200);
});
