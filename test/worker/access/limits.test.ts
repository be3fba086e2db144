import { runDurableObjectAlarm } from "cloudflare:test";
import { env } from "cloudflare:workers";
import { expect, test } from "vitest";
import type { IpGuard } from "../../../durable-objects/ip-guard.ts";
import { clientAddress, LIMITS } from "../../../src/access/limits.ts";
import { deploy } from "../deployment.ts";
import { billOf } from "../meter.ts";

const HOUR = 3_600_000;
const guards = (env as unknown as { IP_GUARD: DurableObjectNamespace<IpGuard> }).IP_GUARD;
const guard = () => guards.get(guards.idFromName(crypto.randomUUID()));
const from = (address: string) => ({ headers: { "cf-connecting-ip": address } });

test("the limits are the reference's", () => {
  expect(LIMITS).toMatchObject({
    tiers: { requests: 100, windowSeconds: 60 },
    credentials: { requests: 30, windowSeconds: 3_600 },
    vms: { requests: 30, windowSeconds: 60 },
    status: { requests: 100, windowSeconds: 60 },
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

test.each([
  ["2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"],
  ["2001:db8:1:2::9", "2001:db8:1:2::/64"],
  ["2001:0DB8:0001:0002::", "2001:db8:1:2::/64"],
  ["::1", "0:0:0:0::/64"],
  ["203.0.113.7", "203.0.113.7"],
  [undefined, "unknown"],
])("%s counts as %s", (header, address) => {
  expect(clientAddress(header)).toBe(address);
});

test("ten violations within an hour ban the address for an hour, counted where the requests are refused", async () => {
  const stub = guard();
  const limit = { requests: 1, windowSeconds: 60 };
  const now = 1_000_000_000_000;
  const kinds = [];
  for (let count = 0; count < 11; count++) kinds.push((await stub.hit("tiers", limit, now + count)).kind);
  expect(kinds).toEqual(["allowed", ...Array.from({ length: 9 }, () => "limited"), "banned"]);
  expect((await stub.hit("vms", limit, now + HOUR - 1_000)).kind).toBe("banned");
  expect((await stub.hit("vms", limit, now + HOUR + 1_000)).kind).toBe("allowed");
});

test("a poller that overruns its window collects one violation for it, not a ban (hard case 22)", async () => {
  const stub = guard();
  const limit = { requests: 30, windowSeconds: 3_600 };
  const kinds = new Set<string>();
  for (let count = 0; count < 200; count++)
    kinds.add((await stub.hit("credentials", limit, 2_000_000_000_000 + count)).kind);
  expect([...kinds]).toEqual(["allowed", "limited"]);
});

test("a window ends after its span", async () => {
  const stub = guard();
  const limit = { requests: 1, windowSeconds: 60 };
  const now = 1_500_000_000_000;
  expect((await stub.hit("tiers", limit, now)).kind).toBe("allowed");
  expect((await stub.hit("tiers", limit, now + 59_999)).kind).toBe("limited");
  expect((await stub.hit("tiers", limit, now + 60_001)).kind).toBe("allowed");
});

test("a guard that was cleared by its alarm still answers", async () => {
  const stub = guard();
  const limit = { requests: 5, windowSeconds: 60 };
  await stub.hit("tiers", limit, Date.now());
  expect(await runDurableObjectAlarm(stub as never)).toBe(true);
  expect((await stub.hit("tiers", limit, Date.now())).kind).toBe("allowed");
});

test("a banned address is refused with 403, Retry-After and its limit's headers, from the isolate's memory", async () => {
  const world = await deploy({ edge: { RATE_LIMITS: "tiers=1/60" } });
  const responses = [];
  for (let count = 0; count < 13; count++) responses.push(await world.request("/tiers", from("198.51.100.9")));
  const last = responses.at(-1);
  if (last === undefined) throw new Error("nothing was asked");
  expect(last.status).toBe(403);
  expect(await last.json()).toMatchObject({ code: "ip_banned" });
  expect(Number(last.headers.get("retry-after"))).toBeGreaterThan(3_000);
  expect(last.headers.get("x-ratelimit-remaining")).toBe("0");
  expect((await world.request("/health", from("198.51.100.9"))).status).toBe(200);
});

test("a banned address reads no row, on a route that reads beside its limiter too", async () => {
  const world = await deploy({ edge: { RATE_LIMITS: "tiers=1/60" } });
  for (let count = 0; count < 13; count++) await world.request("/tiers", from("198.51.100.10"));
  const bill = await billOf(async () => {
    expect((await world.request("/status/1", from("198.51.100.10"))).status).toBe(403);
  });
  expect(bill).toEqual({ rowsRead: 0, rowsWritten: 0, roundTrips: 0 });
});
