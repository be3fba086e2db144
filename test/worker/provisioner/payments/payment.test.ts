// Payments that a request left half done, brought to their end by the sweep: the chain says whether money moved, final
// history closes the books, and what was charged for nothing goes back.
import { runDurableObjectAlarm, runInDurableObject } from "cloudflare:test";
import { beforeEach, expect, test } from "vitest";
import type { OperatorWallet } from "../../../../durable-objects/operator-wallet.ts";
import { USDC_ADDRESS } from "../../../world/addresses.ts";
import { cancel, type SignedPayment, submit } from "../../../world/payer.ts";
import { agent, chain } from "../../chain.ts";
import { buyAndRun, type Deployment, deploy } from "../../deployment.ts";
import { ask, PRICE, prepare } from "../../edge/routes/x402/paid-credentials.ts";
import { setBlocked, usdcOf } from "../../edge/routes/x402/till.ts";
import { addFacilitatorFault } from "../../faults.ts";

const payer = agent(0);
let world: Deployment;
let tokenId: number;
let before: bigint;
beforeEach(async () => {
  world = await deploy();
  tokenId = await buyAndRun(world, 0);
  before = await usdcOf(payer.address);
  world.sent.length = 0;
});

const charged = async () => before - (await usdcOf(payer.address));
const row = async () => (await world.payments())[0] ?? {};
const refund = async () => (await world.rows("SELECT * FROM refunds"))[0] ?? {};
const set = (columns: string) => world.sql.prepare(`UPDATE payments SET ${columns}`).run();
/** What the sweep does once a payment's turn has come, and then its refund's. */
async function sweepPayments(): Promise<void> {
  for (const table of ["payments", "refunds"]) {
    await world.sql.prepare(`UPDATE ${table} SET wake_at = 0 WHERE wake_at IS NOT NULL`).run();
    await world.sweep();
    await world.drain();
  }
}
/** The authorization's time is over in the books; on the chain it can still be used. */
const endTime = () => set("valid_before = 1");
const told = async () => (await world.request(`/x402/purchases/${(await row())["id"]}`)).json();

/** A claim whose request ended before it asked anybody. */
async function claimed(): Promise<SignedPayment> {
  const { headers, signed } = await prepare(world, tokenId);
  await addFacilitatorFault({ call: "verify", kind: "down", times: 1 });
  expect((await ask(world, tokenId, headers)).status).toBe(503);
  await set("state = 'claimed', step = 'settle', reason = NULL");
  return signed;
}
/** A payment whose settlement was never answered. */
async function settling() {
  const prepared = await prepare(world, tokenId);
  await addFacilitatorFault({ call: "settle", kind: "down", times: 1 });
  expect((await ask(world, tokenId, prepared.headers)).status).toBe(202);
  return prepared;
}
/** Charged, and the request was cut off before its answer. */
async function unserved() {
  const { headers } = await prepare(world, tokenId);
  expect((await ask(world, tokenId, headers)).status).toBe(200);
  await set("served_at = NULL, step = 'settle'");
  return headers;
}
async function payBack(): Promise<void> {
  await chain.mine(3);
  await sweepPayments();
  await chain.mine(4);
  await runDurableObjectAlarm(world.wallet);
  await sweepPayments();
}

test("a claim that never moved is given up, and released once its time is over", async () => {
  await claimed();
  await sweepPayments();
  expect(await row()).toMatchObject({ state: "releasing", step: "release", reason: "never_moved" });
  expect(await told()).toMatchObject({ status: "releasing", charged: false });
  await endTime();
  await sweepPayments();
  expect(await row()).toMatchObject({ state: "released", step: "idle", wake_at: null, ended_at: expect.any(Number) });
  expect(await told()).toMatchObject({ status: "released", charged: false });
  expect(await charged()).toBe(0n);
});

test("a claim that a request is working on is left alone", async () => {
  await claimed();
  await set(`wake_at = ${Date.now() + 60_000}`);
  await world.sweep();
  await world.drain();
  expect(await row()).toMatchObject({ state: "claimed", step: "settle" });
});

test("a payment that was given up may still be made good by its payer", async () => {
  const { headers } = await settling();
  await set("state = 'claimed'");
  await sweepPayments();
  expect(await row()).toMatchObject({ state: "releasing", reason: "never_moved" });
  expect((await ask(world, tokenId, headers)).status).toBe(200);
  expect(await charged()).toBe(PRICE);
});

test("a settlement that was never answered and landed is found, and its payer gets what it is for within seconds", async () => {
  const { headers, signed } = await settling();
  await sweepPayments();
  expect(await row()).toMatchObject({ state: "settling", settle_tx: null });
  const hash = await submit(chain, agent(1), signed, USDC_ADDRESS);
  await sweepPayments();
  expect(await row()).toMatchObject({ state: "settled", step: "settle", settle_tx: hash });
  // The sweep has no business with it for ten minutes, and refunds it then: its payer must not have to wait for that.
  await sweepPayments();
  expect((await ask(world, tokenId, headers)).status).toBe(202);
  await set("settled_at = settled_at - 15000");
  expect((await ask(world, tokenId, headers)).status).toBe(200);
  await chain.mine(3);
  await sweepPayments();
  expect(await row()).toMatchObject({ state: "settled", step: "idle", settle_tx: hash, wake_at: null });
  expect(await charged()).toBe(PRICE);
});

test("a settlement that never landed is given up once the chain is past its time", async () => {
  await settling();
  await endTime();
  await sweepPayments();
  expect(await row()).toMatchObject({ state: "released", reason: "not_settled", settle_tx: null });
  expect(await charged()).toBe(0n);
});

test("a settlement whose authorization its payer took back is released", async () => {
  const { signed } = await settling();
  await cancel(chain, payer, signed, USDC_ADDRESS);
  await chain.mine(3);
  await sweepPayments();
  expect(await row()).toMatchObject({ state: "released", reason: "not_settled" });
});

test("charged and never served is paid back after ten minutes, not before, and once", async () => {
  const headers = await unserved();
  await sweepPayments();
  expect(await row()).toMatchObject({ state: "settled", step: "settle" });
  await set("settled_at = settled_at - 601000");
  await payBack();
  expect(await row()).toMatchObject({ state: "refunded", step: "idle", reason: "not_served", wake_at: null });
  expect(await charged()).toBe(0n);
  const { refund_tx: hash } = await row();
  expect(await told()).toMatchObject({ status: "refunded", charged: false, transactions: { refund: hash } });
  expect(await refund()).toMatchObject({ kind: "payment", state: "paid", tx_hash: hash, recipient: payer.address });
  await payBack();
  expect(await charged()).toBe(0n);
  // What was paid back buys nothing.
  const again = await ask(world, tokenId, headers);
  expect(again).toMatchObject({ status: 409, body: { code: "payment_used", details: [{ state: "refunded" }] } });
});

test("a refund that reverted is tried again an hour later: its payer was an operator's case for ever", async () => {
  await unserved();
  await set("settled_at = settled_at - 601000");
  await chain.mine(3);
  await chain.node.setAutomine(false);
  await sweepPayments();
  expect(await refund()).toMatchObject({ state: "paying", tx_hash: (await row())["refund_tx"] });
  await chain.dropAll();
  await chain.node.setAutomine(true);
  await setBlocked(payer.address, true);
  try {
    await runDurableObjectAlarm(world.wallet);
    await chain.mine(4);
    await runDurableObjectAlarm(world.wallet);
    await sweepPayments();
  } finally {
    await setBlocked(payer.address, false);
  }
  expect(await row()).toMatchObject({ state: "refund_due", refund_tx: null, reason: "not_served", wake_at: null });
  expect(await refund()).toMatchObject({ state: "due", tx_hash: null, reason: "reverted" });
  expect(Number((await refund())["wake_at"])).toBeGreaterThan(Date.now() + 3_000_000);
  await payBack();
  expect(await row()).toMatchObject({ state: "refunded" });
  expect(await charged()).toBe(0n);
});

/** What the operator wallet keeps of refunds. */
const walletOrders = () =>
  runInDurableObject(world.wallet, (_: OperatorWallet, { storage }) =>
    storage.sql.exec("SELECT id FROM wallet_orders WHERE kind = 'pay' ORDER BY id").toArray(),
  );

test("a refund that was under way before the ledger had it is booked as begun, and paid once: another order id would pay twice", async () => {
  await unserved();
  await set("settled_at = settled_at - 601000");
  await chain.mine(3);
  await sweepPayments();
  const { id, refund_tx: hash } = await row();
  expect(await walletOrders()).toEqual([{ id: `refund/payment/${id}` }]);
  // As the version before left it.
  await world.sql.prepare("DELETE FROM refunds").run();
  await set("state = 'refunding', step = 'refund', wake_at = 0");
  expect(await told()).toMatchObject({ status: "settled", charged: true, transactions: { refund: hash } });
  // Whatever is configured since: its transaction is out.
  world.context.config = { ...world.provisioner, REFUNDS: "manual" };
  await world.sweep();
  await world.drain();
  expect(await row()).toMatchObject({ state: "refund_due", step: "idle", wake_at: null, refund_tx: hash });
  expect(await refund()).toMatchObject({ kind: "payment", state: "paying", recipient: payer.address, tx_hash: hash });
  await payBack();
  expect(await row()).toMatchObject({ state: "refunded", refund_tx: hash });
  expect(await refund()).toMatchObject({ state: "paid", tx_hash: hash });
  expect(await walletOrders()).toEqual([{ id: `refund/payment/${id}` }]);
  expect(await charged()).toBe(0n);
});

test("a charge that a reorg undoes owes nothing: refund and payment go back together, and what is charged again is owed again", async () => {
  const signed = await claimed();
  await sweepPayments();
  await submit(chain, agent(1), signed, USDC_ADDRESS);
  await chain.mine(3);
  await world.pause("payouts");
  await sweepPayments();
  expect([(await row())["state"], (await refund())["state"]]).toEqual(["refund_due", "due"]);
  // Final history of another chain, in which nobody has used it, and its time is over.
  await world.liftPauses();
  const nonce = String((await row())["nonce"]);
  await set(`nonce = '0x${"ab".repeat(32)}', valid_before = 1`);
  await world.sql.prepare("UPDATE refunds SET wake_at = 0").run();
  await world.sweep();
  await world.drain();
  expect(await row()).toMatchObject({ state: "releasing", step: "release", settle_tx: null, settled_at: null });
  expect(await refund()).toMatchObject({ state: "cancelled", reason: "charge_undone", wake_at: null });
  await set(`nonce = '${nonce}'`);
  await payBack();
  expect(await row()).toMatchObject({ state: "refunded" });
  expect(await refund()).toMatchObject({ state: "paid", reason: null });
  expect(await charged()).toBe(0n);
});

test("a payment whose refund the ledger has closed is a person's: it was written by hand (hard case 34)", async () => {
  await unserved();
  await set("settled_at = settled_at - 601000");
  await payBack();
  await set("state = 'refund_due', step = 'refund', wake_at = 0");
  await sweepPayments();
  expect(await row()).toMatchObject({ state: "held", step: "idle", reason: "refunded_before" });
  await set("state = 'refund_due', step = 'idle'");
  await world.sql
    .prepare("UPDATE refunds SET kind = 'payment', state = 'due', incarnation = 'nobodys', wake_at = 0")
    .run();
  await world.sweep();
  await world.drain();
  expect(await refund()).toMatchObject({ state: "held", reason: "payment_not_due" });
  expect(await charged()).toBe(0n);
});

test("charged and served is never paid back", async () => {
  const { headers } = await prepare(world, tokenId);
  expect((await ask(world, tokenId, headers)).status).toBe(200);
  await set("settled_at = settled_at - 601000, served_at = served_at - 601000");
  await payBack();
  expect(await row()).toMatchObject({ state: "settled", step: "idle", refund_tx: null });
  expect(await charged()).toBe(PRICE);
});

test("it is paid back only once the charge is in final history", async () => {
  await unserved();
  await set("settled_at = settled_at - 601000");
  await sweepPayments();
  expect(await row()).toMatchObject({ state: "refund_due", step: "idle", wake_at: null, refund_tx: null });
  expect(await refund()).toMatchObject({ kind: "payment", state: "due", tx_hash: null });
  expect(await told()).toMatchObject({ status: "settled", step: "refund", charged: true });
  await payBack();
  expect(await row()).toMatchObject({ state: "refunded" });
});

test("released is said only when a final block is past the authorization's time, whatever the newest one is", async () => {
  await claimed();
  await sweepPayments();
  await chain.mine(3);
  const final = await chain.reader.getBlock({ blockTag: "finalized" });
  await set(`valid_before = ${Number(final.timestamp) + 1}`);
  await chain.node.setNextBlockTimestamp({ timestamp: (await chain.reader.getBlock()).timestamp + 10n });
  await chain.mine(1);
  const head = await chain.reader.getBlock({ blockTag: "finalized" });
  await set(`valid_before = ${Number(head.timestamp) + 1}`);
  await sweepPayments();
  expect(await row()).toMatchObject({ state: "releasing", step: "release" });
  expect(Number((await chain.reader.getBlock()).timestamp)).toBeGreaterThan(Number((await row())["valid_before"]));
  await chain.mine(4);
  await sweepPayments();
  expect(await row()).toMatchObject({ state: "released" });
});

test("money that is seen after a payment was given up is paid back", async () => {
  const signed = await claimed();
  await sweepPayments();
  const hash = await submit(chain, agent(1), signed, USDC_ADDRESS);
  expect(await charged()).toBe(PRICE);
  await chain.mine(3);
  await sweepPayments();
  expect(await row()).toMatchObject({ settle_tx: hash, state: "refund_due" });
  expect(await told()).toMatchObject({ status: "settled", charged: true });
  await payBack();
  expect(await row()).toMatchObject({ state: "refunded", settle_tx: hash });
  expect(await charged()).toBe(0n);
});
