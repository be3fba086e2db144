// What the simulator's chain does with a payer that means no good: the world's own tests, since every seed builds on it.
import { encodeFunctionData, type Hex } from "viem";
import { privateKeyToAccount } from "viem/accounts";
import { expect, test } from "vitest";
import { coinAbi } from "../../src/chain/contract.ts";
import { ModelChain } from "../sim/chain.ts";
import { cancelledLog, coinLog, usedLog } from "../sim/chain-logs.ts";
import { Clock } from "../sim/clock.ts";
import { type Code, paidTo, type SignedAuthorization, useKey, wordsOf } from "../sim/contracts.ts";
import { createDatabase, StandInD1 } from "../sim/d1.ts";
import { Faults } from "../sim/faults.ts";
import { createRandom } from "../sim/random.ts";
import { Runtime } from "../sim/runtime.ts";
import { USDC_ADDRESS } from "../world/addresses.ts";

const account = privateKeyToAccount(`0x${"5a".repeat(32)}`);
const OPERATOR = account.address.toLowerCase();
const PAYER = `0x${"11".repeat(20)}`;
const NONCES = ["a1", "b2"].map((byte): Hex => `0x${byte.repeat(32)}`);

function world() {
  const clock = new Clock(Date.UTC(2026, 0, 1));
  const chain = new ModelChain(clock, createRandom(1), OPERATOR, { [PAYER]: 100n });
  const sign = (nonce: Hex, to: string, value: bigint): SignedAuthorization => {
    const signature: Hex = `0x${nonce.slice(2, 6)}${to.slice(2, 6)}${value.toString(16).padStart(4, "0")}`;
    const authorization = { from: PAYER, to, value, validAfter: 0, validBefore: 10 ** 12, nonce, signature };
    chain.signatures.set(signature, wordsOf(authorization));
    return authorization;
  };
  const mine = () => {
    clock.skip(clock.now + 2_000);
    chain.advance();
    return chain.head.txs;
  };
  const delegate = (code: Code) => {
    chain.submit({ kind: "call", from: PAYER, call: { kind: "delegate", code } });
    mine();
  };
  /** A transaction of the operator's that takes an authorization. */
  const capture = async (nonce: number, { from, to, value, signature }: SignedAuthorization, gas: bigint) => {
    const args = [from as Hex, to as Hex, value, 0n, 10n ** 12n, NONCES[0] as Hex, signature] as const;
    const data = encodeFunctionData({ abi: coinAbi, functionName: "transferWithAuthorization", args });
    const fees = { maxFeePerGas: 10n ** 10n, maxPriorityFeePerGas: 1n };
    return account.signTransaction({ type: "eip1559", chainId: 8_453, nonce, to: USDC_ADDRESS, data, gas, ...fees });
  };
  return { chain, sign, mine, delegate, capture };
}

test("two nonces in one transaction: logs in the coin's order, and each nonce has moved what its own message says (27)", () => {
  const { chain, sign, mine } = world();
  const [real, other] = [sign(NONCES[0] as Hex, OPERATOR, 70n), sign(NONCES[1] as Hex, PAYER, 0n)];
  const calls = [real, other, real].map((authorization) => ({
    from: PAYER,
    call: { kind: "take", authorization } as const,
  }));
  chain.submit({ kind: "call", from: PAYER, call: { kind: "batch", calls } });
  const [done] = mine();
  expect(done?.logs).toEqual([
    usedLog(PAYER, real.nonce),
    coinLog(PAYER, OPERATOR, 70n),
    usedLog(PAYER, other.nonce),
    coinLog(PAYER, PAYER, 0n),
  ]);
  const { used, usdc } = chain.head.state;
  expect(paidTo(OPERATOR, used.get(useKey(PAYER, real.nonce)))).toBe(70n);
  expect(paidTo(OPERATOR, used.get(useKey(PAYER, other.nonce)))).toBe(0n);
  expect([usdc.get(OPERATOR), usdc.get(PAYER)]).toEqual([70n, 30n]);
  expect([...chain.paid]).toEqual([[useKey(PAYER, real.nonce), 70n]]);
});

test("what was cancelled is used, and has moved nothing", () => {
  const { chain, sign, mine } = world();
  const authorization = sign(NONCES[0] as Hex, OPERATOR, 70n);
  chain.submit({ kind: "call", from: PAYER, call: { kind: "cancel", nonce: authorization.nonce } });
  expect(mine()[0]?.logs).toEqual([cancelledLog(PAYER, authorization.nonce)]);
  chain.submit({ kind: "call", from: PAYER, call: { kind: "take", authorization } });
  expect(mine()[0]?.success).toBe(false);
  expect(chain.paid.size).toBe(0);
});

test("an account that burns gas: no node takes what is above a transaction's most, and too little of it reverts (35)", async () => {
  const { chain, sign, mine, delegate, capture } = world();
  const authorization = sign(NONCES[0] as Hex, OPERATOR, 70n);
  delegate({ answer: "accepts", gas: 5_000_000 });
  const call = { kind: "take", authorization } as const;
  expect(chain.play(call, OPERATOR, chain.head).gas).toBe(5_060_000);
  const poison = await capture(0, authorization, (1n << 24n) + 1n);
  expect(() => chain.offer(poison, `0x${"01".repeat(32)}`)).toThrow("exceeds max transaction gas limit");
  expect(chain.highestNonce).toBe(0);
  chain.offer(await capture(0, authorization, 100_000n), `0x${"02".repeat(32)}`);
  expect(mine()).toMatchObject([{ success: false, logs: [] }]);
  expect(chain.head.state.nonce).toBe(1);
  chain.offer(await capture(1, authorization, 6_000_000n), `0x${"03".repeat(32)}`);
  expect(mine()).toMatchObject([{ success: true }]);
  expect(chain.head.state.usdc.get(OPERATOR)).toBe(70n);
});

test("an account that changes its mind: tried out its signature is good, and in a block it is not (36)", () => {
  const { chain, sign, mine, delegate } = world();
  const authorization = sign(NONCES[0] as Hex, OPERATOR, 70n);
  delegate({ answer: "fickle", gas: 0 });
  expect(chain.play({ kind: "take", authorization }, OPERATOR, chain.head).success).toBe(true);
  chain.submit({ kind: "call", from: PAYER, call: { kind: "take", authorization } });
  expect(mine()[0]?.success).toBe(false);
});

test("a task has six connections and an invocation a thousand statements: one more breaks a rule (52, 54)", async () => {
  const broken: string[] = [];
  const own = { platform: createRandom(1), shop: createRandom(2), vendors: createRandom(5) };
  const faults = new Faults(createRandom(3), own, new Set(), () => 0);
  faults.active = false;
  const says = { note: () => undefined, violate: (_rule: string, text: string) => void broken.push(text) };
  const runtime = new Runtime(new Clock(0), faults, createRandom(4), says);
  const d1 = new StandInD1(createDatabase(), (what, statements, effect) =>
    runtime.crossDatabase(what, statements, effect),
  );
  const select = d1.prepare("SELECT 1");
  const task = { name: "an object", dead: false, onDeath: () => undefined, connections: 0 };
  for (let call = 0; call < 3; call++) {
    const end = runtime.within(task, () => runtime.openConnection("a node"));
    runtime.within(task, () => runtime.openConnection("a socket"));
    await runtime.within(task, () => d1.batch(Array(1_000).fill(select)));
    if (call === 0) end();
  }
  expect([task.connections, broken]).toEqual([5, []]);
  for (let more = 0; more < 2; more++) runtime.within(task, () => runtime.openConnection("a vendor"));
  const isRefused = await runtime.run("the cron", async () => {
    await d1.batch(Array(1_000).fill(select));
    await expect(select.run()).rejects.toThrow("Too many API requests by single Worker invocation.");
  });
  expect([isRefused, broken]).toEqual(["done", ["a vendor, of an object", "the cron"]]);
});
