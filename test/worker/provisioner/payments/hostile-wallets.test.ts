// Payers that are contracts with a will of their own: one burns our gas, one takes its yes back when the machine is up, one
// becomes a contract meanwhile. None of them costs more than the cap, stops another payer, or keeps a machine for nothing.
import { runDurableObjectAlarm, runInDurableObject } from "cloudflare:test";
import { type Abi, type Address, getAddress, type Hex, parseTransaction } from "viem";
import { beforeEach, expect, test } from "vitest";
import type { OperatorWallet } from "../../../../durable-objects/operator-wallet.ts";
import artifacts from "../../../world/contracts/artifacts.json";
import { delegate, undelegate } from "../../../world/payer.ts";
import { agent, chain, deployer, operator } from "../../chain.ts";
import { type Deployment, deploy } from "../../deployment.ts";
import {
  accepted,
  give,
  machineRuns,
  mined,
  orderMachine,
  ownerOf,
  playOn,
  usdcOf,
} from "../../edge/routes/x402/till.ts";
import { addFault, addRpcFaults, clearRpcFaults } from "../../faults.ts";
import { reachOnlyProxies, signedAMinuteEarlier } from "../../wallet-object.ts";

const PRICE = 500_000n;
/** Of one capture: the coin's call takes less than 100,000, and a contract that means well a few times that. */
const GAS_CAP = 1_000_000n;
const keeper = agent(2);
let world: Deployment;
beforeEach(async () => {
  world = await deploy();
});

async function deployed(name: "FickleWallet" | "GasBurner", args: readonly unknown[]): Promise<Address> {
  const { abi, bytecode } = artifacts[name];
  const sent = chain.wallet(deployer).deployContract({ abi: abi as Abi, bytecode: bytecode as Hex, args });
  return getAddress((await mined(sent)).contractAddress ?? "0x");
}
const tell = (address: Address, name: "FickleWallet" | "GasBurner", functionName: string, args: readonly unknown[]) =>
  mined(chain.wallet(keeper).writeContract({ address, abi: artifacts[name].abi as Abi, functionName, args }));
/** Orders for a wallet whose keeper signs; it has what it pays with. */
async function orderFor(from: Address) {
  await give(agent(4), from, 10n * PRICE);
  return accepted(world, keeper, {}, { from });
}
/** The most gas of any transaction that the wallet has signed and keeps. */
const signedGas = () =>
  runInDurableObject(world.wallet, (_: OperatorWallet, { storage }) =>
    storage.sql
      .exec<{ raw: Hex }>("SELECT raw FROM signed")
      .toArray()
      .map(({ raw }) => parseTransaction(raw).gas ?? 0n)
      .reduce((most, gas) => (gas > most ? gas : most), 0n),
  );
async function expectServed(index: number): Promise<void> {
  const before = await usdcOf(agent(index).address);
  const { id } = await accepted(world, agent(index));
  await playOn(world, async () => (await world.payment(id))["step"] === "idle");
  expect(await world.payment(id)).toMatchObject({ state: "settled", reason: null });
  expect(await usdcOf(agent(index).address)).toBe(before - PRICE);
}
/** A buyer on the contract, for whom no machine can be had. */
async function expectPaidBack(index: number): Promise<void> {
  await addFault("vultr", { call: "create", kind: "sold_out" });
  const before = await usdcOf(agent(index).address);
  const { tokenId } = await world.buy(index);
  expect(await usdcOf(agent(index).address)).toBe(before - PRICE);
  await playOn(world, async () => {
    await world.missDeadlines(tokenId);
    return (await usdcOf(agent(index).address)) === before;
  });
}

test.each([
  { what: "more than a block's transaction may", burns: 18_000_000n },
  { what: "what with a margin is more than a transaction may", burns: 14_000_000n },
  { what: "a hundred times what a capture does", burns: 8_000_000n },
])(
  "a payer whose wallet burns $what is not served, costs no more than the cap, and stops nobody (hard case 35)",
  async ({ burns }) => {
    const wallet = await deployed("GasBurner", [keeper.address, burns]);
    await give(agent(4), wallet, PRICE);
    const wei = await chain.reader.getBalance({ address: operator.address });
    const { answer } = await orderMachine(world, keeper, {}, { from: wallet });
    const { purchaseId = "" } = (await answer.json()) as { purchaseId?: string };
    if (answer.status === 202) {
      await playOn(world, async () => {
        expect(await signedGas()).toBeLessThanOrEqual(GAS_CAP);
        return ["releasing", "released"].includes(String((await world.payment(purchaseId))["state"]));
      });
      expect(await world.payment(purchaseId)).toMatchObject({ settle_tx: null });
    }
    const spent = wei - (await chain.reader.getBalance({ address: operator.address }));
    expect(spent).toBeLessThanOrEqual(GAS_CAP * 2n * (await chain.reader.getGasPrice()));
    expect(await usdcOf(wallet)).toBe(PRICE);
    await expectServed(1);
  },
);

test("a wallet that burns gas from the moment that its machine is up is given up, costs no more than the cap, and stops nobody (hard case 35)", async () => {
  const wallet = await deployed("GasBurner", [keeper.address, 0n]);
  const { id } = await orderFor(wallet);
  await machineRuns(world);
  await tell(wallet, "GasBurner", "setBurns", [18_000_000n, false]);
  await givenUpWithinAMinute(id);
  expect(await usdcOf(wallet)).toBe(10n * PRICE);
  await expectServed(1);
  await expectPaidBack(3);
});

test("a wallet that burns gas only where the caller pays for it costs one capped transaction (hard case 35)", async () => {
  const wallet = await deployed("GasBurner", [keeper.address, 0n]);
  await tell(wallet, "GasBurner", "setBurns", [12_000_000n, true]);
  const wei = await chain.reader.getBalance({ address: operator.address });
  const { id } = await orderFor(wallet);
  await givenUpWithinAMinute(id);
  const spent = wei - (await chain.reader.getBalance({ address: operator.address }));
  expect(spent).toBeLessThanOrEqual(GAS_CAP * 2n * (await chain.reader.getGasPrice()));
  await expectServed(1);
});

test("a capture that no node takes is replaced at its nonce by a transaction that does nothing, and its order ends (hard case 35)", async () => {
  await reachOnlyProxies(world.wallet, world.provisioner.RPC_URLS);
  const payer = agent(1);
  const before = await usdcOf(payer.address);
  const refuse = {
    kind: "refuse",
    method: "eth_sendRawTransaction",
    includes: payer.address.slice(2).toLowerCase(),
    message: "intrinsic gas too high",
  } as const;
  await addRpcFaults(refuse);
  const { id } = await accepted(world, payer);
  await playOn(world, async () => ["settling", "releasing"].includes(String((await world.payment(id))["state"])));
  const other = await accepted(world, agent(3));
  await playOn(world, async () => {
    await signedAMinuteEarlier(world.wallet);
    return (await world.payment(other.id))["step"] === "close" && (await world.payment(id))["state"] === "releasing";
  });
  await clearRpcFaults();
  await playOn(world, async () => (await world.payment(other.id))["step"] === "idle");
  expect(await world.payment(other.id)).toMatchObject({ state: "settled", reason: null });
  expect(await usdcOf(payer.address)).toBe(before);
});

test("a capture that no node takes while our gas money is short waits for more: its payer was barred for it", async () => {
  await reachOnlyProxies(world.wallet, world.provisioner.RPC_URLS);
  const payer = agent(1);
  const before = await usdcOf(payer.address);
  const message = "insufficient funds for gas * price + value";
  const includes = payer.address.slice(2).toLowerCase();
  await addRpcFaults({ kind: "refuse", method: "eth_sendRawTransaction", includes, message });
  const { id } = await accepted(world, payer);
  await playOn(world, async () => ["settling", "releasing"].includes(String((await world.payment(id))["state"])));
  for (let minute = 0; minute < 5; minute++) {
    await signedAMinuteEarlier(world.wallet);
    await runDurableObjectAlarm(world.wallet);
  }
  await clearRpcFaults();
  await runDurableObjectAlarm(world.wallet);
  await playOn(world, async () => (await world.payment(id))["step"] === "idle");
  expect(await world.payment(id)).toMatchObject({ state: "settled", reason: null });
  expect(await usdcOf(payer.address)).toBe(before - PRICE);
});

/** A minute of ours, quarter by quarter; the order is given up in it. */
async function givenUpWithinAMinute(id: string): Promise<void> {
  const isGivenUp = async () => (await world.payment(id))["reason"] !== null;
  await playOn(world, async () => (await world.payment(id))["step"] === "capture" || (await isGivenUp()));
  for (let quarter = 0; quarter <= 4 && !(await isGivenUp()); quarter++) {
    let jobs = 0;
    await playOn(world, async () => {
      expect(await signedGas()).toBeLessThanOrEqual(GAS_CAP);
      return ++jobs > 10 || isGivenUp();
    });
    world.passTime(15);
  }
  expect(await world.payment(id)).toMatchObject({ state: "releasing", reason: "capture_refused", held: 1 });
  await playOn(world, async () => (await world.machines("vultr")).length === 0);
}

test("a wallet that takes its yes back when its machine is up loses the machine within a minute, and is not sold another (hard case 36)", async () => {
  const wallet = await deployed("FickleWallet", [keeper.address]);
  const { id } = await orderFor(wallet);
  await machineRuns(world);
  await tell(wallet, "FickleWallet", "setRefuses", [true]);
  await givenUpWithinAMinute(id);
  await tell(wallet, "FickleWallet", "setRefuses", [false]);
  const { answer } = await orderMachine(world, keeper, {}, { from: wallet });
  expect([answer.status, ((await answer.json()) as { code: string }).code]).toEqual([403, "payer_refused"]);
  expect(await usdcOf(wallet)).toBe(10n * PRICE);
});

test("a plain account that delegates to a contract meanwhile, whose word is no, is no other (hard case 36)", async () => {
  const code = await deployed("FickleWallet", [agent(3).address]);
  const before = await usdcOf(keeper.address);
  const { id } = await accepted(world, keeper);
  await machineRuns(world);
  await delegate(chain, keeper, code);
  try {
    await givenUpWithinAMinute(id);
  } finally {
    await undelegate(chain, keeper);
  }
  const { answer } = await orderMachine(world, keeper);
  expect([answer.status, ((await answer.json()) as { code: string }).code]).toEqual([403, "payer_refused"]);
  expect(await usdcOf(keeper.address)).toBe(before);
});

test("a wallet that says yes all along pays once and has its token, deployed or delegated to (hard case 36)", async () => {
  const wallet = await deployed("FickleWallet", [keeper.address]);
  await delegate(chain, keeper, wallet);
  try {
    for (const from of [wallet, keeper.address]) {
      const { id } = from === wallet ? await orderFor(wallet) : await accepted(world, keeper);
      await playOn(world, async () => (await world.payment(id))["step"] === "idle");
      const row = await world.payment(id);
      expect(row).toMatchObject({ state: "settled", reason: null });
      expect(await ownerOf(row["token_id"])).toBe(from);
    }
  } finally {
    await undelegate(chain, keeper);
  }
});
