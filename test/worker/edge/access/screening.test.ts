// Attacks are told from honest input, counted and logged; nothing honest is flagged.
import fc from "fast-check";
import { afterEach, beforeEach, expect, test, vi } from "vitest";
import { makeAdminKey } from "../../../../src/credentials/admin-key.ts";
import { findAttack, textsOfUrl } from "../../../../src/edge/access/screening.ts";
import { freshHeaders } from "../../../world/agent.ts";
import { agent } from "../../chain.ts";
import { type Deployment, deploy } from "../../deployment.ts";

let world: Deployment;
let lines: Record<string, unknown>[];
beforeEach(async () => {
  world = await deploy();
  lines = [];
  for (const method of ["log", "warn", "error"] as const) {
    // One call may print many lines.
    vi.spyOn(console, method).mockImplementation((text: string) => {
      for (const line of text.split("\n")) lines.push(JSON.parse(line) as object as never);
    });
  }
});
afterEach(() => {
  vi.restoreAllMocks();
});
const events = (event: string) => lines.filter((line) => line["event"] === event);

const ATTACKS = [
  "1' OR '1'='1",
  "1 or 1=1",
  "1) AND 5=5 -- x",
  "1' UNION SELECT NULL,sqlite_version()-- -",
  "1 UNION/**/ALL/**/SELECT 1",
  '"; DROP TABLE vms; --',
  "1;SELECT SLEEP(5)#",
  "1 AND 3516=(SELECT COUNT(*) FROM sysusers AS s1)",
  "1' AND (SELECT 4 FROM (SELECT(SLEEP(5)))x) AND 'a'='a",
  "x'||(select name from sqlite_master)||'",
  "1; WAITFOR DELAY '0:0:5'--",
  "1 ORDER BY 1",
  "1 AND LIKE('ABCDEFG',UPPER(HEX(RANDOMBLOB(500000000/2))))",
  "1 PROCEDURE ANALYSE(EXTRACTVALUE(1,CONCAT(0x5c,0x71)),1)",
  "(CASE WHEN (1=1) THEN 1 ELSE 2 END)",
  "<script>alert(1)</script>",
  '"><img src=x onerror=alert(1)>',
  "javascript:alert(1)",
  "<svg/onload=alert`1`>",
  "'><ScRiPt >prompt(1)</ScRiPt>",
  "<iframe srcdoc=x>",
];

test.each(ATTACKS)("told as an attack: %s", (attack) => {
  expect(findAttack(attack)).not.toBeNull();
});

test.each(ATTACKS)("refused in path and query, percent-encoded or not: %s", async (attack) => {
  const encoded = encodeURIComponent(attack);
  for (const path of [
    `/status/${encoded}`,
    `/vms/x?cursor=${encoded}`,
    `/nothing?q=${encoded.replaceAll("%20", "+")}`,
  ]) {
    const answer = await world.request(path, { headers: { "cf-connecting-ip": `203.0.113.${lines.length % 250}` } });
    expect([path, answer.status]).toEqual([path, 400]);
    expect(await answer.json()).toMatchObject({ code: "injection_refused" });
  }
});

test("an attempt is in the security log with address, route and the input, its secrets masked", async () => {
  const secret = `0x${"ab".repeat(32)}`;
  const query = encodeURIComponent(`${secret}' OR '1'='1`);
  const answer = await world.request(`/status/5?key=${query}`, { headers: { "cf-connecting-ip": "198.51.100.40" } });
  expect(answer.status).toBe(400);
  expect(events("injection_attempt")).toMatchObject([
    {
      level: "security",
      address: "198.51.100.40",
      route: "/status/5",
      where: "url",
      input: expect.stringContaining("OR '1'='1"),
    },
  ]);
  expect(JSON.stringify(lines)).not.toContain("abababab");
});

test("a key in the path of an attack is masked before the path is cut: half of one looked like none", async () => {
  const key = "ab".repeat(32);
  // Cut at sixty characters, thirty-two digits of the key were left.
  await world.request(`/nothing/1.2.3.4.5.6.7.8.9.0/${key}?q=<script>`);
  expect(events("injection_attempt")).toMatchObject([{ route: "/nothing/1.2.3.4.5.6.7.8.9.0/[redacted]" }]);
  expect(JSON.stringify(lines)).not.toContain("abababab");
});

test("a refused body is looked at where it was refused: what the schema took beside that says what it likes (hard case 22)", async () => {
  const headers = { "x-api-key": await world.operatorKey(), "content-type": "application/json" };
  const ban = async (body: object) => {
    const answer = await world.request("/admin/bans", { method: "POST", headers, body: JSON.stringify(body) });
    return ((await answer.json()) as { code: string }).code;
  };
  const reason = "sent ' OR '1'='1' -- and <script>";
  expect(await ban({ address: "203.0.113.300", durationSeconds: 60, reason })).toBe("invalid_request");
  expect(events("injection_attempt")).toEqual([]);
  expect(await ban({ address: "' OR '1'='1", durationSeconds: 60, reason: "x" })).toBe("injection_refused");
  expect(await ban({ address: "203.0.113.3", durationSeconds: 60, reason: "x", "<script>": 1 })).toBe(
    "injection_refused",
  );
});

test("a body that breaks off under a stated length is the client's error, once a 500", async () => {
  const body = new ReadableStream({
    start: (controller) => controller.error(new TypeError("the connection was lost")),
  });
  const answer = await world.request("/agents/generate-wallet", {
    method: "POST",
    body,
    headers: { "content-type": "application/json", "content-length": "100" },
    duplex: "half",
  } as RequestInit);
  expect([answer.status, ((await answer.json()) as { code: string }).code]).toEqual([400, "invalid_request"]);
  expect(events("injection_attempt")).toEqual([]);
});

test("a wrong operator's key that looks like an attack is logged as one and counts once", async () => {
  const headers = { "cf-connecting-ip": "198.51.100.43", "x-api-key": "' OR '1'='1" };
  const ask = async () => (await world.request("/admin/bans", { headers })).status;
  for (let count = 0; count < 9; count++) expect(await ask()).toBe(400);
  expect(events("injection_attempt")).toHaveLength(9);
  expect(events("ip_banned")).toEqual([]);
  expect(await ask()).toBe(400);
  expect(events("ip_banned")).toHaveLength(1);
});

test("refused headers and bodies are looked at: ten of them ban", async () => {
  const address = { "cf-connecting-ip": "198.51.100.41" };
  const post = (body: string, headers: Record<string, string> = {}) =>
    world.request("/agents/generate-wallet", {
      method: "POST",
      body,
      headers: { ...address, "content-type": "application/json", ...headers },
    });
  expect((await post(JSON.stringify({ agentId: "x' OR '1'='1" }))).status).toBe(400);
  expect((await post("{}", { "content-type": "text/<script>" })).status).toBe(400);
  // No JSON at all: its parser's error once passed the screening by.
  expect((await post("' OR '1'='1' --")).status).toBe(400);
  const get = (headers: Record<string, string>) =>
    world.request("/credentials/1", { headers: { ...address, ...headers } });
  for (let count = 0; count < 6; count++) expect((await get({ authorization: "Bearer ' or 1=1--" })).status).toBe(400);
  const message = Buffer.from("ClawCloud Access Request: 1\nURI: javascript:alert(1)").toString("base64");
  const last = await get({ authorization: `Bearer 0x${"11".repeat(65)}`, "x-access-message": message });
  expect(last.status).toBe(400);
  expect(events("injection_attempt").map((line) => line["where"])).toEqual([
    "body",
    "content-type",
    "body",
    ...Array.from({ length: 6 }, () => "authorization"),
    "x-access-message",
  ]);
  expect(events("ip_banned")).toMatchObject([{ address: "198.51.100.41" }]);
  expect((await world.request("/tiers", { headers: address })).status).toBe(403);
});

test("a wrong signature is in the security log and counts nothing (honest agents make them)", async () => {
  const headers = { "cf-connecting-ip": "198.51.100.42", authorization: `Bearer 0x${"1".repeat(130)}` };
  for (let count = 0; count < 15; count++) await world.request("/credentials/1", { headers });
  expect(events("access_denied")[0]).toMatchObject({
    level: "security",
    address: "198.51.100.42",
    code: "signature_invalid",
  });
  expect(events("ip_banned")).toEqual([]);
});

test("whatever a schema accepts is no attack", async () => {
  const accepted = fc.oneof(
    fc.stringMatching(/^[A-Za-z0-9][A-Za-z0-9_-]{2,63}$/),
    fc.stringMatching(/^0x[0-9a-fA-F]{40}$/),
    fc.nat().map(String),
    fc.stringMatching(/^[A-Za-z0-9_-]{8,64}$/),
    fc.base64String().map((text) => `Bearer ${text}`),
    fc.domain().map((host) => `https://${host}/credentials/7`),
    fc.date({ noInvalidDate: true }).map((date) => date.toISOString()),
    fc.ipV6(),
    fc.uuid(),
  );
  fc.assert(
    fc.property(accepted, (text) => findAttack(text) === null),
    { numRuns: 20_000 },
  );
  const { "x-access-message": message = "" } = await freshHeaders("https://api.example", agent(0), 42);
  expect(findAttack(Buffer.from(message, "base64").toString())).toBeNull();
});

test("no URL whose parts a schema accepts is an attack (hard case 22)", () => {
  const time = fc
    .date({ noInvalidDate: true, min: new Date(0), max: new Date(4e12) })
    .map((date) => date.toISOString());
  const zone = fc.oneof(
    fc.domain(),
    fc.constantFrom("union-select.example", "document.domain", "sysobjects.example", "mysql.user", "on.or.select.from"),
    fc.stringMatching(/^[a-z0-9.-]{1,253}$/),
  );
  const client = fc
    .tuple(
      fc.oneof(
        fc.ipV4(),
        fc.ipV6(),
        zone.map((name) => `worker:${name}`),
      ),
      fc.constantFrom("", "#cross-site"),
    )
    .map((parts) => parts.join(""));
  const query = fc.record(
    {
      event: fc.oneof(fc.stringMatching(/^[a-z_]{1,60}$/), fc.constantFrom("union", "select", "or", "and", "onload")),
      address: client,
      since: fc.oneof(
        time,
        time.map((text) => text.replace("Z", "+02:00")),
      ),
      until: time,
      limit: fc.nat().map(String),
      cursor: fc.nat().map(String),
    },
    { requiredKeys: [] },
  );
  const isAttack = (target: string) => textsOfUrl(target).some((text) => findAttack(text) !== null);
  fc.assert(
    fc.property(query, client, (parameters, path) => {
      expect(isAttack(`/admin/security-events?${new URLSearchParams(parameters as Record<string, string>)}`)).toBe(
        false,
      );
      expect(isAttack(`/admin/bans/${encodeURIComponent(path)}`)).toBe(false);
      expect(isAttack(`/admin/bans/${path.replace("#", "%23")}`)).toBe(false);
    }),
    { numRuns: 5_000 },
  );
  expect(isAttack("/admin/bans/worker:x' OR '1'='1")).toBe(true);
});

test.each([
  "select-from-where",
  "drop-table-agent",
  "O'Brien's agent",
  "union of agents",
  "please select a tier from the list",
  "orders and returns",
  "salt & pepper; sugar",
  "1 + 1 = 2",
  "a <b> c",
  "utm_source=newsletter&utm_campaign=spring-2026",
  "on=1&off=0",
  "Bearer OnAAAA==",
  "Bearer OnAAA=",
  "Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 (KHTML, like Gecko)",
])("no attack: %s", (text) => {
  expect(findAttack(text)).toBeNull();
});

test.each([
  ["a path", `/status/${"1".repeat(2_100)}`, {}, "uri_too_long"],
  ["a query", `/tiers?x=${"1".repeat(2_100)}`, {}, "uri_too_long"],
  ["a signature", "/credentials/1", { authorization: `Bearer 0x${"1".repeat(17_000)}` }, "header_too_large"],
  [
    "a message",
    "/credentials/1",
    { "x-access-message": "a".repeat(5_000), authorization: `Bearer 0x${"1".repeat(130)}` },
    "header_too_large",
  ],
  ["an operator's key", "/admin/bans", { "x-api-key": `claw_${"a".repeat(300)}` }, "header_too_large"],
  [
    "an operator's key as a token",
    "/admin/bans",
    { authorization: `Bearer ${makeAdminKey()}0000${"a".repeat(300)}` },
    "header_too_large",
  ],
])("%s that is too long is 400 and no violation", async (_what, path, headers, code) => {
  const answer = await world.request(path, { headers });
  expect([answer.status, ((await answer.json()) as { code: string }).code]).toEqual([400, code]);
  expect(answer.headers.get("x-ratelimit-limit")).not.toBeNull();
  expect(events("injection_attempt")).toEqual([]);
});

test("a content type that is too long is 400 and no violation", async () => {
  const headers = { "content-type": `application/json; x=${"a".repeat(300)}` };
  const answer = await world.request("/agents/generate-wallet", { method: "POST", headers, body: "{}" });
  expect([answer.status, ((await answer.json()) as { code: string }).code]).toEqual([400, "header_too_large"]);
  expect(events("injection_attempt")).toEqual([]);
});
