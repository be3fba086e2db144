// Money back, on a real chain: the operator wallet signs, anvil mines, final history closes the books.
import { runDurableObjectAlarm } from "cloudflare:test";
import { createWalletClient, http, parseAbi } from "viem";
import { expect, test } from "vitest";
import { retryFailed } from "../../../../src/db/operators.ts";
import { CONTRACT_ADDRESS, USDC_ADDRESS } from "../../../world/addresses.ts";
import { transfer } from "../../../world/agent.ts";
import { agent, chain, deployer, operator } from "../../chain.ts";
import { buyAndFail, type Deployment, deploy } from "../../deployment.ts";
import { operator as asOperator, type Operator } from "../../edge/routes/admin/operator.ts";
import { paidUs, setBlocked } from "../../edge/routes/x402/till.ts";
import { addRpcFault } from "../../faults.ts";
import { changeWallet, configureWallet } from "../../wallet-object.ts";

const usdcAbi = parseAbi([
  "function balanceOf(address account) view returns (uint256)",
  "function transfer(address to, uint256 amount) returns (bool)",
  "event Transfer(address indexed from, address indexed to, uint256 value)",
]);
const renewals = {
  address: CONTRACT_ADDRESS,
  abi: parseAbi([
    "function setOptions(bool renew, bool terminate)",
    "function renewVM(uint256 tokenId, uint16 additionalDays)",
  ]),
} as const;
const approvals = {
  address: USDC_ADDRESS,
  abi: parseAbi(["function approve(address spender, uint256 amount) returns (bool)"]),
} as const;
const balanceOf = (address: `0x${string}`) =>
  chain.reader.readContract({ address: USDC_ADDRESS, abi: usdcAbi, functionName: "balanceOf", args: [address] });
const refundOf = async (world: Deployment, tokenId: number) =>
  (await world.rows("SELECT * FROM refunds WHERE token_id = ?", tokenId))[0];
const statusOf = async (world: Deployment, tokenId: number) =>
  (await (await world.request(`/status/${tokenId}`)).json()) as { status: string; refund?: object };
const PRICE = 500_000n;
const RETRY = { deadlineSeconds: 3_600, graceSeconds: 0 };

/** What the sweep does for refunds, and the wallet's alarm. */
async function payOut(world: Deployment, now = Date.now()): Promise<void> {
  world.sent.length = 0;
  await world.sweep(now);
  await world.drain();
  await runDurableObjectAlarm(world.wallet);
}
const payments = async (to: string) =>
  (
    await chain.reader.getContractEvents({
      address: USDC_ADDRESS,
      abi: usdcAbi,
      eventName: "Transfer",
      args: { from: operator.address, to: to as `0x${string}` },
      fromBlock: 0n,
    })
  ).length;

test("a purchase that nobody could serve is paid back to its buyer, once, and /status tells the transaction", async () => {
  const world = await deploy();
  const before = await balanceOf(agent(0).address);
  const tokenId = await buyAndFail(world);
  expect(await balanceOf(agent(0).address)).toBe(before - PRICE);
  expect((await statusOf(world, tokenId)).refund).toEqual({ state: "due", amount: "0.50", txHash: null });

  await chain.mine(3);
  await payOut(world);
  await chain.mine(1);
  expect(await balanceOf(agent(0).address)).toBe(before);
  const { refund } = (await statusOf(world, tokenId)) as { refund: { state: string; txHash: string } };
  expect(refund).toMatchObject({ state: "sent", amount: "0.50" });

  // Until it is final the books stay open; then nothing more is done, whoever asks.
  await chain.mine(3);
  await runDurableObjectAlarm(world.wallet);
  await payOut(world, Date.now() + 61_000);
  expect((await statusOf(world, tokenId)).refund).toEqual({ ...refund, state: "paid" });
  await payOut(world, Date.now() + 300_000);
  expect(await balanceOf(agent(0).address)).toBe(before);
  const answer = await world.request(`/status/${tokenId}`);
  expect(await answer.json()).toMatchObject({ status: "failed" });
});

test("refunds wait for final history (hard case 16)", async () => {
  const world = await deploy();
  const tokenId = await buyAndFail(world);
  const paid = await payments(agent(0).address);
  const { number } = await chain.reader.getBlock({ blockTag: "finalized" });
  expect(number).toBeLessThan(BigInt((await world.vm(tokenId))?.["block_number"]));
  await payOut(world);
  expect(await refundOf(world, tokenId)).toMatchObject({ state: "due" });
  expect(await payments(agent(0).address)).toBe(paid);
});

test("a token that was resold is not paid back to its seller: it is held, and its owner may claim it (hard case 17)", async () => {
  const world = await deploy();
  const tokenId = await buyAndFail(world);
  await transfer(chain, agent(0), agent(1).address, tokenId);
  await chain.mine(3);
  const paid = await payments(agent(0).address);
  await payOut(world);
  expect(await refundOf(world, tokenId)).toMatchObject({ state: "held", reason: "owner_is_not_the_buyer" });
  expect(await payments(agent(0).address)).toBe(paid);
  expect((await statusOf(world, tokenId)).refund).toMatchObject({ state: "held" });
});

test("a retry and a refund exclude each other, whichever comes first (hard case 17)", async () => {
  const world = await deploy();
  const tokenId = await buyAndFail(world);
  const incarnation = (await world.vm(tokenId))?.["incarnation"] as string;
  expect(await retryFailed(world.db, incarnation, Date.now(), RETRY)).not.toBeNull();
  expect(await refundOf(world, tokenId)).toMatchObject({ state: "cancelled" });
  await chain.mine(3);
  const paid = await payments(agent(0).address);
  await payOut(world);
  expect(await payments(agent(0).address)).toBe(paid);

  // Failed again, owed again; once the payment has begun there is no way back to a machine.
  await world.missDeadlines();
  await world.sweep(Date.now() + 400_000);
  await world.drain();
  expect(await refundOf(world, tokenId)).toMatchObject({ state: "due" });
  await payOut(world, Date.now() + 500_000);
  expect(await refundOf(world, tokenId)).toMatchObject({ state: "paying" });
  expect(await retryFailed(world.db, incarnation, Date.now(), RETRY)).toBeNull();
  await chain.mine(1);
  expect(await payments(agent(0).address)).toBe(paid + 1);
});

test("where refunds are manual, or payouts paused, nothing leaves", async () => {
  const manual = await deploy({ provisioner: { REFUNDS: "manual" } });
  const tokenId = await buyAndFail(manual);
  expect(await refundOf(manual, tokenId)).toMatchObject({ state: "waiting", reason: "manual" });
  const paid = await payments(agent(0).address);
  await chain.mine(3);
  await payOut(manual);

  const paused = await deploy();
  await buyAndFail(paused);
  await paused.pause("payouts");
  await chain.mine(3);
  await payOut(paused);
  expect(await payments(agent(0).address)).toBe(paid);
  await paused.liftPauses();
  await payOut(paused, Date.now() + 61_000);
  await chain.mine(1);
  expect(await payments(agent(0).address)).toBe(paid + 1);
});

test("a row that names another sum or recipient than the chain pays nobody else (hard case 4)", async () => {
  const world = await deploy();
  const tokenId = await buyAndFail(world);
  await world.sql
    .prepare("UPDATE refunds SET amount = '999000000', recipient = ? WHERE token_id = ?")
    .bind(deployer.address, tokenId)
    .run();
  await chain.mine(3);
  const paid = await payments(agent(0).address);
  const stolen = await payments(deployer.address);
  await payOut(world);
  await chain.mine(1);
  expect(await payments(deployer.address)).toBe(stolen);
  expect(await payments(agent(0).address)).toBe(paid + 1);
  expect(await refundOf(world, tokenId)).toMatchObject({ amount: "500000", recipient: agent(0).address });
});

/** The refunds that are on their way are refused by the coin, in final history. */
async function refuseOnChain(world: Deployment, to: `0x${string}`): Promise<void> {
  await chain.dropAll();
  await chain.node.setAutomine(true);
  await setBlocked(to, true);
  await runDurableObjectAlarm(world.wallet);
  await chain.mine(4);
  await runDurableObjectAlarm(world.wallet);
}

/** An operator's word for a refund of a purchase without a machine. */
async function payByHand(ask: Operator, tokenId: number, reason: string): Promise<void> {
  expect((await ask("POST", `/admin/refunds/${tokenId}/failed/pay`, { reason })).status).toBe(200);
}

test("a refund that reverted is tried again once what made it revert has passed: its order was used up for ever", async () => {
  const world = await deploy();
  const tokenId = await buyAndFail(world);
  const buyer = agent(0).address;
  const before = await payments(buyer);
  await chain.mine(3);
  await chain.node.setAutomine(false);
  await payOut(world);
  try {
    await refuseOnChain(world, buyer);
    await payOut(world, Date.now() + 61_000);
    expect(await refundOf(world, tokenId)).toMatchObject({ state: "due", reason: "reverted", tx_hash: null });
    // Not before an hour has passed, and not while it would fail.
    await payOut(world, Date.now() + 1_000_000);
    expect(await refundOf(world, tokenId)).toMatchObject({ state: "due" });
    await payOut(world, Date.now() + 4_000_000);
    expect(await refundOf(world, tokenId)).toMatchObject({ state: "paying", reason: "would_fail", tx_hash: null });
  } finally {
    await setBlocked(buyer, false);
  }
  await payOut(world, Date.now() + 5_000_000);
  await chain.mine(4);
  await runDurableObjectAlarm(world.wallet);
  await payOut(world, Date.now() + 6_000_000);
  expect(await refundOf(world, tokenId)).toMatchObject({ state: "paid" });
  expect(await payments(buyer)).toBe(before + 1);
});

test("a refund that reverts three times is an operator's, whose word tries it once more", async () => {
  const world = await deploy();
  const tokenId = await buyAndFail(world);
  const buyer = agent(0).address;
  const before = await payments(buyer);
  await chain.mine(3);
  for (let tries = 1; tries <= 3; tries++) {
    await chain.node.setAutomine(false);
    await payOut(world, Date.now() + tries * 10_000_000);
    await refuseOnChain(world, buyer);
    await setBlocked(buyer, false);
    await payOut(world, Date.now() + tries * 10_000_000 + 61_000);
    expect(await refundOf(world, tokenId)).toMatchObject({ state: tries < 3 ? "due" : "held", reason: "reverted" });
  }
  await payByHand(asOperator(world, await world.operatorKey()), tokenId, "unblocked");
  await payOut(world, Date.now() + 50_000_000);
  await chain.mine(4);
  await runDurableObjectAlarm(world.wallet);
  await payOut(world, Date.now() + 50_100_000);
  expect(await refundOf(world, tokenId)).toMatchObject({ state: "paid" });
  expect(await payments(buyer)).toBe(before + 1);
});

test("a refund above what leaves in a day is an operator's: it was in `paying` for ever, and nobody could settle it", async () => {
  const limits = { REFUND_LIMIT_USDC_PER_DAY: "0.4", APPROVAL_LIMIT_USDC_PER_DAY: "0.45" };
  const world = await deploy({ provisioner: limits });
  const tokenId = await buyAndFail(world);
  const before = await payments(agent(0).address);
  await chain.mine(3);
  const held = { state: "held", reason: "above_limit" };
  await payOut(world);
  expect(await refundOf(world, tokenId)).toMatchObject(held);
  const ask = asOperator(world, await world.operatorKey());
  const approve = async () => {
    await payByHand(ask, tokenId, "thirty days of an H100");
    await payOut(world, Date.now() + 61_000);
  };
  // What operators approve has a limit of its own.
  await approve();
  expect(await refundOf(world, tokenId)).toMatchObject(held);
  await configureWallet(world.wallet, { APPROVAL_LIMIT_USDC_PER_DAY: "0.5" });
  await approve();
  await chain.mine(4);
  await runDurableObjectAlarm(world.wallet);
  await payOut(world, Date.now() + 200_000);
  expect(await refundOf(world, tokenId)).toMatchObject({ state: "paid", reason: null, amount: "500000" });
  expect(await payments(agent(0).address)).toBe(before + 1);
});

test("a token that somebody renews while nobody serves it is paid back to its buyer all the same: any stranger could hold the refund", async () => {
  const options = (renew: boolean) =>
    chain.wallet(deployer).writeContract({ ...renewals, functionName: "setOptions", args: [renew, false] });
  const world = await deploy();
  await options(true);
  const tokenId = await buyAndFail(world);
  const stranger = chain.wallet(agent(3));
  await stranger.writeContract({ ...approvals, functionName: "approve", args: [CONTRACT_ADDRESS, PRICE] });
  await stranger.writeContract({ ...renewals, functionName: "renewVM", args: [BigInt(tokenId), 1] });
  await options(false);
  await world.scan();
  await chain.mine(3);
  const before = await payments(agent(0).address);
  await payOut(world);
  await chain.mine(1);
  expect(await refundOf(world, tokenId)).toMatchObject({ state: "paying", amount: "500000" });
  expect(await payments(agent(0).address)).toBe(before + 1);
});

/** An order to pay back what agent 3 has paid us. */
const payBack = async (id: string, amount: string) => {
  const payment = await paidUs(agent(3), BigInt(amount));
  return { kind: "pay", id, to: agent(3).address, amount, owed: { payment } } as const;
};

test("the same payment asked for many times at once, and after the object's restart, is one transaction", async () => {
  const world = await deploy();
  const payment = await payBack("test/once", "7");
  const before = await payments(agent(3).address);
  const answers = await Promise.all(Array.from({ length: 10 }, () => world.wallet.order(payment)));
  expect(new Set(answers.map((answer) => (answer as { hash: string }).hash)).size).toBe(1);
  expect(answers[0]).toMatchObject({ state: "sent" });
  const other = { state: "waiting", why: "other_order" };
  expect(await world.wallet.order({ ...payment, amount: "8" })).toEqual(other);
  expect(await world.wallet.order({ ...payment, to: agent(4).address })).toEqual(other);
  await chain.mine(1);
  expect(await payments(agent(3).address)).toBe(before + 1);
});

test("payments of one moment get nonces of their own, and none is lost while every node is down", async () => {
  const world = await deploy();
  const before = await payments(agent(3).address);
  const orders: Awaited<ReturnType<typeof payBack>>[] = [];
  for (let i = 0; i < 5; i++) orders.push(await payBack(`test/many-${i}`, "1"));
  await chain.node.setAutomine(false);
  const states = await Promise.all(orders.map((order) => world.wallet.order(order)));
  expect(states.every((one) => one.state === "sent")).toBe(true);
  // What the nodes had in their pools is gone; the alarm sends all of it again.
  await chain.dropAll();
  await runDurableObjectAlarm(world.wallet);
  await chain.mine(1);
  expect(await payments(agent(3).address)).toBe(before + 5);
  await chain.mine(3);
  await runDurableObjectAlarm(world.wallet);
  for (const order of orders) expect(await world.wallet.order(order)).toMatchObject({ state: "final" });
});

test("a stuck transaction is replaced at a higher fee under the same nonce, and either of the two closes the order", async () => {
  const world = await deploy();
  const payment = await payBack("test/stuck", "3");
  await chain.node.setAutomine(false);
  const before = await payments(agent(3).address);
  const first = await world.wallet.order(payment);
  await changeWallet(world.wallet, "UPDATE signed SET signed_at = signed_at - 120000");
  await runDurableObjectAlarm(world.wallet);
  const second = await world.wallet.order(payment);
  expect(second.state).toBe("sent");
  expect(second).not.toEqual(first);
  await chain.mine(1);
  await chain.mine(3);
  await runDurableObjectAlarm(world.wallet);
  expect(await world.wallet.order(payment)).toEqual({ state: "final", hash: (second as { hash: string }).hash });
  expect(await payments(agent(3).address)).toBe(before + 1);
});

test("a nonce that somebody else used up with the key is given up for another one, once that is final", async () => {
  const world = await deploy();
  const payment = await payBack("test/taken", "2");
  await chain.node.setAutomine(false);
  await world.wallet.order(payment);
  await chain.dropAll();
  const stranger = createWalletClient({
    account: operator,
    chain: chain.node.chain,
    transport: http(chain.node.transport["url"]),
  });
  await stranger.sendTransaction({ to: deployer.address, value: 1n });
  await chain.mine(1);
  const before = await payments(agent(3).address);
  await chain.mine(3);
  await runDurableObjectAlarm(world.wallet);
  await chain.mine(1);
  expect(await payments(agent(3).address)).toBe(before + 1);
  await chain.mine(3);
  await runDurableObjectAlarm(world.wallet);
  expect(await world.wallet.order(payment)).toMatchObject({ state: "final" });
});

test("a payment that a reorg takes back is broadcast until it stands (hard case 16)", async () => {
  const world = await deploy();
  const before = await payments(agent(3).address);
  const payment = await payBack("test/reorg", "4");
  await world.wallet.order(payment);
  await chain.mine(1);
  expect(await payments(agent(3).address)).toBe(before + 1);
  await chain.rollback(2);
  await chain.dropAll();
  expect(await payments(agent(3).address)).toBe(before);
  await runDurableObjectAlarm(world.wallet);
  await chain.mine(1);
  expect(await payments(agent(3).address)).toBe(before + 1);
});

test("beyond the day's limit, or without funds, nothing is signed: it waits and says why", async () => {
  const world = await deploy({ provisioner: { REFUND_LIMIT_USDC_PER_DAY: "1" } });
  const dry = await payBack("test/dry", "1");
  const beyond = await payBack("test/limit", "1000001");
  const funds = await balanceOf(operator.address);
  expect(await world.wallet.order(beyond)).toEqual({ state: "waiting", why: "above_limit" });
  expect(funds).toBeGreaterThan(1_000_000n);
  const treasury = chain.wallet(operator);
  const send = { address: USDC_ADDRESS, abi: usdcAbi, functionName: "transfer" } as const;
  await treasury.writeContract({ ...send, args: [deployer.address, funds] });
  await chain.mine(1);
  expect(await world.wallet.order(dry)).toEqual({ state: "waiting", why: "no_funds" });
  await chain.wallet(deployer).writeContract({ ...send, args: [operator.address, funds] });
  await chain.mine(1);
  expect(await world.wallet.order(dry)).toMatchObject({ state: "sent" });
});

test("a node that lies about a purchase does not make money leave", async () => {
  const world = await deploy();
  const tokenId = await buyAndFail(world);
  await chain.mine(3);
  await addRpcFault({ kind: "down" });
  await payOut(world);
  await chain.mine(1);
  expect(await refundOf(world, tokenId)).toMatchObject({ state: "paying", recipient: agent(0).address });
});

test("a machine that came late is owed the share that was lost: recorded, or paid where that is configured (hard case 14)", async () => {
  for (const LATE_REFUNDS of ["record", "pay"]) {
    const world = await deploy({ provisioner: { LATE_REFUNDS, LATE_AFTER_SECONDS: "0" } });
    const { tokenId } = await world.buy(0);
    await world.scan();
    // Half a day between the purchase and the scanned head.
    await world.sql.prepare("UPDATE cursors SET block_timestamp = block_timestamp + 43200").run();
    await world.sql.prepare("UPDATE vms SET deadline = deadline + 86400").run();
    await world.drain();
    const vm = await world.vm(tokenId);
    expect(vm).toMatchObject({ status: "running" });
    expect(Math.abs(vm?.["late_seconds"] - 43_200)).toBeLessThan(60);
    const row = await refundOf(world, tokenId);
    expect(row).toMatchObject({ kind: "late", state: LATE_REFUNDS === "pay" ? "due" : "recorded" });
    expect(Math.abs(Number(row?.["amount"]) - 250_000)).toBeLessThan(500);
    const paid = await payments(agent(0).address);
    await chain.mine(3);
    await payOut(world);
    await chain.mine(1);
    expect(await payments(agent(0).address)).toBe(paid + (LATE_REFUNDS === "pay" ? 1 : 0));
    expect((await statusOf(world, tokenId)).refund).toMatchObject({
      state: LATE_REFUNDS === "pay" ? "sent" : "recorded",
    });
  }
});
