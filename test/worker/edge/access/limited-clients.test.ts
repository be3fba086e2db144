// What an isolate knows of clients over their limit by itself (hard case 44): the rest of a flood costs no call and no read.
import { beforeEach, expect, test, vi } from "vitest";
import { logRefusals } from "../../../../src/edge/access/known-clients.ts";
import { knownOverrun, rememberOverrun } from "../../../../src/edge/access/overruns.ts";
import { fixedHeaders } from "../../../world/agent.ts";
import { agent, chain } from "../../chain.ts";
import { buyAndRun, type Deployment, deploy, PATIENCE_MS } from "../../deployment.ts";
import { addRpcFaults, clearRpcFaults } from "../../faults.ts";
import { billOf } from "../../meter.ts";

let world: Deployment;
beforeEach(async () => {
  world = await deploy({ edge: { RATE_LIMITS: "status=2/60,tiers=2/60,x402=2/60,credentials=2/3600,unknown=2/60" } });
});

const from = (address: string, more: Record<string, string> = {}) => ({ "cf-connecting-ip": address, ...more });
const ask = (path: string, address: string, init: RequestInit = {}) =>
  world.request(path, { ...init, headers: from(address, init.headers as Record<string, string>) });
/** Statuses, and how many requests had them. */
async function flood(path: string, address: string, times: number, init: RequestInit = {}) {
  const counts: Record<number, number> = {};
  for (let count = 0; count < times; count++) {
    const answer = await ask(path, address, init);
    await answer.body?.cancel();
    counts[answer.status] = (counts[answer.status] ?? 0) + 1;
  }
  return counts;
}
/** Asks until the guard has refused once. */
const exceed = (path: string, address: string, init: RequestInit = {}) => flood(path, address, 3, init);

test.each([
  ["GET", "/status/999999999"],
  ["HEAD", "/status/999999999"],
  ["GET", "/credentials/1"],
  ["POST", "/credentials/1/ack"],
  ["GET", "/x402/purchases/1"],
  ["POST", "/x402/purchase-compute"],
])("a client over its limit costs no row and no object call: %s %s", async (method, path) => {
  const address = "198.51.100.1";
  await exceed(path, address, { method });
  const calls = world.countGuardCalls();
  const bill = await billOf(async () => expect(await flood(path, address, 50, { method })).toEqual({ 429: 50 }));
  expect(bill).toEqual({ rowsRead: 0, rowsWritten: 0, roundTrips: 0 });
  expect(calls()).toBe(0);
});

test("its answer is a 429 like the guard's: body, headers of its limit, Retry-After", async () => {
  const address = "198.51.100.2";
  const answers = [];
  for (let count = 0; count < 4; count++) answers.push(await ask("/x402/vm-credentials?tokenId=1", address));
  const [, , byGuard, byIsolate] = answers;
  const shown = async (answer: Response | undefined) => {
    const headers = answer?.headers ?? new Headers();
    // All of them; these three are each answer's own.
    const own = ["retry-after", "ratelimit", "x-request-id"];
    return {
      status: answer?.status,
      body: { ...((await answer?.json()) as object), error: "", requestId: "" },
      headers: Object.fromEntries([...headers].filter(([name]) => !own.includes(name))),
    };
  };
  expect(Number(byIsolate?.headers.get("retry-after"))).toBeGreaterThan(50);
  expect(byIsolate?.headers.get("ratelimit")).toMatch(/^"x402";r=0;t=\d+$/);
  expect(byIsolate?.headers.get("x-request-id")).toMatch(/^[0-9a-f-]{36}$/);
  const first = await shown(byGuard);
  expect(first).toMatchObject({ status: 429, body: { code: "rate_limited", charged: "none" } });
  expect(await shown(byIsolate)).toEqual(first);
});

test("nobody else is refused with it, nor what it asks of other routes", async () => {
  const address = "198.51.100.3";
  await exceed("/status/999999999", address);
  expect((await ask("/status/999999999", address)).status).toBe(429);
  expect((await ask("/status/999999999", "198.51.100.4")).status).toBe(404);
  expect((await ask("/tiers", address)).status).toBe(200);
  expect((await ask("/health", address)).status).toBeOneOf([200, 503]);
  expect((await ask("/status/999999999", address, { method: "OPTIONS" })).status).toBe(204);
  expect((await ask("/status/999999999", address, { headers: { "sec-fetch-site": "cross-site" } })).status).toBe(404);
});

test("its window turns: it is asked for at the guard again, and passes", async () => {
  const brief = await deploy({ edge: { RATE_LIMITS: "status=1/1" } });
  const headers = from("198.51.100.5");
  const statuses = async () => [
    (await brief.request("/status/999999999", { headers })).status,
    (await brief.request("/status/999999999", { headers })).status,
    (await brief.request("/status/999999999", { headers })).status,
  ];
  expect(await statuses()).toEqual([404, 429, 429]);
  await vi.waitFor(
    async () => expect((await brief.request("/status/999999999", { headers })).status).toBe(404),
    PATIENCE_MS,
  );
});

test("a thousand requests to a polled route end in a ban: each hundred refusals are a violation", async () => {
  const address = "198.51.100.6";
  const calls = world.countGuardCalls();
  const counts = await flood("/status/999999999", address, 2 + 900);
  expect(counts).toEqual({ 404: 2, 429: 900 });
  // Two that passed, one that the guard refused, and a call for each hundred.
  expect(calls()).toBe(3 + 9);
  await vi.waitFor(async () => expect((await ask("/status/999999999", address)).status).toBe(403), PATIENCE_MS);
  expect(await world.rows("SELECT reason FROM bans WHERE client = ?", address)).toEqual([
    { reason: "10 violations within an hour, the last one: status" },
  ]);
});

test("on the other routes each refusal is a violation as before, and the guard is told of nine at once", async () => {
  const address = "198.51.100.7";
  const calls = world.countGuardCalls();
  expect(await flood("/tiers", address, 2 + 10)).toEqual({ 200: 2, 429: 10 });
  expect(calls()).toBe(3 + 1);
  await vi.waitFor(async () => expect((await ask("/tiers", address)).status).toBe(403), PATIENCE_MS);
});

test("a method that a path does not have is limited like the unknown, and so is a POST to /health", async () => {
  const address = "198.51.100.8";
  await exceed("/tiers", address, { method: "PUT" });
  const calls = world.countGuardCalls();
  for (const [method, path] of [
    ["PUT", "/tiers"],
    ["POST", "/health"],
    ["GET", "/nothing"],
    ["OPTIONS", "/tiers"],
  ] as const) {
    expect((await ask(path, address, { method })).status, `${method} ${path}`).toBe(429);
  }
  expect(calls()).toBe(0);
  expect((await ask("/health", address, { method: "OPTIONS" })).status).toBe(204);
});

test("operators read how often limited clients were refused", async () => {
  await exceed("/status/999999999", "198.51.100.9");
  const lines: Record<string, unknown>[] = [];
  vi.spyOn(console, "warn").mockImplementation((line: string) => lines.push(JSON.parse(line) as never));
  // What the tests before left untold.
  logRefusals(Date.now() + 3_600_000);
  lines.length = 0;
  await flood("/status/999999999", "198.51.100.9", 7);
  logRefusals(Date.now() + 7_200_000);
  vi.restoreAllMocks();
  expect(lines).toMatchObject([{ event: "limited_requests", address: "198.51.100.9", count: 7 }]);
});

test("the memory of limited clients is bounded: those refused longest ago are forgotten first", () => {
  const now = Date.now();
  const config = { ...world.edge };
  for (let client = 0; client <= 50_000; client++) {
    rememberOverrun(config, `client ${client}`, "status", now + 60_000, now);
    if (client === 10) rememberOverrun(config, "client 0", "status", now + 60_000, now);
  }
  const isKnown = (client: number) => knownOverrun(config, `client ${client}`, "status", now) !== null;
  expect([0, 1, 2, 3, 50_000].map(isKnown)).toEqual([true, false, true, true, true]);
});

test("quotes without a payment use up nobody else's allowance", async () => {
  const shop = await deploy({
    edge: {
      RATE_LIMITS: "x402_all=1/60,x402_block=1/60",
      X402_PAY_TO: `0x${"1".repeat(40)}`,
      FACILITATOR_URL: "http://127.0.0.1:9",
    },
  });
  const quote = (host: number, headers: Record<string, string> = {}) =>
    shop.request("/x402/vm-credentials?tokenId=1", { headers: from(`2001:db8:1:${host}::1`, headers) });
  for (let host = 1; host <= 5; host++) expect((await quote(host)).status).toBe(402);
  // What can't be read is refused before anything is written.
  for (let host = 1; host <= 5; host++) expect((await quote(host, { "x-payment": "x" })).status).toBe(400);
});

test("strangers' signatures from one /48 don't use up the nodes: each address of it had thirty an hour (hard case 44)", async () => {
  const shop = await deploy({ edge: { RATE_LIMITS: "looks_block=4/60,looks_all=6/60" } });
  const tokenId = await buyAndRun(shop, 0);
  const ask = async (signer: number, address: string, id = tokenId) => {
    await chain.mine(1);
    const headers = from(address, await fixedHeaders(agent(signer), id));
    return (await shop.request(`/credentials/${id}`, { headers })).status;
  };
  const statuses = [];
  for (let host = 0; host < 3; host++) statuses.push(await ask(1, `2001:db8:8:${host}::1`));
  for (let host = 3; host < 6; host++) statuses.push(await ask(1, `2001:db8:8:${host}::1`, 900_000));
  expect(statuses).toEqual([403, 403, 403, 404, 429, 429]);
  // Once that is known, no node is asked for them; the owner is in nobody's way, wherever he asks from.
  await addRpcFaults({ kind: "down" });
  expect(await ask(1, "2001:db8:8:9::1")).toBe(429);
  await clearRpcFaults();
  expect(await ask(0, "2001:db8:8:9::1")).toBe(200);
  expect([await ask(1, "198.51.100.90"), await ask(1, "198.51.100.91"), await ask(1, "198.51.100.92")]).toEqual([
    403, 403, 429,
  ]);
  expect(await ask(0, "198.51.100.93")).toBe(200);
});

test("guesses at token ids from one /48 don't use up the nodes: each address of it had a hundred calls a minute", async () => {
  const shop = await deploy({ edge: { RATE_LIMITS: "lookups_block=4/60,lookups_all=6/60" } });
  const { tokenId } = await shop.buy(0);
  await shop.scan();
  const look = async (id: number, address: string) =>
    (await shop.request(`/status/${id}`, { headers: from(address) })).status;
  const statuses = [];
  for (let host = 0; host < 7; host++) statuses.push(await look(900_000 + host, `2001:db8:7:${host}::1`));
  expect(statuses).toEqual([404, 404, 404, 404, 429, 429, 429]);
  // Others are not in their way, a known miss and a token that is there cost no call.
  expect(await look(900_010, "198.51.100.70")).toBe(404);
  expect(await look(900_000, "2001:db8:7:9::1")).toBe(404);
  expect(await look(tokenId, "2001:db8:7:9::1")).toBe(200);
  expect([await look(900_011, "198.51.100.71"), await look(900_012, "198.51.100.72")]).toEqual([404, 429]);
});
