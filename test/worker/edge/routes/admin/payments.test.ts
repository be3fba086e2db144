// What operators see and decide of payments by x402, and the books against the chain.
import { beforeEach, expect, test } from "vitest";
import { refunds } from "../../../../../src/db/schema.ts";
import { refundRow } from "../../../../rows.ts";
import { USDC_ADDRESS } from "../../../../world/addresses.ts";
import { submit } from "../../../../world/payer.ts";
import { agent, chain, operator as wallet } from "../../../chain.ts";
import { type Deployment, deploy } from "../../../deployment.ts";
import { addFault, clearFaults } from "../../../faults.ts";
import { accepted, at, give, inState, orderMachine, playUntil, signPurchaseOf, usdcOf } from "../x402/till.ts";
import { type Operator, operator } from "./operator.ts";

type Row = { id: string; state: string; reason: string | null; amount: string; cost: string | null; payer: string };
type Side = { transfers: number; sum: string; explained: string; unexplained: { txHash: string; amount: string }[] };
type Books = { fromBlock: number; toBlock: number; incoming: Side; outgoing: Side; missing: Row[] };
const because = { reason: "checked" };

let world: Deployment;
let ask: Operator;
let from = 0;
beforeEach(async () => {
  world = await deploy();
  ask = operator(world, await world.operatorKey());
  from = Number(await chain.reader.getBlockNumber()) + 1;
});

async function delivered(index: number): Promise<string> {
  const { id } = await accepted(world, agent(index));
  await playUntil(world, id, at("idle"));
  return id;
}
const books = async (): Promise<Books> => {
  await chain.mine(4);
  return (await ask<Books>("GET", `/admin/payments/reconcile?fromBlock=${from}`)).body;
};
const hold = (id: string) =>
  world.sql
    .prepare("UPDATE payments SET state = 'held', step = 'idle', reason = 'manual', wake_at = NULL WHERE id = ?")
    .bind(id)
    .run();

test("payments by state, newest first, page by page", async () => {
  const first = await delivered(1);
  const second = await delivered(2);
  const page = (await ask<{ payments: Row[]; nextCursor: string }>("GET", "/admin/payments?limit=1")).body;
  expect(page.payments).toMatchObject([{ id: second, state: "settled", amount: "0.50", cost: "0.50" }]);
  const next = (await ask<{ payments: Row[] }>("GET", `/admin/payments?limit=1&cursor=${page.nextCursor}`)).body;
  expect(next.payments).toMatchObject([{ id: first, payer: agent(1).address }]);
  expect((await ask<{ payments: Row[] }>("GET", "/admin/payments?state=held")).body.payments).toEqual([]);
});

test("the books explain a purchase and its capture; a top-up and a payment that nobody showed us they do not", async () => {
  await delivered(1);
  const clean = await books();
  expect(clean).toMatchObject({
    incoming: { transfers: 1, sum: "0.50", explained: "0.50", unexplained: [] },
    outgoing: { transfers: 1, sum: "0.50", explained: "0.50", unexplained: [] },
    missing: [],
  });
  const { signed } = await signPurchaseOf(world, agent(2));
  const txHash = await submit(chain, agent(3), signed, USDC_ADDRESS);
  expect(await books()).toMatchObject({
    incoming: { transfers: 2, sum: "1.00", explained: "0.50", unexplained: [{ txHash, amount: "0.50" }] },
  });
});

test("a purchase whose token served a later order is explained by the order that paid for it: it was called unexplained", async () => {
  await addFault("vultr", { call: "create", kind: "sold_out" });
  const { id } = await accepted(world, agent(1), { region: "europe" });
  const { token_id: held } = await playUntil(world, id, at("provision"));
  await world.missDeadlines();
  await playUntil(world, id, at("release"));
  await clearFaults();
  const served = await playUntil(world, await delivered(2), () => true);
  expect(served).toMatchObject({ token_id: held, cost: "0" });
  const bought = { transfers: 1, sum: "0.50", explained: "0.50", unexplained: [] };
  expect(await books()).toMatchObject({ outgoing: bought, incoming: { unexplained: [] }, missing: [] });
});

test("two refunds of one purchase that are more than its price together are not explained: each by itself was (hard case 34)", async () => {
  const { tokenId } = await world.buy(4);
  await world.scan();
  const [{ incarnation }] = (await world.rows("SELECT incarnation FROM vms WHERE token_id = ?", tokenId)) as [
    { incarnation: string },
  ];
  from = Number(await chain.reader.getBlockNumber()) + 1;
  const pay = async (kind: "failed" | "late", amount: bigint) => {
    const { transactionHash } = await give(wallet, agent(4).address, amount);
    const paid = { state: "paid", amount: String(amount), txHash: transactionHash } as const;
    await world.insert(refunds, refundRow({ subject: incarnation, kind, tokenId, ...paid }));
  };
  await pay("failed", 500_000n);
  expect(await books()).toMatchObject({ outgoing: { transfers: 1, explained: "0.50" } });
  await pay("late", 1n);
  expect(await books()).toMatchObject({ outgoing: { transfers: 2, explained: "0.00" } });
});

test("a row that says settled where the chain does not is missing from it", async () => {
  const id = await delivered(1);
  await world.sql
    .prepare("UPDATE payments SET settle_tx = purchase_tx, from_block = ? WHERE id = ?")
    .bind(from, id)
    .run();
  const { missing, incoming } = await books();
  expect(missing).toMatchObject([{ id }]);
  expect(incoming.unexplained).toHaveLength(1);
});

test("a range is of final blocks, and of at most ten thousand", async () => {
  for (const query of ["fromBlock=9&toBlock=8", "fromBlock=99999999", "fromBlock=x", "toBlock=-1"]) {
    expect((await ask("GET", `/admin/payments/reconcile?${query}`)).status, query).toBe(400);
  }
});

test("a held payment is paid back by an operator's order, once, or noted as paid by hand", async () => {
  const [first, second] = [await delivered(1), await delivered(2)];
  for (const id of [first, second]) await hold(id);
  const before = await usdcOf(agent(1).address);
  expect((await ask("POST", `/admin/payments/${first}/refund`, because)).body).toMatchObject({ state: "refund_due" });
  await playUntil(world, first, inState("refunded"));
  expect(await usdcOf(agent(1).address)).toBe(before + 500_000n);
  expect((await ask("POST", `/admin/payments/${first}/refund`, because)).body.code).toBe("not_payable");
  const byHand = { ...because, txHash: `0x${"ab".repeat(32)}` };
  expect((await ask("POST", `/admin/payments/${second}/settle`, byHand)).body).toMatchObject({ state: "refunded" });
  expect(await ledger(second)).toMatchObject({ state: "paid", reason: "by_hand", tx_hash: byHand.txHash });
  expect((await ask("POST", `/admin/payments/${"0".repeat(32)}/refund`, because)).body.code).toBe("payment_not_found");
  const { outgoing } = await books();
  expect(outgoing.unexplained).toEqual([]);
});

/** Charged, and given up: what the provisioner owes for it. */
async function owed(index: number, config: Record<string, string> = {}): Promise<string> {
  world.context.config = { ...world.provisioner, ...config } as typeof world.provisioner;
  const id = await delivered(index);
  await world.sql
    .prepare(
      "UPDATE payments SET state = 'refund_due', step = 'refund', reason = 'not_served', wake_at = 0 WHERE id = ?",
    )
    .bind(id)
    .run();
  await playUntil(world, id, ({ step }) => step === "idle");
  return id;
}
const ledger = async (id: string) =>
  (await world.rows("SELECT state, reason, token_id, tx_hash FROM refunds WHERE incarnation = ?", id))[0];

test("where refunds are manual a payment's waits in the operators' list of refunds, is paid by a word to either route, and once", async () => {
  const manual = { REFUNDS: "manual" };
  const ids = [await owed(1, manual), await owed(2, manual)];
  const { refunds } = (await ask<{ refunds: { paymentId: string | null }[] }>("GET", "/admin/refunds?state=waiting"))
    .body;
  const waiting = {
    kind: "payment",
    reason: "manual",
    amount: "0.50",
    recipient: null,
    payTo: null,
    tokenId: expect.any(Number),
  };
  expect(refunds.map(({ paymentId }) => paymentId)).toEqual([ids[1], ids[0]]);
  expect(refunds).toMatchObject([waiting, waiting]);
  const [first = "", second = ""] = ids;
  const before = [await usdcOf(agent(1).address), await usdcOf(agent(2).address)];
  expect(
    (await ask("POST", `/admin/refunds/${first}/payment/pay`, { ...because, payTo: agent(3).address })).status,
  ).toBe(400);
  expect(await ask("POST", `/admin/refunds/${first}/payment/pay`, because)).toMatchObject({
    status: 200,
    body: { paymentId: first, kind: "payment", state: "due", reason: "approved" },
  });
  expect((await ask("POST", `/admin/payments/${second}/refund`, because)).body).toMatchObject({ state: "refund_due" });
  for (const id of ids) await playUntil(world, id, ({ state }) => state === "refunded");
  expect([await usdcOf(agent(1).address), await usdcOf(agent(2).address)]).toEqual(
    before.map((usdc) => usdc + 500_000n),
  );
  for (const route of [`/admin/refunds/${first}/payment/pay`, `/admin/payments/${first}/refund`]) {
    expect((await ask("POST", route, because)).body.code).toBe("not_payable");
  }
  expect((await books()).outgoing.unexplained).toEqual([]);
});

test("a payment's refund that was paid by hand closes both of them; one that is cancelled is held, calls nobody, and may be owed again", async () => {
  const byHand = await owed(1);
  const txHash = `0x${"ab".repeat(32)}`;
  expect(await ledger(byHand)).toMatchObject({ state: "due", reason: null });
  const settled = await ask("POST", `/admin/payments/${byHand}/settle`, { ...because, txHash });
  expect(settled.body).toMatchObject({ state: "refunded", step: "idle", refundTx: txHash });
  expect(await ledger(byHand)).toMatchObject({ state: "paid", reason: "by_hand", tx_hash: txHash });

  const given = await owed(2);
  expect(await ask("POST", `/admin/refunds/${given}/payment/cancel`, because)).toMatchObject({
    body: { paymentId: given, state: "cancelled" },
  });
  const cancelled = (await ask<{ payments: Row[] }>("GET", "/admin/payments?state=held")).body.payments;
  expect(cancelled).toMatchObject([{ id: given, reason: "refund_cancelled" }]);
  expect((await ask("POST", `/admin/payments/${given}/refund`, because)).body).toMatchObject({ state: "refund_due" });
  await playUntil(world, given, ({ state }) => state === "refunded");
  expect(await ledger(given)).toMatchObject({ state: "paid", reason: null });
});

test("a payer whose money was gone at the capture orders again once an operator has forgiven it", async () => {
  const id = await delivered(1);
  await world.sql.prepare("UPDATE payments SET reason = 'capture_refused' WHERE id = ?").bind(id).run();
  const next = { region: "europe" };
  expect((await orderMachine(world, agent(1), next)).answer.status).toBe(403);
  expect((await ask("POST", `/admin/payments/${id}/forgive`, because)).status).toBe(200);
  expect((await orderMachine(world, agent(1), next)).answer.status).toBe(202);
  expect((await ask("POST", `/admin/payments/${id}/forgive`, because)).body.code).toBe("not_payable");
});
