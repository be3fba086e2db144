// What a signature may say: the fresh form's fields, its host, its times (hard case 42), and the spellings of a signature.
import { type Hex, parseSignature, serializeCompactSignature, signatureToCompactSignature } from "viem";
import { expect, test } from "vitest";
import { readSignature } from "../../../../src/edge/access/signature.ts";
import type { AppError } from "../../../../src/errors.ts";
import { CONTRACT_ADDRESS } from "../../../world/addresses.ts";
import { fixedHeaders, freshHeaders } from "../../../world/agent.ts";
import { agent } from "../../chain.ts";

const API = "https://api.example";
const OTHER = "https://shop.platform.example";
const NOW = Date.parse("2026-02-03T12:00:00Z");
const at = (seconds: number) => new Date(NOW + seconds * 1_000).toISOString();
type Asked = { fields?: Record<string, string>; api?: string; host?: string; urls?: string[]; now?: number };

/** The signer that is read from a fresh signature, or the code and sentence of its refusal. */
async function read({ fields = {}, api = API, host = "api.example", urls = [API, OTHER], now = NOW }: Asked) {
  const headers = await freshHeaders(api, agent(0), 42, "", { "Issued At": at(0), ...fields });
  return readHeaders(headers, { host, urls, now });
}
async function readHeaders(
  headers: Record<string, string>,
  { host = "api.example", urls = [API], now = NOW }: Omit<Asked, "fields">,
): Promise<unknown> {
  const config = {
    CHAIN_ID: 8453,
    CONTRACT_ADDRESS: CONTRACT_ADDRESS as Hex,
    PUBLIC_URLS: urls,
    REQUIRE_FRESH_SIGNATURES: false,
  };
  const { authorization, "x-access-message": accessMessage } = headers;
  const asked = { authorization, accessMessage, host, tokenId: 42, action: "credentials", config, now } as const;
  try {
    return (await readSignature(asked)).signer;
  } catch (error) {
    return [(error as AppError).code, (error as AppError).message];
  }
}
const SIGNER = agent(0).address;

test("a signature for one of our hosts opens nothing at another", async () => {
  const sentence = "The signed message's Domain must be the host that is asked, and one of this service.";
  expect(await read({})).toBe(SIGNER);
  expect(await read({ host: "shop.platform.example", api: OTHER })).toBe(SIGNER);
  expect(await read({ host: "shop.platform.example" })).toEqual(["signature_invalid", sentence]);
  expect(await read({ api: OTHER })).toEqual(["signature_invalid", sentence]);
  // Nor at a host that is none of ours, whoever leads there.
  expect(await read({ host: "evil.example", api: "https://evil.example" })).toEqual(["signature_invalid", sentence]);
  const split = { Domain: "shop.platform.example" };
  expect(await read({ fields: split })).toEqual(["signature_invalid", sentence]);
  expect(await read({ fields: { URI: `${OTHER}/credentials/42` } })).toEqual([
    "signature_invalid",
    "The signed message's URI must be https://api.example/credentials/42.",
  ]);
});

test.each([
  ["API.Example", "api.example"],
  ["api.example:443", "api.example"],
  ["api.example", "API.EXAMPLE"],
  ["api.example", "api.example:443"],
])("lower case and the default port make no difference: Domain %s at %s", async (domain, host) => {
  expect(await read({ fields: { Domain: domain, URI: "https://API.example:443/credentials/42" }, host })).toBe(SIGNER);
});

test("of two base URLs with one host either is taken, and no third", async () => {
  const urls = [API, `${API}/v1`, "http://api.example"];
  for (const base of urls) expect(await read({ urls, fields: { URI: `${base}/credentials/42` } }), base).toBe(SIGNER);
  expect(await read({ urls: [`${API}/v1`] })).toEqual([
    "signature_invalid",
    "The signed message's URI must be https://api.example/v1/credentials/42.",
  ]);
});

test("another port is another host", async () => {
  const local = "http://127.0.0.1:8787";
  const asked = { api: local, urls: [local], host: "127.0.0.1:8787" };
  expect(await read(asked)).toBe(SIGNER);
  expect(await read({ ...asked, fields: { Domain: "127.0.0.1:8788" } })).toMatchObject(["signature_invalid", {}]);
  expect(await read({ fields: { Domain: "api.example:80" } })).toMatchObject(["signature_invalid", {}]);
});

test.each([
  "user@api.example",
  "api.example/",
  "api.example?x",
  "api.example#x",
  "https://api.example",
  "evil.example\\@api.example",
])("a Domain that is more than a host is refused: %s", async (domain) => {
  expect(await read({ fields: { Domain: domain } })).toMatchObject(["signature_invalid", {}]);
});

test.each(["https://user@api.example/credentials/42", `${API}/credentials/42#x`, `${API}/credentials/42?x`, "x"])(
  "a URI that says more than the action is refused: %s",
  async (uri) => {
    expect(await read({ fields: { URI: uri } })).toMatchObject(["signature_invalid", {}]);
  },
);

test("Expiration Time is obeyed, to the second", async () => {
  const fields = { "Expiration Time": at(60) };
  expect(await read({ fields, now: NOW + 59_999 })).toBe(SIGNER);
  expect(await read({ fields, now: NOW + 60_000 })).toEqual([
    "signature_expired",
    "The signed message's Expiration Time is over: sign a new one.",
  ]);
  // It shortens the five minutes, and makes them no longer.
  const long = { "Expiration Time": at(86_400) };
  expect(await read({ fields: long, now: NOW + 301_000 })).toMatchObject(["signature_expired", {}]);
});

test("Not Before is obeyed, to the second", async () => {
  const fields = { "Not Before": at(60) };
  expect(await read({ fields, now: NOW + 60_000 })).toBe(SIGNER);
  expect(await read({ fields, now: NOW + 59_999 })).toEqual([
    "signature_invalid",
    "The signed message is not good before its Not Before: send it then, or sign a new one.",
  ]);
});

test.each(["Issued At", "Expiration Time", "Not Before"])("%s has to be a time with its zone", async (name) => {
  for (const time of ["soon", "2026-02-03", "2026-02-03T12:00:00", "1770120000", "2026-13-03T12:00:00Z"]) {
    expect(await read({ fields: { [name]: time } }), time).toEqual([
      "signature_invalid",
      `The signed message's ${name} must be an ISO 8601 time with its zone, like 2026-02-03T12:00:00Z.`,
    ]);
  }
});

test("a time may have any zone", async () => {
  expect(await read({ fields: { "Issued At": "2026-02-03T14:00:00.5+02:00" }, now: NOW + 1_000 })).toBe(SIGNER);
});

test.each(["Resources", "Statement", "Request ID", "expiration time", "Expires"])(
  "a field that is not known is refused, since nobody would obey it: %s",
  async (name) => {
    expect(await read({ fields: { [name]: "x" } })).toEqual([
      "signature_invalid",
      "The signed message may have no fields but Domain, URI, Chain ID, Contract, Nonce, Issued At, Expiration Time, Not Before.",
    ]);
  },
);

test("a compact signature of 64 bytes is taken (EIP-2098), by either form", async () => {
  const compact = (authorization = "") => {
    const signature = parseSignature(authorization.slice("Bearer ".length) as Hex);
    return `Bearer ${serializeCompactSignature(signatureToCompactSignature(signature))}`;
  };
  for (const index of [0, 1, 2, 3]) {
    const fixed = await fixedHeaders(agent(index), 42);
    const short = compact(fixed["authorization"]);
    expect(short).toHaveLength("Bearer 0x".length + 128);
    expect(await readHeaders({ authorization: short }, {})).toBe(agent(index).address);
    const fresh = await freshHeaders(API, agent(index), 42, "", { "Issued At": at(0) });
    const headers = { ...fresh, authorization: compact(fresh["authorization"]) };
    expect(await readHeaders(headers, {})).toBe(agent(index).address);
  }
});
