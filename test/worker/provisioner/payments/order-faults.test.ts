// An order whose messages, nodes and processes misbehave: what is bought, captured and handed over stays one of each.
import { runDurableObjectAlarm } from "cloudflare:test";
import type { Abi, Address, Hex } from "viem";
import { beforeEach, expect, test } from "vitest";
import type { WalletOrder } from "../../../../src/chain/orders.ts";
import { loadPayment } from "../../../../src/db/payments.ts";
import { vms } from "../../../../src/db/schema.ts";
import type { Context } from "../../../../src/provisioner/context.ts";
import { reap } from "../../../../src/provisioner/machines/reap.ts";
import { takeStep } from "../../../../src/provisioner/payments/run.ts";
import { machineRow } from "../../../rows.ts";
import { USDC_ADDRESS } from "../../../world/addresses.ts";
import { transfer } from "../../../world/agent.ts";
import artifacts from "../../../world/contracts/artifacts.json";
import { cancel, paymentHeaderV2, submit } from "../../../world/payer.ts";
import type { RpcFault } from "../../../world/rpc-proxy.ts";
import { agent, chain, deployer, operator } from "../../chain.ts";
import { type Deployment, deploy, type Row } from "../../deployment.ts";
import {
  accepted,
  at,
  computeBody,
  give,
  inState,
  isDelivered,
  mined,
  ownerOf,
  playUntil,
  post,
  quoteOf,
  signFor,
  sold,
  usdcOf,
} from "../../edge/routes/x402/till.ts";
import { addFacilitatorFault, addFault, addRpcFault, clearRpcFaults } from "../../faults.ts";
import { unlocked } from "../../parts.ts";
import { forgetLists } from "../../vendors.ts";

const PRICE = 500_000n;
const payer = agent(1);

let world: Deployment;
let had: { usdc: bigint; sold: bigint };
beforeEach(async () => {
  world = await deploy();
  had = { usdc: await usdcOf(payer.address), sold: await sold() };
});

const charged = async () => had.usdc - (await usdcOf(payer.address));
const bought = async () => (await sold()) - had.sold;
const set = (id: string, columns: string) =>
  world.sql.prepare(`UPDATE payments SET ${columns}, generation = generation + 1 WHERE id = ?`).bind(id).run();

/** Until the machine answers and no further: nothing is captured yet. */
async function untilMachineRuns(id: string): Promise<void> {
  await world.drain();
  await chain.mine(1);
  await world.scan();
  await world.drain(async () => (await world.rows("SELECT 1 FROM vms WHERE status = 'running'")).length === 1);
  expect(await world.payment(id)).toMatchObject({ state: "authorized", step: "provision" });
}

const theVm = async (): Promise<Row> => (await world.rows("SELECT * FROM vms"))[0] ?? {};
/** Captured, and the token's transfer waits for a block. */
async function untilTokenMoves(id: string): Promise<void> {
  await chain.node.setAutomine(false);
  await world.drain(async () => (await world.payment(id))["state"] === "settling");
  await chain.mine(1);
  await world.drain(async () => (await world.payment(id))["transfer_tx"] !== null);
}
/** Its vendor knows it no more, and we notice. */
async function loseMachine(): Promise<void> {
  await unlocked();
  await world.context.vendors.vultr.delete(String((await theVm())["instance_id"]));
  await forgetLists();
  await reap(world.context);
}
/** As one branch's token is left in an order when another branch wins. */
async function pretendAnotherToken(id: string): Promise<void> {
  const { incarnation, owner, tx_hash: txHash, block_number: blockNumber, created_at: createdAt } = await theVm();
  const purchase = { incarnation: `${incarnation}x`, tokenId: 999_999, owner, txHash, blockNumber, createdAt };
  const left = { current: false, status: "failed", step: "idle", failure: "purchase_invented" } as const;
  await world.insert(vms, machineRow({ ...purchase, ...left }));
  await set(id, "incarnation = incarnation || 'x', token_id = 999999, wake_at = 1");
}
/** Until no machine is left; the vendor keeps one locked for a while. */
async function gone(): Promise<void> {
  for (let round = 1; round < 20 && (await world.machines("vultr")).length > 0; round++) {
    await world.sweep(Date.now() + round * 200_000);
    await world.drain();
  }
  expect(await world.machines("vultr")).toEqual([]);
}

test("the facilitator is not needed for the capture: it is down from the acceptance on", async () => {
  const { id } = await accepted(world, payer);
  await addFacilitatorFault({ call: "verify", kind: "down" });
  await addFacilitatorFault({ call: "settle", kind: "down" });
  expect(await playUntil(world, id, at("close"))).toMatchObject({ state: "settled" });
  expect([await charged(), await bought()]).toEqual([PRICE, 1n]);
});

const LIES: RpcFault[] = [
  { kind: "down" },
  { kind: "drop_logs" },
  { kind: "rewrite", method: "eth_getTransactionReceipt", result: null },
  { kind: "rewrite", method: "eth_getTransactionCount", result: "0x0" },
  { kind: "rewrite", method: "eth_sendRawTransaction", result: `0x${"0".repeat(64)}` },
];
test.each(LIES)("one node that is made to $kind $method makes nothing bought or captured twice", async (fault) => {
  await addRpcFault(fault);
  const { id } = await accepted(world, payer);
  expect(await playUntil(world, id, at("close"))).toMatchObject({ state: "settled" });
  expect([await charged(), await bought()]).toEqual([PRICE, 1n]);
});

test("messages that come twice at once, late, or of an old generation change nothing", async () => {
  const { id } = await accepted(world, payer);
  const seen: { payment: string; generation: number }[] = [];
  const double = async () => {
    for (const { body } of world.sent) if (body.kind === "payment") seen.push(body);
    await Promise.all(
      seen
        .slice(-2)
        .flatMap((job) => [job, job])
        .map((job) => world.follow(job).catch(() => undefined)),
    );
    const row = await world.payment(id);
    return row["step"] === "close";
  };
  for (let round = 0; round < 30 && !(await double()); round++) {
    await world.drain(double);
    await chain.mine(1);
    await world.scan();
    await world.sql.prepare("UPDATE payments SET wake_at = 0").run();
    await world.sweep();
  }
  expect([await charged(), await bought()]).toEqual([PRICE, 1n]);
  const row = await playUntil(world, id, at("idle"));
  expect(seen.length).toBeGreaterThan(2);
  for (const job of seen) await world.follow(job);
  for (let generation = 0; generation < Number(row["generation"]); generation++) {
    await world.follow({ payment: id, generation });
  }
  expect(await world.payment(id)).toEqual(row);
  expect([await charged(), await bought()]).toEqual([PRICE, 1n]);
});

test("a process that dies between the wallet's word and the row's buys, captures and hands over once", async () => {
  const { id } = await accepted(world, payer);
  await world.drain();
  const { purchase_tx: purchaseTx } = await world.payment(id);
  expect(purchaseTx).toMatch(/^0x/);
  await set(id, "purchase_tx = NULL, wake_at = 0");
  await world.sweep();
  await world.drain();
  expect(await world.payment(id)).toMatchObject({ step: "buy", purchase_tx: purchaseTx });
  const done = await playUntil(world, id, at("close"));
  const hashes = { settle_tx: done["settle_tx"], transfer_tx: done["transfer_tx"] };
  // As far back as a crash behind the wallet's capture, and behind its transfer, can leave the row.
  for (const columns of [
    "state = 'authorized', step = 'capture', settle_tx = NULL, settled_at = NULL, transfer_tx = NULL, served_at = NULL",
    "state = 'settling', step = 'capture', settled_at = NULL, transfer_tx = NULL, served_at = NULL",
    "step = 'deliver', transfer_tx = NULL, served_at = NULL",
    "step = 'deliver', served_at = NULL",
  ]) {
    await set(id, `${columns}, wake_at = 0`);
    expect(await playUntil(world, id, isDelivered), columns).toMatchObject({ ...hashes, state: "settled" });
  }
  expect([await charged(), await bought()]).toEqual([PRICE, 1n]);
  expect(await ownerOf(done["token_id"])).toBe(payer.address);
});

/** The same context, with a wallet in place of ours. */
const withWallet = (wallet: object): Context => ({
  ...world.context,
  config: {
    ...world.context.config,
    OPERATOR_WALLET: { idFromName: () => "operator", get: () => wallet },
  } as unknown as Context["config"],
});
async function loaded(id: string) {
  const row = await loadPayment(world.db, id);
  if (row === null) throw new Error("there is no such payment");
  return row;
}

test.each([
  ["all nodes have its block", 0],
  ["the first two to answer have only the block before (hard case 28)", 2],
])(
  "a stranger's transaction that overtakes our capture has paid us, and %s: it was held against the payer, and his machine ended (hard case 2)",
  async (_, blocks) => {
    const { id, signed } = await accepted(world, payer);
    await untilMachineRuns(id);
    await chain.node.setAutomine(false);
    await world.drain(async () => (await world.payment(id))["state"] === "settling");
    await chain.dropAll();
    // Between the look at the chain and the one at our own transaction, the stranger's is mined, and ours behind it.
    const order = async (given: WalletOrder) => {
      await chain.node.setAutomine(true);
      await submit(chain, agent(3), signed, USDC_ADDRESS);
      await runDurableObjectAlarm(world.wallet);
      return world.wallet.order(given);
    };
    if (blocks > 0) {
      await addRpcFault({ kind: "lag", blocks });
      await addRpcFault({ kind: "delay", ms: 400 }, "third");
    }
    const turn = await takeStep(withWallet({ order, simulate: () => null }), await loaded(id));
    expect(turn).toMatchObject({ waitSeconds: expect.any(Number) });
    await clearRpcFaults();
    const settled = await playUntil(world, id, at("close"));
    expect(settled).toMatchObject({ state: "settled", reason: null });
    expect([await charged(), await bought()]).toEqual([PRICE, 1n]);
    expect(await ownerOf(settled["token_id"])).toBe(payer.address);
  },
);

test("nor is it where ours would fail, and the payer has nothing left: his balance was read a block later than the use (hard case 60)", async () => {
  const balance = await usdcOf(payer.address);
  await give(payer, deployer.address, balance - PRICE);
  try {
    const { id, signed } = await accepted(world, payer);
    await untilMachineRuns(id);
    await set(id, "step = 'capture'");
    // The first node is slow to tell balances, and the third to tell uses: it is a block behind.
    const slow = ["70a08231", undefined, "e94a0102"];
    const nodes = world.context.chain.nodes.map((node, i) => {
      const request = async (call: never) => {
        const isSlow = slow[i] !== undefined && JSON.stringify(call).includes(slow[i]);
        if (isSlow) await new Promise((resolve) => setTimeout(resolve, 400));
        return node.client.request(call);
      };
      return { ...node, client: { ...node.client, request } as unknown as typeof node.client };
    });
    const order = async (given: WalletOrder) => {
      await submit(chain, agent(3), signed, USDC_ADDRESS);
      const answer = await world.wallet.order(given);
      expect(answer).toMatchObject({ why: "would_fail" });
      await addRpcFault({ kind: "lag", blocks: 1 });
      return answer;
    };
    const simulate = (given: WalletOrder) => world.wallet.simulate(given);
    const context = { ...withWallet({ order, simulate }), chain: { ...world.context.chain, nodes } };
    expect(await takeStep(context, await loaded(id))).toMatchObject({ waitSeconds: expect.any(Number) });
    await clearRpcFaults();
    const settled = await playUntil(world, id, at("close"));
    expect(settled).toMatchObject({ state: "settled", reason: null });
    expect(await ownerOf(settled["token_id"])).toBe(payer.address);
  } finally {
    await give(deployer, payer.address, balance - PRICE);
  }
});

test("our capture's own failure is held against its payer only by a look that is no older than it", async () => {
  const { id } = await accepted(world, payer);
  await untilMachineRuns(id);
  await set(id, "step = 'capture', state = 'settling'");
  const blockNumber = Number(await chain.reader.getBlockNumber()) + 1;
  const order = () => ({ state: "sent", hash: "0x1", mined: { hash: "0x1", status: "reverted", blockNumber } });
  const turn = async () => takeStep(withWallet({ order, simulate: () => null }), await loaded(id));
  expect(await turn()).toMatchObject({ waitSeconds: expect.any(Number) });
  await chain.mine(1);
  expect(await turn()).toMatchObject({ state: "releasing", reason: "capture_refused" });
});

test("a capture that a reorg took back and its payer then cancelled is for a person: the books say so (hard case 16)", async () => {
  const { id, signed } = await accepted(world, payer);
  await playUntil(world, id, at("close"));
  await chain.rollback(2);
  await chain.dropAll();
  expect(await charged()).toBe(0n);
  await cancel(chain, payer, signed, USDC_ADDRESS);
  await runDurableObjectAlarm(world.wallet);
  await chain.mine(4);
  expect(await playUntil(world, id, at("idle"))).toMatchObject({ state: "held", reason: "charge_undone" });
  expect(await charged()).toBe(0n);
});

test("a machine that vanishes between the capture and the token's transfer is replaced: it failed as an order that is over, and nothing was paid back", async () => {
  const { id } = await accepted(world, payer);
  await untilMachineRuns(id);
  await untilTokenMoves(id);
  await loseMachine();
  expect(await theVm()).toMatchObject({ status: "provisioning", owner: operator.address.toLowerCase() });
  await world.drain(async () => (await theVm())["status"] !== "provisioning");
  await chain.node.setAutomine(true);
  const row = await playUntil(world, id, at("idle"));
  expect(row).toMatchObject({ state: "settled", reason: null });
  expect([await charged(), await ownerOf(row["token_id"])]).toEqual([PRICE, payer.address]);
  const after = await theVm();
  expect(after).toMatchObject({ status: "running", failure: null, owner: payer.address.toLowerCase() });
  expect(await world.machines("vultr")).toMatchObject([{ id: after["instance_id"] }]);
});

test("a machine that fails for good while its token is on its way is owed to the payer: it was ours when it failed, and nothing was booked", async () => {
  const { id } = await accepted(world, payer);
  await untilMachineRuns(id);
  await untilTokenMoves(id);
  await loseMachine();
  await world.missDeadlines();
  await world.drain(async () => (await theVm())["status"] !== "provisioning");
  expect(await theVm()).toMatchObject({ status: "failed", owner: operator.address.toLowerCase() });
  expect(await world.rows("SELECT * FROM refunds")).toEqual([]);
  await chain.node.setAutomine(true);
  const row = await playUntil(world, id, at("idle"));
  expect(await ownerOf(row["token_id"])).toBe(payer.address);
  for (let round = 0; round < 20 && (await charged()) === PRICE; round++) {
    await chain.mine(1);
    await world.scan();
    await world.sql.prepare("UPDATE refunds SET wake_at = 0 WHERE wake_at IS NOT NULL").run();
    await world.sweep();
    await world.drain();
  }
  const [owed] = await world.rows("SELECT * FROM refunds");
  expect(owed).toMatchObject({ kind: "failed", recipient: payer.address });
  // It ran for a moment of its day.
  expect(Number(owed?.["amount"])).toBeGreaterThan(Number(PRICE) * 0.9);
  expect(await charged()).toBe(PRICE - BigInt(Number(owed?.["amount"])));
});

test("an order given up while a reorg has its purchase leaves no machine behind: it ran on for nobody once the purchase was back (seed 10838)", async () => {
  const { id, signed } = await accepted(world, payer);
  await untilMachineRuns(id);
  await chain.rollback(2);
  await chain.dropAll();
  await cancel(chain, payer, signed, USDC_ADDRESS);
  await chain.mine(2);
  await world.scan();
  expect(await world.rows("SELECT owner, current, status FROM vms")).toEqual([
    { owner: "", current: 1, status: "running" },
  ]);
  const row = await playUntil(world, id, at("idle"));
  expect(row).toMatchObject({ state: "released", reason: "capture_refused", held: 1 });
  await runDurableObjectAlarm(world.wallet);
  await chain.mine(1);
  await world.scan();
  await gone();
  expect(await world.rows("SELECT owner, current, status FROM vms")).toEqual([
    { owner: operator.address.toLowerCase(), current: 1, status: "terminated" },
  ]);
  expect([await charged(), await ownerOf(row["token_id"])]).toEqual([0n, operator.address]);
});

test("an order given up while its purchase was thought to be replaced leaves no machine behind: it was taken back to work (seed 81202)", async () => {
  const { id } = await accepted(world, payer);
  await untilMachineRuns(id);
  // As a sale that one node invents leaves it.
  await world.sql.prepare("UPDATE vms SET current = 0, step = 'retire', generation = generation + 1").run();
  await world.drain();
  expect(await world.payment(id)).toMatchObject({ step: "release", reason: "machine_ended", held: 1 });
  expect(await world.machines("vultr")).toHaveLength(1);
  await world.sql.prepare("UPDATE vms SET wake_at = 1").run();
  await gone();
  // Whichever came first, the proof that it stands or the look for a token that no row holds.
  expect(await theVm()).toMatchObject({ status: expect.stringMatching(/^(terminated|failed)$/), current: 1 });
});

test("an order whose token a reorg has changed, and changed back, follows it: it was given up, and its machine ran for nobody (seed 83558)", async () => {
  const { id } = await accepted(world, payer);
  await untilMachineRuns(id);
  const { incarnation, token_id: tokenId } = await world.payment(id);
  await pretendAnotherToken(id);
  expect(await playUntil(world, id, at("close"))).toMatchObject({ state: "settled", incarnation, token_id: tokenId });
  expect(await ownerOf(tokenId)).toBe(payer.address);
});

test("a token that went to the payer and was another order's after a reorg is followed by the one that he paid for (seed 88080)", async () => {
  const { id } = await accepted(world, payer);
  const { incarnation, token_id: tokenId } = await playUntil(world, id, at("close"));
  await transfer(chain, payer, operator.address, Number(tokenId));
  await pretendAnotherToken(id);
  expect(await playUntil(world, id, at("idle"))).toMatchObject({ state: "settled", incarnation, token_id: tokenId });
});

test("what became of an order whose token is no purchase of ours any more is for a person to see: its books never closed", async () => {
  const { id } = await accepted(world, payer);
  await playUntil(world, id, at("close"));
  // As retiring leaves it, once final history is past its block; the token that was its own is another purchase's.
  const { token_id: tokenId } = await world.payment(id);
  await pretendAnotherToken(id);
  await world.sql.prepare("UPDATE vms SET status = 'terminated', failure = 'reorged' WHERE current = 0").run();
  await world.sql.prepare("DELETE FROM payment_links").run();
  await set(id, `token_id = ${tokenId}, purchase_tx = 'gone', wake_at = 1`);
  expect(await playUntil(world, id, at("idle"))).toMatchObject({ state: "held", reason: "purchase_gone" });
});

test("an order that came to nothing holds the token that a reorg gave its purchase meanwhile: it was in nobody's stock (seed 20)", async () => {
  const { id, signed } = await accepted(world, payer);
  await untilMachineRuns(id);
  await cancel(chain, payer, signed, USDC_ADDRESS);
  const { incarnation } = await playUntil(world, id, at("release"));
  await pretendAnotherToken(id);
  await set(id, "wake_at = 1");
  const released = await playUntil(world, id, inState("released"));
  expect(released).toMatchObject({ incarnation, held: 1 });
  expect(await ownerOf(released["token_id"])).toBe(operator.address);
});

test("two orders of one payer, the token of one his by the transfer for the other, are two purchases and nothing is paid back", async () => {
  const { id } = await accepted(world, payer);
  const { incarnation } = await playUntil(world, id, at("close"));
  await pretendAnotherToken(id);
  await world.sql.prepare("UPDATE vms SET status = 'failed', failure = 'no_machine_in_time' WHERE current = 1").run();
  await set(id, "step = 'provision', transfer_tx = NULL, wake_at = 1");
  expect(await playUntil(world, id, at("idle"))).toMatchObject({ state: "settled", incarnation });
  // For the machine that failed, once: not for the payment as well.
  expect(await world.rows("SELECT kind, pay_to FROM refunds")).toEqual([
    { kind: "failed", pay_to: payer.address.toLowerCase() },
  ]);
});

test("a machine that never answers costs nothing, ends at the vendor, and its token is held", async () => {
  await addFault("vultr", { call: "create", kind: "never_boots" });
  const { id } = await accepted(world, payer);
  const row = await playUntil(world, id, at("provision"));
  await world.drain(async () => (await world.machines("vultr")).length > 0);
  await world.missDeadlines();
  await world.sql.prepare("UPDATE attempts SET boot_deadline_at = 1").run();
  expect(await playUntil(world, id, at("release"))).toMatchObject({
    state: "releasing",
    reason: "no_machine_in_time",
    held: 1,
    settle_tx: null,
  });
  await gone();
  expect([await charged(), await ownerOf(row["token_id"])]).toEqual([0n, operator.address]);
  expect(await world.rows("SELECT * FROM refunds")).toEqual([]);
});

test("of a tier that is captured first the machine and the token follow the charge", async () => {
  const first = { CAPTURE_FIRST_TIERS: "0" };
  world = await deploy({ edge: first, provisioner: first });
  const { id } = await accepted(world, payer);
  await world.drain();
  expect(await world.payment(id)).toMatchObject({ state: "settled", step: "buy" });
  expect(await charged()).toBe(PRICE);
  const row = await playUntil(world, id, at("close"));
  expect(await ownerOf(row["token_id"])).toBe(payer.address);
  expect(await charged()).toBe(PRICE);
});

test("a wallet that is a contract pays by its keeper's signature, and the token is the contract's", async () => {
  const abi = artifacts.SmartWalletFactory.abi as Abi;
  const send = chain.wallet(deployer);
  const bytecode = artifacts.SmartWalletFactory.bytecode as Hex;
  const address = (await mined(send.deployContract({ abi, bytecode }))).contractAddress ?? "0x";
  const factory = { address, abi, args: [agent(2).address] } as const;
  const wallet = (await chain.reader.readContract({ ...factory, functionName: "addressOf" })) as Address;
  await mined(send.writeContract({ ...factory, functionName: "deploy" }));
  await give(agent(2), wallet, PRICE);
  const requirement = await quoteOf(post(world, "/x402/purchase-compute", computeBody()));
  const signed = await signFor(agent(2), requirement, { from: wallet });
  const headers = { "payment-signature": paymentHeaderV2(requirement, signed) };
  const answer = await post(world, "/x402/purchase-compute", computeBody(), headers);
  const { purchaseId } = (await answer.json()) as { purchaseId: string };
  expect(answer.status).toBe(202);
  const row = await playUntil(world, purchaseId, at("close"));
  expect([await usdcOf(wallet), await ownerOf(row["token_id"])]).toEqual([0n, wallet]);
});

test("what was charged first and can't be bought for a quarter of an hour is paid back: its payer waited for as long as we had no money", async () => {
  const first = { CAPTURE_FIRST_TIERS: "0" };
  world = await deploy({ edge: first, provisioner: { ...first, PURCHASE_LIMIT_USDC_PER_DAY: "0" } });
  const { id } = await accepted(world, payer);
  await playUntil(world, id, ({ state, step }) => state === "settled" && step === "buy");
  expect(await usdcOf(payer.address)).toBe(had.usdc - PRICE);
  world.passTime(901);
  await playUntil(world, id, inState("refunded"));
  expect(await usdcOf(payer.address)).toBe(had.usdc);
});

test("what was charged first, long before its machine was up, is handed over after a pause and a no: its delivery had no time, and a running machine was ended", async () => {
  const first = { CAPTURE_FIRST_TIERS: "0" };
  world = await deploy({ edge: first, provisioner: first });
  const { id } = await accepted(world, payer);
  await playUntil(world, id, ({ state, step }) => state === "settled" && step === "provision");
  await world.pause("payouts");
  world.passTime(1_000);
  await playUntil(world, id, at("deliver"));
  const waits = async (why: string) => {
    const order = () => ({ state: "waiting", why });
    const turn = await takeStep(withWallet({ order }), await loaded(id));
    expect(await world.payment(id), why).toMatchObject({ step: "deliver", reason: null });
    return turn;
  };
  for (const why of ["paused", "no_gas", "paused"]) await waits(why);
  world.passTime(1_000);
  for (const why of ["paused", "no_gas", "unproven"]) await waits(why);
  expect(await theVm()).toMatchObject({ status: "running" });
  await world.liftPauses();
  const row = await playUntil(world, id, at("close"));
  expect(row).toMatchObject({ state: "settled", reason: null });
  expect(await ownerOf(row["token_id"])).toBe(payer.address);
});
