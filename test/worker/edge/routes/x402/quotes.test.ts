// What an order costs, and who is told before anything of his is used that it can't be had.
import { afterEach, beforeEach, expect, test } from "vitest";
import { catalogs, quotes } from "../../../../../src/db/schema.ts";
import { paymentHeaderV2, readQuote } from "../../../../world/payer.ts";
import { agent, chain, deployer, operator } from "../../../chain.ts";
import { type Deployment, deploy } from "../../../deployment.ts";
import {
  at,
  computeBody,
  give,
  orderMachine,
  playUntil,
  quoteOf,
  setTier,
  signFor,
  signPurchaseOf,
  sold,
  usdcOf,
} from "./till.ts";

const PATH = "/x402/purchase-compute";
const PRICE = 500_000n;
let world: Deployment;
beforeEach(async () => {
  world = await deploy();
});
afterEach(async () => {
  await setTier(PRICE);
});

/** As an isolate sends it on that has asked the chain for nothing yet. */
async function ask(headers: Record<string, string> = {}, edge: Partial<Deployment["edge"]> = {}) {
  const answer = await world.appOf({ ...world.edge, ...edge }).request(`https://api.example${PATH}`, {
    method: "POST",
    body: JSON.stringify(computeBody()),
    headers: { ...headers, "content-type": "application/json", "cf-connecting-ip": "203.0.113.7" },
  });
  return { answer, status: answer.status, body: (await answer.clone().json()) as Record<string, unknown> };
}

test("a price that has changed is kept for QUOTE_SECONDS; after that the payment is refused with the new demand, and unused", async () => {
  const { headers } = await signPurchaseOf(world, agent(1));
  const before = await usdcOf(agent(1).address);
  await setTier(PRICE * 2n);
  await world.sql.prepare("UPDATE quotes SET quoted_at = quoted_at - 301000 WHERE price_per_day = '500000'").run();
  const late = await ask(headers);
  expect(late.status).toBe(402);
  expect(readQuote(late.answer).accepts).toMatchObject([{ amount: "1000000" }]);
  expect(late.body).toMatchObject({ code: "payment_required", accepts: [{ maxAmountRequired: "1000000" }] });
  expect(await world.rows("SELECT * FROM payments")).toEqual([]);
  await world.sql.prepare("UPDATE quotes SET quoted_at = quoted_at + 301000 WHERE price_per_day = '500000'").run();
  const kept = await ask(headers);
  expect(kept.status).toBe(202);
  expect(await playUntil(world, String(kept.body["purchaseId"]), ({ step }) => step !== "check")).toMatchObject({
    step: expect.not.stringMatching("release"),
    amount: "500000",
  });
  expect(await usdcOf(agent(1).address)).toBe(before);
});

test("an order at less than half of today's price is given up, although it was quoted: a token may cost twice what it sold for, not more", async () => {
  const { headers } = await signPurchaseOf(world, agent(1));
  await setTier(PRICE * 3n);
  const { body } = await ask(headers);
  const tokens = await sold();
  expect(await playUntil(world, String(body["purchaseId"]), at("release"))).toMatchObject({
    state: "releasing",
    reason: "price",
  });
  expect(await sold()).toBe(tokens);
});

test("a quote that a broken edge wrote, of a price that the contract never had, buys nothing (hard case 4)", async () => {
  const before = { usdc: await usdcOf(agent(1).address), sold: await sold() };
  const requirement = { ...(await quoteOf(ask().then(({ answer }) => answer))), amount: "1" };
  const head = Number(await chain.reader.getBlockNumber());
  await world.insert(quotes, { tier: 0, pricePerDay: "1", blockNumber: head, quotedAt: Date.now() });
  const signed = await signFor(agent(1), requirement);
  const { status, body } = await ask({ "payment-signature": paymentHeaderV2(requirement, signed) });
  expect(status).toBe(202);
  expect(await playUntil(world, String(body["purchaseId"]), at("release"))).toMatchObject({
    state: "releasing",
    reason: "price",
    purchase_tx: null,
    settle_tx: null,
  });
  expect({ usdc: await usdcOf(agent(1).address), sold: await sold() }).toEqual(before);
});

test("what can't be sold is refused with its payment too: 503 with a sentence, and nothing is written or moved", async () => {
  const { headers } = await signPurchaseOf(world, agent(1));
  const before = { usdc: await usdcOf(agent(1).address), sold: await sold() };
  const refused = async (edge: Parameters<typeof ask>[1] = {}) => {
    const codes = [];
    for (const sent of [headers, {}]) {
      const { status, body } = await ask(sent, edge);
      expect(body["error"] ?? body["message"]).toEqual(expect.any(String));
      codes.push([status, body["code"]]);
    }
    expect(codes[0]).toEqual(codes[1]);
    return codes[0];
  };
  await setTier(PRICE, false);
  expect(await refused()).toEqual([503, "tier_inactive"]);
  await setTier(PRICE);
  const wei = await chain.reader.getBalance({ address: operator.address });
  await chain.node.setBalance({ address: operator.address, value: 1n });
  expect(await refused()).toEqual([503, "operator_short"]);
  await chain.node.setBalance({ address: operator.address, value: wei });
  const funds = await usdcOf(operator.address);
  await give(operator, deployer.address, funds);
  expect(await refused()).toEqual([503, "operator_short"]);
  await give(deployer, operator.address, funds);
  expect(await refused({ MAX_BASE_FEE_GWEI: 0n })).toEqual([503, "gas_too_dear"]);
  const none = { region: "ewr", plan: "vc2-1c-1gb", stock: "none" } as const;
  const stock = (readAt: number) => ({ vultr: { readAt, offers: [none] } });
  await world.insert(catalogs, { id: 1, stock: stock(Date.now()) });
  expect(await refused()).toEqual([503, "sold_out"]);
  expect(await world.rows("SELECT * FROM payments")).toEqual([]);
  expect({ usdc: await usdcOf(agent(1).address), sold: await sold() }).toEqual(before);
  // Stock that was read long ago says nothing, and the same payment is still good.
  await world.db.update(catalogs).set({ stock: stock(1) });
  expect((await ask(headers)).status).toBe(202);
});

test("the price is per day: several are one sum, and the sentence says how to raise a client's cap", async () => {
  const { answer } = await orderMachine(world, agent(1), { tier: 1, durationDays: 7 });
  expect(await answer.json()).toMatchObject({ status: "authorized", amount: "6.30", tier: 1, durationDays: 7 });
  const quote = await ask();
  const [accepts] = readQuote(quote.answer).accepts;
  expect(accepts).toMatchObject({ amount: "500000", payTo: operator.address, maxTimeoutSeconds: 1_200 });
  expect(JSON.stringify(quote.body)).toContain("raise its cap");
});
