// Purchases that meet each other, a change of price or another hand at the wallet: each order gets its token while there is
// time (hard case 55).
import { runDurableObjectAlarm } from "cloudflare:test";
import { type Hex, parseAbi } from "viem";
import { afterEach, beforeEach, expect, test } from "vitest";
import { CONTRACT_ADDRESS } from "../../../world/addresses.ts";
import { agent, chain, deployer, operator } from "../../chain.ts";
import { type Deployment, deploy } from "../../deployment.ts";
import { accepted, claw, mined, ownerOf, playOn, setTier, sold, usdcOf } from "../../edge/routes/x402/till.ts";
import { addRpcFault } from "../../faults.ts";

const PRICE = 500_000n;
let world: Deployment;
let had: { sold: bigint };
beforeEach(async () => {
  world = await deploy();
  had = { sold: await sold() };
});
afterEach(async () => {
  await chain.node.setAutomine(true);
  await setTier(PRICE);
});

/** Orders, and plays until its purchase has left for the chain. No block comes meanwhile. */
async function purchaseSent(index: number): Promise<{ id: string; txHash: Hex }> {
  const { id } = await accepted(world, agent(index));
  await world.drain(async () => (await world.payment(id))["purchase_tx"] !== null);
  return { id, txHash: (await world.payment(id))["purchase_tx"] as Hex };
}
/** Takes it out of the node's pool: the block that comes has what was sent before it, its approval too. */
const drop = (txHash: Hex) => chain.node.dropTransaction({ hash: txHash });

async function expectDelivered(...orders: { id: string; index: number }[]): Promise<void> {
  await playOn(world, async () => {
    const steps = await Promise.all(orders.map(async ({ id }) => (await world.payment(id))["step"]));
    return steps.every((step) => step === "idle");
  });
  for (const { id, index } of orders) {
    const row = await world.payment(id);
    expect(row).toMatchObject({ state: "settled", reason: null });
    expect(await ownerOf(row["token_id"])).toBe(agent(index).address);
  }
}

test("a sale between the two looks at whether a token could be handed over stops no order: it was given up as cannot_deliver", async () => {
  const { id } = await accepted(world, agent(1));
  // Slow enough for sales to come between any two of its calls.
  await addRpcFault({ kind: "delay", ms: 120 });
  let isChecked = false;
  const sales = (async () => {
    while (!isChecked) await world.buy(0);
  })();
  await world.drain(async () => (await world.payment(id))["step"] !== "check");
  isChecked = true;
  await sales;
  expect(await world.payment(id)).toMatchObject({ state: "authorized", step: "buy", reason: null });
});

test("a purchase that is prepared between another's approval and its purchase has gas enough: both get their token (hard case 55)", async () => {
  await chain.node.setAutomine(false);
  const first = await purchaseSent(1);
  await drop(first.txHash);
  await chain.mine(1);
  const second = await purchaseSent(2);
  await runDurableObjectAlarm(world.wallet);
  await chain.mine(1);
  const receipts = await Promise.all(
    [first, second].map(({ txHash }) => chain.reader.getTransactionReceipt({ hash: txHash })),
  );
  expect(receipts.map(({ status }) => status)).toEqual(["success", "success"]);
  await chain.node.setAutomine(true);
  await expectDelivered({ ...first, index: 1 }, { ...second, index: 2 });
  expect(await sold()).toBe(had.sold + 2n);
});

test("four orders whose purchases share blocks get a token each, and no allowance is left (hard case 55)", async () => {
  await chain.node.setAutomine(false);
  const orders = await Promise.all([0, 1, 2, 3].map((index) => accepted(world, agent(index))));
  await playOn(world, async () => {
    const sent = await Promise.all(orders.map(async ({ id }) => (await world.payment(id))["purchase_tx"]));
    return sent.every((hash) => hash !== null);
  });
  await chain.mine(1);
  await chain.node.setAutomine(true);
  await expectDelivered(...orders.map(({ id }, index) => ({ id, index })));
  expect(await sold()).toBe(had.sold + 4n);
});

/** The contract's owner changes the price in the block that has the purchase, in front of it. */
async function changePriceInFront(price: bigint): Promise<void> {
  const tip = { maxPriorityFeePerGas: 100_000_000_000n, maxFeePerGas: 200_000_000_000n, gas: 200_000n };
  const args = [0, price, true, "VM 1 vCPU / 1 GB"] as const;
  const hash = await chain.wallet(deployer).writeContract({ ...claw, functionName: "setTier", args, ...tip });
  await chain.mine(1);
  expect((await chain.reader.getTransactionReceipt({ hash })).status).toBe("success");
}

test("a price that rises in front of a purchase makes it revert: it is bought again, and the payer pays what was quoted (hard case 55)", async () => {
  const before = await usdcOf(agent(1).address);
  await chain.node.setAutomine(false);
  const { id, txHash } = await purchaseSent(1);
  await changePriceInFront(PRICE + PRICE / 10n);
  expect((await chain.reader.getTransactionReceipt({ hash: txHash })).status).toBe("reverted");
  await chain.node.setAutomine(true);
  await expectDelivered({ id, index: 1 });
  expect(await usdcOf(agent(1).address)).toBe(before - PRICE);
  expect(await sold()).toBe(had.sold + 1n);
});

test("an allowance that another hand at the wallet has used up makes a purchase revert: it is bought again (hard case 55)", async () => {
  const before = await usdcOf(agent(1).address);
  await chain.node.setAutomine(false);
  const { id, txHash } = await purchaseSent(1);
  await drop(txHash);
  await chain.mine(1);
  await chain.node.setAutomine(true);
  const abi = parseAbi(["function purchaseVM(uint8 tier, uint16 durationDays)"]);
  const args = [0, 1] as const;
  await mined(
    chain.wallet(operator).writeContract({ address: CONTRACT_ADDRESS, abi, functionName: "purchaseVM", args }),
  );
  await expectDelivered({ id, index: 1 });
  expect(await usdcOf(agent(1).address)).toBe(before - PRICE);
  expect(await sold()).toBe(had.sold + 2n);
});

test("a purchase that reverts when there is no time left costs its payer nothing (hard case 55)", async () => {
  const before = await usdcOf(agent(1).address);
  await chain.node.setAutomine(false);
  const { id } = await purchaseSent(1);
  await changePriceInFront(PRICE + PRICE / 10n);
  await chain.node.setAutomine(true);
  await world.sql.prepare("UPDATE payments SET valid_before = 1 WHERE id = ?").bind(id).run();
  await playOn(world, async () => (await world.payment(id))["step"] === "idle");
  expect(await world.payment(id)).toMatchObject({ state: "released" });
  expect([await usdcOf(agent(1).address), await sold()]).toEqual([before, had.sold]);
});
