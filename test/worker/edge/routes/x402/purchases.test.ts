import { sha256 } from "@noble/hashes/sha2.js";
import { bytesToHex, randomBytes, utf8ToBytes } from "@noble/hashes/utils.js";
import { generatePrivateKey, type LocalAccount, privateKeyToAccount } from "viem/accounts";
import { expect, test } from "vitest";
import { generateSshKeyPair } from "../../../../../src/credentials/ssh-keys.ts";
import { fixedHeaders, transfer } from "../../../../world/agent.ts";
import { paymentHeaderV1, paymentHeaderV2, type SignedPayment } from "../../../../world/payer.ts";
import { agent, chain, operator } from "../../../chain.ts";
import { type Deployment, deploy } from "../../../deployment.ts";
import { addFacilitatorFault, clearFacilitatorFaults } from "../../../faults.ts";
import {
  accepted,
  at,
  computeBody,
  isDelivered,
  orderMachine,
  playUntil,
  post,
  quoteOf,
  signFor,
  signPurchaseOf,
  usdcOf,
} from "./till.ts";

const PATH = "/x402/purchase-compute";

test("an order is charged once its machine answers, and the token goes to the payer", async () => {
  const world = await deploy();
  const payer = agent(1);
  const before = await usdcOf(payer.address);
  const { answer } = await orderMachine(world, payer);
  const accepted = (await answer.json()) as { purchaseId: string };
  expect(answer.status, JSON.stringify(accepted)).toBe(202);
  expect(accepted).toMatchObject({ status: "authorized", charged: false, amount: "0.50", tokenId: null });
  expect(await usdcOf(payer.address)).toBe(before);
  const row = await playUntil(world, accepted.purchaseId, at("close"));
  expect(row).toMatchObject({ state: "settled" });
  expect(await usdcOf(payer.address)).toBe(before - 500_000n);
  expect(await world.vm(Number(row["token_id"]))).toMatchObject({ status: "running" });
  await chain.mine(5);
  const closed = await playUntil(world, accepted.purchaseId, at("idle"));
  expect(closed).toMatchObject({ state: "settled" });
});

test("a payer who comes for the login before the token has left us is asked to come again, and nobody else is: it got a 403 although its purchase said settled", async () => {
  const world = await deploy();
  const payer = agent(1);
  const { id } = await accepted(world, payer);
  const row = await playUntil(world, id, at("close"));
  const tokenId = Number(row["token_id"]);
  // As it was between the capture and the transfer.
  await transfer(chain, payer, operator.address, tokenId);
  await world.sql.prepare("UPDATE payments SET step = 'deliver', served_at = NULL").run();
  const ask = async (account: LocalAccount) => {
    const response = await world.request(`/credentials/${tokenId}`, {
      headers: await fixedHeaders(account, tokenId),
    });
    const { code } = (await response.json()) as { code: string };
    return [response.status, code, response.headers.get("retry-after")];
  };
  expect(await ask(payer)).toEqual([503, "ownership_settling", "3"]);
  expect(await ask(agent(2))).toEqual([403, "not_owner", null]);
  // What a payer gave to us later is not on its way to it.
  await world.sql.prepare("UPDATE payments SET step = 'idle'").run();
  expect(await ask(payer)).toEqual([403, "not_owner", null]);
});

test("a client of version 1 orders on the same route", async () => {
  const world = await deploy();
  const quote = await post(world, PATH, computeBody());
  const body = (await quote.clone().json()) as { x402Version: number; accepts: Record<string, unknown>[] };
  expect(body).toMatchObject({ x402Version: 1, code: "payment_required" });
  expect(body.accepts).toMatchObject([{ network: "base", maxAmountRequired: "500000", maxTimeoutSeconds: 1_200 }]);
  const requirement = await quoteOf(Promise.resolve(quote));
  const signed = await signFor(agent(1), requirement);
  const answer = await post(world, PATH, computeBody(), { "x-payment": paymentHeaderV1(requirement, signed) });
  expect(answer.status).toBe(202);
});

/** As one sends it: the digest is of these bytes. */
const send = (world: Deployment, text: string, headers: Record<string, string>) =>
  world.request(PATH, { method: "POST", body: text, headers: { "content-type": "application/json", ...headers } });
const bodySignature = (account: LocalAccount, text: string) =>
  account.signMessage({ message: `ClawCloud Purchase: ${bytesToHex(sha256(utf8ToBytes(text)))}` });

test("a login key of the payer's own needs his signature over the body as it was sent; none is made or stored", async () => {
  const world = await deploy();
  const { publicKey } = await generateSshKeyPair("ed25519");
  const text = JSON.stringify(computeBody({ sshPublicKey: `${publicKey} me@laptop` }), null, 3);
  const signed = await signPurchaseOf(world, agent(1));
  const refused = async (headers: Record<string, string>) => {
    const answer = await send(world, text, { ...signed.headers, ...headers });
    return [answer.status, ((await answer.json()) as { code: string }).code];
  };
  expect(await refused({})).toEqual([401, "body_signature_missing"]);
  for (const bytes of ["12", "0".repeat(128), "f".repeat(128), "f".repeat(130)])
    expect(await refused({ "x-body-signature": `0x${bytes}` })).toEqual([401, "body_signature_invalid"]);
  expect(await refused({ "x-body-signature": await bodySignature(agent(2), text) })).toEqual([
    401,
    "body_signature_invalid",
  ]);
  expect(await refused({ "x-body-signature": await bodySignature(agent(1), `${text} `) })).toEqual([
    401,
    "body_signature_invalid",
  ]);
  expect(await world.rows("SELECT * FROM payments")).toEqual([]);
  const answer = await send(world, text, {
    ...signed.headers,
    "x-body-signature": await bodySignature(agent(1), text),
  });
  expect(answer.status).toBe(202);
  const { purchaseId } = (await answer.json()) as { purchaseId: string };
  await playUntil(world, purchaseId, isDelivered);
  expect(await world.rows("SELECT public_key, private_key FROM attempts")).toEqual([
    { public_key: publicKey, private_key: null },
  ]);
  expect(await world.rows("SELECT ssh_private_key FROM vms")).toEqual([{ ssh_private_key: null }]);
});

test("hard case 57: a login key that opens nothing is 400 with the reason, whatever it is paid with", async () => {
  const world = await deploy();
  const { publicKey } = await generateSshKeyPair("ed25519");
  const [, blob = ""] = publicKey.split(" ");
  const signed = await signPurchaseOf(world, agent(1));
  const sentences: [string, string][] = [
    [`command="x" ${publicKey}`, "must be one SSH public key"],
    [`${publicKey}\n${publicKey}`, "must be one SSH public key"],
    [`ssh-rsa ${blob}`, "names the type ssh-rsa but holds a key of another type"],
    [publicKey.slice(0, -6), "is cut short"],
    [`${publicKey}AAAA`, "has trailing bytes"],
  ];
  for (const [sshPublicKey, sentence] of sentences) {
    const answer = await post(world, PATH, computeBody({ sshPublicKey }), signed.headers);
    expect(answer.status, sshPublicKey).toBe(400);
    expect(JSON.stringify(await answer.json())).toContain(`sshPublicKey ${sentence}`);
  }
  expect(await world.rows("SELECT * FROM payments")).toEqual([]);
});

test("a region that was asked for is where the machine is; GPUs have none", async () => {
  const world = await deploy();
  const { id } = await accepted(world, agent(1), { region: "asia" });
  await playUntil(world, id, isDelivered);
  expect((await world.rows("SELECT region FROM vms"))[0]?.["region"]).toMatch(/^(sgp|nrt)$/);
  for (const body of [
    { tier: 4, durationDays: 1, region: "asia" },
    { tier: 0, durationDays: 1, region: "mars" },
  ]) {
    expect((await post(world, PATH, body)).status).toBe(400);
  }
});

test("bodies that are no order are refused before anything is asked of the chain", async () => {
  const world = await deploy();
  for (const body of [
    {},
    { tier: 8, durationDays: 1 },
    { tier: 0, durationDays: 0 },
    { tier: 0, durationDays: 366 },
    { tier: 0, durationDays: 1, more: 1 },
  ]) {
    expect((await post(world, PATH, body)).status, JSON.stringify(body)).toBe(400);
  }
});

test("another payment with the same identifier by the same payer is the same purchase, and buys nothing", async () => {
  const world = await deploy();
  const identifier = `order-${bytesToHex(randomBytes(12))}`;
  const extensions = { "payment-identifier": { info: { required: false, id: identifier } } };
  const order = async (index: number, body = computeBody()) => {
    const requirement = await quoteOf(post(world, PATH, body));
    const signed = await signFor(agent(index), requirement);
    const answer = await post(world, PATH, body, {
      "payment-signature": paymentHeaderV2(requirement, signed, { extensions }),
    });
    return { status: answer.status, body: (await answer.json()) as { purchaseId: string; code?: string } };
  };
  const first = await order(1);
  expect(first.status).toBe(202);
  expect(await order(1)).toMatchObject({ status: 202, body: { purchaseId: first.body.purchaseId } });
  expect(await order(1, computeBody({ durationDays: 2 }))).toMatchObject({
    status: 409,
    body: { code: "identifier_used" },
  });
  const other = await order(2);
  expect(other.status).toBe(202);
  expect(other.body.purchaseId).not.toBe(first.body.purchaseId);
  expect(await world.rows("SELECT id FROM payments")).toHaveLength(2);
  const query = `payer=${agent(1).address}&identifier=${identifier}`;
  const found = await (await world.request(`/x402/purchases?${query}`)).json();
  expect(found).toMatchObject({ purchaseId: first.body.purchaseId });
});

test("an identifier whose first authorization came to nothing goes over to the next one: nothing could be bought under it again", async () => {
  const world = await deploy();
  const identifier = `order-${bytesToHex(randomBytes(12))}`;
  const extensions = { "payment-identifier": { info: { required: false, id: identifier } } };
  const requirement = await quoteOf(post(world, PATH, computeBody()));
  const named = (signed: SignedPayment) => ({
    "payment-signature": paymentHeaderV2(requirement, signed, { extensions }),
  });
  const sign = async () => named(await signFor(agent(1), requirement));
  const order = async (headers: Record<string, string>) => {
    const answer = await post(world, PATH, computeBody(), headers);
    return { ...((await answer.json()) as { purchaseId: string; code?: string }), httpStatus: answer.status };
  };
  await addFacilitatorFault({ call: "verify", kind: "down" });
  const signed = await signFor(agent(1), requirement);
  const first = named(signed);
  expect(await order(first)).toMatchObject({ code: "facilitator_unavailable" });
  await clearFacilitatorFaults();
  const second = await order(await sign());
  expect(second.httpStatus).toBe(202);
  // Nothing comes of the first any more, sent without its name neither.
  const bare = { "payment-signature": paymentHeaderV2(requirement, signed) };
  expect(await order(bare)).toMatchObject({ status: "releasing", charged: false });
  // The first one, and a third: whatever is sent under it from here on is the second's purchase.
  expect((await order(first)).purchaseId).toBe(second.purchaseId);
  expect((await order(await sign())).purchaseId).toBe(second.purchaseId);
  expect(await world.rows("SELECT state, identifier, reason FROM payments ORDER BY created_at, state DESC")).toEqual([
    { state: "releasing", identifier: null, reason: "superseded" },
    { state: "authorized", identifier, reason: null },
  ]);
  // Without a machine it keeps its identifier: it was answered once, and the answer stands.
  await world.sql.prepare("UPDATE payments SET state = 'released', bought_at = 1 WHERE identifier IS NOT NULL").run();
  expect((await order(await sign())).purchaseId).toBe(second.purchaseId);
});

test("payments that nobody has signed, or can pay, use up nobody else's allowance (hard case 44)", async () => {
  const world = await deploy({ edge: { RATE_LIMITS: "x402_all=1/60" } });
  // Addresses of no other test: what the isolate knows of a client outlives one.
  const from = (host: number) => ({ "cf-connecting-ip": `203.0.113.${host}` });
  const ask = async (host: number, headers: Record<string, string>) => {
    const answer = await post(world, PATH, computeBody(), { ...headers, ...from(host) });
    return [answer.status, ((await answer.json()) as { code?: string }).code];
  };
  const { requirement, signed } = await signPurchaseOf(world, agent(1));
  for (const signature of [`0x${"1".repeat(130)}`, `0x${"ab".repeat(200)}`] as const) {
    const forged = { "payment-signature": paymentHeaderV2(requirement, { ...signed, signature }) };
    expect(await ask(10, forged)).toEqual([402, "payment_invalid"]);
  }
  // A key costs nothing, and neither does its signature.
  for (let host = 20; host < 23; host++) {
    const poor = await signPurchaseOf(world, privateKeyToAccount(generatePrivateKey()));
    expect(await ask(host, poor.headers)).toEqual([402, "payment_required"]);
  }
  const first = { "payment-signature": paymentHeaderV2(requirement, signed) };
  expect(await ask(30, first)).toEqual([202, undefined]);
  // The same payment again writes nothing.
  expect(await ask(30, first)).toEqual([202, undefined]);
  expect(await ask(31, (await signPurchaseOf(world, agent(2))).headers)).toEqual([429, "rate_limited"]);
});
