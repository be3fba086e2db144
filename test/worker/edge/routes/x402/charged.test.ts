// Every error of a paid route says whether the payment that came with the request has moved money, and a refused one why.
import { sha256 } from "@noble/hashes/sha2.js";
import { bytesToHex, utf8ToBytes } from "@noble/hashes/utils.js";
import { beforeEach, expect, test } from "vitest";
import { USDC_ADDRESS } from "../../../../world/addresses.ts";
import { buy } from "../../../../world/agent.ts";
import { paymentHeaderV2, submit } from "../../../../world/payer.ts";
import { parts } from "../../../bindings.ts";
import { agent, chain } from "../../../chain.ts";
import { buyAndRun, type Deployment, deploy } from "../../../deployment.ts";
import { addFacilitatorFault } from "../../../faults.ts";
import { ask, prepare, quote, v2 } from "./paid-credentials.ts";
import { computeBody, give, orderMachine, playOn, post, quoteOf, signFor, signPurchaseOf, usdcOf } from "./till.ts";

const PATH = "/x402/purchase-compute";
let world: Deployment;
beforeEach(async () => {
  world = await deploy();
});

const told = async (answer: Response | Promise<Response>) => {
  const response = await answer;
  const { status, headers } = response;
  const body = (await response.json()) as Record<string, unknown>;
  return { status, charged: body["charged"], error: body["error"], headers };
};
const reasonOf = (headers: Headers): unknown => {
  const header = headers.get("payment-response");
  return header === null ? null : JSON.parse(atob(header)).errorReason;
};

test("what is malformed is refused in one sentence and leaves no row; a payment beside it may have been submitted", async () => {
  const { headers } = await signPurchaseOf(world, agent(1));
  const json = { "content-type": "application/json" };
  const sendBeside = (payment: object) => (init: RequestInit) =>
    told(world.request(PATH, { method: "POST", ...init, headers: { ...json, ...payment, ...init.headers } }));
  const send = sendBeside(headers);
  const refused = [
    await send({ body: "{}" }),
    await send({ body: "{" }),
    await send({ body: "[]" }),
    await send({ body: '{"tier":0,"durationDays":1,"__proto__":{"tier":7}}' }),
    await send({ body: JSON.stringify(computeBody({ sshPublicKey: "ssh-rsa x" })) }),
    await send({ body: "x".repeat(17_000) }),
    await send({ body: "a=b", headers: { "content-type": "text/plain" } }),
    await send({ body: JSON.stringify(computeBody()), headers: { prefer: "x".repeat(2_000) } }),
    await send({ body: JSON.stringify(computeBody()), headers: { "x-payment": "x".repeat(20_000) } }),
    await send({ body: JSON.stringify(computeBody()), headers: { "x-payment": "e30" } }),
    await send({ method: "PUT", body: "{}" }),
  ];
  expect(refused.map(({ status }) => status)).toEqual([400, 400, 400, 400, 400, 413, 415, 400, 400, 400, 405]);
  for (const { charged, error, status } of refused) {
    expect(charged, `${status} ${error}`).toBe("unknown");
    expect(error).toMatch(/^[^\n]{10,300}\.$/);
  }
  // Without a payment that can be read nothing was charged.
  for (const payment of [{}, { "x-payment": "e30" }])
    expect(await sendBeside(payment)({ body: JSON.stringify(computeBody()) })).toMatchObject({ charged: "none" });
  expect(await sendBeside({})({ body: "{}" })).toMatchObject({ status: 400, charged: "none" });
  expect(await world.rows("SELECT * FROM payments")).toEqual([]);
  expect((await told(post(world, PATH, computeBody(), { ...headers, prefer: "wait=1' OR '1'='1" }))).status).toBe(202);
});

test("a payment that won't do is 402 with the demand, and with x402's code for the reason", async () => {
  const requirement = await quoteOf(post(world, PATH, computeBody()));
  const now = Number((await chain.reader.getBlock()).timestamp);
  const send = async (change: object, from = agent(1)) => {
    const signed = await signFor(from, requirement, change);
    return told(post(world, PATH, computeBody(), { "payment-signature": paymentHeaderV2(requirement, signed) }));
  };
  const answers = [
    await send({ value: "1" }),
    await send({ from: agent(2).address }),
    await send({ validBefore: String(now - 1) }),
    await send({ validAfter: String(now + 600) }),
  ];
  await addFacilitatorFault({ call: "verify", kind: "refuse", reason: "insufficient_funds" });
  answers.push(await send({}));
  expect(answers.map(({ status, charged, headers }) => [status, charged, reasonOf(headers)])).toEqual([
    [402, "none", "invalid_payment_requirements"],
    [402, "none", "invalid_exact_evm_payload_signature"],
    [402, "none", "invalid_exact_evm_payload_authorization_valid_before"],
    [402, "none", "invalid_exact_evm_payload_authorization_valid_after"],
    [402, "none", "insufficient_funds"],
  ]);
  for (const { headers } of answers) expect(headers.get("payment-required")).not.toBeNull();
  const v1 = JSON.parse(atob(answers[1]?.headers.get("x-payment-response") ?? ""));
  expect(v1).toMatchObject({ success: false, network: "base", payer: agent(2).address });
  // Of a request without one, nothing is told.
  const quote = await told(post(world, PATH, computeBody()));
  expect([quote.status, quote.charged, quote.headers.get("payment-response")]).toEqual([402, "none", null]);
});

test("what nobody has looked into is unknown, and what a row knows is told", async () => {
  const { headers, body, answer } = await orderMachine(world, agent(1));
  expect(answer.status).toBe(202);
  const other = { ...body, durationDays: 2 };
  expect(await told(post(world, PATH, other, headers))).toMatchObject({ status: 409, charged: "unknown" });
  for (const [state, charged] of [
    ["settled", "yes"],
    ["refund_due", "yes"],
    ["settling", "unknown"],
    ["claimed", "unknown"],
    ["releasing", "unknown"],
    ["released", "none"],
    ["refunded", "none"],
  ]) {
    await world.sql.prepare("UPDATE payments SET state = ?").bind(state).run();
    expect(await told(post(world, PATH, other, headers)), String(state)).toMatchObject({ status: 409, charged });
  }
  const signed = await signPurchaseOf(world, agent(2));
  await world.sql.prepare("ALTER TABLE payments RENAME TO hidden").run();
  const failed = [
    await told(post(world, PATH, signed.body, signed.headers)),
    await told(world.request("/x402/vm-credentials?tokenId=x", { headers: signed.headers })),
  ];
  await world.sql.prepare("ALTER TABLE hidden RENAME TO payments").run();
  expect(failed.map(({ status, charged }) => [status, charged])).toEqual([
    [500, "unknown"],
    [400, "unknown"],
  ]);
  const limited = await deploy({ edge: { RATE_LIMITS: "x402=1/60" } });
  await post(limited, PATH, computeBody());
  expect(await told(post(limited, PATH, computeBody()))).toMatchObject({ status: 429, charged: "none" });
  expect(await told(post(limited, PATH, computeBody(), headers))).toMatchObject({ status: 429, charged: "unknown" });
});

test("a payment that a stranger has submitted, beside a body that nobody has signed for, is unknown: it said none", async () => {
  const { headers, signed } = await signPurchaseOf(world, agent(1));
  await submit(chain, agent(3), signed, USDC_ADDRESS);
  const sshPublicKey = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIOMqqnkVzrm0SdG6UOoqKLsabgH5C9okWi0dh2l9GKJl";
  const body = { ...computeBody(), sshPublicKey };
  for (const bodySignature of [undefined, `0x${"12".repeat(65)}`]) {
    const more = bodySignature === undefined ? {} : { "x-body-signature": bodySignature };
    expect(await told(post(world, PATH, body, { ...headers, ...more }))).toMatchObject({
      status: 401,
      charged: "unknown",
    });
  }
  // The same payment again is an order.
  const digest = bytesToHex(sha256(utf8ToBytes(JSON.stringify(body))));
  const signature = await agent(1).signMessage({ message: `ClawCloud Purchase: ${digest}` });
  const accepted = await told(post(world, PATH, body, { ...headers, "x-body-signature": signature }));
  expect(accepted).toMatchObject({ status: 202, charged: true });
});

test("a payment for a token that nobody has, or somebody else, has moved nothing: it said unknown, and a careful payer was stuck", async () => {
  const { headers, signed } = await prepare(world, 999);
  expect(await ask(world, 999, headers)).toMatchObject({ status: 404, body: { charged: "none" } });
  const { tokenId } = await buy(chain, agent(2), 0, 1);
  const others = await prepare(world, tokenId, 1);
  expect(await ask(world, tokenId, others.headers)).toMatchObject({ status: 403, body: { charged: "none" } });
  // Somebody has submitted it: it goes back.
  const had = await usdcOf(agent(0).address);
  await submit(chain, agent(3), signed, USDC_ADDRESS);
  expect(await ask(world, 999, headers)).toMatchObject({ status: 404, body: { charged: "yes" } });
  expect(await ask(world, 999, headers)).toMatchObject({ status: 404, body: { charged: "yes" } });
  const [row] = await world.rows("SELECT * FROM payments");
  expect(row).toMatchObject({ kind: "credentials", token_id: 999, state: "settled", step: "settle" });
  world.passTime(601);
  await chain.mine(4);
  await playOn(world, async () => (await world.payment(String(row?.["id"])))["state"] === "refunded");
  expect(await usdcOf(agent(0).address)).toBe(had);
});

test("a payment for a key that is not sold has moved nothing: it said unknown; one that somebody has submitted gets the key once it is", async () => {
  const tokenId = await buyAndRun(world, 0);
  const key = (await world.vm(tokenId))?.["ssh_private_key"];
  await world.sql.prepare("UPDATE vms SET ssh_private_key = NULL").run();
  const { headers, signed } = await prepare(world, tokenId);
  expect(await ask(world, tokenId, headers)).toMatchObject({ status: 409, body: { charged: "none" } });
  await submit(chain, agent(3), signed, USDC_ADDRESS);
  expect(await ask(world, tokenId, headers)).toMatchObject({ status: 409, body: { charged: "yes" } });
  await world.sql.prepare("UPDATE vms SET ssh_private_key = ?").bind(key).run();
  await world.sql.prepare("UPDATE payments SET settled_at = settled_at - 30000").run();
  expect(await ask(world, tokenId, headers)).toMatchObject({ status: 200 });
});

test("a payment under the identifier of one that was paid back is looked up itself: it said that nothing was charged", async () => {
  const requirement = await quote(world, 999);
  const identifier = `agent-${crypto.randomUUID()}`;
  const sign = () => signFor(agent(0), requirement);
  const [first, second] = [await sign(), await sign()];
  for (const signed of [first, second]) {
    await submit(chain, agent(3), signed, USDC_ADDRESS);
    const answer = await ask(world, 999, v2(requirement, signed, identifier));
    expect(answer).toMatchObject({ status: 404, body: { charged: "yes" } });
    if (signed === second) break;
    await world.sql
      .prepare("UPDATE payments SET identifier = ?, state = 'refunded', step = 'idle'")
      .bind(identifier)
      .run();
  }
});

test.each([
  ["[]", "The body must be a JSON object."],
  ["null", "The body must be a JSON object."],
  ['{"tier":0,"durationDays":1,"foo":1}', "The body must not have the field foo."],
  ['{"durationDays":1}', "tier must be a tier, 0 to 7."],
  ['{"tier":0,"durationDays":0}', "durationDays must be a whole number of days, 1 to 365."],
  ['{"tier":0,"durationDays":1,"region":"mars"}', "region must be one of us-east, us-west, europe, asia."],
  ['{"tier":0,"durationDays":1,"sshPublicKey":7}', "sshPublicKey must be text."],
  ['{"tier":0,"durationDays":1,"ports":80}', "ports must be a list."],
])("the body %s is refused in plain words: they were the validator's own", async (body, sentence) => {
  const answer = told(world.request(PATH, { method: "POST", body, headers: { "content-type": "application/json" } }));
  expect(await answer).toMatchObject({ status: 400, error: sentence });
});

test("while no two nodes can be asked, a refusal does not say that nothing was charged", async () => {
  const { body, headers } = await signPurchaseOf(world, agent(1));
  await world.pause("provisioning");
  const ask = (urls: readonly string[]) =>
    world.appOf({ ...world.edge, RPC_URLS: [...urls] }).request(`https://api.example${PATH}`, {
      method: "POST",
      body: JSON.stringify(body),
      headers: { ...headers, "content-type": "application/json", "cf-connecting-ip": "203.0.113.7" },
    });
  const [, node = ""] = parts.rpcUrls;
  expect(await told(ask(parts.rpcUrls))).toMatchObject({ status: 503, charged: "none" });
  const alone = [node, "http://127.0.0.1:9", "http://127.0.0.1:9"];
  expect(await told(ask(alone))).toMatchObject({ status: 503, charged: "unknown" });
  // Nor that another payment is to be signed.
  await world.liftPauses();
  const funds = await usdcOf(agent(1).address);
  await give(agent(1), agent(2).address, funds);
  expect(await told(ask(alone))).toMatchObject({
    status: 503,
    error: expect.stringContaining("the same payment again"),
    charged: "unknown",
  });
  expect(await told(ask(parts.rpcUrls))).toMatchObject({ status: 402, charged: "none" });
  await give(agent(2), agent(1).address, funds);
});
