// A branch that the chain gives up again: nodes that are still on it show other purchases of the same tokens, and final
// history alone says whose machine ends.
import { runDurableObjectAlarm } from "cloudflare:test";
import { encodeFunctionResult, type Hex, multicall3Abi, numberToHex, toEventSelector } from "viem";
import { beforeEach, expect, test } from "vitest";
import { readFinalToken } from "../../../src/chain/witness.ts";
import { CONTRACT_ADDRESS, USDC_ADDRESS } from "../../world/addresses.ts";
import { fixedHeaders } from "../../world/agent.ts";
import { cancel } from "../../world/payer.ts";
import { agent, chain, signPurchase } from "../chain.ts";
import { buyAndFail, buyAndRun, type Deployment, deploy } from "../deployment.ts";
import { paidUs, signedTo, usdcOf } from "../edge/routes/x402/till.ts";
import { addRpcFault, clearRpcFaults } from "../faults.ts";

let world: Deployment;
let before: Hex;
let raw: Hex;
beforeEach(async () => {
  world = await deploy();
  raw = await signPurchase(agent(0));
  before = await chain.node.snapshot();
});

const send = async () => {
  await chain.reader.sendRawTransaction({ serializedTransaction: raw });
  await chain.mine(1);
};

/** The first purchase, with its machine. */
async function runFirst(): Promise<Record<string, unknown>> {
  await send();
  await world.scan();
  await world.drain();
  const [row] = await world.rows("SELECT * FROM vms");
  expect(row).toMatchObject({ status: "running" });
  return row ?? {};
}

/** A reorg gives the token to another purchase, in a block that is not final. */
async function takeToken(): Promise<void> {
  await chain.node.revert({ id: before });
  before = await chain.node.snapshot();
  await chain.mine(2);
  await world.buy(1);
  await world.scan();
}

/** And another one gives it back. */
async function giveBack(): Promise<void> {
  await chain.node.revert({ id: before });
  await chain.mine(4);
  await send();
}

const isRunning = (owner: number) => async () =>
  (await world.rows("SELECT 1 FROM vms WHERE status = 'running' AND owner = ?", agent(owner).address.toLowerCase()))
    .length > 0;
const rowOf = async (incarnation: unknown) =>
  (
    await world.rows(
      "SELECT status, step, current, instance_id, generation FROM vms WHERE incarnation = ?",
      incarnation,
    )
  )[0];
const advance = async (incarnation: unknown) =>
  world.run({
    kind: "advance",
    incarnation: String(incarnation),
    generation: Number((await rowOf(incarnation))?.["generation"]),
  });

test("a purchase that a reorg gives another one's token, and the next reorg gives it back, keeps its machine: it was ended on a branch that was given up (seed 1422)", async () => {
  const first = await runFirst();
  await takeToken();
  await advance(first["incarnation"]);
  expect(await rowOf(first["incarnation"])).toMatchObject({ status: "running", step: "retire", current: 0 });
  expect(await world.machines("vultr")).toHaveLength(1);

  await giveBack();
  await world.scan();
  await chain.mine(4);
  await world.drain();
  const { instance_id: instanceId, incarnation } = first;
  expect(await rowOf(incarnation)).toMatchObject({
    status: "running",
    step: "idle",
    current: 1,
    instance_id: instanceId,
  });
  expect((await world.machines("vultr")).map(({ id }) => id)).toEqual([instanceId]);
});

test("a machine that was published for a purchase which two nodes do not show ends once final history has none either (hard case 13)", async () => {
  const first = await runFirst();
  await takeToken();
  const second = (await world.vm(Number(first["token_id"])))?.["incarnation"];
  await world.drain(isRunning(1));
  world.sent.splice(0);
  const count = (await world.machines("vultr")).length;

  await giveBack();
  // The scan has yet to see it.
  await advance(first["incarnation"]);
  expect(await rowOf(first["incarnation"])).toMatchObject({ status: "running", step: "idle", current: 1 });
  expect(await rowOf(second)).toMatchObject({ status: "running", step: "retire", current: 0 });
  expect(await world.machines("vultr")).toHaveLength(count);
  await chain.mine(4);
  await advance(second);
  await advance(second);
  expect(await rowOf(second)).toMatchObject({ status: "terminated" });
});

/** What a fork's node calls final is old; one that lies about it is on the same fork. */
async function forkTwo(): Promise<void> {
  await addRpcFault({ kind: "finalized_is_latest" });
  await addRpcFault(
    { kind: "patch", method: "eth_getBlockByNumber", includes: "finalized", fields: { number: "0x1" } },
    "third",
  );
}

test("a receipt without the purchase, by a node on a fork and one that calls its head final, ends no machine (seed 1422)", async () => {
  const tokenId = await buyAndRun(world, 0);
  await chain.mine(4);
  await forkTwo();
  for (const node of ["first", "third"] as const)
    await addRpcFault({ kind: "patch", method: "eth_getTransactionReceipt", fields: { logs: [] } }, node);
  await world.sql.prepare("UPDATE vms SET step = 'retire', generation = generation + 1").run();
  const { incarnation } = (await world.vm(tokenId)) ?? {};
  await advance(incarnation);
  expect(await rowOf(incarnation)).toMatchObject({ status: "running", step: "retire" });
  expect(await world.machines("vultr")).toHaveLength(1);
});

test("what a fork's node shows of a block is no final history, though two others call one of that number final (hard case 13)", async () => {
  const tokenId = await buyAndRun(world, 0);
  await chain.mine(4);
  const { number, timestamp } = await chain.reader.getBlock({ blockTag: "finalized" });
  const words = [number, timestamp].map((value) => ({ success: true, returnData: numberToHex(value, { size: 32 }) }));
  const nothing = { success: false, returnData: "0x" } as const;
  const answer = { abi: multicall3Abi, functionName: "aggregate3", result: [nothing, nothing, ...words] } as const;
  await forkTwo();
  for (const node of ["first", "third"] as const)
    await addRpcFault({ kind: "rewrite", method: "eth_call", result: encodeFunctionResult(answer) }, node);
  await expect(readFinalToken(world.context.chain, tokenId)).rejects.toMatchObject({ code: "chain_unavailable" });
});

const TRANSFER = toEventSelector("event Transfer(address indexed from, address indexed to, uint256 indexed tokenId)");
async function credentialsFor(owner: number, tokenId: unknown) {
  const headers = await fixedHeaders(agent(owner), Number(tokenId));
  const answer = await world.request(`/credentials/${tokenId}`, { headers });
  return { status: answer.status, body: (await answer.json()) as Record<string, unknown> };
}

/** What nodes on a fork say of a transaction. */
const forge = async (hash: Hex, result: unknown) => {
  const fault = { kind: "rewrite", method: "eth_getTransactionReceipt", includes: hash, result } as const;
  for (const node of ["first", "third"] as const) await addRpcFault(fault, node);
};
const receiptOf = async (hash: Hex) =>
  JSON.stringify(await chain.reader.request({ method: "eth_getTransactionReceipt", params: [hash] }));
/** A transaction's logs of the contract. */
async function ofContract(hash: Hex, isMeant = (_topic: string) => true) {
  const { logs } = JSON.parse(await receiptOf(hash)) as { logs: { address: string; topics: string[] }[] };
  const isOf = ({ address }: { address: string }) => address.toLowerCase() === CONTRACT_ADDRESS.toLowerCase();
  return logs.filter((one) => isOf(one) && isMeant(one.topics[0] ?? ""));
}
const inWord = (amount: bigint) => numberToHex(amount, { size: 32 }).slice(2);

test("what a purchase is owed is its price in final history: by a fork's node, and one that calls its head final, it was ten times that", async () => {
  const tokenId = await buyAndFail(world, 2);
  const had = await usdcOf(agent(2).address);
  await chain.mine(4);
  const hash = (await world.vm(tokenId))?.["tx_hash"];
  await forkTwo();
  await forge(hash, JSON.parse((await receiptOf(hash)).replaceAll(inWord(500_000n), inWord(5_000_000n))));
  const payOut = async () => {
    await world.sql.prepare("UPDATE refunds SET wake_at = 0 WHERE wake_at IS NOT NULL").run();
    await world.sweep();
    await world.drain().catch(() => world.sent.splice(0));
    await runDurableObjectAlarm(world.wallet);
    await chain.mine(4);
  };
  await payOut();
  expect((await usdcOf(agent(2).address)) - had).toBe(0n);
  await clearRpcFaults();
  await payOut();
  expect((await usdcOf(agent(2).address)) - had).toBe(500_000n);
});

test("what its payer took back is not paid back, though a fork's node, and one that calls its head final, show that it came in", async () => {
  const value = 1_000_000n;
  const paid = await paidUs(agent(2), value);
  const uses = await chain.reader.getLogs({ address: USDC_ADDRESS, fromBlock: BigInt(paid.fromBlock) });
  const came = uses.at(-1)?.transactionHash ?? "0x";
  const { signed, payment } = await signedTo(agent(2), value);
  const cancelled = await cancel(chain, agent(2), signed, USDC_ADDRESS);
  await chain.mine(4);
  const had = await usdcOf(agent(2).address);
  const [own, other] = [await receiptOf(cancelled), await receiptOf(came)];
  let text = other.replaceAll(paid.nonce.slice(2), payment.nonce.slice(2));
  for (const field of ["transactionHash", "blockNumber", "blockHash"])
    text = text.replaceAll(`"${JSON.parse(other)[field]}"`, `"${JSON.parse(own)[field]}"`);
  await forkTwo();
  await forge(cancelled, JSON.parse(text));
  const order = {
    kind: "pay",
    id: `refund/payment/${payment.nonce}`,
    to: agent(2).address,
    amount: String(value),
  } as const;
  await world.wallet.order({ ...order, owed: { payment } }).catch(() => undefined);
  await chain.mine(1);
  expect((await usdcOf(agent(2).address)) - had).toBe(0n);
});

test("a payment of ours is closed by final history, and not where a fork's node, and one that calls its head final, have it", async () => {
  const payment = await paidUs(agent(2), 500_000n);
  const had = await usdcOf(agent(2).address);
  const order = { kind: "pay", id: `refund/payment/${payment.nonce}`, to: agent(2).address, amount: "500000" } as const;
  before = await chain.node.snapshot();
  const sent = await world.wallet.order({ ...order, owed: { payment } });
  const hash = (sent as { hash: Hex }).hash;
  await chain.settled();
  const receipt = JSON.parse(await receiptOf(hash));
  await chain.node.revert({ id: before });
  await chain.dropAll();
  await chain.mine(6);
  await chain.node.setAutomine(false);
  await forkTwo();
  await forge(hash, receipt);
  await runDurableObjectAlarm(world.wallet);
  expect((await usdcOf(agent(2).address)) - had).toBe(0n);
  await clearRpcFaults();
  await chain.node.setAutomine(true);
  await runDurableObjectAlarm(world.wallet);
  await chain.mine(4);
  await runDurableObjectAlarm(world.wallet);
  expect(await world.wallet.order({ ...order, owed: { payment } })).toMatchObject({ state: "final" });
  expect((await usdcOf(agent(2).address)) - had).toBe(500_000n);
});

test("one node on an abandoned branch gives nobody the machine of whoever had the token there: its key went to the token's buyer", async () => {
  const first = await runFirst();
  const { tx_hash: hash, token_id: tokenId } = first;
  const seen = await ofContract(hash as Hex);
  await takeToken();
  await world.drain(isRunning(1));
  world.sent.splice(0);
  await chain.mine(2);
  await addRpcFault({ kind: "rewrite", method: "eth_getLogs", includes: TRANSFER, result: seen });
  await world.scan();
  await clearRpcFaults();
  const { status, body } = await credentialsFor(1, tokenId);
  expect([status, body["host"], body["privateKey"]]).toEqual([202, undefined, undefined]);
});

test("a token that a reorg has given to somebody else, whose sale no log has shown yet, lets him in to no machine of before: he got its key", async () => {
  const first = await runFirst();
  const { token_id: tokenId } = first;
  await chain.node.revert({ id: before });
  await chain.mine(2);
  const { txHash } = await world.buy(1);
  const moved = await ofContract(txHash, (topic) => topic === TRANSFER);
  await chain.mine(2);
  await addRpcFault({ kind: "rewrite", method: "eth_getLogs", includes: TRANSFER, result: moved });
  await world.scan();
  const { status, body } = await credentialsFor(1, tokenId);
  expect([status, body["host"], body["privateKey"]]).toEqual([503, undefined, undefined]);
  await clearRpcFaults();
});
