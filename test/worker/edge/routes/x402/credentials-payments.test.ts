// Payments that are not taken: other than what was asked for, of another time, unsigned, unreadable. None leaves a row.
import type { Hex } from "viem";
import { beforeEach, expect, test } from "vitest";
import { paymentHeaderV1 } from "../../../../world/payer.ts";
import { agent, chain, operator } from "../../../chain.ts";
import { buyAndRun, type Deployment, deploy } from "../../../deployment.ts";
import { ask, prepare, quote, v2 } from "./paid-credentials.ts";
import { signFor, usdcOf } from "./till.ts";

const payer = agent(0);
let world: Deployment;
let tokenId: number;
beforeEach(async () => {
  world = await deploy();
  tokenId = await buyAndRun(world, 0);
});

test("another amount, recipient, asset, network or scheme is 402, in both versions", async () => {
  const before = await usdcOf(payer.address);
  const requirement = await quote(world, tokenId);
  const wrong = [
    { amount: "9999" },
    { amount: "10001" },
    { payTo: agent(1).address },
    { asset: agent(1).address },
    { network: "eip155:84532" as const },
    { scheme: "upto" },
  ];
  for (const change of wrong) {
    const other = { ...requirement, ...change };
    const answer = await ask(world, tokenId, v2(other, await signFor(payer, other)));
    expect([answer.status, answer.body["code"]], JSON.stringify(change)).toEqual([402, "payment_required"]);
    expect(answer.headers.get("payment-required")).not.toBeNull();
  }
  // What is signed for is not what is said to be.
  for (const change of [{ value: "1" }, { to: agent(1).address }]) {
    const answer = await ask(world, tokenId, v2(requirement, await signFor(payer, requirement, change)));
    expect(answer.status, JSON.stringify(change)).toBe(402);
  }
  const forOther = await signFor(payer, { ...requirement, amount: "9999" });
  expect((await ask(world, tokenId, { "x-payment": paymentHeaderV1(requirement, forOther) })).status).toBe(402);
  const signed = await signFor(payer, requirement);
  for (const network of ["base-sepolia", "eip155:84532"]) {
    const header = paymentHeaderV1(requirement, signed, network);
    expect((await ask(world, tokenId, { "x-payment": header })).status, network).toBe(402);
  }
  expect(await world.payments()).toEqual([]);
  expect(await usdcOf(payer.address)).toBe(before);
});

test("an authorization of another time than was asked for is 402: expired, not valid yet, good for ten years", async () => {
  const requirement = await quote(world, tokenId);
  const now = Number((await chain.reader.getBlock()).timestamp);
  const times: [object, string][] = [
    [{ validBefore: String(now - 1) }, "The authorization has to be good for 120 seconds: sign a new one."],
    [{ validBefore: String(now + 30) }, "The authorization has to be good for 120 seconds: sign a new one."],
    [{ validAfter: String(now + 3_600) }, "The authorization is not valid yet: sign one that is since 10 seconds ago."],
    [
      { validBefore: String(now + 10 * 365 * 86_400) },
      "The authorization may be good for 120 seconds and no longer: sign a new one.",
    ],
  ];
  for (const [change, sentence] of times) {
    const answer = await ask(world, tokenId, v2(requirement, await signFor(payer, requirement, change)));
    expect([answer.status, answer.body["error"]]).toEqual([402, sentence]);
  }
  expect(await world.payments()).toEqual([]);
});

test("a signature of somebody else's is 402 with the demand and the reason, without a row", async () => {
  const requirement = await quote(world, tokenId);
  const signed = await signFor(payer, requirement);
  const { signature } = await signFor(agent(1), requirement);
  const bad = [signature, `0x${"00".repeat(65)}`, `0x${"ff".repeat(65)}`, `0x${"ab".repeat(97)}`] as const;
  for (const wrong of bad) {
    const answer = await ask(world, tokenId, v2(requirement, { ...signed, signature: wrong }));
    expect([answer.status, answer.body["code"]]).toEqual([402, "payment_invalid"]);
    expect(answer.body).toMatchObject({ charged: "none", accepts: [{ maxAmountRequired: "10000" }] });
    expect(JSON.parse(atob(answer.headers.get("payment-response") ?? ""))).toEqual({
      success: false,
      errorReason: "invalid_exact_evm_payload_signature",
      transaction: "",
      payer: payer.address,
      network: "eip155:8453",
    });
  }
  // Of another deployment's coin.
  const elsewhere = await signFor(
    payer,
    { ...requirement, extra: { name: "USDC", version: "2" } },
    signed.authorization,
  );
  expect((await ask(world, tokenId, v2(requirement, elsewhere))).status).toBe(402);
  expect(await world.payments()).toEqual([]);
});

const encode = (value: unknown) => btoa(typeof value === "string" ? value : JSON.stringify(value));

test("a header that can't be read is 400, never 500", async () => {
  const requirement = await quote(world, tokenId);
  const payload = await signFor(payer, requirement);
  const { authorization } = payload;
  const good = { x402Version: 2, accepted: requirement, payload };
  const goodV1 = { x402Version: 1, scheme: "exact", network: "base", payload };
  const named = (info: unknown) => ({ ...good, extensions: { "payment-identifier": info } });
  const spoilt = (change: object) => ({ ...payload, authorization: { ...authorization, ...change } });
  const values: unknown[] = [
    "",
    "not json",
    "null",
    "[]",
    "7",
    "{}",
    { ...good, x402Version: 3 },
    { ...good, x402Version: "2" },
    { ...good, payload: null },
    { ...good, accepted: null },
    { ...good, accepted: [] },
    { ...good, extensions: "x" },
    named({ info: { id: "short" } }),
    named({ info: { id: 5 } }),
    named({ info: { id: `${"a".repeat(20)}'` } }),
    ...[
      { ...payload, signature: "0x12" },
      { ...payload, signature: 5 },
      { ...payload, authorization: null },
      spoilt({ from: "0x12" }),
      spoilt({ to: operator.address.slice(2) }),
      spoilt({ value: "-1" }),
      spoilt({ value: "1e9" }),
      spoilt({ value: 10_000.5 }),
      spoilt({ value: "9".repeat(100) }),
      spoilt({ validBefore: "tomorrow" }),
      spoilt({ validBefore: "9".repeat(40) }),
      spoilt({ validAfter: "" }),
      spoilt({ nonce: "0x00" }),
    ].flatMap((wrong) => [
      { ...good, payload: wrong },
      { ...goodV1, payload: wrong },
    ]),
  ];
  // All behind one address would be the limiter's to refuse.
  let address = 0;
  const send = (name: string, value: string) =>
    ask(world, tokenId, { [name]: value, "cf-connecting-ip": `198.51.100.${Math.floor(address++ / 40)}` });
  for (const value of values) {
    for (const name of ["payment-signature", "x-payment"]) {
      const answer = await send(name, encode(value));
      expect([answer.status, answer.body["code"]], `${name}: ${JSON.stringify(value)}`).toEqual([
        400,
        "payment_malformed",
      ]);
    }
  }
  for (const name of ["payment-signature", "x-payment"]) {
    expect((await send(name, "%%%")).status).toBe(400);
    expect((await send(name, "é")).status).toBe(400);
    expect(await send(name, "A".repeat(20_000))).toMatchObject({ status: 400, body: { code: "header_too_large" } });
  }
  // Readable, and no requirement of ours.
  for (const accepted of [
    { ...requirement, payTo: {} },
    { scheme: "", network: "", amount: "" },
  ]) {
    expect((await send("payment-signature", encode({ ...good, accepted }))).status).toBeOneOf([400, 402]);
  }
  expect(await world.payments()).toEqual([]);
});

test("a signature that ends in 0 or 1 is the coin's before the facilitator gets it: it was refused, or could not be settled", async () => {
  const { requirement, signed } = await prepare(world, tokenId);
  const end = signed.signature.endsWith("1b") ? "00" : "01";
  const signature: Hex = `0x${signed.signature.slice(2, -2)}${end}`;
  expect(await ask(world, tokenId, v2(requirement, { ...signed, signature }))).toMatchObject({ status: 200 });
  expect(await world.payments()).toMatchObject([{ state: "settled", signature: signed.signature }]);
});
