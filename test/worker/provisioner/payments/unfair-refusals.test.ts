// Captures that fail through no fault of the payer's: one node is wrong, the coin takes nothing from anybody, our own gas
// money has run out. No honest payer is barred for that, and none loses money (hard cases 28 and 36).
import { runDurableObjectAlarm } from "cloudflare:test";
import { type Hex, parseAbi, toEventSelector } from "viem";
import { generatePrivateKey, type PrivateKeyAccount, privateKeyToAccount } from "viem/accounts";
import { afterEach, beforeEach, expect, test } from "vitest";
import { USDC_ADDRESS } from "../../../world/addresses.ts";
import { agent, chain, operator } from "../../chain.ts";
import { type Deployment, deploy } from "../../deployment.ts";
import {
  accepted,
  give,
  machineRuns,
  mined,
  orderMachine,
  playOn,
  setBlocked,
  usdcOf,
} from "../../edge/routes/x402/till.ts";
import { addRpcFault, addRpcFaults, clearRpcFaults } from "../../faults.ts";
import { reachOnlyProxies, signedAMinuteEarlier } from "../../wallet-object.ts";

const PRICE = 500_000n;
const TRANSFER_WITH_AUTHORIZATION = "e3ee160e";
const TRANSFER = toEventSelector("event Transfer(address indexed from, address indexed to, uint256 value)");
const payer = agent(1);
const giver = agent(4);
let world: Deployment;
let had: bigint;
beforeEach(async () => {
  world = await deploy();
  had = await usdcOf(payer.address);
});
afterEach(async () => {
  await setBlocked(operator.address, false);
});

const isOver = async (id: string) =>
  (await world.payment(id))["reason"] !== null || (await world.payment(id))["step"] === "idle";

/** Two minutes of ours, quarter by quarter, or until the order is over. */
async function twoMinutes(id: string, each: () => Promise<void> = async () => undefined): Promise<void> {
  for (let quarter = 0; quarter < 8 && !(await isOver(id)); quarter++) {
    let looks = 0;
    await playOn(world, async () => ++looks > 10 || isOver(id));
    await each();
    world.passTime(15);
  }
}
async function expectWelcome(buyer = payer): Promise<void> {
  world.app = world.appOf({ ...world.edge });
  const { answer } = await orderMachine(world, buyer, { region: "europe" });
  expect(answer.status, await answer.clone().text()).toBe(202);
}

test("one node by which every capture would fail bars no payer and ends no machine: its word alone was held against the payer", async () => {
  const { id } = await accepted(world, payer);
  await machineRuns(world);
  await addRpcFault({
    kind: "refuse",
    method: "eth_estimateGas",
    includes: TRANSFER_WITH_AUTHORIZATION,
    message: "execution reverted",
  });
  await twoMinutes(id);
  await playOn(world, async () => (await world.payment(id))["step"] === "idle");
  expect(await world.payment(id)).toMatchObject({ state: "settled", reason: null });
  expect(await usdcOf(payer.address)).toBe(had - PRICE);
});

test("one node by which nothing can be bought or handed over stops no order", async () => {
  for (const method of ["eth_estimateGas", "eth_simulateV1"])
    await addRpcFault({ kind: "refuse", method, message: "execution reverted" });
  const { id } = await accepted(world, payer);
  await playOn(world, async () => isOver(id));
  expect(await world.payment(id)).toMatchObject({ state: "settled", reason: null });
});

test("while the coin takes nothing for us from anybody, a capture that fails is not held against its payer", async () => {
  const { id } = await accepted(world, payer);
  await machineRuns(world);
  await setBlocked(operator.address, true);
  await twoMinutes(id);
  expect((await world.payment(id))["reason"]).not.toBe("capture_refused");
  await setBlocked(operator.address, false);
  await playOn(world, async () => isOver(id));
  expect(await world.payment(id)).toMatchObject({ state: "settled", reason: null });
  await expectWelcome();
});

test("while our gas money is used up nothing is given up for it: nodes refuse the transaction, and not its content", async () => {
  await reachOnlyProxies(world.wallet, world.provisioner.RPC_URLS);
  const { id } = await accepted(world, payer);
  await machineRuns(world);
  const message = "insufficient funds for gas * price + value: balance 1, tx cost 2, overshot 1";
  await addRpcFaults({ kind: "refuse", method: "eth_sendRawTransaction", message });
  await twoMinutes(id, async () => {
    await signedAMinuteEarlier(world.wallet);
  });
  await clearRpcFaults();
  await playOn(world, async () => {
    await signedAMinuteEarlier(world.wallet);
    return isOver(id);
  });
  expect(await world.payment(id)).toMatchObject({ state: "settled", reason: null });
  await expectWelcome();
});

/** An order that is captured first, of a payer that has just been given what it pays with: the capture is on its way. */
async function beforeCapture() {
  const first = { CAPTURE_FIRST_TIERS: "0" };
  world = await deploy({ edge: first, provisioner: first });
  const poor = privateKeyToAccount(generatePrivateKey());
  const before = await chain.reader.getBlockNumber();
  await give(giver, poor.address, PRICE);
  const { id } = await accepted(world, poor);
  await chain.node.setAutomine(false);
  await world.drain(async () => (await world.payment(id))["state"] === "settling");
  return { id, poor, before };
}
/** A reorg: what came after that block is gone, and nobody has the capture until the wallet sends it again. */
async function reorgTo(before: bigint): Promise<void> {
  await chain.rollback(Number((await chain.reader.getBlockNumber()) - before));
  await chain.dropAll();
  await chain.node.setAutomine(true);
}
/** The order ends after a minute, and its payer is not barred: with new money it is welcome. */
async function expectFundsUndone(id: string, poor: PrivateKeyAccount): Promise<void> {
  await chain.mine(20);
  await twoMinutes(id);
  expect(await world.payment(id)).toMatchObject({ state: "releasing", reason: "funds_undone" });
  await give(giver, poor.address, PRICE);
  await expectWelcome(poor);
}
const captureComes = () => runDurableObjectAlarm(world.wallet);

test("a capture that a reorg has put before its payer's own money is sent again: an honest payer was barred (seed 1568)", async () => {
  const { id, poor, before } = await beforeCapture();
  await reorgTo(before);
  await captureComes();
  await give(giver, poor.address, PRICE);
  await chain.mine(20);
  await playOn(world, async () => isOver(id));
  expect(await world.payment(id)).toMatchObject({ state: "settled", reason: null });
  expect(await usdcOf(poor.address)).toBe(0n);
});

test("a payer whose money a reorg has taken back gets no machine after a minute, and is welcome again", async () => {
  const { id, poor, before } = await beforeCapture();
  await reorgTo(before);
  await captureComes();
  await expectFundsUndone(id, poor);
});

test("a payer who spends the money before a capture that a reorg has taken back is barred at once, and stays so with new money", async () => {
  const { id, poor, before } = await beforeCapture();
  await reorgTo(before);
  await give(giver, poor.address, PRICE);
  await chain.node.setBalance({ address: poor.address, value: 10n ** 18n });
  await give(poor, giver.address, PRICE);
  await captureComes();
  await give(giver, poor.address, PRICE);
  await chain.mine(20);
  await playOn(world, async () => isOver(id));
  expect(await world.payment(id)).toMatchObject({ state: "releasing", reason: "capture_refused" });
});

/** Moves nothing, and anybody may: the account that it names as the sender has not to be asked. */
const moveNothing = (from: Hex) =>
  mined(
    chain.wallet(agent(3)).writeContract({
      address: USDC_ADDRESS,
      abi: parseAbi(["function transferFrom(address from, address to, uint256 amount) returns (bool)"]),
      functionName: "transferFrom",
      args: [from, agent(3).address, 0n],
    }),
  );

test("a transfer of nothing in a payer's name is no spending of his: strangers could have him barred after a reorg", async () => {
  const { id, poor, before } = await beforeCapture();
  await reorgTo(before);
  await moveNothing(poor.address);
  await captureComes();
  await give(giver, poor.address, PRICE);
  await chain.mine(20);
  await playOn(world, async () => isOver(id));
  expect(await world.payment(id)).toMatchObject({ state: "settled", reason: null });
});

test("a payer who spends some of the rest is not barred for what a reorg has taken back", async () => {
  const { id, poor, before } = await beforeCapture();
  await reorgTo(before);
  await chain.node.setBalance({ address: poor.address, value: 10n ** 18n });
  await give(giver, poor.address, 1_000n);
  await give(poor, giver.address, 1_000n);
  await captureComes();
  await expectFundsUndone(id, poor);
});

test("what a payer has paid us for its other order is no spending either", async () => {
  const first = { CAPTURE_FIRST_TIERS: "0" };
  world = await deploy({ edge: first, provisioner: first });
  const poor = privateKeyToAccount(generatePrivateKey());
  await give(giver, poor.address, 2n * PRICE);
  // Who has paid once may have several orders open.
  const { id: paid } = await accepted(world, poor);
  await playOn(world, async () => (await world.payment(paid))["step"] === "idle");
  const before = await chain.reader.getBlockNumber();
  await give(giver, poor.address, PRICE);
  const orders = [await accepted(world, poor, { region: "asia" }), await accepted(world, poor, { region: "europe" })];
  await chain.node.setAutomine(false);
  const states = async () => Promise.all(orders.map(async ({ id }) => (await world.payment(id))["state"]));
  await world.drain(async () => (await states()).every((state) => state === "settling"));
  await reorgTo(before);
  await captureComes();
  await give(giver, poor.address, PRICE);
  await chain.mine(20);
  for (const { id } of orders) {
    await playOn(world, async () => isOver(id));
    expect(await world.payment(id)).toMatchObject({ state: "settled", reason: null });
  }
});

test("while no two nodes tell what a payer has spent, nothing is held against him", async () => {
  const { id, before } = await beforeCapture();
  await reorgTo(before);
  await captureComes();
  await chain.mine(20);
  await addRpcFaults({ kind: "refuse", method: "eth_getLogs", includes: TRANSFER, message: "internal error" });
  await twoMinutes(id);
  expect(await world.payment(id)).toMatchObject({ state: "releasing", reason: "funds_unclear" });
});

test("a capture that is mined when its authorization is over bars nobody: one node had not got that block yet", async () => {
  const { id } = await beforeCapture();
  const { valid_before: validBefore } = await world.payment(id);
  await chain.node.setNextBlockTimestamp({ timestamp: BigInt(String(validBefore)) });
  await chain.mine(1);
  await chain.node.setAutomine(true);
  await addRpcFault({ kind: "lag", blocks: 1 }, "third");
  await addRpcFault({ kind: "delay", ms: 300 }, "first");
  await playOn(world, async () => isOver(id), 1);
  expect(await world.payment(id)).toMatchObject({ state: "releasing", reason: "too_late" });
});
