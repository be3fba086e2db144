// Token ids that no log showed, where nodes give few blocks of logs at a time (hard case 30): they are looked for a part at
// a time, and nothing else waits for it.
import { expect, test } from "vitest";
import { gaps } from "../../../src/db/schema.ts";
import { buy } from "../../world/agent.ts";
import { parts } from "../bindings.ts";
import { agent, chain } from "../chain.ts";
import { type Deployment, deploy } from "../deployment.ts";
import { addRpcFault, addRpcFaults, CONTROLLED_NODES, takeLogRequests } from "../faults.ts";
import { hideSale } from "./hidden-sale.ts";
import { operator } from "./routes/admin/operator.ts";

/** Of one sweep, for two nodes: twenty pieces of 25 requests, and what it takes to learn their range. */
const MOST_REQUESTS = 2 * 20 * 25 + 2 * 12;

const gapsOf = (world: Deployment) => world.rows("SELECT token_id, read_to, tries FROM gaps ORDER BY token_id");

/** Sweeps as often as every half minute of ours, and scans between, until the token is known. */
async function sweepUntilKnown(world: Deployment, tokenId: number, most: number) {
  const started = Date.now();
  for (let sweeps = 1; sweeps <= most; sweeps++) {
    await takeLogRequests();
    await world.sweep(started + sweeps * 30_000);
    expect((await takeLogRequests()).length).toBeLessThanOrEqual(MOST_REQUESTS);
    if ((await world.vm(tokenId)) !== null) return sweeps;
    const { tokenId: meanwhile } = await buy(chain, agent(3), 0, 1);
    await world.scan();
    expect(await world.vm(meanwhile)).toMatchObject({ step: "create" });
  }
  throw new Error(`the gap stays: ${JSON.stringify(await gapsOf(world))}`);
}

/** A part at a time: the local chain has to make each block. */
async function mineMany(blocks: number) {
  for (let left = blocks; left > 0; left -= 250) await chain.mine(Math.min(left, 250));
}

/** A sale at the end of so many blocks that no node showed, and one behind it that both did. */
async function hideBehind(world: Deployment, blocks: number) {
  await buy(chain, agent(0), 0, 1);
  await world.scan();
  await mineMany(blocks);
  await world.scan();
  await addRpcFaults({ kind: "drop_logs" });
  return hideSale(world, { blocks: 60 });
}

test("a gap of 800 requests to each node is closed over several sweeps: one sweep once asked for all of it, and the scan stood still (hard case 30)", async () => {
  const world = await deploy({ edge: { RPC_URLS: CONTROLLED_NODES } });
  const hidden = await hideBehind(world, 800);
  await addRpcFaults({ kind: "max_range", blocks: 1 });
  const sweeps = await sweepUntilKnown(world, hidden.tokenId, 40);
  expect(sweeps).toBeGreaterThan(1);
  expect(await world.vm(hidden.tokenId)).toMatchObject({ tier: 1 });
});

test("a gap at one block a request goes on where the last sweep ended, also where one node answers no logs (hard case 30)", async () => {
  const world = await deploy({ edge: { RPC_URLS: `${CONTROLLED_NODES},${parts.rpcUrls[2]}/key` } });
  const hidden = await hideBehind(world, 700);
  await addRpcFault({ kind: "max_range", blocks: 1 }, "third");
  await addRpcFault({ kind: "max_range", blocks: 0, as: "page" });
  await world.sweep(Date.now() + 30_000);
  const [begun] = await gapsOf(world);
  expect(begun).toMatchObject({ token_id: hidden.tokenId, tries: 0 });
  expect(begun?.["read_to"]).toBeGreaterThan(0);
  await sweepUntilKnown(world, hidden.tokenId, 40);
});

test("a missing id that nobody owns is looked for in no log: token 0 was sought from the first block on, for ever", async () => {
  const world = await deploy({ edge: { RPC_URLS: CONTROLLED_NODES } });
  const from = Number((await world.rows("SELECT block_number FROM cursors"))[0]?.["block_number"]);
  const { tokenId } = await buy(chain, agent(0), 0, 1);
  await world.scan();
  // Ids that the contract never gave out, in blocks that were scanned; one in a block that no node has yet.
  const gapOf = (id: number, toBlock: number) => ({ tokenId: id, fromBlock: from, toBlock, nextTryAt: 0 });
  await world.sql.prepare("DELETE FROM gaps").run();
  await world.insert(gaps, gapOf(tokenId + 1, from), gapOf(tokenId + 2, from + 1));
  await takeLogRequests();
  await world.sweep();
  expect(await gapsOf(world)).toEqual([]);
  expect(await takeLogRequests()).toEqual([]);
  await world.insert(gaps, gapOf(tokenId + 3, from + 1_000));
  await world.sweep();
  expect(await gapsOf(world)).toHaveLength(1);
});

test("a reorg below what of a gap was read again has it read anew", async () => {
  const world = await deploy();
  await world.scan();
  await chain.mine(4);
  const snapshot = await chain.node.snapshot();
  await chain.mine(4);
  await world.scan();
  const head = Number(await chain.reader.getBlockNumber());
  await world.insert(gaps, { tokenId: 9_000, fromBlock: 1, toBlock: head, nextTryAt: 0, readTo: head - 1 });
  await chain.node.revert({ id: snapshot });
  await buy(chain, agent(0), 0, 1);
  await chain.mine(8);
  expect(await world.scan()).toContain("rolled_back");
  const [gap] = await world.rows("SELECT read_to FROM gaps WHERE token_id = 9000");
  expect(gap?.["read_to"]).toBeLessThan(head - 3);
});

test("an operator's scan ends where its time does and says where to go on (hard case 30)", async () => {
  const world = await deploy({ edge: { RPC_URLS: CONTROLLED_NODES } });
  const from = Number(await chain.reader.getBlockNumber());
  await mineMany(700);
  await world.scan();
  await addRpcFaults({ kind: "max_range", blocks: 1 });
  const ask = operator(world, await world.operatorKey());
  const read = async (fromBlock: number) => {
    const range = { fromBlock, toBlock: from + 700 };
    const { status, body } = await ask<{ toBlock: number; next: number | null }>("POST", "/admin/scan", range);
    expect(status).toBe(200);
    return body;
  };
  await takeLogRequests();
  let calls = 0;
  for (let next: number | null = from; next !== null; calls++) {
    const part = await read(next);
    expect((await takeLogRequests()).length).toBeLessThanOrEqual(MOST_REQUESTS);
    expect(part.toBlock).toBeGreaterThanOrEqual(next);
    if (part.next === null) expect(part.toBlock).toBe(from + 700);
    else expect(part.next).toBe(part.toBlock + 1);
    next = part.next;
  }
  expect(calls).toBeGreaterThan(1);
});

test("the books of 450 blocks at one a request are closed in parts, each of which says where it begins (hard case 30)", async () => {
  const world = await deploy({ edge: { RPC_URLS: CONTROLLED_NODES } });
  const from = Number(await chain.reader.getBlockNumber());
  await mineMany(450);
  await addRpcFaults({ kind: "max_range", blocks: 1 });
  const ask = operator(world, await world.operatorKey());
  const read = async (toBlock: number) => {
    const path = `/admin/payments/reconcile?fromBlock=${from}&toBlock=${toBlock}`;
    const { status, body } = await ask<{ fromBlock: number; toBlock: number }>("GET", path);
    expect(status).toBe(200);
    return body;
  };
  let calls = 0;
  for (let next = from + 400; next >= from; calls++) {
    await takeLogRequests();
    const part = await read(next);
    // Two ways at two nodes, and what it takes to learn their range.
    expect((await takeLogRequests()).length).toBeLessThanOrEqual(2 * 2 * 200 + 2 * 12);
    expect(part.toBlock).toBe(next);
    next = part.fromBlock - 1;
  }
  expect(calls).toBe(3);
});
