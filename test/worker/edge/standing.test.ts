// Pages that are about the shop's own state, whatever is asked of it (hard case 40).
import { beforeEach, expect, test, vi } from "vitest";
import { payments, refunds } from "../../../src/db/schema.ts";
import { refreshCatalog } from "../../../src/provisioner/machines/catalog.ts";
import { paymentRow, refundRow } from "../../rows.ts";
import { agent, chain, deployer, operator } from "../chain.ts";
import { buyAndRun, type Deployment, deploy } from "../deployment.ts";
import { addFault, clearFaults } from "../faults.ts";
import { takePages } from "../paged.ts";
import { operator as operatorOf } from "./routes/admin/operator.ts";
import { accepted, give, usdcOf } from "./routes/x402/till.ts";

const EMPTY_HANDED = "203.0.113.";
let world: Deployment;
beforeEach(async () => {
  world = await deploy();
  await takePages();
});

/** A sweep that reads prices and stock as well. */
async function look(at = world) {
  await at.sql.prepare("UPDATE cursors SET catalog_asked_at = 0").run();
  await at.sweep();
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
  const hold = (reason: string) => world.insert(refunds, refundRow({ subject: reason, state: "held", reason }));
  // The owner's own to decide: whoever sells what has failed would call a person.
  for (const reason of ["owner_is_not_the_buyer", "owner_changed", "burned", "renewed"]) await hold(reason);
  expect((await look()).pages).toEqual([]);
  await hold("purchase_gone");
  expect((await look()).pages).toEqual(["refund_held"]);
  await world.sql.prepare("UPDATE refunds SET state = 'paid' WHERE reason = 'purchase_gone'").run();
  expect(await look()).toMatchObject({ pages: [], cleared: expect.arrayContaining(["refund_held"]) });
  // Of a failed purchase whose refund is manual its failure has told.
  await hold("manual");
  await world.sql.prepare("UPDATE refunds SET state = 'waiting' WHERE reason = 'manual'").run();
  expect((await look()).pages).toEqual([]);
  await world.sql.prepare("UPDATE refunds SET kind = 'payment' WHERE reason = 'manual'").run();
  expect((await look()).pages).toEqual(["refund_held"]);
  await world.sql.prepare("DELETE FROM refunds").run();
  expect((await look()).pages).toEqual([]);
});

test("a payment that is held calls a person, unless a person has just cancelled its refund", async () => {
  const payment = (id: string, reason: string) =>
    world.insert(payments, paymentRow({ id, state: "held", step: "idle", reason }));
  await payment("1", "refund_cancelled");
  expect((await look()).pages).toEqual([]);
  await payment("2", "charge_undone");
  expect((await look()).pages).toEqual(["payment_held"]);
});

test("orders that the wallet does not buy, or take the payment of, call nobody by themselves: the sweep does while they wait", async () => {
  const short = await deploy({ provisioner: { PURCHASE_LIMIT_USDC_PER_DAY: "0.1" } });
  await accepted(short, agent(1));
  await takePages();
  const lines: string[] = [];
  vi.spyOn(console, "warn").mockImplementation((line: string) => void lines.push(line));
  await short.drain(async () => lines.some((line) => line.includes('"purchase_waits"')));
  vi.restoreAllMocks();
  expect((await takePages()).pages).toEqual([]);
  expect((await look(short)).pages).toEqual([]);
  await short.sql.prepare("UPDATE payments SET bought_at = bought_at - 120001").run();
  expect((await look(short)).pages).toEqual(["purchase_waits"]);
  // An operator's own pause calls nobody.
  await short.pause("payouts");
  expect((await look(short)).pages).toEqual([]);
  await short.liftPauses();
  await short.sql.prepare("UPDATE payments SET step = 'capture', created_at = created_at - 120001").run();
  expect(await look(short)).toMatchObject({
    pages: ["capture_waits"],
    cleared: expect.arrayContaining(["purchase_waits", "sweep_part_failed"]),
  });
  await short.sql.prepare("UPDATE payments SET state = 'settled', step = 'close'").run();
  expect(await look(short)).toMatchObject({ pages: [], cleared: expect.arrayContaining(["capture_waits"]) });
});

test.each([
  ["locked", { kind: "locked" }],
  ["without an answer of use", { kind: "answer", status: 500, body: {} }],
  ["taken, and nothing ends", { kind: "answer", status: 202, body: {} }],
] as const)(
  "a delete that is %s for two hours calls a person, and calls off once the machine is gone",
  async (_, fault) => {
    const tokenId = await buyAndRun(world, 0);
    const ask = operatorOf(world, await world.operatorKey());
    await addFault("vultr", { call: "delete", ...fault });
    expect((await ask("POST", `/admin/vms/${tokenId}/terminate`, { reason: "test" })).status).toBe(202);
    const turns = async (count: number) => {
      let seen = 0;
      await world.drain(async () => ++seen > count);
    };
    await turns(2);
    await takePages();
    // What goes on when the sweep is due for the row has failed.
    world.passTime(120);
    await turns(2);
    expect(await world.rows("SELECT 1 FROM attempts WHERE delete_failed_at > 0")).toHaveLength(1);
    expect((await look()).pages).toEqual([]);
    await world.sql.prepare("UPDATE attempts SET delete_failed_at = delete_failed_at - 7320000").run();
    expect((await look()).pages).toEqual(["machine_not_ended vultr"]);
    expect((await look()).pages).toEqual(["machine_not_ended vultr"]);
    await clearFaults();
    await world.drain();
    expect(await world.vm(tokenId)).toMatchObject({ status: "terminated" });
    expect(await look()).toMatchObject({ pages: [], cleared: expect.arrayContaining(["machine_not_ended vultr"]) });
  },
);

test("whoever buys what the catalog calls sold out calls nobody; a machine that does not come although it is there does", async () => {
  const fail = async (index: number) => {
    const { tokenId } = await world.buy(index);
    await world.scan();
    await world.missDeadlines(tokenId);
    await world.drain();
    expect(await world.vm(tokenId)).toMatchObject({ status: "failed", failure: "no_machine_in_time" });
    return (await takePages()).pages;
  };
  await refreshCatalog(world.context);
  expect(await fail(0)).toEqual(["provisioning_failed 0"]);
  await world.sql
    .prepare(`UPDATE catalogs SET stock = replace(replace(stock, '"high"', '"none"'), '"low"', '"none"')`)
    .run();
  expect(await fail(1)).toEqual([]);
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
