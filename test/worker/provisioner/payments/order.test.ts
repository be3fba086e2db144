// A machine for a signed payment: what goes wrong between the signature and the token's transfer, and who pays then.
import { runDurableObjectAlarm } from "cloudflare:test";
import { sql } from "drizzle-orm";
import { parseAbi, parseEther } from "viem";
import { afterEach, beforeEach, expect, test } from "vitest";
import { catalogs, paymentLinks, payments } from "../../../../src/db/schema.ts";
import { paymentRow } from "../../../rows.ts";
import { CONTRACT_ADDRESS, USDC_ADDRESS } from "../../../world/addresses.ts";
import { cancel, submit } from "../../../world/payer.ts";
import { agent, chain, deployer, operator } from "../../chain.ts";
import { type Deployment, deploy, type Row } from "../../deployment.ts";
import {
  accepted,
  at,
  claw,
  coin,
  give,
  inState,
  isDelivered,
  mined,
  orderMachine,
  ownerOf,
  playUntil,
  post,
  setTier,
  signPurchaseOf,
  sold,
  usdcOf,
} from "../../edge/routes/x402/till.ts";
import { addFault, addRpcFault, clearFaults } from "../../faults.ts";

const PRICE = 500_000n;

let world: Deployment;
beforeEach(async () => {
  world = await deploy();
});
afterEach(async () => {
  await chain.node.setAutomine(true);
  await mined(chain.wallet(deployer).writeContract({ ...claw, functionName: "setTransfersPaused", args: [false] }));
  await setTier(PRICE, true);
});

const pauseTransfers = () =>
  mined(chain.wallet(deployer).writeContract({ ...claw, functionName: "setTransfersPaused", args: [true] }));

/** Plays the order until the machine has been ordered and waits for its boot. */
const untilProvisioned = (id: string) => playUntil(world, id, at("provision"));
/** The time of the authorization is over for us; what was signed is not asked about any more. */
const runOut = (id: string) => world.sql.prepare("UPDATE payments SET valid_before = 1 WHERE id = ?").bind(id).run();

test("five identical orders at once are one row, one token and one capture, and each gets the same answer", async () => {
  const before = [await usdcOf(agent(1).address), await sold()] as const;
  const { body, headers } = await signPurchaseOf(world, agent(1));
  const answers = await Promise.all(
    Array.from({ length: 5 }, () => post(world, "/x402/purchase-compute", body, headers)),
  );
  const bodies = (await Promise.all(answers.map((one) => one.json()))) as { purchaseId: string }[];
  expect(answers.map(({ status }) => status)).toEqual([202, 202, 202, 202, 202]);
  const id = bodies[0]?.purchaseId ?? "";
  expect(new Set(bodies.map(({ purchaseId }) => purchaseId)).size).toBe(1);
  await playUntil(world, id, isDelivered);
  expect(await usdcOf(agent(1).address)).toBe(before[0] - PRICE);
  expect(await sold()).toBe(before[1] + 1n);
  const later = await post(world, "/x402/purchase-compute", body, headers);
  expect(await later.json()).toMatchObject({ purchaseId: id, status: "settled", charged: true });
  const other = await post(world, "/x402/purchase-compute", { ...body, region: "europe" }, headers);
  expect(other.status).toBe(409);
  expect(await other.json()).toMatchObject({ code: "payment_used", details: [{ purchaseId: id }] });
});

test("a payer who lost the answer finds the purchase by nonce, by each transaction, and by its id", async () => {
  const { id, signed } = await accepted(world, agent(1));
  const row = await playUntil(world, id, isDelivered);
  const hashes = [row["purchase_tx"], row["settle_tx"], row["transfer_tx"]];
  for (const query of [`nonce=${signed.authorization.nonce}`, ...hashes.map((hash) => `tx=${hash}`)]) {
    const answer = await world.request(`/x402/purchases?${query}`);
    expect(await answer.json(), query).toMatchObject({
      purchaseId: id,
      tokenId: String(row["token_id"]),
      charged: true,
    });
  }
  expect((await world.request(`/x402/purchases/${id}`)).status).toBe(200);
  expect((await world.request(`/x402/purchases/${"0".repeat(32)}`)).status).toBe(404);
  expect((await world.request(`/x402/purchases?nonce=0x${"0".repeat(64)}`)).status).toBe(404);
  expect((await world.request("/x402/purchases?payer=0x12")).status).toBe(400);
  expect((await world.request("/x402/purchases")).status).toBe(400);
});

test("until the payment is captured nobody is shown a host, and the token is ours", async () => {
  await addFault("vultr", { call: "create", kind: "wrong_mark", times: 1 });
  const { id } = await accepted(world, agent(1));
  const row = await untilProvisioned(id);
  expect(await ownerOf(row["token_id"])).toBe(operator.address);
  await world.sql.prepare("UPDATE vms SET ssh_host = '203.0.113.9'").run();
  const list = await (await world.request(`/vms/${operator.address}`)).json();
  expect(JSON.stringify(list)).not.toContain("203.0.113.9");
});

test("a tier that is off, a wallet without money or gas, and dear gas are refused before anybody signs", async () => {
  const ask = async () => {
    const fresh = await deploy();
    const answer = await post(fresh, "/x402/purchase-compute", { tier: 0, durationDays: 1 });
    return [answer.status, ((await answer.json()) as { code: string }).code];
  };
  await setTier(PRICE, false);
  expect(await ask()).toEqual([503, "tier_inactive"]);
  await setTier(PRICE, true);
  const wei = await chain.reader.getBalance({ address: operator.address });
  await chain.node.setBalance({ address: operator.address, value: 1n });
  expect(await ask()).toEqual([503, "operator_short"]);
  await chain.node.setBalance({ address: operator.address, value: wei });
  const funds = await usdcOf(operator.address);
  await give(operator, deployer.address, funds);
  expect(await ask()).toEqual([503, "operator_short"]);
  await give(deployer, operator.address, funds);
  const dear = await deploy({ edge: { MAX_BASE_FEE_GWEI: "0" } });
  expect((await post(dear, "/x402/purchase-compute", { tier: 0, durationDays: 1 })).status).toBe(503);
  const none = { region: "ewr", plan: "vc2-1c-1gb", stock: "none" } as const;
  await world.insert(catalogs, { id: 1, stock: { vultr: { readAt: Date.now(), offers: [none] } } });
  const soldOut = await post(world, "/x402/purchase-compute", { tier: 0, durationDays: 1 });
  expect(await soldOut.json()).toMatchObject({ code: "sold_out" });
  expect(await world.rows("SELECT * FROM payments")).toEqual([]);
});

test("a price that changed after its quote is kept for a while, and no price that the contract never had (hard case 4)", async () => {
  const { body, headers } = await signPurchaseOf(world, agent(1));
  await setTier(PRICE + 1n, true);
  // Another isolate, which has not cached the old price.
  const other = world.appOf(world.edge);
  const send = (to: typeof other) =>
    to.request("https://api.example/x402/purchase-compute", {
      method: "POST",
      body: JSON.stringify(body),
      headers: { ...headers, "content-type": "application/json", "cf-connecting-ip": "203.0.113.8" },
    });
  const kept = await send(other);
  expect(kept.status).toBe(202);
  const { purchaseId } = (await kept.json()) as { purchaseId: string };
  await playUntil(world, purchaseId, isDelivered);
  await setTier(PRICE, true);
  const forged = await signPurchaseOf(world, agent(2));
  const { authorization, signature } = forged.signed;
  const { pay_to: payTo, from_block: fromBlock, quoted_block: quotedBlock } = await world.payment(purchaseId);
  const row = paymentRow({
    id: "f".repeat(32),
    payer: agent(2).address.toLowerCase(),
    nonce: authorization.nonce,
    amount: "1",
    payTo,
    validBefore: Number(authorization.validBefore),
    signature,
    state: "authorized",
    step: "check",
    fromBlock,
    tier: 0,
    durationDays: 1,
    quotedBlock,
    wakeAt: 1,
  });
  await world.insert(payments, row);
  const before = await sold();
  expect(await playUntil(world, row.id, inState("releasing"))).toMatchObject({ reason: "signature" });
  expect(await sold()).toBe(before);
});

test("no machine: nothing is captured, the authorization is released on final history, and the token serves the next order", async () => {
  await addFault("vultr", { call: "create", kind: "sold_out" });
  const before = await usdcOf(agent(1).address);
  const { id } = await accepted(world, agent(1));
  const row = await untilProvisioned(id);
  await world.missDeadlines();
  expect(await playUntil(world, id, inState("releasing"))).toMatchObject({ held: 1, settle_tx: null });
  expect(await usdcOf(agent(1).address)).toBe(before);
  expect(await world.rows("SELECT * FROM refunds")).toEqual([]);
  await chain.mine(3);
  await playUntil(world, id, at("release"));
  await runOut(id);
  expect(await playUntil(world, id, inState("released"))).toMatchObject({ step: "idle" });
  expect(await ownerOf(row["token_id"])).toBe(operator.address);
  const fresh = await (await fetchStatus(id)).json();
  expect(fresh).toMatchObject({ status: "released", charged: false });
  await clearFaults();
  const tokens = await sold();
  const next = await accepted(world, agent(2));
  const served = await playUntil(world, next.id, isDelivered);
  expect(served).toMatchObject({ token_id: row["token_id"], state: "settled" });
  expect(await sold()).toBe(tokens);
  expect(await ownerOf(row["token_id"])).toBe(agent(2).address);
});
const fetchStatus = (id: string) => world.request(`/x402/purchases/${id}`);

test("a wallet that signs fifty times over one balance has one order open until it has paid once (hard case 18)", async () => {
  const { id } = await accepted(world, agent(3));
  // Each of another length: the same order twice would be one.
  const signed = await Promise.all(
    Array.from({ length: 49 }, (_, i) => signPurchaseOf(world, agent(3), { durationDays: i + 2 })),
  );
  const answers = await Promise.all(
    signed.map(({ body, headers }, i) =>
      post(world, "/x402/purchase-compute", body, { ...headers, "cf-connecting-ip": `198.51.100.${i}` }),
    ),
  );
  expect(new Set(answers.map(({ status }) => status))).toEqual(new Set([409]));
  expect(await answers[0]?.json()).toMatchObject({ code: "order_open" });
  await playUntil(world, id, isDelivered);
  const balance = await usdcOf(agent(3).address);
  const rest = PRICE + PRICE / 2n;
  await give(agent(3), deployer.address, balance - rest);
  const first = await orderMachine(world, agent(3), { region: "asia" });
  const second = await orderMachine(world, agent(3), { region: "europe" });
  expect([first.answer.status, second.answer.status]).toEqual([202, 402]);
  await give(deployer, agent(3).address, balance - rest);
});

test("a payer whose money is gone when the machine is there: it ends, the token stays ours, and the payer is remembered (hard case 18)", async () => {
  const { id } = await accepted(world, agent(4));
  const row = await untilProvisioned(id);
  const balance = await usdcOf(agent(4).address);
  await give(agent(4), deployer.address, balance);
  const given = await playUntil(world, id, inState("releasing"));
  expect(given).toMatchObject({ reason: "capture_refused", held: 1 });
  await world.drain();
  await playUntil(world, id, at("release"));
  expect(await world.machines("vultr")).toEqual([]);
  expect(await ownerOf(row["token_id"])).toBe(operator.address);
  await give(deployer, agent(4).address, balance);
  const again = await orderMachine(world, agent(4));
  expect(again.answer.status).toBe(403);
  expect(await again.answer.json()).toMatchObject({ code: "payer_refused" });
});

test("a token that can't move is noticed before anything is bought, and before the capture (hard case 19)", async () => {
  await pauseTransfers();
  const before = [await usdcOf(agent(1).address), await sold()] as const;
  const first = await accepted(world, agent(1));
  expect(await playUntil(world, first.id, inState("releasing"))).toMatchObject({ reason: "cannot_deliver" });
  expect(await sold()).toBe(before[1]);
  await mined(chain.wallet(deployer).writeContract({ ...claw, functionName: "setTransfersPaused", args: [false] }));
  const second = await accepted(world, agent(1));
  await untilProvisioned(second.id);
  await pauseTransfers();
  expect(await playUntil(world, second.id, inState("releasing"))).toMatchObject({ reason: "cannot_receive", held: 1 });
  expect(await usdcOf(agent(1).address)).toBe(before[0]);
});

test("captured, and the token can't move: paid back on final history, and the machine ends (hard case 19)", async () => {
  const before = await usdcOf(agent(2).address);
  const { id } = await accepted(world, agent(2));
  await untilProvisioned(id);
  await chain.node.setAutomine(false);
  await world.drain(async () => (await world.payment(id))["state"] === "settling");
  await chain.wallet(deployer).writeContract({ ...claw, functionName: "setTransfersPaused", args: [true] });
  await chain.mine(1);
  await chain.node.setAutomine(true);
  await playUntil(world, id, inState("settled"));
  await world.sql.prepare("UPDATE payments SET failing_since = 1 WHERE id = ?").bind(id).run();
  const row = await playUntil(world, id, inState("refunded"));
  expect(row).toMatchObject({ reason: "not_delivered", held: 1 });
  expect(await usdcOf(agent(2).address)).toBe(before);
  expect([await world.machines("vultr"), await ownerOf(row["token_id"])]).toEqual([[], operator.address]);
});

test("a purchase of ours that the scan sees before it is linked waits for its link (hard case 20)", async () => {
  const { id } = await accepted(world, agent(1));
  await world.drain();
  const links = await world.rows("SELECT * FROM payment_links");
  expect(links).toMatchObject([{ payment: id }]);
  await world.sql.prepare("DELETE FROM payment_links").run();
  await chain.mine(1);
  await world.scan();
  for (let turn = 0; turn < 3; turn++) {
    const job = world.sent.shift();
    if (job?.body.kind === "advance") await world.step(job.body);
  }
  expect(await world.rows("SELECT * FROM attempts")).toEqual([]);
  expect(await world.payment(id)).toMatchObject({ step: "buy", incarnation: null });
  await world.insert(paymentLinks, { txHash: links[0]?.["tx_hash"], payment: id, createdAt: 1 });
  expect(await playUntil(world, id, isDelivered)).toMatchObject({ state: "settled" });
});

test("a purchase of ours that never shows as ours, final as it is, is given up: its order waited for ever (seed 103196)", async () => {
  const { id } = await accepted(world, agent(1));
  await world.drain();
  const { purchase_tx: purchaseTx } = await world.payment(id);
  // Its token is with somebody else by the time that it is seen, as after a deep reorg.
  const tokenId = (await sold()) - 1n;
  const abi = parseAbi(["function transferFrom(address from, address to, uint256 tokenId)"]);
  const args = [operator.address, deployer.address, tokenId] as const;
  await mined(chain.wallet(operator).writeContract({ ...claw, abi, functionName: "transferFrom", args }));
  await chain.mine(3);
  await runDurableObjectAlarm(world.wallet);
  await world.sql.prepare("UPDATE payments SET bought_at = 1").run();
  expect(await playUntil(world, id, at("release"))).toMatchObject({
    reason: "purchase_gone",
    purchase_tx: purchaseTx,
    settle_tx: null,
  });
});

test("what the operator wallet buys for nobody gets no machine, and is not paid back to itself", async () => {
  const wallet = chain.wallet(operator);
  const abi = parseAbi([
    "function approve(address spender, uint256 amount)",
    "function purchaseVM(uint8 tier, uint16 durationDays)",
  ]);
  await mined(
    wallet.writeContract({ address: USDC_ADDRESS, abi, functionName: "approve", args: [CONTRACT_ADDRESS, PRICE] }),
  );
  await mined(wallet.writeContract({ address: CONTRACT_ADDRESS, abi, functionName: "purchaseVM", args: [0, 1] }));
  await world.scan();
  await world.missDeadlines();
  await world.drain();
  expect(await world.rows("SELECT * FROM attempts")).toEqual([]);
  expect(await world.rows("SELECT status, failure FROM vms")).toEqual([
    { status: "failed", failure: "no_machine_in_time" },
  ]);
  expect(await world.rows("SELECT * FROM refunds")).toEqual([]);
});

test("a stranger submits the authorization while the machine is made: it counts, once (hard case 2)", async () => {
  const before = await usdcOf(agent(1).address);
  const { id, signed } = await accepted(world, agent(1));
  await untilProvisioned(id);
  const txHash = await submit(chain, agent(3), signed, USDC_ADDRESS);
  const row = await playUntil(world, id, isDelivered);
  expect(row).toMatchObject({ state: "settled", settle_tx: txHash });
  expect(await usdcOf(agent(1).address)).toBe(before - PRICE);
  expect(await ownerOf(row["token_id"])).toBe(agent(1).address);
});

test("a stranger submits it after we have given up: it is paid back on final history, once (hard case 2)", async () => {
  await addFault("vultr", { call: "create", kind: "sold_out" });
  const before = await usdcOf(agent(1).address);
  const { id, signed } = await accepted(world, agent(1));
  await untilProvisioned(id);
  await world.missDeadlines();
  await playUntil(world, id, inState("releasing"));
  await submit(chain, agent(3), signed, USDC_ADDRESS);
  expect(await usdcOf(agent(1).address)).toBe(before - PRICE);
  await playUntil(world, id, inState("refunded"));
  await playUntil(world, id, at("idle"));
  expect(await usdcOf(agent(1).address)).toBe(before);
});

test("a reorg undoes what a stranger submitted, and nobody does so again: released, and not waiting to be paid back for ever (seed 77781)", async () => {
  await addFault("vultr", { call: "create", kind: "sold_out" });
  const before = await usdcOf(agent(1).address);
  const { id, signed } = await accepted(world, agent(1));
  const head = await chain.reader.getBlockNumber();
  await submit(chain, agent(3), signed, USDC_ADDRESS);
  expect(await untilProvisioned(id)).toMatchObject({ state: "settled" });
  await world.missDeadlines();
  await world.pause("payouts");
  await world.drain(async () => (await world.payment(id))["state"] === "refund_due");
  const depth = Number((await chain.reader.getBlockNumber()) - head);
  await chain.rollback(depth);
  await chain.dropAll();
  await chain.mine(depth);
  expect(await usdcOf(agent(1).address)).toBe(before);
  await world.liftPauses();
  await runOut(id);
  expect(await playUntil(world, id, inState("released"))).toMatchObject({ step: "idle", settle_tx: null });
});

test("a payer who cancels the authorization gets no machine (hard case 2)", async () => {
  const { id, signed } = await accepted(world, agent(1));
  await untilProvisioned(id);
  await cancel(chain, agent(1), signed, USDC_ADDRESS);
  expect(await playUntil(world, id, inState("released"))).toMatchObject({ reason: "capture_refused", held: 1 });
  await playUntil(world, id, at("idle"));
  expect(await world.machines("vultr")).toEqual([]);
});

test("a reorg takes capture and transfer back: both are sent again, and the books close on final history (hard case 16)", async () => {
  const before = await usdcOf(agent(1).address);
  const { id } = await accepted(world, agent(1));
  const row = await playUntil(world, id, at("close"));
  await chain.rollback(2);
  expect(await usdcOf(agent(1).address)).toBe(before);
  await runDurableObjectAlarm(world.wallet);
  await chain.mine(1);
  expect(await usdcOf(agent(1).address)).toBe(before - PRICE);
  expect(await playUntil(world, id, at("idle"))).toMatchObject({ state: "settled" });
  expect(await ownerOf(row["token_id"])).toBe(agent(1).address);
});

test("one node that lies or is down makes nothing bought or captured twice", async () => {
  const before = [await usdcOf(agent(1).address), await sold()] as const;
  await addRpcFault({ kind: "lag", blocks: 3 });
  const { id } = await accepted(world, agent(1));
  await playUntil(world, id, isDelivered);
  expect(await usdcOf(agent(1).address)).toBe(before[0] - PRICE);
  expect(await sold()).toBe(before[1] + 1n);
});

test("a crash after the wallet has the order and before the row says so buys, captures and hands over once", async () => {
  const before = [await usdcOf(agent(1).address), await sold()] as const;
  const { id } = await accepted(world, agent(1));
  const seen = new Set<unknown>();
  const crashed = async (row: Row) => {
    if (isDelivered(row)) return true;
    if (!seen.has(row["step"])) {
      seen.add(row["step"]);
      // What a message does that dies right after it: the row is as it was, and comes again under a new generation.
      const [before] = await world.db.select().from(payments);
      const job = { payment: id, generation: Number(row["generation"]) };
      await world.follow(job).catch(() => undefined);
      await world.db.update(payments).set({ ...before, generation: sql`generation + 1`, wakeAt: 0 });
    }
    return false;
  };
  for (let round = 0; round < 60 && !(await crashed(await world.payment(id))); round++) {
    await chain.mine(1);
    await world.scan();
    await world.sweep();
    await world.drain();
  }
  await playUntil(world, id, isDelivered);
  expect(await usdcOf(agent(1).address)).toBe(before[0] - PRICE);
  expect(await sold()).toBe(before[1] + 1n);
});

test("a tier that is captured first is charged before there is a machine, says so, and is paid back where there is none", async () => {
  const first = { CAPTURE_FIRST_TIERS: "0" };
  world = await deploy({ edge: first, provisioner: first });
  await addFault("vultr", { call: "create", kind: "sold_out" });
  const before = await usdcOf(agent(1).address);
  const quote = (await (await post(world, "/x402/purchase-compute", { tier: 0, durationDays: 1 })).json()) as {
    accepts: { description: string }[];
  };
  expect(quote.accepts[0]?.description).toContain("Charged at once");
  const { id } = await accepted(world, agent(1));
  await untilProvisioned(id);
  expect(await usdcOf(agent(1).address)).toBe(before - PRICE);
  await world.missDeadlines();
  await playUntil(world, id, inState("refunded"));
  expect(await usdcOf(agent(1).address)).toBe(before);
});

test("the wallet leaves no allowance behind, and has gas and coins counted for every order", async () => {
  const { id } = await accepted(world, agent(1));
  await playUntil(world, id, isDelivered);
  const args = [operator.address, CONTRACT_ADDRESS] as const;
  expect(await chain.reader.readContract({ ...coin, functionName: "allowance", args })).toBe(0n);
  expect(await chain.reader.getBalance({ address: operator.address })).toBeLessThan(parseEther("10000"));
});
