// Sends requests that nobody would write to the edge as it is built for upload, over real HTTP. What is sent is drawn
// from the service's own OpenAPI document: its paths, methods and parameters, right, wrong and absurd. What must hold:
// no 5xx; every answer is one that the document declares, in the shape that it declares; wrong parameters are 400; what the
// document takes in each of its parts is never called an attack (hard case 22).
import { type IncomingHttpHeaders, type RequestOptions, request } from "node:http";
import { connect } from "node:net";
import type { ValidateFunction } from "ajv/dist/2020.js";
import fc from "fast-check";
import { isWellFormedKey, makeAdminKey } from "../../src/credentials/admin-key.ts";
import { fixedHeaders, freshHeaders } from "../world/agent.ts";
import { EDGE_UNDER_LOAD, openShop } from "../world/shop.ts";
import { createAjv } from "./vendor-documents.ts";

type Parameter = { in: "path" | "query" | "header"; name: string; required?: boolean; schema: object };
type BodySchema = {
  type?: string | string[];
  enum?: unknown[];
  pattern?: string;
  minimum?: number;
  maximum?: number;
  example?: unknown;
  properties?: Record<string, BodySchema>;
  required?: string[];
};
type Operation = {
  parameters?: Parameter[];
  requestBody?: { content: Record<string, { schema: BodySchema }> };
  responses: Record<string, { content?: Record<string, { schema: object }> }>;
};
type Document = { openapi: string; paths: Record<string, Record<string, Operation>>; components: object };

type Sent = { method: string; path: string; headers: Record<string, string>; body: string | null };
type Drawn = Sent & {
  /** Where the request's method and path are an operation's. */
  operation: string | null;
  /** Parameters that the document's schema refuses. */
  wrong: string[];
};
type Answer = { status: number; headers: IncomingHttpHeaders; body: string };

export type FuzzReport = {
  requests: number;
  /** Those whose every part the document takes. */
  valid: number;
  byStatus: Record<string, number>;
  byCode: Record<string, number>;
  /** Bytes that are no HTTP: answered with 4xx, or the connection was closed. */
  raw: Record<string, number>;
};

type Signatures = { fixed: Record<string, string>; fresh: Record<string, string>[] };

const FRESH_SIGNATURES = 30;
/** Neither counted nor banned: most of what is sent here would ban its sender within seconds. */
const CLIENTS = ["203.0.113.7", "198.51.100.9", "192.0.2.1", "2001:db8::1", "2001:db8:1:2::9"];
const METHODS = ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "PROPFIND", "QUERY"];
const NASTY = [
  "",
  "0",
  "-1",
  "+1",
  "01",
  "1.0",
  "1e3",
  "0x1",
  "NaN",
  "null",
  "undefined",
  "true",
  "9007199254740991",
  "9007199254740992",
  "99999999999999999999999999",
  " 1",
  "1 ",
  "1%0a",
  "1;",
  "%00",
  "%",
  "%ff",
  "%2e%2e%2f",
  "..",
  "../../etc/passwd",
  "1' OR '1'='1",
  '"; DROP TABLE vms; --',
  "<script>alert(1)</script>",
  "#{7*7}",
  "{{7*7}}",
  "__proto__",
  "constructor",
  "toString",
  "١٢٣",
  "１",
  "💥",
  "\u0000",
  "\ud800",
  `0x${"0".repeat(40)}`,
  `0x${"F".repeat(40)}`,
  `0x${"g".repeat(40)}`,
  `0X${"a".repeat(40)}`,
  "a".repeat(300),
  "9".repeat(4_000),
];
const BODIES = [
  "{}",
  "[]",
  "null",
  "1",
  '"x"',
  "{",
  "{]",
  '{"a":1,"a":2}',
  '{"__proto__":{"x":1}}',
  "\u0000",
  `{"a":"${"x".repeat(20_000)}"}`,
  "[".repeat(5_000),
  "a=1&b=2",
];
const TYPES = ["application/json", "application/json; charset=utf-16", "text/plain", "application/xml", "x", ""];

const SCAN_MS = 20_000;

/** Sends `runs` requests, then some that are no HTTP. Throws at the first that breaks a rule, shrunk, with the seed. */
export async function fuzz({ runs, seed }: { runs: number; seed: number }): Promise<FuzzReport> {
  const bootstrapKey = makeAdminKey();
  const variables = {
    ...EDGE_UNDER_LOAD.variables,
    ADMIN_API_KEY: bootstrapKey,
    UNLIMITED_CLIENTS: CLIENTS.join(","),
  };
  const shop = await openShop([{ ...EDGE_UNDER_LOAD, variables }]);
  const { workers, owner, tokenId } = shop;
  // While nobody scans, /health rightly says 503.
  const scans = setInterval(() => void shop.scan().catch(() => undefined), SCAN_MS);
  try {
    const url = new URL(workers.url("edge"));
    const document = (await (await fetch(new URL("/openapi.json", url))).json()) as Document;
    const made = await fetch(new URL("/admin/keys", url), {
      method: "POST",
      headers: { "x-api-key": bootstrapKey, "content-type": "application/json" },
      body: '{"name":"fuzz"}',
    });
    const { key: operatorKey } = (await made.json()) as { key: string };
    const signatures: Signatures = { fixed: await fixedHeaders(owner, tokenId), fresh: [] };
    const judge = createJudge(document, operatorKey, signatures);
    for (let number = 10; number < 10 + FRESH_SIGNATURES; number++) {
      // A nonce opens once: the second request with it is refused.
      const action = number % 2 === 0 ? "" : "/ack";
      signatures.fresh.push(
        await freshHeaders(shop.publicUrl, owner, tokenId, action, { Nonce: `fuzz-nonce-${number}` }),
      );
    }
    const report: FuzzReport = { requests: 0, valid: 0, byStatus: {}, byCode: {}, raw: {} };
    const property = fc.asyncProperty(
      requests(document, judge, signatures, operatorKey, owner.address, tokenId),
      async (drawn) => {
        const answer = await send(url, drawn);
        count(report.byStatus, String(answer.status));
        if (judge.isValid(drawn)) report.valid += 1;
        report.requests += 1;
        const code = judge.check(drawn, answer);
        if (code !== null) count(report.byCode, code);
      },
    );
    await fc.assert(property, { numRuns: runs, seed, endOnFailure: false });
    for (const bytes of fc.sample(rawBytes, { numRuns: Math.ceil(runs / 20), seed })) {
      const first = await sendRaw(url, bytes);
      if (/^HTTP\/1\.1 5/.test(first) && !/^HTTP\/1\.1 50[15] /.test(first))
        throw new Error(`bytes ${JSON.stringify(bytes)}: ${first}`);
      count(report.raw, /^HTTP\/1\.1 (\d+)/.exec(first)?.[1] ?? "closed");
    }
    const alive = await fetch(new URL("/health", url));
    if (alive.status !== 200) throw new Error(`after the run /health answers ${alive.status}`);
    return report;
  } finally {
    clearInterval(scans);
    await shop.close();
  }
}

const count = (counts: Record<string, number>, key: string) => {
  counts[key] = (counts[key] ?? 0) + 1;
};

type Judge = ReturnType<typeof createJudge>;

function createJudge(document: Document, operatorKey: string, signatures: Signatures) {
  const ajv = createAjv({ allErrors: false });
  ajv.addSchema({ ...document, $id: "document" }, "document");
  const compiled = new Map<string, ValidateFunction>();
  const at = (...steps: string[]): ValidateFunction => {
    const pointer = `document#/${steps.map((step) => encodeURIComponent(step.replaceAll("~", "~0").replaceAll("/", "~1"))).join("/")}`;
    const validate = compiled.get(pointer) ?? ajv.compile({ $ref: pointer });
    compiled.set(pointer, validate);
    return validate;
  };
  const isError = at("components", "schemas", "Error");
  const takesBody = (operation: string, body: string | null): boolean => {
    const declared = operationOf(document, operation)?.requestBody?.content["application/json"];
    if (declared === undefined || body === null) return declared === undefined && body === null;
    const [path = "", method = ""] = operation.split(" ");
    try {
      return (
        at("paths", path, method, "requestBody", "content", "application/json", "schema")(JSON.parse(body)) === true
      );
    } catch {
      return false;
    }
  };
  /** Whether each part of a request is one that the document takes; of headers, those that the service reads. */
  const isValid = ({ operation, wrong, headers, body }: Drawn): boolean => {
    if (operation === null || wrong.length > 0 || !takesBody(operation, body)) return false;
    const { authorization, "x-access-message": message, "x-api-key": key, "content-type": type } = headers;
    return (
      (authorization === undefined || /^Bearer 0x[0-9a-f]{130}$/.test(authorization)) &&
      (message === undefined || signatures.fresh.some((fresh) => fresh["x-access-message"] === message)) &&
      (key === undefined || isWellFormedKey(key)) &&
      (type === undefined || type === "application/json")
    );
  };

  return {
    isValid,
    /** Whether the document takes this value; a number on the wire is text. */
    takes(path: string, method: string, index: number, value: string): boolean {
      const validate = at("paths", path, method, "parameters", String(index), "schema");
      return validate(value) || (/^-?\d+(\.\d+)?$/.test(value) && validate(Number(value)));
    },
    /** Throws what is wrong with the answer; the error's code, or null for another answer. */
    check(drawn: Drawn, { status, headers, body }: Answer): string | null {
      const fail = (what: string): never => {
        throw new Error(`${drawn.method} ${drawn.path}: ${status} ${what}: ${body.slice(0, 300)}`);
      };
      // An order of more than the wallet has, or of a tier that nobody has: nobody's fault.
      const cantSell = status === 503 && /"code":"(?:operator_short|orders_full|sold_out)"/.test(body);
      if (status >= 500 && !cantSell) fail("is the server's fault");
      if (status !== 204 && headers["x-request-id"] === undefined) fail("has no X-Request-Id");
      // Who is nobody learns nothing of what would be wrong.
      const stranger = drawn.path.startsWith("/admin") && drawn.headers["x-api-key"] !== operatorKey;
      if (drawn.wrong.length > 0 && ![400, 413, 415, ...(stranger ? [401] : [])].includes(status))
        fail(`although ${drawn.wrong.join(", ")} is wrong`);
      const declared = drawn.operation === null ? undefined : operationOf(document, drawn.operation)?.responses;
      if (declared !== undefined && declared[status] === undefined) fail("is not declared by the document");
      if (drawn.method === "HEAD" || status === 204) return null;
      if (status < 400) {
        const [path = "", method = ""] = (drawn.operation ?? "").split(" ");
        if (declared?.[status]?.content?.["application/json"] === undefined) return null;
        const validate = at(
          "paths",
          path,
          method,
          "responses",
          String(status),
          "content",
          "application/json",
          "schema",
        );
        if (!validate(JSON.parse(body))) fail(`does not have the declared shape (${ajv.errorsText(validate.errors)})`);
        return null;
      }
      const error = parseError(body) ?? fail("has no JSON body");
      if (error.code === "injection_refused" && isValid(drawn)) fail("although the document takes all of it");
      const shape = declared?.[status]?.content?.["application/json"];
      const [path = "", method = ""] = (drawn.operation ?? "").split(" ");
      const isDeclared =
        shape === undefined
          ? isError
          : at("paths", path, method, "responses", String(status), "content", "application/json", "schema");
      if (!isDeclared(error)) fail(`has another error body (${ajv.errorsText(isDeclared.errors)})`);
      if (error.requestId !== headers["x-request-id"]) fail("names another request id than its header");
      return error.code;
    },
  };
}

function parseError(body: string): { code: string; requestId: string } | null {
  try {
    return JSON.parse(body) as { code: string; requestId: string };
  } catch {
    return null;
  }
}

/** By "path method", as the document has them. */
function operationOf(document: Document, key: string): Operation | undefined {
  const [path = "", method = ""] = key.split(" ");
  return document.paths[path]?.[method];
}

function requests(
  document: Document,
  judge: Judge,
  signatures: Signatures,
  operatorKey: string,
  owner: string,
  tokenId: number,
): fc.Arbitrary<Drawn> {
  const text = fc.oneof(
    { weight: 3, arbitrary: fc.constantFrom(...NASTY) },
    { weight: 2, arbitrary: fc.string({ unit: "binary", maxLength: 60 }) },
    { weight: 2, arbitrary: fc.constantFrom("7", "999999", owner, owner.toLowerCase()) },
    { weight: 2, arbitrary: fc.constant(String(tokenId)) },
    { weight: 1, arbitrary: fc.nat().map(String) },
    { weight: 1, arbitrary: fc.stringMatching(/^0x[0-9a-fA-F]{40}$/) },
  );
  /** Of the headers that the document declares: payments that are nearly one, and preferences. */
  const headerValue = fc.oneof(
    fc.constantFrom("wait=0", "wait=1", "wait=-1", "wait=1, wait=2", 'wait="0"; x', "respond-async, wait=0"),
    fc
      .record({
        x402Version: fc.constantFrom<unknown>(1, 2, 3, "2"),
        scheme: fc.constantFrom("exact", ""),
        network: fc.constantFrom("base", "eip155:8453"),
        accepted: fc.option(fc.record({ scheme: fc.constant("exact"), network: fc.string(), amount: fc.nat() })),
        payload: fc.jsonValue(),
      })
      .map((payload) =>
        Buffer.from(JSON.stringify(payload)).toString(payload.network === "base" ? "base64" : "base64url"),
      ),
  );
  const fieldValue = fc.oneof(
    fc.string({ unit: "grapheme-ascii", maxLength: 200 }),
    fc.constantFrom("0", "'; --", "x".repeat(8_000), "*/*", "\t", "gzip", "0x"),
  );
  const signature = fc.oneof(
    fc.constant(undefined),
    fc.constant(signatures.fixed["authorization"]),
    fc.stringMatching(/^[0-9a-f]{130}$/).map((hex) => `Bearer 0x${hex}`),
    fc.stringMatching(/^[0-9a-f]{0,300}$/).map((hex) => `Bearer 0x${hex}`),
    fieldValue.map((value) => `Bearer ${value}`),
    fieldValue,
  );
  const message = Buffer.from(signatures.fresh[0]?.["x-access-message"] ?? "", "base64").toString();
  const mutated = fc
    .tuple(fc.nat({ max: message.length }), fc.nat({ max: 40 }), fc.string({ maxLength: 20 }))
    .map(([from, length, patch]) => message.slice(0, from) + patch + message.slice(from + length));
  const accessMessage = fc.oneof(
    { weight: 3, arbitrary: fc.constant(undefined) },
    { weight: 2, arbitrary: mutated.map((value) => Buffer.from(value).toString("base64")) },
    { weight: 1, arbitrary: fc.base64String({ maxLength: 400 }) },
    { weight: 1, arbitrary: fieldValue },
  );
  const wildHeaders = fc
    .record({
      authorization: signature,
      "x-access-message": accessMessage,
      "content-type": fc.option(fc.oneof(fc.constantFrom(...TYPES), fieldValue), { nil: undefined }),
      accept: fc.option(fieldValue, { nil: undefined }),
      origin: fc.option(fieldValue, { nil: undefined }),
      "if-none-match": fc.option(fieldValue, { nil: undefined }),
      range: fc.option(fc.constantFrom("bytes=0-1", "bytes=-", "x"), { nil: undefined }),
      "x-api-key": fc.oneof(
        { weight: 4, arbitrary: fc.constant(operatorKey) },
        { weight: 1, arbitrary: fc.option(fieldValue, { nil: undefined }) },
        { weight: 1, arbitrary: fc.constant(makeAdminKey()) },
      ),
      "sec-fetch-site": fc.option(fc.constantFrom("same-site", "none"), { nil: undefined }),
      "x-forwarded-for": fc.option(fieldValue, { nil: undefined }),
    })
    .map((record) =>
      Object.fromEntries(Object.entries(record).filter((entry): entry is [string, string] => entry[1] !== undefined)),
    );
  const signedHeaders = fc.constantFrom(signatures.fixed, ...signatures.fresh);
  const unaddressed = fc.oneof(
    { weight: 4, arbitrary: wildHeaders },
    {
      weight: 1,
      arbitrary: fc
        .tuple(wildHeaders, signedHeaders)
        .map(([wild, signed]) => ({ ...wild, "content-type": "application/json", ...signed })),
    },
  );
  const headers = fc
    .tuple(unaddressed, fc.constantFrom(...CLIENTS))
    .map(([drawn, client]): Record<string, string> => ({ ...drawn, "cf-connecting-ip": client }));
  const body = fc.option(fc.oneof(fc.constantFrom(...BODIES), fc.json(), fc.string({ unit: "binary" })), { nil: null });

  const operations = Object.entries(document.paths).flatMap(([path, methods]) =>
    Object.entries(methods).map(([method, operation]) => ({ path, method, operation })),
  );
  const toOperation = fc.constantFrom(...operations).chain(({ path, method, operation }) => {
    const parameters = operation.parameters ?? [];
    const values = fc.tuple(
      ...parameters.map((parameter) => {
        if (parameter.in === "header") return fc.option(fc.oneof(text, headerValue), { nil: undefined });
        return parameter.in === "path" ? text : fc.option(text, { nil: undefined });
      }),
    );
    const schema = operation.requestBody?.content["application/json"]?.schema;
    const drawnBody: fc.Arbitrary<{ text: string | null; isJson: boolean }> = fc.oneof(
      { weight: 1, arbitrary: body.map((text) => ({ text, isJson: false })) },
      ...(schema === undefined
        ? []
        : [
            { weight: 4, arbitrary: drawValue(schema).map((value) => ({ text: JSON.stringify(value), isJson: true })) },
          ]),
    );
    return fc.record({ values, headers, sent: drawnBody }).map((drawn) => {
      let target = path;
      const query = new URLSearchParams();
      const declared: Record<string, string> = {};
      const wrong: string[] = [];
      for (const [index, parameter] of parameters.entries()) {
        const value = drawn.values[index]?.toWellFormed();
        if (value === undefined) continue;
        if (parameter.in === "header") {
          declared[parameter.name.toLowerCase()] = value;
          continue;
        }
        if (parameter.in === "path") target = target.replace(`{${parameter.name}}`, () => encodeURIComponent(value));
        else query.append(parameter.name, value);
        if (!judge.takes(path, method, index, value)) wrong.push(`${parameter.name} ${JSON.stringify(value)}`);
      }
      // An empty segment, "." and ".." make another path of it.
      const same =
        target.split("/").length === path.split("/").length && !/\/(%2e|\.){0,2}(\/|$)/i.test(target.slice(1));
      const search = query.size === 0 ? "" : `?${query}`;
      return {
        method: method.toUpperCase(),
        path: target + search,
        headers: {
          ...drawn.headers,
          ...declared,
          ...(drawn.sent.isJson ? { "content-type": "application/json" } : {}),
        },
        body: method === "get" ? null : drawn.sent.text,
        operation: same ? `${path} ${method}` : null,
        wrong: same ? wrong : [],
      };
    });
  });
  const elsewhere = fc
    .record({
      method: fc.constantFrom(...METHODS),
      path: fc.oneof(
        fc.webPath().map((path) => path || "/"),
        fc.constantFrom(...operations.map(({ path }) => path.replace(/\{\w+\}/, String(tokenId)))),
        text.map((value) => `/${encodeURIComponent(value.toWellFormed())}`),
        fc.webQueryParameters().map((query) => `/vms/${owner}?${query}`),
        fc.constantFrom(
          "//",
          "/./",
          "/%2f",
          "/status/%",
          "/status//1",
          "/status/1/",
          "/STATUS/1",
          "/docs/../health",
          "/?",
          "/*",
        ),
      ),
      headers,
      body,
    })
    .map((drawn) => ({ ...drawn, operation: null, wrong: [] }));
  // Among so many operations, one with its own signature would hardly ever be drawn, let alone twice with one nonce.
  const signed = fc
    .record({
      operation: fc.constantFrom("/credentials/{tokenId} get", "/credentials/{tokenId}/ack post"),
      signature: signedHeaders,
      client: fc.constantFrom(...CLIENTS),
    })
    .map(({ operation, signature, client }) => ({
      method: operation.endsWith("post") ? "POST" : "GET",
      path: operation.replace(/ .*/, "").replace("{tokenId}", String(tokenId)),
      headers: { ...signature, "cf-connecting-ip": client },
      body: null,
      operation,
      wrong: [],
    }));
  return fc.oneof(
    { weight: 30, arbitrary: toOperation },
    { weight: 10, arbitrary: elsewhere },
    { weight: 3, arbitrary: signed },
  );
}

/** A body's value: mostly what its schema takes, now and then something else. */
function drawValue(schema: BodySchema): fc.Arbitrary<unknown> {
  const right = ((): fc.Arbitrary<unknown> => {
    if (schema.properties !== undefined) {
      const fields = Object.entries(schema.properties).map(([name, one]) => [name, drawValue(one)] as const);
      return fc.record(Object.fromEntries(fields), { requiredKeys: schema.required ?? [] });
    }
    if (schema.enum !== undefined) return fc.constantFrom(...schema.enum);
    if (schema.type === "integer" || schema.type === "number") {
      return fc.integer({ min: schema.minimum ?? 0, max: Math.min(schema.maximum ?? 1_000, 1_000) });
    }
    const examples = schema.example === undefined ? [] : [fc.constant(schema.example)];
    if (schema.pattern !== undefined) return fc.oneof(...examples, fc.stringMatching(new RegExp(schema.pattern)));
    return examples[0] ?? fc.string();
  })();
  const wrong = fc.oneof(fc.constantFrom(...NASTY), fc.jsonValue());
  return fc.oneof({ weight: 12, arbitrary: right }, { weight: 1, arbitrary: wrong });
}

const rawBytes = fc.oneof(
  fc.string({ unit: "binary", maxLength: 200 }),
  fc.constantFrom(
    "GET / HTTP/1.1\r\n\r\n",
    "GET /health HTTP/9.9\r\nHost: x\r\n\r\n",
    "GET /status/\u0000 HTTP/1.1\r\nHost: x\r\n\r\n",
    "POST /credentials/0/ack HTTP/1.1\r\nHost: x\r\nContent-Length: -1\r\n\r\n",
    "POST /credentials/0/ack HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "POST /credentials/0/ack HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
    `GET /${"a".repeat(100_000)} HTTP/1.1\r\nHost: x\r\n\r\n`,
    `GET /health HTTP/1.1\r\nHost: x\r\nX: ${"a".repeat(100_000)}\r\n\r\n`,
    "GET /health HTTP/1.1\r\nHost: x\r\nHost: y\r\n\r\n",
    "GET http://[::1/ HTTP/1.1\r\nHost: x\r\n\r\n",
    "OPTIONS * HTTP/1.1\r\nHost: x\r\n\r\n",
  ),
);

function send(url: URL, { method, path, headers, body }: Sent): Promise<Answer> {
  const options: RequestOptions = { host: url.hostname, port: url.port, method, path, headers: clean(headers) };
  return new Promise((resolve, reject) => {
    const sent = request(options, (response) => {
      const chunks: Buffer[] = [];
      response.on("data", (chunk: Buffer) => chunks.push(chunk));
      response.on("end", () => {
        const text = Buffer.concat(chunks).toString();
        resolve({ status: response.statusCode ?? 0, headers: response.headers, body: text });
      });
      response.on("error", reject);
    });
    sent.on("error", reject);
    // Node frames the body of a GET only when told its length; nothing may follow a HEAD.
    const bytes = Buffer.from(method === "HEAD" ? "" : (body ?? ""));
    if (bytes.length > 0) sent.setHeader("content-length", bytes.length);
    sent.end(bytes);
  });
}

/** Node refuses to send control characters and what is beyond Latin-1 in a header: those go as raw bytes instead. */
const clean = (headers: Record<string, string>): Record<string, string> =>
  Object.fromEntries(
    Object.entries(headers).map(([name, value]) => [name, value.replace(/[^\t\x20-\x7e\x80-\xff]/g, "?")]),
  );

function sendRaw(url: URL, bytes: string): Promise<string> {
  return new Promise((resolve) => {
    let answer = "";
    const socket = connect(Number(url.port), url.hostname, () => socket.end(Buffer.from(bytes, "utf8")));
    socket.setTimeout(5_000, () => socket.destroy());
    socket.on("data", (chunk) => {
      answer += chunk.toString("latin1");
    });
    socket.on("error", () => resolve(answer));
    socket.on("close", () => resolve(answer));
  });
}

if (import.meta.main) {
  const { program } = await import("commander");
  program
    .name("npm run fuzz --")
    .description("Sends requests drawn from the OpenAPI document and prints how many were answered with which status.")
    .option("--runs <n>", "requests", Number, 20_000)
    .option("--seed <n>", "the same seed sends the same requests", Number, 1);
  const { runs, seed } = program.parse().opts<{ runs: number; seed: number }>();
  const report = await fuzz({ runs, seed });
  console.log(`${report.requests} requests, seed ${seed}; of ${report.valid} the document takes every part`);
  for (const [title, counts] of [
    ["by status", report.byStatus],
    ["by error code", report.byCode],
    ["bytes that are no HTTP", report.raw],
  ] as const) {
    console.log(`\n${title}`);
    for (const [key, value] of Object.entries(counts).sort()) console.log(`  ${key.padEnd(26)} ${value}`);
  }
  process.exit(0);
}
