// A branch that the chain gives up again: nodes that are still on it show other purchases of the same tokens, and final
// history alone says whose machine ends.
import { encodeFunctionResult, type Hex, multicall3Abi, numberToHex } from "viem";
import { beforeEach, expect, test } from "vitest";
import { readFinalToken } from "../../../src/chain/witness.ts";
import { agent, chain, signPurchase } from "../chain.ts";
import { buyAndRun, type Deployment, deploy } from "../deployment.ts";
import { addRpcFault } from "../faults.ts";

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
