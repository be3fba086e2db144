// Every malformed parameter, header, body or method: the right 4xx with a sentence, never a 5xx.
import { beforeAll, expect, test } from "vitest";
import { type Deployment, deploy } from "../../deployment.ts";

let world: Deployment;
beforeAll(async () => {
  world = await deploy({
    edge: {
      RATE_LIMITS:
        "status=1000000/60,vms=1000000/60,credentials=1000000/60,tiers=1000000/60,documents=1000000/60,unknown=1000000/60",
    },
  });
});

type Body = { error: string; code: string; requestId: string; details?: unknown[] };
async function ask(path: string, init: RequestInit = {}) {
  const response = await world.request(path, init);
  return { status: response.status, body: (await response.json()) as Body, headers: response.headers };
}

const BAD_TOKEN_IDS = [
  "-1",
  "+1",
  "01",
  "1.0",
  "1e3",
  "0x1",
  "abc",
  "9007199254740992",
  "99999999999999999999",
  "%20",
  "1%00",
  "%F0%9F%92%A9",
  "null",
];
const BAD_ADDRESSES = [
  "0x",
  "0x123",
  `0x${"g".repeat(40)}`,
  "f39Fd6e51aad88F6F4ce6aB8827279cffFb92266",
  "0xF39Fd6e51aad88F6F4ce6aB8827279cffFb92266",
  `0x${"a".repeat(41)}`,
  "vitalik.eth",
];

test.each(BAD_TOKEN_IDS.flatMap((id) => [`/status/${id}`, `/credentials/${id}`]))(
  "%s is 400 with a sentence",
  async (path) => {
    const { status, body } = await ask(path);
    expect(status).toBe(400);
    expect(body).toEqual({
      error: expect.stringMatching(/^tokenId must be .*\.$/),
      code: "invalid_request",
      requestId: expect.stringMatching(/^[0-9a-f-]{36}$/),
      details: [{ field: "tokenId", message: expect.any(String) }, ...(body.details?.slice(1) ?? [])],
    });
  },
);

test.each(BAD_ADDRESSES)("/vms/%s is 400", async (address) => {
  const { status, body } = await ask(`/vms/${address}`);
  expect([status, body.code]).toEqual([400, "invalid_request"]);
});

test.each([
  "limit=0",
  "limit=501",
  "limit=-1",
  "limit=1.5",
  "limit=x",
  "limit=",
  "cursor=x",
  "cursor=-1",
  "limit=5&limit=x",
])("/vms?%s is 400 or what it says first", async (query) => {
  const response = await world.request(`/vms/0x${"1".repeat(40)}?${query}`);
  expect([200, 400]).toContain(response.status);
  if (!query.startsWith("limit=5&")) expect(response.status).toBe(400);
});

test.each(["%", "%E0%A4%A", "%ff"])("a path with a broken escape (%s) is a 4xx", async (part) => {
  const { status } = await ask(`/status/${part}`);
  expect(status).toBeGreaterThanOrEqual(400);
  expect(status).toBeLessThan(500);
});

const BAD_SIGNATURES = [
  "",
  "Bearer",
  "Bearer ",
  "Basic abc",
  "Bearer 0x",
  "Bearer abc",
  `Bearer 0x${"0".repeat(130)}`,
  `Bearer 0x${"f".repeat(130)}`,
  // 64 bytes: r and s that are none of the curve's.
  `Bearer 0x${"0".repeat(128)}`,
  `Bearer 0x${"f".repeat(128)}`,
  `Bearer 0x${"0".repeat(127)}1`,
  `Bearer 0x${"a".repeat(126)}`,
  `Bearer 0x${"a".repeat(5_001)}`,
  "Bearer 0xzz",
];
test.each(BAD_SIGNATURES)("an Authorization of %j is 401", async (authorization) => {
  const { status, body } = await ask("/credentials/1", { headers: { authorization } });
  expect(status).toBe(401);
  expect(["signature_missing", "signature_invalid"]).toContain(body.code);
});

test.each(["x", "====", "ü", "a".repeat(4_000), btoa("\xff\xfe"), btoa("hello"), btoa("ClawCloud Access Request: 1")])(
  "an X-Access-Message of %j is 401",
  async (message) => {
    const headers = new Headers({ authorization: `Bearer 0x${"1".repeat(130)}` });
    try {
      headers.set("x-access-message", message);
    } catch {
      return;
    }
    const { status, body } = await ask("/credentials/1", { headers: Object.fromEntries(headers) });
    expect([status, body.code]).toEqual([401, "signature_invalid"]);
  },
);

test.each([
  ["/health", "POST"],
  ["/tiers", "DELETE"],
  ["/status/1", "PUT"],
  ["/vms/0x1111111111111111111111111111111111111111", "POST"],
  ["/credentials/1", "POST"],
  ["/credentials/1", "PATCH"],
  ["/credentials/1/ack", "GET"],
  ["/openapi.json", "POST"],
  ["/docs", "PUT"],
  ["/llms.txt", "DELETE"],
  ["/", "POST"],
])("%s by %s is 405 and names what is allowed", async (path, method) => {
  const { status, body, headers } = await ask(path, { method });
  expect([status, body.code]).toEqual([405, "method_not_allowed"]);
  expect(headers.get("allow")).toMatch(/GET|POST/);
  expect(headers.get("allow")).not.toContain(method);
});

test.each(["/nope", "/status", "/status/1/2", "/credentials", "/vms", "/.env", "/wp-login.php", "/../etc/passwd"])(
  "%s is 404",
  async (path) => {
    const { status, body } = await ask(path);
    expect([status, body.code]).toEqual([404, "not_found"]);
  },
);

test("a body over 16 KiB is 413, one that is no JSON 415, on the route that may take one", async () => {
  const big = await ask("/credentials/1/ack", {
    method: "POST",
    body: "x".repeat(17_000),
    headers: { "content-type": "application/json" },
  });
  expect([big.status, big.body.code]).toEqual([413, "body_too_large"]);
  const form = await ask("/credentials/1/ack", {
    method: "POST",
    body: "a=b",
    headers: { "content-type": "application/x-www-form-urlencoded" },
  });
  expect([form.status, form.body.code]).toEqual([415, "unsupported_media_type"]);
});

test("every answer carries its request id, security headers and CORS, errors too", async () => {
  for (const path of ["/tiers", "/status/x", "/nope", "/health"]) {
    const { headers } = await ask(path, { headers: { origin: "https://agent.example" } });
    expect(headers.get("x-request-id")).toMatch(/^[0-9a-f-]{36}$/);
    expect(headers.get("access-control-allow-origin")).toBe("*");
    expect(headers.get("access-control-expose-headers")).toContain("Retry-After");
    expect(headers.get("x-content-type-options")).toBe("nosniff");
    expect(headers.get("content-security-policy")).toContain("default-src 'none'");
    expect(headers.get("strict-transport-security")).toBeTruthy();
  }
});

test("a preflight lets an agent's page send its signature", async () => {
  const response = await world.request("/credentials/1", {
    method: "OPTIONS",
    headers: {
      origin: "https://agent.example",
      "access-control-request-method": "GET",
      "access-control-request-headers": "authorization,x-access-message",
    },
  });
  expect(response.status).toBe(204);
  expect(response.headers.get("access-control-allow-headers")?.toLowerCase()).toContain("x-access-message");
});

test("an unknown failure is one fixed sentence; nothing of its cause reaches the client", async () => {
  await world.sql.prepare("ALTER TABLE vms RENAME TO hidden").run();
  const { status, body } = await ask("/status/1");
  await world.sql.prepare("ALTER TABLE hidden RENAME TO vms").run();
  expect(status).toBe(500);
  expect(body).toEqual({
    error: "Something went wrong on our side; try again, and name the request id if it persists.",
    code: "internal_error",
    requestId: expect.any(String),
  });
});

test("a body that breaks off before its end is 400, not our fault", async () => {
  const body = new ReadableStream({
    start: (controller) => controller.error(new TypeError("the connection was lost")),
  });
  const { status, body: answer } = await ask("/credentials/1/ack", {
    method: "POST",
    body,
    duplex: "half",
  } as RequestInit);
  expect([status, answer.code]).toEqual([400, "invalid_request"]);
});
