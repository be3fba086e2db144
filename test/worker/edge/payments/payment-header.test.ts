// A payment as clients encode it: what can be meant in one way only is read, and the rest is refused with one sentence.
import { beforeAll, expect, test } from "vitest";
import { preferredWait } from "../../../../src/edge/access/prefer.ts";
import type { EdgeConfig } from "../../../../src/edge/config.ts";
import { readPayment } from "../../../../src/edge/payments/wire.ts";
import { paymentHeaderV1, paymentHeaderV2 } from "../../../world/payer.ts";
import { agent } from "../../chain.ts";
import { deploy } from "../../deployment.ts";
import { computeBody, post, quoteOf, signFor } from "../routes/x402/till.ts";

let config: EdgeConfig;
let requirement: Awaited<ReturnType<typeof quoteOf>>;
let signed: Awaited<ReturnType<typeof signFor>>;
beforeAll(async () => {
  const world = await deploy();
  config = world.edge;
  requirement = await quoteOf(post(world, "/x402/purchase-compute", computeBody()));
  signed = await signFor(agent(1), requirement);
});

const read = (headers: [string, string][]) => readPayment(new Headers(headers), config);
const encode = (value: unknown) => btoa(typeof value === "string" ? value : JSON.stringify(value));
const v2 = (change: object = {}) => ({ x402Version: 2, accepted: requirement, payload: signed, ...change });
const v1 = (change: object = {}) => ({ x402Version: 1, scheme: "exact", network: "base", payload: signed, ...change });
const NAMES = ["PAYMENT-SIGNATURE", "X-PAYMENT"];

test("either version under either header, in base64 or base64url, padded or not, is the same payment", () => {
  const [first] = [read([["PAYMENT-SIGNATURE", paymentHeaderV2(requirement, signed)]])];
  expect(first?.authorization).toMatchObject({
    from: agent(1).address,
    value: 500_000n,
    nonce: signed.authorization.nonce,
  });
  for (const header of [
    paymentHeaderV2(requirement, signed, {
      resource: { url: "https://api.example/>>>???", description: "", mimeType: "" },
    }),
    paymentHeaderV1(requirement, signed),
  ]) {
    const url = header.replaceAll("+", "-").replaceAll("/", "_");
    for (const form of [header, url, header.replace(/=+$/, ""), url.replace(/=+$/, ""), ` ${header} `]) {
      for (const name of NAMES)
        expect(read([[name, form]])?.authorization, `${name} ${form}`).toEqual(first?.authorization);
    }
  }
});

test("addresses and hex of any case, 0X for 0x, and whole numbers as JSON numbers are read", () => {
  const { authorization, signature } = signed;
  const first = read([["X-PAYMENT", encode(v2())]]);
  const upper = (text: string) => text.toUpperCase();
  const loud = {
    signature: upper(signature),
    authorization: {
      from: upper(authorization.from),
      to: authorization.to.toLowerCase(),
      value: Number(authorization.value),
      validAfter: 0,
      validBefore: Number(authorization.validBefore),
      nonce: upper(authorization.nonce),
    },
  };
  const accepted = {
    ...requirement,
    asset: upper(requirement.asset),
    payTo: upper(requirement.payTo),
    amount: 500_000,
  };
  const { authorization: same, accepted: said } = read([["X-PAYMENT", encode(v2({ payload: loud, accepted }))]]) ?? {};
  expect(same).toEqual(first?.authorization);
  expect(said).toEqual(first?.accepted);
  expect(read([["X-PAYMENT", encode(v1({ network: "eip155:8453" }))]])?.accepted).toEqual(
    read([["X-PAYMENT", encode(v1())]])?.accepted,
  );
});

test("the same payment twice is one; two different ones, or two identifiers, are refused", async () => {
  const [one, two] = [encode(v2()), encode(v1())];
  expect(
    read([
      ["PAYMENT-SIGNATURE", one],
      ["X-PAYMENT", two],
    ]),
  ).not.toBeNull();
  expect(
    read([
      ["PAYMENT-SIGNATURE", one],
      ["PAYMENT-SIGNATURE", one],
    ]),
  ).not.toBeNull();
  const named = (id: string) => encode(v2({ extensions: { "payment-identifier": { info: { id } } } }));
  expect(
    read([
      ["X-PAYMENT", two],
      ["PAYMENT-SIGNATURE", named("a".repeat(16))],
    ])?.identifier,
  ).toBe("a".repeat(16));
  expect(() =>
    read([
      ["X-PAYMENT", named("b".repeat(16))],
      ["PAYMENT-SIGNATURE", named("a".repeat(16))],
    ]),
  ).toThrow("The request carries two payment identifiers: send one of them.");
  const other = encode(v2({ payload: { ...signed, authorization: { ...signed.authorization, value: "1" } } }));
  for (const names of [NAMES, ["X-PAYMENT", "X-PAYMENT"]]) {
    const headers = names.map((name, i): [string, string] => [name, i === 0 ? one : other]);
    expect(() => read(headers)).toThrow("The request carries two different payments: send one of them.");
  }
});

const spoilt = (change: object) => ({ ...signed, authorization: { ...signed.authorization, ...change } });
test.each([
  ["", "it is neither base64 nor base64url"],
  ["%%%", "it is neither base64 nor base64url"],
  ["{}", "it is neither base64 nor base64url"],
  [encode("x"), "what it encodes is no JSON"],
  [encode("\xff\xfe"), "what it encodes is no JSON"],
  [encode("[".repeat(9_000)), "what it encodes is no JSON"],
  [encode("null"), "it must be a payload of x402, version 1 or 2"],
  [encode("[]"), "it must be a payload of x402, version 1 or 2"],
  [encode({ x402Version: 3 }), "x402Version must be a payload of x402, version 1 or 2"],
  [encode('{"__proto__":{"x402Version":2}}'), "x402Version must be a payload of x402, version 1 or 2"],
  [() => encode(v2({ payload: null })), "payload is missing or malformed"],
  [() => encode(v1({ network: {} })), "network is missing or malformed"],
  [
    () => encode(v2({ payload: spoilt({ nonce: "0x00" }) })),
    "payload.authorization.nonce must be 0x and 64 hex digits",
  ],
  [() => encode(v2({ payload: spoilt({ value: 1.5 }) })), "payload.authorization.value must be a whole number"],
  [
    () => encode(v2({ payload: spoilt({ value: "1e3" }) })),
    "payload.authorization.value must be a whole number of at most 30 digits",
  ],
  [
    () => encode(v2({ payload: spoilt({ validBefore: -1 }) })),
    "payload.authorization.validBefore must be a whole number of at most 15 digits",
  ],
  [
    () => encode(v2({ extensions: { "payment-identifier": { info: { id: "short" } } } })),
    "extensions.payment-identifier.info.id must be 16 to 128 letters, digits, _ or -",
  ],
])("what can't be read is refused with one sentence: %#", (header, reason) => {
  for (const name of NAMES) {
    const value = typeof header === "string" ? header : header();
    expect(() => read([[name, value]])).toThrow(`The payment header can't be read: ${reason}.`);
  }
});

test.each([
  ["wait=10", 10],
  ['respond-async, WAIT = "20"; x=y', 20],
  ["wait=60000", 60],
  ["wait=5, wait=50", 5],
  ["wait=x, wait=50", null],
  ["wait", null],
  ["wait=-1", null],
  ["wait=1' OR '1'='1", null],
  ["awaited=3", null],
  ["", null],
])("Prefer: %s is %j seconds, as RFC 7240 has it", (prefer, seconds) => {
  expect(preferredWait(new Headers({ prefer }))).toBe(seconds);
  expect(preferredWait(new Headers())).toBeNull();
  expect(() => preferredWait(new Headers({ prefer: "x".repeat(2_000) }))).toThrow("at most 1024 characters");
});
