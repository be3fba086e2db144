// Lines, their redaction, the book that keeps them, and the pages that it sends.
import {
  createExecutionContext,
  evictDurableObject,
  runDurableObjectAlarm,
  runInDurableObject,
  waitOnExecutionContext,
} from "cloudflare:test";
import { env } from "cloudflare:workers";
import { bytesToHex, randomBytes } from "@noble/hashes/utils.js";
import { Webhook } from "standardwebhooks";
import { beforeEach, expect, test, vi } from "vitest";
import type { LogBatch, LogBook } from "../../durable-objects/log-book.ts";
import { makeAdminKey } from "../../src/credentials/admin-key.ts";
import { generateHostKey } from "../../src/credentials/ssh-keys.ts";
import { allClear, errorFields, log, note, noted, sendLogs, setLogLevel, withLogScope } from "../../src/log.ts";
import { redactFields } from "../../src/redact.ts";
import { fixedHeaders } from "../world/agent.ts";
import type { Page } from "../world/pager.ts";
import { parts } from "./bindings.ts";
import { agent } from "./chain.ts";
import { type Deployment, deploy, PATIENCE_MS } from "./deployment.ts";
import { operator } from "./edge/routes/admin/operator.ts";
import { PAGER_SECRET } from "./parts.ts";

const books = (env as unknown as { LOG_BOOK: DurableObjectNamespace<LogBook> }).LOG_BOOK;
const book = () => books.get(books.idFromName(crypto.randomUUID()));
const pager = parts.pagerUrl;
const textOf = (lines: readonly string[] = []) => lines.map((one) => `${one}\n`).join("");
type Lines = Partial<Record<"combined" | "error" | "security" | "cleared", string[]>> &
  Partial<Pick<LogBatch, "pages">>;
const batch = ({ combined, error, security, pages = {}, cleared = [] }: Lines): LogBatch => ({
  combined: textOf(combined),
  error: textOf(error),
  security: textOf(security),
  pages,
  cleared: new Set(cleared),
});
/** Takes the batches that a Worker sends; `broken` takes none. */
const taking = () => {
  const sent: LogBatch[] = [];
  const to = { idFromName: () => ({}), get: () => ({ append: async (one: LogBatch) => void sent.push(one) }) };
  return { sent, to: to as never };
};
const broken = {
  idFromName: () => ({}),
  get: () => ({ append: () => Promise.reject(new Error("overloaded")) }),
} as never;
const line = (fields: object) =>
  JSON.stringify({ time: new Date().toISOString(), level: "info", event: "x", ...fields });

let world: Deployment;
beforeEach(async () => {
  // What other tests left unsent.
  await sendLogs({ idFromName: () => ({}), get: () => ({ append: async () => undefined }) } as never);
  world = await deploy();
});

test("a file ends at 5 MB, five are kept, and no line is cut", async () => {
  const stub = book();
  const text = "y".repeat(9_900);
  let sent = 0;
  for (let count = 0; count < 60; count++) {
    const combined = Array.from({ length: 50 }, () => line({ number: sent++, text }));
    await stub.append(batch({ combined }));
  }
  const files = await stub.files();
  expect(files.map(({ index }) => index)).toEqual([0, 1, 2, 3, 4]);
  for (const { bytes, index } of files) {
    expect(bytes).toBeLessThanOrEqual(5_000_000);
    if (index > 0) expect(bytes).toBeGreaterThan(4_900_000);
  }
  const numbers: number[] = [];
  for (const index of [4, 3, 2, 1, 0]) {
    const lines = String(await stub.read("combined", index))
      .trimEnd()
      .split("\n");
    numbers.push(...lines.map((one) => (JSON.parse(one) as { number: number }).number));
  }
  // The oldest went, the rest is whole and in order.
  expect(numbers.at(-1)).toBe(sent - 1);
  expect(numbers).toEqual(Array.from({ length: numbers.length }, (_, i) => sent - numbers.length + i));
  expect(await stub.read("combined", 5)).toBeNull();
  expect(await stub.read("error", 0)).toBeNull();
});

test("a line that no row can hold becomes one that says so: once the book looped over it for ever", async () => {
  const stub = book();
  const long = line({ event: "long", text: "é".repeat(400_000) });
  await stub.append(batch({ combined: [line({ n: 1 }), long, line({ n: 2 })], security: [long] }));
  const kept = String(await stub.read("combined", 0))
    .trimEnd()
    .split("\n")
    .map((one) => JSON.parse(one) as Record<string, unknown>);
  const cut = {
    event: "line_cut",
    bytes: Buffer.byteLength(long) + 1,
    begin: expect.stringContaining('"event":"long"'),
  };
  expect(kept).toMatchObject([{ n: 1 }, cut, { n: 2 }]);
  expect(await stub.events({ limit: 10 })).toMatchObject([cut]);
});

test("what is in the book survives the object's end", async () => {
  const stub = book();
  await stub.append(batch({ combined: [line({ n: 1 })], error: [line({ n: 1 })] }));
  await evictDurableObject(stub as never);
  await stub.append(batch({ combined: [line({ n: 2 })] }));
  expect(String(await stub.read("combined", 0)).split("\n")).toHaveLength(3);
});

test("security events by name, address and time, newest first", async () => {
  const stub = book();
  const at = (minute: number) => new Date(Date.UTC(2026, 1, 3, 12, minute)).toISOString();
  const entry = (minute: number, event: string, address: string) =>
    JSON.stringify({ time: at(minute), level: "security", event, address });
  await stub.append(
    batch({ security: [entry(1, "rate_limited", "a"), entry(2, "ip_banned", "a")] }),
    Date.parse(at(2)),
  );
  await stub.append(batch({ security: [entry(3, "rate_limited", "b")] }), Date.parse(at(3)));
  const times = async (filter: object) => {
    const events: unknown = await stub.events({ limit: 10, ...filter });
    return (events as { time: string }[]).map(({ time }) => time);
  };
  expect(await times({})).toEqual([at(3), at(2), at(1)]);
  expect(await times({ event: "rate_limited" })).toEqual([at(3), at(1)]);
  expect(await times({ address: "a" })).toEqual([at(2), at(1)]);
  expect(await times({ since: Date.parse(at(2)), until: Date.parse(at(2)) })).toEqual([at(2)]);
  expect(await times({ limit: 1 })).toEqual([at(3)]);
});

const pages = async () => (await (await fetch(`${pager}/pages`)).json()) as Page[];

/** Rings the book's alarm by hand, as if so much time had passed since what it holds. */
async function ring(stub: ReturnType<typeof book>, passedMs = 0) {
  await runInDurableObject(stub as never, (_object: unknown, state: DurableObjectState) => {
    state.storage.sql.exec("UPDATE alerts SET next_try_at = 0");
    for (const column of ["since", "said_at", "paged_at", "cleared_at"]) {
      state.storage.sql.exec(`UPDATE causes SET ${column} = ${column} - ?`, passedMs);
    }
    // A book with nothing left to do has none.
    return state.storage.setAlarm(Date.now() + 60_000);
  });
  await runDurableObjectAlarm(stub as never);
}

/** What of one test the webhook has got: type and count, in the order of arrival. */
async function told(mark: string): Promise<[string, number | undefined][]> {
  const mine = (await pages()).filter(({ body }) => body.includes(mark));
  return mine.map(({ body }) => {
    const { type, data } = JSON.parse(body) as { type: string; data: { count?: number } };
    return [type, data.count];
  });
}

test("a page reaches the webhook, signed; refused, it is sent again; repeated, it is one", async () => {
  const stub = book();
  const mark = crypto.randomUUID();
  await fetch(`${pager}/refuse/1`, { method: "POST" });
  const page = () => line({ level: "page", event: "job_dead", mark });
  await stub.append(batch({ combined: [page()], error: [page()], pages: { [mark]: page() } }));
  const mine = async () => (await pages()).filter(({ body }) => body.includes(mark));
  // The alarm may ring by itself meanwhile; by hand it comes at once.
  await runDurableObjectAlarm(stub as never);
  await vi.waitFor(async () => {
    await ring(stub);
    expect(await mine()).toHaveLength(1);
  }, PATIENCE_MS);
  const [taken] = await mine();
  if (taken === undefined) throw new Error("no page came");
  // A second implementation of the standard is content with it, and not with another body.
  const verifier = new Webhook(PAGER_SECRET);
  expect(verifier.verify(taken.body, taken.headers)).toMatchObject({ type: "page", data: { event: "job_dead", mark } });
  expect(() => verifier.verify(taken.body.replace("job_dead", "job_done"), taken.headers)).toThrow();
  await stub.append(batch({ combined: [page()], pages: { [mark]: page() } }));
  await ring(stub);
  expect(await mine()).toHaveLength(1);
});

test("a cause that is told of again and again pages once an hour, whatever its lines say (hard case 40)", async () => {
  const stub = book();
  const mark = crypto.randomUUID();
  const say = (count: number) => stub.append(batch({ pages: { [mark]: line({ event: "x", mark, count }) } }));
  for (let count = 0; count < 55; count++) await say(count);
  await ring(stub);
  expect(await told(mark)).toEqual([["page", 0]]);
  await ring(stub, 3_000_000);
  await say(60);
  await ring(stub, 500_000);
  expect(await told(mark)).toEqual([["page", 0]]);
  await say(61);
  await ring(stub, 200_000);
  const twice = [
    ["page", 0],
    ["page", 61],
  ];
  expect(await told(mark)).toEqual(twice);
  await say(62);
  await ring(stub, 3_700_000);
  expect(await told(mark)).toEqual(twice);
});

test("what happens once, within the hour after another of its kind, calls when the hour is over: it called nobody", async () => {
  const stub = book();
  const mark = crypto.randomUUID();
  const die = (count: number) =>
    stub.append(batch({ pages: { [mark]: line({ event: "job_dead", about: "advance", mark, count }) } }));
  await die(1);
  await ring(stub, 600_000);
  await die(2);
  await ring(stub);
  // Nobody tells of it again: the book rings by itself when the hour is over.
  const due = await runInDurableObject(stub as never, async (object: LogBook, state: DurableObjectState) => {
    await state.storage.deleteAlarm();
    await object.alarm();
    return state.storage.getAlarm();
  });
  expect(due ?? Number.POSITIVE_INFINITY).toBeLessThan(Date.now() + 3_600_000);
  await ring(stub, 3_000_000);
  expect(await told(mark)).toEqual([
    ["page", 1],
    ["page", 2],
  ]);
  // It has been told of: no more follows.
  await ring(stub, 3_700_000);
  expect(await told(mark)).toHaveLength(2);
});

test("a page that ended is followed by its all-clear; one that comes and goes is one page (hard case 40)", async () => {
  const stub = book();
  const mark = crypto.randomUUID();
  const cause = `machines_missing ${mark}`;
  const pages = { [cause]: line({ event: "machines_missing", about: mark, count: 1 }) };
  // Nobody was called: nothing to call off.
  await stub.append(batch({ cleared: [cause] }));
  await stub.append(batch({ pages }));
  for (let count = 0; count < 3; count++) {
    await stub.append(batch({ cleared: [cause] }));
    await ring(stub, 200_000);
    await stub.append(batch({ pages }));
  }
  expect(await told(mark)).toEqual([["page", 1]]);
  await stub.append(batch({ cleared: [cause] }));
  await ring(stub, 200_000);
  // Said with each good look: the first counts.
  await stub.append(batch({ cleared: [cause] }));
  await ring(stub, 200_000);
  await ring(stub);
  expect(await told(mark)).toEqual([
    ["page", 1],
    ["all_clear", undefined],
  ]);
  await stub.append(batch({ cleared: [cause] }));
  await ring(stub, 400_000);
  expect(await told(mark)).toHaveLength(2);
  // What begins anew is a page again.
  await stub.append(batch({ pages }));
  await ring(stub);
  expect(await told(mark)).toHaveLength(3);
});

test("an all-clear reaches the book where nothing else is written: at LOG_LEVEL warn it waited for the next warning", async () => {
  const { sent, to } = taking();
  setLogLevel("warn");
  allClear("machines_missing", "vultr");
  await sendLogs(to);
  setLogLevel("info");
  expect(sent.map(({ combined, cleared }) => [combined, cleared.has("machines_missing vultr")])).toEqual([["", true]]);
  await sendLogs(to);
  expect(sent).toHaveLength(1);
});

test("many clients of one /48 can't wash the audit away either", async () => {
  const ask = operator(world, await world.operatorKey());
  const begun = Math.floor(Date.now() / 60_000);
  for (let host = 0; host < 45; host++) {
    const headers = { "cf-connecting-ip": `2001:db8:5:${host.toString(16)}::1` };
    expect((await world.request("/credentials/1", { headers })).status).toBe(401);
  }
  await sendLogs(world.edge.LOG_BOOK);
  const minutes = Math.floor(Date.now() / 60_000) - begun + 1;
  const found = async (event: string) =>
    (await ask<{ events: Record<string, unknown>[] }>("GET", `/admin/security-events?limit=100&event=${event}`)).body
      .events;
  const written = (await found("access_denied")).length;
  expect(written).toBeLessThanOrEqual(30 * minutes);
  const counted = (await found("lines_counted")).reduce((sum, { count }) => sum + Number(count), 0);
  expect(written + counted).toBe(45);
});

test("nor can whoever asks while a node lies: nodes that disagree are told of sixty times a minute", async () => {
  const { sent, to } = taking();
  const begun = Math.floor(Date.now() / 60_000);
  for (let count = 0; count < 400; count++) log("security", "rpc_sources_disagree", { answers: 3 });
  await sendLogs(to);
  const minutes = Math.floor(Date.now() / 60_000) - begun + 1;
  const lines = sent.flatMap(({ security }) => security.trimEnd().split("\n")).map((one) => JSON.parse(one));
  const told = lines.filter(({ event }) => event === "rpc_sources_disagree");
  expect(told.length).toBeLessThanOrEqual(60 * minutes);
  expect(lines.filter(({ of }) => of === "rpc_sources_disagree")).toMatchObject([{ count: 400 - told.length }]);
});

test("one wide event per request, and the audit's lines, in the book and downloadable", async () => {
  const key = await world.operatorKey();
  await world.request("/status/999999");
  await world.request("/tiers?x=<script>");
  await sendLogs(world.edge.LOG_BOOK);
  const ask = operator(world, key);
  const stream = async (name: string) => {
    const answer = await world.request(`/admin/logs/${name}`, {
      headers: { "x-api-key": key, "cf-connecting-ip": "10.9.9.9" },
    });
    expect(answer.headers.get("content-disposition")).toBe(`attachment; filename="${name}.log"`);
    return (await answer.text())
      .trimEnd()
      .split("\n")
      .map((one) => JSON.parse(one) as Record<string, unknown>);
  };
  const combined = await stream("combined");
  expect(combined.filter(({ event }) => event === "request")).toMatchObject([
    { route: "/admin/keys", status: 201, operator: "bootstrap" },
    { route: "/status/:tokenId", tokenId: "999999", status: 404, code: "token_not_found", address: "203.0.113.7" },
    { route: "/tiers", status: 400, code: "injection_refused" },
  ]);
  for (const { time, requestId } of combined) {
    expect(time).toMatch(/^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z$/);
    expect(requestId).toMatch(/^[0-9a-f-]{36}$/);
  }
  expect((await stream("security")).map(({ event }) => event)).toEqual(["admin_call", "injection_attempt"]);
  const { body } = await ask<{ events: unknown[] }>("GET", "/admin/security-events?event=injection_attempt");
  expect(body.events).toMatchObject([{ address: "203.0.113.7", route: "/tiers" }]);
  const files = await ask<{ files: { stream: string }[] }>("GET", "/admin/logs");
  expect(files.body.files.map((file) => file.stream)).toEqual(["combined", "security"]);
  expect((await ask("GET", "/admin/logs/error")).status).toBe(404);
  expect((await ask("GET", "/admin/logs/other")).status).toBe(400);
});

test("events are found by whatever names a client; nothing else is taken for one, nor any other time", async () => {
  const attack = (address: string, more = {}) =>
    world.request("/tiers?x=<script>", { headers: { "cf-connecting-ip": address, ...more } });
  await attack("2001:db8:1:2::3");
  await attack("198.51.100.50");
  await attack("198.51.100.50", { "sec-fetch-site": "cross-site" });
  const ask = operator(world, await world.operatorKey());
  await sendLogs(world.edge.LOG_BOOK);
  const found = async (query: string) => {
    const path = `/admin/security-events?event=injection_attempt&${query}`;
    const { status, body } = await ask<{ events: { address: string }[] }>("GET", path);
    return status === 200 ? body.events.map(({ address }) => address) : [status, body.code];
  };
  expect(await found("address=2001:db8:1:2:9:9:9:9")).toEqual(["2001:db8:1:2::/64"]);
  expect(await found("address=2001:db8:1:2::/64")).toEqual(["2001:db8:1:2::/64"]);
  expect(await found("address=198.51.100.50")).toEqual(["198.51.100.50"]);
  expect(await found("address=198.51.100.50%23cross-site")).toEqual(["198.51.100.50#cross-site"]);
  // A zone's name may be what it likes: the operator who asks for it is no attacker (hard case 22).
  expect(await found("address=worker:union-select.example")).toEqual([]);
  expect(await found("since=2026-02-03T12:00:00%2B02:00&address=198.51.100.50")).toEqual(["198.51.100.50"]);
  expect(await found("since=2999-01-01T00:00:00Z")).toEqual([]);
  for (const query of ["address=somebody", "address=1.2.3", "since=yesterday", "until=1", "since=Tue, 3 Feb 2026"]) {
    expect(await found(query), query).toEqual([400, "invalid_request"]);
  }
});

test("one client can't wash the audit away: ten lines of an event a minute, the rest is counted (hard case 44)", async () => {
  const key = await world.operatorKey();
  const ask = operator(world, key);
  const loud = { headers: { "cf-connecting-ip": "198.51.100.60" } };
  const quiet = { headers: { "cf-connecting-ip": "198.51.100.61" } };
  const begun = Math.floor(Date.now() / 60_000);
  for (let count = 0; count < 30; count++) expect((await world.request("/credentials/1", loud)).status).toBe(401);
  expect((await world.request("/credentials/1", quiet)).status).toBe(401);
  for (let count = 0; count < 12; count++) expect((await ask("GET", "/admin/bans")).status).toBe(200);
  await sendLogs(world.edge.LOG_BOOK);
  const found = async (query: string) =>
    (await ask<{ events: Record<string, unknown>[] }>("GET", `/admin/security-events?limit=100&${query}`)).body.events;
  // A minute that turned meanwhile brings ten more.
  const minutes = Math.floor(Date.now() / 60_000) - begun + 1;
  const written = (await found("event=access_denied&address=198.51.100.60")).length;
  expect(written).toBeGreaterThanOrEqual(10);
  expect(written).toBeLessThanOrEqual(10 * minutes);
  expect(await found("event=lines_counted&address=198.51.100.60")).toMatchObject([
    { of: "access_denied", count: 30 - written },
  ]);
  expect(await found("event=access_denied&address=198.51.100.61")).toHaveLength(1);
  // What operators do is written, however much it is.
  expect((await found("event=admin_call")).length).toBeGreaterThanOrEqual(12);
});

test("a book that can't be read is 503 with a sentence, not our fault", async () => {
  const ask = operator(world, await world.operatorKey());
  const broken = { idFromName: () => ({}), get: () => ({ read: () => Promise.reject(new Error("overloaded")) }) };
  world.app = world.appOf({ ...world.edge, LOG_BOOK: broken as never });
  for (const path of ["/admin/logs", "/admin/logs/combined", "/admin/security-events"]) {
    const { status, body, headers } = await ask<{ error: string }>("GET", path);
    expect([status, body.code, headers.get("retry-after")], path).toEqual([503, "log_unavailable", "5"]);
    expect(body.error).toBe("The log book can't be read right now; try again in a few seconds.");
  }
});

test("a request's line names the client, the wallet it asked for, and an operator's path that there is not", async () => {
  const wallet = agent(0).address;
  await world.request(`/vms/${wallet}`);
  const ask = operator(world, await world.operatorKey());
  await ask("GET", "/admin/nothing/here");
  await ask("DELETE", "/admin/bans/203.0.113.77");
  await sendLogs(world.edge.LOG_BOOK);
  const stub = world.edge.LOG_BOOK.get(world.edge.LOG_BOOK.idFromName("book"));
  const lines = String(await stub.read("combined", 0))
    .trimEnd()
    .split("\n")
    .map((one) => JSON.parse(one) as Record<string, unknown>);
  expect(lines.filter(({ event }) => event === "request")).toMatchObject([
    { route: "/vms/:address", address: "203.0.113.7", wallet },
    { route: "/admin/keys" },
    { route: "/admin/*", path: "/admin/nothing/here", address: expect.stringMatching(/^10\./) },
    { route: "/admin/bans/:client", client: "203.0.113.77", address: expect.stringMatching(/^10\./) },
  ]);
});

test("lines are sent behind the answer, in one batch", async () => {
  const context = createExecutionContext();
  for (let count = 0; count < 3; count++) {
    await world.app.request("https://api.example/health", {}, undefined, context);
  }
  await waitOnExecutionContext(context);
  const stub = world.edge.LOG_BOOK.get(world.edge.LOG_BOOK.idFromName("book"));
  expect(String(await stub.read("combined", 0)).match(/"route":"\/health"/g)).toHaveLength(3);
});

test("a book that can't be reached fails nothing, and gets the lines with the next batch", async () => {
  log("info", "kept");
  log("page", "kept_too");
  await sendLogs(broken);
  await sendLogs(world.edge.LOG_BOOK);
  const stub = world.edge.LOG_BOOK.get(world.edge.LOG_BOOK.idFromName("book"));
  expect(String(await stub.read("combined", 0))).toMatch(/"event":"kept"[\s\S]*"event":"kept_too"/);
  expect(String(await stub.read("error", 0))).toContain('"event":"kept_too"');
});

test("while the book can't be reached pages wait, one for each cause, and none is dropped for another (hard case 40)", async () => {
  const { sent, to } = taking();
  for (let count = 0; count < 200; count++) log("page", "first", { count, text: "x".repeat(500) });
  await sendLogs(broken);
  for (let about = 0; about < 150; about++) log("page", "other", { about, text: "x".repeat(20_000) });
  for (let count = 0; count < 200; count++) {
    withLogScope({ requestId: crypto.randomUUID() }, () => log("page", "first", { count: 1_000 + count }));
  }
  log("page", "last");
  await sendLogs(broken);
  log("info", "x");
  await sendLogs(to);
  const [{ pages: kept = {} } = {}] = sent;
  const others = Array.from({ length: 150 }, (_, about) => `other ${about}`);
  expect(Object.keys(kept).sort()).toEqual([...others, "first", "last"].sort());
  expect(JSON.parse(kept["first"] ?? "{}")).toMatchObject({ event: "first", count: 0 });
});

test("what is over and is told of again is not over, in one batch and across two that were kept", async () => {
  const { sent, to } = taking();
  // What the deployment has said.
  log("info", "x");
  await sendLogs(taking().to);
  log("page", "a");
  allClear("a");
  allClear("b", "vultr");
  log("page", "b", { about: "vultr" });
  allClear("c");
  allClear("d");
  await sendLogs(broken);
  log("page", "c");
  await sendLogs(to);
  const [{ pages: kept, cleared } = { pages: {}, cleared: new Set() }] = sent;
  expect(Object.keys(kept).sort()).toEqual(["a", "b vultr", "c"]);
  expect([...cleared].sort()).toEqual(["a", "d"]);
});

test("the level decides what is written, and never keeps an audit line or a page back", async () => {
  setLogLevel("error");
  for (const level of ["debug", "info", "warn", "error", "security", "page"] as const) log(level, `at_${level}`);
  setLogLevel("debug");
  log("debug", "for_debugging");
  setLogLevel("info");
  await sendLogs(world.edge.LOG_BOOK);
  const stub = world.edge.LOG_BOOK.get(world.edge.LOG_BOOK.idFromName("book"));
  const events = String(await stub.read("combined", 0))
    .trimEnd()
    .split("\n")
    .map((one) => (JSON.parse(one) as { event: string }).event);
  expect(events).toEqual(["at_error", "at_security", "at_page", "for_debugging"]);
});

test("what is over is told at every level, although no line is written of it (hard case 40)", async () => {
  // What the deployment has said.
  log("info", "x");
  await sendLogs(taking().to);
  for (const level of ["info", "warn", "error"] as const) {
    setLogLevel(level);
    const { sent, to } = taking();
    log("info", "idle");
    allClear("refund_held");
    await sendLogs(to);
    await sendLogs(to);
    expect(sent.flatMap(({ cleared }) => [...cleared])).toEqual(["refund_held"]);
  }
  setLogLevel("info");
});

test("a scope's fields are on each of its lines and in nobody else's", async () => {
  const lines: Record<string, unknown>[] = [];
  vi.spyOn(console, "log").mockImplementation((text: string) => {
    for (const one of text.split("\n")) lines.push(JSON.parse(one) as never);
  });
  await Promise.all(
    [1, 2].map((job) =>
      withLogScope({ job }, async () => {
        note({ seen: job });
        await new Promise((resolve) => setTimeout(resolve, 5));
        log("info", "done", noted());
      }),
    ),
  );
  await sendLogs(world.edge.LOG_BOOK);
  vi.restoreAllMocks();
  expect(lines).toMatchObject([
    { job: 1, seen: 1 },
    { job: 2, seen: 2 },
  ]);
});

test("of other people's errors a line has name, place, code and status alone (hard case 23)", () => {
  const key = "0123456789abcdef0123456789abcdef";
  const url = `https://rpc.example/v2/${key}`;
  const inner = Object.assign(new TypeError(`fetch failed: ${url}`), {
    code: "ECONNREFUSED",
    errno: -111,
    url,
    cause: new Error(key),
  });
  const error = Object.assign(new Error(`HTTP request failed. URL: ${url}`, { cause: inner }), {
    name: "HttpRequestError",
    status: 503,
    url,
    body: { method: "eth_sendRawTransaction", params: [key] },
    headers: new Headers({ authorization: key }),
    details: key,
    metaMessages: [`URL: ${url}`],
    request: { url, body: key },
  });
  const at = expect.stringMatching(/^at /);
  const fields = errorFields(error);
  expect(fields).toEqual({
    error: "HttpRequestError",
    at,
    status: 503,
    cause: { error: "TypeError", at, code: "ECONNREFUSED", cause: { error: "Error", at } },
  });
  expect(JSON.stringify(fields)).not.toContain(key);
  // What is thrown and is no error says nothing at all.
  expect(errorFields(url)).toEqual({ error: "string" });
  expect(errorFields({ message: url, code: url })).toEqual({ error: "object" });
});

test("whatever a field is called, a secret does not get into a line", async () => {
  const { authorization = "" } = await fixedHeaders(agent(0), 7);
  const secrets = [
    `0x${bytesToHex(randomBytes(32))}`,
    bytesToHex(randomBytes(32)),
    authorization.slice("Bearer ".length),
    makeAdminKey(),
    generateHostKey().privateKey.split("\n")[2] ?? "",
    Buffer.from(randomBytes(64)).toString("base64"),
    "rpa_0123456789ABCDEF",
    "ABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789",
    `ecc:${bytesToHex(randomBytes(65))}:${bytesToHex(randomBytes(16))}`,
    PAGER_SECRET,
    "10.1.2.3",
    "192.168.7.9",
    "172.20.0.4",
    "fd00:1:2::3",
  ];
  for (const secret of secrets) {
    for (const fields of [
      { detail: `the vendor said ${secret}, twice` },
      { deep: { list: [{ of: `x=${secret}&y` }] } },
      { message: `-----BEGIN PRIVATE KEY-----\n${secret}\n-----END PRIVATE KEY-----` },
      { url: `https://rpc.example/v2/${secret}?k=${secret}` },
    ]) {
      expect(JSON.stringify(redactFields(fields)), secret).not.toContain(secret);
    }
  }
  expect(redactFields({ privateKey: "short", apiKey: "short", signature: "0x1" })).toEqual({
    privateKey: "[redacted]",
    apiKey: "[redacted]",
    signature: "[redacted]",
  });
});

test("what an audit is about stays readable", () => {
  const fields = {
    address: "10.1.2.3",
    txHash: `0x${"ab".repeat(32)}`,
    message: `The signer ${agent(0).address} does not own token 7.`,
    url: "https://api.vultr.com/v2/instances?page=2",
    label: "clawcloud-production-1234567-0a1b2c3d-0-1",
    tokenId: 7,
    none: undefined,
  };
  expect(redactFields(fields)).toEqual({ ...fields, url: "https://api.vultr.com/…", none: undefined });
});
