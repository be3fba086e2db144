// Which orders are taken, on which terms, and what is written for those that are not: nothing.
import { generatePrivateKey, privateKeyToAccount } from "viem/accounts";
import { beforeEach, expect, test } from "vitest";
import { connectChain } from "../../../../../src/chain/client.ts";
import { coinOf } from "../../../../../src/chain/coin.ts";
import type { NewPayment } from "../../../../../src/db/payments.ts";
import { catalogs, payments } from "../../../../../src/db/schema.ts";
import { lookForUse } from "../../../../../src/edge/payments/use.ts";
import type { Offer } from "../../../../../src/model/stock.ts";
import { paymentRow } from "../../../../rows.ts";
import { USDC_ADDRESS } from "../../../../world/addresses.ts";
import { cancel, paymentHeaderV2, readQuote, submit } from "../../../../world/payer.ts";
import { agent, chain } from "../../../chain.ts";
import { type Deployment, deploy } from "../../../deployment.ts";
import { addFacilitatorFault } from "../../../faults.ts";
import {
  at,
  computeBody,
  give,
  inState,
  type Order,
  orderMachine,
  ownerOf,
  playUntil,
  post,
  quoteOf,
  setTier,
  signFor,
  signPurchaseOf,
  usdcOf,
} from "./till.ts";

const PATH = "/x402/purchase-compute";
const PRICE = 500_000n;
const payer = agent(1);
let world: Deployment;
beforeEach(async () => {
  world = await deploy();
});

type Body = Record<string, unknown> & { purchaseId: string; code?: string };
const told = async (response: Response) => ({
  status: response.status,
  body: (await response.json()) as Body,
  headers: response.headers,
});
const order = async (from = payer, what: Order = {}) => told((await orderMachine(world, from, what)).answer);
const ask = async (what: Order = {}, headers: Record<string, string> = {}) =>
  told(await post(world, PATH, computeBody(what), headers));
const run = (sql: string, ...values: unknown[]) =>
  world.sql
    .prepare(sql)
    .bind(...values)
    .run();
/** A row of somebody else's. */
const insert = (id: number, columns: Partial<NewPayment>) =>
  world.insert(payments, paymentRow({ id: `${id}`.padStart(32, "0"), ...columns }));
/** What the shop knows of prices and stock. */
const publish = (known: Partial<typeof catalogs.$inferInsert> = {}) =>
  world.insert(catalogs, { id: 1, tiers: TIERS, ...known });
const stranger = () => privateKeyToAccount(generatePrivateKey());

test("hard case 37: who has no money, an open order or a refused capture is refused, and nothing is written for it", async () => {
  const poor = await order(stranger());
  expect(poor).toMatchObject({ status: 402, body: { charged: "none" } });
  expect(poor.body["error"]).toContain("balance");
  expect([await world.payments(), world.sent]).toEqual([[], []]);
  const fresh = stranger();
  await give(agent(0), fresh.address, 10n * PRICE);
  expect((await order(fresh)).status).toBe(202);
  expect(await order(fresh, { durationDays: 2 })).toMatchObject({
    status: 409,
    body: { code: "order_open", charged: "none" },
  });
  await insert(1, { payer: payer.address.toLowerCase(), state: "released", reason: "capture_refused" });
  expect(await order(payer)).toMatchObject({ status: 403, body: { code: "payer_refused", charged: "none" } });
  expect((await world.payments()).map(({ payer: who }) => who)).toEqual([
    fresh.address.toLowerCase(),
    payer.address.toLowerCase(),
  ]);
});

test("hard case 37: of many at once that all pass the first look, the first one passes the second; the others cost no look at the chain for as long as they can move", async () => {
  const fresh = stranger();
  await give(agent(0), fresh.address, 100n * PRICE);
  const signed = await Promise.all(
    Array.from({ length: 8 }, (_, i) => signPurchaseOf(world, fresh, { durationDays: i + 1 })),
  );
  const answers = await Promise.all(signed.map(({ body, headers }) => post(world, PATH, body, headers)));
  expect(answers.map(({ status }) => status).sort()).toEqual([202, ...Array(7).fill(409)]);
  const refused = (await world.payments()).filter(({ state }) => state !== "authorized");
  for (const row of refused) {
    expect(row).toMatchObject({ state: "releasing", reason: "order_open" });
    expect(Number(row["wake_at"])).toBeGreaterThan(Number(row["valid_before"]) * 1_000);
  }
});

test("hard case 18: of payments that were refused before, one is open at a time, the older one too: it did not count the newer", async () => {
  const fresh = stranger();
  await give(agent(0), fresh.address, 100n * PRICE);
  const older = await signPurchaseOf(world, fresh, { durationDays: 1 });
  const newer = await signPurchaseOf(world, fresh, { durationDays: 2 });
  const send = async ({ body, headers }: typeof older) => (await post(world, PATH, body, headers)).status;
  for (const one of [older, newer]) {
    expect(await send(one)).toBe(202);
    await run("UPDATE payments SET state = 'releasing', step = 'release', reason = 'order_open'");
  }
  expect([await send(newer), await send(older)]).toEqual([202, 409]);
});

const ruleOf = async (what: Order) => {
  const quote = await post(world, PATH, computeBody(what));
  const { resource } = readQuote(quote);
  return /Charged (at once|only once)/.exec(resource?.description ?? "")?.[1];
};

test("hard case 38: more than a tenth of the limit is captured first, and everything beyond its half; what was let go counts no longer", async () => {
  world = await deploy({ edge: { UNCAPTURED_LIMIT_USDC_PER_HOUR: "10" } });
  expect([await ruleOf({ durationDays: 2 }), await ruleOf({ durationDays: 3 })]).toEqual(["only once", "at once"]);
  const unpaid = { amount: "4500000", state: "authorized" } as const;
  await insert(1, unpaid);
  expect([await ruleOf({ durationDays: 1 }), await ruleOf({ durationDays: 2 })]).toEqual(["only once", "at once"]);
  for (const over of ["settled", "released", "refund_due", "refunding", "refunded", "held"]) {
    await run("UPDATE payments SET state = ?, bought_at = ?", over, Date.now());
    expect(await ruleOf({ durationDays: 2 }), over).toBe("only once");
  }
  // Given up, and its token bought a moment ago: that money is out until final history has let it go.
  await run("UPDATE payments SET state = 'releasing'");
  expect(await ruleOf({ durationDays: 2 })).toBe("at once");
  await run("UPDATE payments SET capture_first = 1");
  expect(await ruleOf({ durationDays: 2 })).toBe("only once");
});

test("hard case 38: the rule is decided when an order is taken, and stands in its row", async () => {
  world = await deploy({ edge: { UNCAPTURED_LIMIT_USDC_PER_HOUR: "10" } });
  expect(await order(payer, { durationDays: 2 })).toMatchObject({ status: 202, body: { chargedFirst: false } });
  expect(await order(agent(2), { durationDays: 20 })).toMatchObject({ status: 202, body: { chargedFirst: true } });
  // Signed while there was room, and sent when there is none.
  const late = await signPurchaseOf(world, agent(3), { durationDays: 2 });
  await insert(1, { amount: "4000000", state: "authorized" });
  expect(await told(await post(world, PATH, late.body, late.headers))).toMatchObject({
    status: 202,
    body: { chargedFirst: true },
  });
  expect((await world.payments()).map(({ capture_first: first }) => first)).toEqual([0, 1, 0, 1]);
});

const tierAt = (tier: number, pricePerDayUsdc6: string) => ({ tier, pricePerDayUsdc6, active: true, name: "t" });
const TIERS = [tierAt(0, "500000"), tierAt(1, "900000"), tierAt(2, "1600000"), tierAt(4, "18000000")];

test("hard case 56: tier 4 for 30 days, above the limit of open orders, is sold captured first; beyond what is bought in a day it is refused at the quote, with the days that can be had", async () => {
  expect(await ruleOf({ tier: 4, durationDays: 30 })).toBe("at once");
  await give(agent(0), payer.address, 600_000_000n);
  expect(await order(payer, { tier: 4, durationDays: 30 })).toMatchObject({
    status: 202,
    body: { chargedFirst: true },
  });
  await run("DELETE FROM payments");
  world = await deploy({ edge: { PURCHASE_LIMIT_USDC_PER_DAY: "100" } });
  await publish();
  const refused = await ask({ tier: 4, durationDays: 30 });
  expect(refused).toMatchObject({
    status: 409,
    body: {
      code: "order_too_large",
      charged: "none",
      details: [
        { tier: 4, durationDays: 5, amount: "90.00" },
        { tier: 2, durationDays: 30, amount: "48.00" },
        { tier: 1, durationDays: 30, amount: "27.00" },
      ],
    },
  });
  expect(refused.body["error"]).toBe(
    "One order may cost at most 100.00 USDC; tier 4 for 5 days can be had, for 90.00 USDC.",
  );
  expect((await ask({ tier: 4, durationDays: 5 })).status).toBe(402);
  // Most of the day's limit is used.
  await insert(1, { boughtAt: Date.now(), cost: "80000000" });
  expect(await ask({ tier: 4, durationDays: 5 })).toMatchObject({
    status: 503,
    body: { code: "orders_full", details: [{ tier: 4, durationDays: 1, amount: "18.00" }, { tier: 2 }, { tier: 1 }] },
  });
  expect((await ask({ tier: 4 })).status).toBe(402);
  await insert(2, { amount: "3000000", state: "authorized" });
  expect(await ask({ tier: 4 })).toMatchObject({
    status: 503,
    body: { details: [{ tier: 2 }, { tier: 1 }, { tier: 0 }] },
  });
});

test("hard case 56: what nobody has is refused with the nearest tier that there is", async () => {
  const offers: Offer[] = [
    { region: "ewr", plan: "vc2-1c-2gb", stock: "none" },
    { region: "ewr", plan: "vc2-1c-1gb", stock: "high" },
  ];
  await publish({ tiers: TIERS.slice(0, 3), stock: { vultr: { readAt: Date.now(), offers } } });
  const { status, body } = await ask({ tier: 1, durationDays: 2 });
  expect([status, body.code]).toEqual([503, "sold_out"]);
  expect(body["details"]).toMatchObject([
    { tier: 0, durationDays: 2, amount: "1.00" },
    { tier: 2, durationDays: 2, amount: "3.20" },
  ]);
});

test("hard case 56: what nobody has in the region, or below its share of the price, is refused at the quote: it was quoted and never served", async () => {
  const offers: Offer[] = [
    { region: "ewr", plan: "vc2-1c-1gb", stock: "high" },
    { region: "fra", plan: "vc2-1c-1gb", stock: "none" },
    { region: "COMMUNITY", plan: "NVIDIA GeForce RTX 4090", stock: "high", usdPerHour: 0.7 },
  ];
  const read = { readAt: Date.now(), offers, maxCostShare: 0.9 };
  await publish({ stock: { vultr: read, runpod: read } });
  const quote = async (what: Order) => {
    const { status, body } = await ask(what);
    return [status, body.code, body["error"]];
  };
  expect((await quote({ tier: 0 }))[0]).toBe(402);
  expect((await quote({ tier: 0, region: "us-east" }))[0]).toBe(402);
  expect(await quote({ tier: 0, region: "europe" })).toEqual([503, "sold_out", expect.stringContaining("in europe")]);
  // 18 USDC a day are 0.75 an hour.
  expect(await quote({ tier: 4 })).toEqual([503, "sold_out", expect.stringContaining("at its price")]);
  await run("UPDATE catalogs SET stock = replace(stock, '0.9', '1')");
  expect((await quote({ tier: 4 }))[0]).toBe(402);
});

test("hard case 56: a payment of an earlier, lower price is refused where nobody sells below its share: it waited for a machine that no vendor was asked for", async () => {
  const { headers } = await signPurchaseOf(world, payer);
  const offers: Offer[] = [{ region: "ewr", plan: "vc2-1c-1gb", stock: "high", usdPerHour: 0.03 }];
  await publish({ stock: { vultr: { readAt: Date.now(), offers, maxCostShare: 1 } } });
  // 0.50 USDC a day are 0.02 an hour, 1.00 are 0.04.
  await setTier(PRICE * 2n);
  try {
    world.app = world.appOf({ ...world.edge });
    expect((await ask()).status).toBe(402);
    expect(await ask({}, headers)).toMatchObject({ status: 503, body: { code: "sold_out", charged: "none" } });
    expect(await world.payments()).toEqual([]);
    await run("UPDATE catalogs SET stock = replace(stock, '0.03', '0.02')");
    expect((await ask({}, headers)).status).toBe(202);
  } finally {
    await setTier(PRICE);
  }
});

test("a payment that is good since this very second is refused with what to sign: a node that is some blocks behind could not take it", async () => {
  // The next block may be much later than one of a while ago.
  await chain.mine(1);
  const { timestamp } = await chain.reader.getBlock();
  const from = async (validAfter: bigint) =>
    told((await orderMachine(world, payer, {}, { validAfter: String(validAfter) })).answer);
  const early = await from(timestamp);
  expect(early).toMatchObject({ status: 402, body: { charged: "none" } });
  expect(early.body["error"]).toBe("The authorization is not valid yet: sign one that is since 10 seconds ago.");
  // The facilitator goes by its own clock, which the chain's may be ahead of here.
  const past = Math.min(Number(timestamp), Math.floor(Date.now() / 1_000)) - 60;
  expect((await from(BigInt(past))).status).toBe(202);
});

test("hard case 60: a payment of an old price that a stranger has submitted is paid back: it stayed with us, and its payer was told that nothing was charged", async () => {
  const before = await usdcOf(payer.address);
  const { signed, headers } = await signPurchaseOf(world, payer);
  await submit(chain, agent(3), signed, USDC_ADDRESS);
  await run("DELETE FROM quotes");
  await setTier(PRICE * 2n);
  try {
    world.app = world.appOf({ ...world.edge });
    const answer = await ask({}, headers);
    expect(answer).toMatchObject({ status: 409, body: { code: "payment_used", charged: "yes" } });
    const [row] = await world.payments();
    expect(row).toMatchObject({ state: "refund_due", step: "refund", reason: "no_demand", amount: String(PRICE) });
    expect(await ask({}, headers)).toMatchObject({ status: 409, body: { code: "payment_used", charged: "yes" } });
    expect(await world.payments()).toHaveLength(1);
    await playUntil(world, String(row?.["id"]), inState("refunded"));
  } finally {
    await setTier(PRICE);
  }
  expect(await usdcOf(payer.address)).toBe(before);
});

test("hard case 59: the same order by the same payer within a minute is the first one, whichever payment it carries; at the same instant too", async () => {
  const first = await order();
  expect(first.status).toBe(202);
  expect(await order()).toMatchObject({ status: 202, body: { purchaseId: first.body.purchaseId } });
  await run("UPDATE payments SET state = 'settled', step = 'close', served_at = 1, token_id = 7");
  const served = await order();
  expect(served).toMatchObject({
    status: 200,
    body: { purchaseId: first.body.purchaseId, credentialsUrl: "https://api.example/credentials/7" },
  });
  expect(await world.payments()).toHaveLength(1);
  const twice = await Promise.all([signPurchaseOf(world, agent(2)), signPurchaseOf(world, agent(2))]);
  const answers = await Promise.all(
    twice.map(async ({ body, headers }) => told(await post(world, PATH, body, headers))),
  );
  expect(answers.map(({ status }) => status)).toEqual([202, 202]);
  expect(new Set(answers.map(({ body }) => body.purchaseId)).size).toBe(1);
  expect(await world.payments()).toHaveLength(2);
});

test("hard case 59: another identifier, another order, a minute later, or nothing came of the first: that is a new order", async () => {
  const first = await order();
  // It has paid before, so that it may have several open.
  await insert(1, { payer: payer.address.toLowerCase() });
  const named = async () => {
    const requirement = await quoteOf(post(world, PATH, computeBody()));
    const extensions = { "payment-identifier": { info: { id: "another-order-0001" } } };
    const header = paymentHeaderV2(requirement, await signFor(payer, requirement), { extensions });
    return ask({}, { "payment-signature": header });
  };
  const others = [await order(payer, { durationDays: 2 }), await named()];
  await run("UPDATE payments SET created_at = created_at - 60001");
  others.push(await order());
  await run("UPDATE payments SET state = 'releasing', step = 'release', reason = 'price'");
  others.push(await order());
  expect(others.map(({ status }) => status)).toEqual([202, 202, 202, 202]);
  expect(new Set([first, ...others].map(({ body }) => body.purchaseId)).size).toBe(5);
});

/** Signed, and brought to the chain by a stranger before we see it. */
async function submitted(from = payer, what: Order = {}) {
  const prepared = await signPurchaseOf(world, from, what);
  const hash = await submit(chain, agent(3), prepared.signed, USDC_ADDRESS);
  return { ...prepared, hash, send: async () => told(await post(world, PATH, prepared.body, prepared.headers)) };
}

test("hard case 60: a payment that a stranger has submitted is charged although its payer has nothing left: the order goes on", async () => {
  const fresh = stranger();
  await give(agent(0), fresh.address, PRICE);
  const { send, hash } = await submitted(fresh);
  expect(await usdcOf(fresh.address)).toBe(0n);
  const accepted = await send();
  expect(accepted).toMatchObject({
    status: 202,
    body: { status: "settled", charged: true, transactions: { settlement: hash } },
  });
  const row = await playUntil(world, accepted.body.purchaseId, at("close"));
  expect(await ownerOf(row["token_id"])).toBe(fresh.address);
});

test("hard case 60: nor is it refused for a pause, an order like it or its time: what can't be had for it is paid back", async () => {
  const open = await order();
  const { send } = await submitted();
  await world.pause("provisioning");
  const accepted = await send();
  expect(accepted).toMatchObject({ status: 202, body: { status: "settled", charged: true } });
  expect(accepted.body.purchaseId).not.toBe(open.body.purchaseId);
  await world.liftPauses();
  const requirement = await quoteOf(post(world, PATH, computeBody({ durationDays: 2 })));
  const { timestamp } = await chain.reader.getBlock();
  const signed = await signFor(payer, requirement, { validBefore: String(Number(timestamp) + 60) });
  const headers = { "payment-signature": paymentHeaderV2(requirement, signed) };
  expect(await ask({ durationDays: 2 }, headers)).toMatchObject({ status: 402, body: { charged: "none" } });
  await submit(chain, agent(3), signed, USDC_ADDRESS);
  expect(await ask({ durationDays: 2 }, headers)).toMatchObject({ status: 202, body: { charged: true } });
});

test("hard case 60: while the facilitator is down, a payment that a stranger has submitted is an order; of any other nothing is charged", async () => {
  await addFacilitatorFault({ call: "verify", kind: "down" });
  const { send, hash } = await submitted();
  expect(await send()).toMatchObject({
    status: 202,
    body: { status: "settled", charged: true, transactions: { settlement: hash } },
  });
  expect(await order(agent(2))).toMatchObject({ status: 503, body: { charged: "none" } });
});

test("hard case 60: what was used up long ago is not to be signed again", async () => {
  const requirement = await quoteOf(post(world, PATH, computeBody()));
  const signed = await signFor(payer, requirement, { validBefore: "1000" });
  const { value, validAfter, validBefore, ...rest } = signed.authorization;
  const times = { validAfter: Number(validAfter), validBefore: Number(validBefore) };
  const authorization = { ...rest, ...times, value: BigInt(value), signature: signed.signature };
  const services = { chain: connectChain(world.edge) };
  const payment = { payment: { authorization }, demand: { seconds: 60 } };
  const head = { blockNumber: 1_000_000, blockTimestamp: 2_000_000 };
  const look = () => lookForUse(services, { coin: coinOf(world.edge) }, payment, head);
  expect(await look()).toBe("none");
  await cancel(chain, payer, signed, USDC_ADDRESS);
  await expect(look()).rejects.toMatchObject({ code: "payment_used", charged: "unknown" });
});

test("hard case 45: while provisioning is paused nothing is quoted or taken, and an order that stands is answered", async () => {
  const { body, headers } = await signPurchaseOf(world, agent(2));
  const open = await orderMachine(world, payer);
  await world.pause("provisioning");
  for (const sent of [{}, headers]) {
    const refused = await told(await post(world, PATH, body, sent));
    expect(refused).toMatchObject({ status: 503, body: { code: "provisioning_paused", charged: "none" } });
    expect(refused.headers.get("retry-after")).toBe("30");
  }
  expect(await world.payments()).toHaveLength(1);
  expect((await post(world, PATH, open.body, open.headers)).status).toBe(202);
  await world.liftPauses();
  expect((await post(world, PATH, body, headers)).status).toBe(202);
});

test("Prefer: wait holds the answer until the token is the payer's: 200 with the login's place and the receipt", async () => {
  const { body, headers } = await signPurchaseOf(world, payer);
  const held = post(world, PATH, body, { ...headers, prefer: "respond-async, wait=600" });
  let id: string | undefined;
  while (id === undefined) {
    await new Promise((resolve) => setTimeout(resolve, 50));
    id = (await world.payments()).find(inState("authorized"))?.["id"];
  }
  const row = await playUntil(world, id, at("close"));
  const answered = await told(await held);
  expect(answered).toMatchObject({
    status: 200,
    body: { purchaseId: id, status: "settled", credentialsUrl: `https://api.example/credentials/${row["token_id"]}` },
  });
  expect(answered.headers.get("preference-applied")).toBe("wait=60");
  const receipt = JSON.parse(atob(answered.headers.get("payment-response") ?? ""));
  expect(receipt).toMatchObject({ success: true, payer: payer.address, transaction: row["settle_tx"] });
  // Without the token the wait ends as any other answer.
  await run("UPDATE payments SET served_at = NULL, state = 'authorized'");
  const again = await told(await post(world, PATH, body, { ...headers, prefer: "wait=1" }));
  expect([again.status, again.headers.get("preference-applied")]).toEqual([202, "wait=1"]);
  // What comes to nothing is told at once.
  await run("UPDATE payments SET state = 'refund_due'");
  const over = await told(await post(world, PATH, body, { ...headers, prefer: "wait=60" }));
  expect(over).toMatchObject({ status: 202, body: { credentialsUrl: null } });
});

test("of one order two answers are held at a time: the same payment a hundred times cost a hundred looks a second", async () => {
  const { body, headers } = await signPurchaseOf(world, payer);
  expect((await post(world, PATH, body, headers)).status).toBe(202);
  const asked = Array.from({ length: 12 }, () => post(world, PATH, body, { ...headers, prefer: "wait=4" }));
  const answers = await Promise.all(asked);
  expect(answers.map(({ status }) => status)).toEqual(answers.map(() => 202));
  const applied = answers.map((answer) => answer.headers.get("preference-applied")).filter((one) => one !== null);
  expect(applied).toEqual(["wait=4", "wait=4"]);
  // Once those have their answers, the next one waits.
  const next = await post(world, PATH, body, { ...headers, prefer: "wait=1" });
  expect(next.headers.get("preference-applied")).toBe("wait=1");
});

test("payers choose their nonces: a nonce that two have used is looked up with the payer, and by itself while one has", async () => {
  const nonce = `0x${"ab".repeat(32)}` as const;
  const orderWith = async (from: typeof payer) => {
    const requirement = await quoteOf(post(world, PATH, computeBody()));
    const signed = await signFor(from, requirement, { nonce });
    return (await ask({}, { "payment-signature": paymentHeaderV2(requirement, signed) })).body.purchaseId;
  };
  const find = async (query: string) => told(await world.request(`/x402/purchases?${query}`));
  const first = await orderWith(payer);
  expect(await find(`nonce=${nonce}`)).toMatchObject({ status: 200, body: { purchaseId: first } });
  const second = await orderWith(agent(2));
  expect(await find(`nonce=${nonce}`)).toMatchObject({ status: 409, body: { code: "nonce_ambiguous" } });
  expect(await find(`nonce=${nonce}&payer=${payer.address}`)).toMatchObject({ body: { purchaseId: first } });
  expect(await find(`nonce=${nonce}&payer=${agent(2).address.toUpperCase().replace("0X", "0x")}`)).toMatchObject({
    body: { purchaseId: second },
  });
  expect((await find(`nonce=${nonce}&payer=${agent(3).address}`)).status).toBe(404);
});

test("a payment that was taken is told of after its price has changed: it was 402, another amount", async () => {
  const { body, headers } = await signPurchaseOf(world, payer);
  const { purchaseId } = (await told(await post(world, PATH, body, headers))).body;
  await run("DELETE FROM quotes");
  await setTier(PRICE * 2n);
  // As an isolate answers that has not asked for the price yet.
  const answer = await world.appOf({ ...world.edge }).request(`https://api.example${PATH}`, {
    method: "POST",
    body: JSON.stringify(body),
    headers: { ...headers, "content-type": "application/json", "cf-connecting-ip": "203.0.113.7" },
  });
  await setTier(PRICE);
  expect(await told(answer)).toMatchObject({ status: 202, body: { purchaseId } });
});
