// Pages that are about the shop's own state, whatever is asked of it (hard case 40).
import { beforeEach, expect, test } from "vitest";
import { agent, chain, type Deployment, deploy, deployer, operator } from "../deployment.ts";
import { takePages } from "../paged.ts";
import { give, usdcOf } from "../routes/x402/till.ts";

const EMPTY_HANDED = "203.0.113.";
let world: Deployment;
beforeEach(async () => {
  await chain.node.setAutomine(true);
  world = await deploy();
  await takePages();
});

/** A sweep that reads prices and stock as well. */
async function look() {
  await world.sql.prepare("UPDATE cursors SET catalog_asked_at = 0").run();
  await world.sweep();
  return takePages();
}

test("a burst of unpaid quotes that can't be served calls nobody; the empty wallet does, once, until it is filled", async () => {
  const funds = await usdcOf(operator.address);
  await give(operator, deployer.address, funds);
  try {
    for (let i = 0; i < 55; i++) {
      const answer = await world.appOf({ ...world.edge }).request("https://api.example/x402/purchase-compute", {
        method: "POST",
        body: JSON.stringify({ tier: i % 8, durationDays: 1 + (i % 20) }),
        headers: { "content-type": "application/json", "cf-connecting-ip": `${EMPTY_HANDED}${i}` },
      });
      expect(answer.status, await answer.clone().text()).toBe(503);
    }
    expect((await takePages()).pages).toEqual([]);
    expect((await look()).pages).toEqual(["operator_short"]);
    expect((await look()).pages).toEqual(["operator_short"]);
  } finally {
    await give(deployer, operator.address, funds);
  }
  expect(await look()).toMatchObject({ pages: [], cleared: expect.arrayContaining(["operator_short"]) });
});

test("what is held for a person is told for as long as it is held, however it got there", async () => {
  expect(await look()).toMatchObject({ pages: [], cleared: expect.arrayContaining(["payment_held", "refund_held"]) });
  const hold = (reason: string) =>
    world.sql
      .prepare(
        "INSERT INTO refunds (incarnation, kind, token_id, state, reason, amount, created_at) VALUES (?1, 'failed', 1, 'held', ?1, '1', 1)",
      )
      .bind(reason)
      .run();
  // The owner's own to decide: whoever sells what has failed would call a person.
  for (const reason of ["owner_is_not_the_buyer", "owner_changed", "burned", "renewed"]) await hold(reason);
  expect((await look()).pages).toEqual([]);
  await hold("purchase_gone");
  expect((await look()).pages).toEqual(["refund_held"]);
  await world.sql.prepare("UPDATE refunds SET state = 'paid' WHERE reason = 'purchase_gone'").run();
  expect(await look()).toMatchObject({ pages: [], cleared: expect.arrayContaining(["refund_held"]) });
});

test("a purchase that its buyer gave up before a machine ran is paid back, and calls nobody", async () => {
  const { tokenId } = await world.buy(0);
  await world.scan();
  await chain.node.increaseTime({ seconds: 86_500 });
  await chain.mine(1);
  await world.drain();
  expect(await world.vm(tokenId)).toMatchObject({ status: "failed", failure: "token_not_valid" });
  expect((await takePages()).pages).toEqual([]);
  expect(agent(0).address.toLowerCase()).toBe((await world.vm(tokenId))?.["owner"]);
});
