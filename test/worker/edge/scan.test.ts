import type { Abi, Hex } from "viem";
import { beforeEach, expect, test } from "vitest";
import { connectChain } from "../../../src/chain/client.ts";
import { takeScanLease } from "../../../src/db/scan.ts";
import { scanPass } from "../../../src/edge/scan.ts";
import { buy, fixedHeaders, transfer } from "../../world/agent.ts";
import artifacts from "../../world/contracts/artifacts.json";
import { parts } from "../bindings.ts";
import { agent, chain, deployer, signPurchase } from "../chain.ts";
import { type Deployment, deploy } from "../deployment.ts";
import { addRpcFault, addRpcFaults, CONTROLLED_NODES, clearRpcFaults, takeLogRequests } from "../faults.ts";
import { billOf } from "../meter.ts";
import { hideSale } from "./hidden-sale.ts";

let world: Deployment;
beforeEach(async () => {
  world = await deploy();
});

const queued = () => world.sent.filter((message) => message.body.kind === "advance").length;
const ownerOf = async (tokenId: number) => (await world.vm(tokenId))?.["owner"];

test("a purchase is stored and queued once, however often its block is read", async () => {
  const { tokenId, txHash } = await buy(chain, agent(0), 2, 3);
  await world.scan();
  await chain.mine(2);
  await world.scan();
  const [purchase, ...others] = await world.rows("SELECT * FROM purchases");
  expect(others).toEqual([]);
  expect(purchase).toMatchObject({
    token_id: tokenId,
    tx_hash: txHash,
    ordinal: 0,
    tier: 2,
    duration_days: 3,
    total_cost: "4800000",
  });
  expect(await world.vm(tokenId)).toMatchObject({ status: "provisioning", step: "create", current: 1, generation: 1 });
  expect(queued()).toBe(1);
});

test("a transfer moves the token from one owner's list and count to the other's", async () => {
  const { tokenId } = await buy(chain, agent(0), 0, 1);
  await world.scan();
  await transfer(chain, agent(0), agent(1).address, tokenId);
  await world.scan();
  expect(await ownerOf(tokenId)).toBe(agent(1).address.toLowerCase());
  const counts = await world.rows("SELECT * FROM owner_counts WHERE count > 0");
  expect(counts).toEqual([{ owner: agent(1).address.toLowerCase(), count: 1 }]);
});

test("a transfer there and back in one range leaves the last owner", async () => {
  const { tokenId } = await buy(chain, agent(0), 0, 1);
  await transfer(chain, agent(0), agent(1).address, tokenId);
  await transfer(chain, agent(1), agent(2).address, tokenId);
  await world.scan();
  expect(await ownerOf(tokenId)).toBe(agent(2).address.toLowerCase());
});

test("an empty range writes one row at most, an idle pass none", async () => {
  await world.scan();
  await chain.mine(3);
  const context = await world.scanContext();
  const advanced = await billOf(() => scanPass(context));
  expect(advanced.rowsWritten).toBeLessThanOrEqual(1);
  const idle = await billOf(() => scanPass(context));
  expect(idle.rowsWritten).toBe(0);
});

test("a reorg that takes a purchase away hides it, and the same transaction in a new block is the same incarnation", async () => {
  const raw = await signPurchase(agent(0));
  const snapshot = await chain.node.snapshot();
  const first = await chain.reader.sendRawTransaction({ serializedTransaction: raw });
  await chain.reader.waitForTransactionReceipt({ hash: first });
  await world.scan();
  const [before] = await world.rows("SELECT * FROM vms");
  expect(before).toMatchObject({ tx_hash: first, owner: agent(0).address.toLowerCase() });

  await chain.node.revert({ id: snapshot });
  await chain.mine(4);
  expect(await world.scan()).toContain("rolled_back");
  const [hidden] = await world.rows("SELECT v.owner, p.orphaned FROM vms v JOIN purchases p USING (incarnation)");
  expect(hidden).toEqual({ owner: "", orphaned: 1 });

  await chain.reader.sendRawTransaction({ serializedTransaction: raw });
  await chain.mine(1);
  await world.scan();
  const rows = await world.rows(
    "SELECT v.*, p.orphaned, p.block_number AS at FROM vms v JOIN purchases p USING (incarnation)",
  );
  expect(rows).toHaveLength(1);
  expect(rows[0]).toMatchObject({
    incarnation: before?.["incarnation"],
    orphaned: 0,
    generation: 1,
    owner: agent(0).address.toLowerCase(),
  });
  expect(rows[0]?.["at"]).toBeGreaterThan(before?.["block_number"]);
  expect(queued()).toBe(1);
  // The new block has another time: the row has to follow, or the check of the receipt would hold it for ever.
  const { timestamp } = await chain.reader.getBlock({ blockNumber: BigInt(rows[0]?.["at"]) });
  expect(rows[0]).toMatchObject({ created_at: Number(timestamp), block_number: rows[0]?.["at"] });
  await world.drain();
  expect((await world.rows("SELECT status FROM vms"))[0]).toEqual({ status: "running" });
});

test("a token id that is somebody else's in the new chain retires the old incarnation and starts a new one (hard case 5)", async () => {
  const snapshot = await chain.node.snapshot();
  const alices = await buy(chain, agent(0), 0, 1);
  await world.scan();
  await chain.node.revert({ id: snapshot });
  const bobs = await buy(chain, agent(1), 4, 2);
  await chain.mine(4);
  await world.scan();

  expect(bobs.tokenId).toBe(alices.tokenId);
  expect(await world.vm(bobs.tokenId)).toMatchObject({
    tx_hash: bobs.txHash,
    tier: 4,
    owner: agent(1).address.toLowerCase(),
    step: "create",
  });
  const [old] = await world.rows("SELECT * FROM vms WHERE current = 0");
  expect(old).toMatchObject({ tx_hash: alices.txHash, step: "retire", generation: 2 });
  const incarnations = world.sent.flatMap(({ body }) => (body.kind === "advance" ? [body.incarnation] : []));
  expect(new Set(incarnations).size).toBe(2);
});

test("a node whose list comes back empty hides a purchase for a pass, not for good", async () => {
  await addRpcFault({ kind: "drop_logs" });
  const { tokenId } = await buy(chain, agent(0), 0, 1);
  await world.scan();
  expect(await world.vm(tokenId)).toBeNull();
  await clearRpcFaults();
  await chain.mine(1);
  await world.scan();
  expect(await world.vm(tokenId)).toMatchObject({ step: "create" });
});

test("a sale that a replica hid at the head is read again though the chain has gone far on since (hard case 30)", async () => {
  await addRpcFault({ kind: "drop_logs" });
  const { tokenId } = await buy(chain, agent(0), 0, 1);
  await world.scan();
  await clearRpcFaults();
  // As after a pause of two minutes: the head is further from the cursor than any replica lags.
  await chain.mine(60);
  await world.scan();
  expect(await world.vm(tokenId)).toMatchObject({ step: "create" });
});

test("blocks that were old when they were read are not read again (hard case 30)", async () => {
  const alone = await deploy({ edge: { RPC_URLS: CONTROLLED_NODES } });
  const cursor = async () => (await alone.rows("SELECT block_timestamp, block_number FROM cursors"))[0];
  const at = (seconds: number) =>
    alone.sql.prepare("UPDATE cursors SET scanned_at = (block_timestamp + ?) * 1000").bind(seconds).run();
  await chain.mine(20);
  await alone.scan();
  const blocksRead = async () => {
    await chain.mine(3);
    await takeLogRequests();
    await scanPass(await alone.scanContext());
    return (await takeLogRequests()).map(({ blocks }) => blocks);
  };
  await at(101);
  expect(await blocksRead()).toEqual([3]);
  await at(100);
  expect(await blocksRead()).toEqual([3, 10]);
  expect((await cursor())?.["block_number"]).toBe(Number(await chain.reader.getBlockNumber()));
});

test("three nodes that hang when they are asked for logs leave the fourth its part of the pass, and the next pass asks it first", async () => {
  const key = (index: number) => `${parts.rpcUrls[index]}/key`;
  const urls = [parts.rpcUrls[0], key(0), key(2), parts.rpcUrls[1]].join(",");
  const alone = await deploy({ edge: { RPC_URLS: urls, RPC_TIMEOUT_MS: "2000" } });
  await addRpcFaults({ kind: "max_range", blocks: 0, as: "nothing" });
  const { tokenId } = await buy(chain, agent(0), 0, 1);
  await chain.mine(50);
  const context = await alone.scanContext();
  const asked = new Map<string, number>();
  const nodes = context.chain.nodes.map((node) => {
    const request = (async (call: { method: string }) => {
      if (call.method === "eth_getLogs") asked.set(node.name, (asked.get(node.name) ?? 0) + 1);
      return node.client.request(call as never);
    }) as typeof node.client.request;
    return { ...node, client: { ...node.client, request } };
  });
  const pass = async () => (await scanPass({ ...context, chain: { ...context.chain, nodes } })).outcome;
  expect(await pass()).toBe("advanced");
  expect(await alone.vm(tokenId)).toMatchObject({ step: "create" });
  // Everything, then the sales alone; for less there was time once.
  const hung = [0, 1, 2].map((i) => asked.get(`rpc-${i}`) ?? 0);
  expect(Math.min(...hung)).toBeGreaterThanOrEqual(2);
  expect(hung.reduce((sum, count) => sum + count, 0)).toBeLessThanOrEqual(8);
  asked.clear();
  await chain.mine(1);
  expect(await pass()).toBe("advanced");
  expect([...asked.keys()]).toEqual(["rpc-3"]);
}, 60_000);

test("a token id that no log showed is noticed by the next one and read again from every node", async () => {
  const first = await buy(chain, agent(0), 0, 1);
  await world.scan();
  await addRpcFault({ kind: "drop_logs" });
  const hidden = await buy(chain, agent(1), 1, 1);
  await chain.mine(30);
  await world.scan();
  await clearRpcFaults();
  const last = await buy(chain, agent(2), 2, 1);
  await world.scan();
  expect([first.tokenId, hidden.tokenId, last.tokenId]).toEqual([first.tokenId, first.tokenId + 1, first.tokenId + 2]);
  const above = await world.rows("SELECT token_id FROM gaps WHERE token_id >= ?", first.tokenId);
  expect(above).toEqual([{ token_id: hidden.tokenId }]);

  await world.sweep(Date.now() + 10_000);
  expect(await world.vm(hidden.tokenId)).toMatchObject({ tier: 1, owner: agent(1).address.toLowerCase() });
  expect(await world.rows("SELECT token_id FROM gaps")).toEqual([]);
});

test("a dead first node costs nothing: the next one is asked", async () => {
  await addRpcFault({ kind: "down" });
  const { tokenId } = await buy(chain, agent(0), 0, 1);
  await world.scan();
  expect(await world.vm(tokenId)).toMatchObject({ step: "create" });
});

test("a node that is behind the cursor is passed over", async () => {
  await world.scan();
  await addRpcFault({ kind: "lag", blocks: 50 });
  const { tokenId } = await buy(chain, agent(0), 0, 1);
  await world.scan();
  expect(await world.vm(tokenId)).toMatchObject({ step: "create" });
});

test("a head whose time is behind an earlier block's is passed over: chain time went back (hard case 29)", async () => {
  await world.scan();
  const cursor = async () => (await world.rows("SELECT block_number, block_timestamp FROM cursors"))[0];
  const before = await cursor();
  await addRpcFault({ kind: "patch", method: "eth_getBlockByNumber", fields: { timestamp: "0x1" } });
  await chain.mine(2);
  await world.scan();
  const after = await cursor();
  expect(after?.["block_number"]).toBe(before?.["block_number"] + 2);
  expect(after?.["block_timestamp"]).toBeGreaterThanOrEqual(before?.["block_timestamp"]);
});

test("a fork that one node alone tells of moves nothing", async () => {
  await world.scan();
  const { tokenId } = await buy(chain, agent(0), 0, 1);
  await world.scan();
  const [before] = await world.rows("SELECT block_number, block_hash FROM cursors");
  const other = await chain.reader.getBlock({ blockNumber: 1n });
  const number = `0x${(Number(before?.["block_number"]) + 3).toString(16)}`;
  await addRpcFault({ kind: "rewrite", method: "eth_getBlockByNumber", result: { ...hexBlock(other), number } });
  await world.scan();
  await clearRpcFaults();
  await chain.mine(1);
  await world.scan();
  expect(await ownerOf(tokenId)).toBe(agent(0).address.toLowerCase());
  expect(await world.rows("SELECT COUNT(*) AS n FROM purchases WHERE orphaned = 1")).toEqual([{ n: 0 }]);
});

/** The first node goes on alone behind block `from`: other blocks, without what is bought in ours, and as young as ours. */
async function forkFirstNode(from: number) {
  const head = Number(await chain.reader.getBlockNumber());
  const patch = (includes: string, hash: string) =>
    addRpcFault({ kind: "patch", method: "eth_getBlockByNumber", includes, fields: { hash } });
  const hashOf = (number: number) => `0x${number.toString(16).padStart(64, "f")}`;
  await patch('"latest"', hashOf(head));
  for (let number = from + 1; number <= head; number++) await patch(`"0x${number.toString(16)}"`, hashOf(number));
  await addRpcFault({ kind: "drop_logs" });
}

test("a first node that follows a fork of its own takes the scan nowhere: nobody's purchase was seen any more", async () => {
  await chain.mine(1);
  await world.scan();
  const [cursor] = await world.rows("SELECT block_number FROM cursors");
  const { tokenId } = await buy(chain, agent(0), 0, 1);
  await chain.mine(2);
  await forkFirstNode(cursor?.["block_number"]);
  await world.scan();
  await world.scan();
  expect(await world.vm(tokenId)).toMatchObject({ step: "create" });
  expect(await world.rows("SELECT COUNT(*) AS n FROM purchases WHERE orphaned = 1")).toEqual([{ n: 0 }]);
});

test("a cursor that one node has led onto its fork comes back once two others show another block", async () => {
  const alone = await deploy({ edge: { RPC_URLS: parts.proxyUrl } });
  await alone.scan();
  const from = Number(await chain.reader.getBlockNumber());
  const { tokenId } = await buy(chain, agent(0), 0, 1);
  await chain.mine(2);
  await forkFirstNode(from);
  await alone.scan();
  expect(await alone.vm(tokenId)).toBeNull();
  await chain.mine(1);
  await clearRpcFaults();
  await forkFirstNode(from);
  const all = connectChain({ ...alone.edge, RPC_URLS: parts.rpcUrls });
  const pass = async () => (await scanPass({ ...(await alone.scanContext()), chain: all })).outcome;
  expect([await pass(), await pass()]).toEqual(["rolled_back", "advanced"]);
  expect(await alone.vm(tokenId)).toMatchObject({ step: "create" });
});

test("a first node that calls an old block its newest, and young, holds nothing up", async () => {
  await chain.mine(1);
  await world.scan();
  const [cursor] = await world.rows("SELECT block_number FROM cursors");
  const old = await chain.reader.getBlock({ blockNumber: BigInt(cursor?.["block_number"]) });
  const { tokenId } = await buy(chain, agent(0), 0, 1);
  const timestamp = `0x${Math.floor(Date.now() / 1_000).toString(16)}`;
  await addRpcFault({
    kind: "rewrite",
    method: "eth_getBlockByNumber",
    includes: '"latest"',
    result: { ...hexBlock(old), timestamp },
  });
  await world.sql
    .prepare("UPDATE cursors SET block_timestamp = ?")
    .bind(Math.floor(Date.now() / 1_000) - 60)
    .run();
  await world.scan();
  expect(await world.vm(tokenId)).toMatchObject({ step: "create" });
});

test("ranges shrink to what the nodes take and the scan still catches up", async () => {
  const alone = await deploy({ edge: { RPC_URLS: parts.proxyUrl } });
  await chain.mine(40);
  const { tokenId } = await buy(chain, agent(0), 0, 1);
  await addRpcFault({ kind: "max_range", blocks: 14 });
  await alone.scan();
  expect(await alone.vm(tokenId)).toMatchObject({ step: "create" });
});

test("a first node that refuses a range does not hold the scan up while another takes it", async () => {
  await chain.mine(40);
  const { tokenId } = await buy(chain, agent(0), 0, 1);
  await addRpcFault({ kind: "max_range", blocks: 14 });
  await world.scan();
  expect(await world.vm(tokenId)).toMatchObject({ step: "create" });
});

test("a first node that stands still is passed over once its head is old", async () => {
  await world.scan();
  const { tokenId } = await buy(chain, agent(0), 0, 1);
  const [cursor] = await world.rows("SELECT block_number FROM cursors");
  const old = await chain.reader.getBlock({ blockNumber: BigInt(cursor?.["block_number"]) });
  const long = Math.floor(Date.now() / 1_000) - 100_000;
  await addRpcFault({
    kind: "rewrite",
    method: "eth_getBlockByNumber",
    result: { ...hexBlock(old), timestamp: `0x${long.toString(16)}` },
  });
  const context = await world.scanContext();
  expect((await scanPass(context)).outcome).toBe("advanced");
  expect(await world.vm(tokenId)).toMatchObject({ step: "create" });
});

test("a gap as wide as days is read in pieces, and one that stays puts off nothing else of the sweep", async () => {
  const alone = await deploy({ edge: { RPC_URLS: parts.proxyUrl } });
  await buy(chain, agent(0), 0, 1);
  await alone.scan();
  await addRpcFault({ kind: "drop_logs" });
  const hidden = await buy(chain, agent(1), 1, 1);
  await chain.mine(60);
  await alone.scan();
  await clearRpcFaults();
  await buy(chain, agent(2), 2, 1);
  await alone.scan();
  await addRpcFault({ kind: "max_range", blocks: 9 });
  await alone.sweep(Date.now() + 10_000);
  expect(await alone.vm(hidden.tokenId)).toMatchObject({ tier: 1 });
  expect(alone.sent.some(({ body }) => body.kind === "reap")).toBe(true);
});

test("the newest sale, hidden by a node and with no later one to show the gap, is found by asking for the next id", async () => {
  await buy(chain, agent(0), 0, 1);
  await world.scan();
  await addRpcFault({ kind: "drop_logs" });
  const hidden = await buy(chain, agent(1), 2, 1);
  await chain.mine(30);
  await world.scan();
  expect(await world.vm(hidden.tokenId)).toBeNull();
  // The node goes on dropping logs; the others do not.
  await world.sweep();
  expect(await world.vm(hidden.tokenId)).toMatchObject({ tier: 2, step: "create" });
});

test("a sale that was missed before the scan had passed its block is looked for where the scan is later", async () => {
  await buy(chain, agent(0), 0, 1);
  await world.scan();
  await addRpcFault({ kind: "drop_logs" });
  const hidden = await buy(chain, agent(1), 3, 1);
  // The contract knows it already, the scan has not come to it: nothing in its range shows it.
  await world.sweep();
  expect(await world.vm(hidden.tokenId)).toBeNull();
  await chain.mine(30);
  await world.scan();
  await world.sweep(Date.now() + 60_000);
  expect(await world.vm(hidden.tokenId)).toMatchObject({ tier: 3, step: "create" });
});

/** The first sale that is scanned is hidden by a node; a later one is seen. */
async function hideFirstSale() {
  await addRpcFault({ kind: "drop_logs" });
  return hideSale(world, { blocks: 15 });
}

test("the very first sale, hidden by a node, is found although no earlier one shows the gap", async () => {
  const hidden = await hideFirstSale();
  expect(await world.vm(hidden.tokenId)).toBeNull();
  for (let sweeps = 1; sweeps <= 6; sweeps++) await world.sweep(Date.now() + sweeps * 10_000);
  expect(await world.vm(hidden.tokenId)).toMatchObject({ tier: 1, step: "create" });
  // Those below it were sold before the first block that is scanned: nobody looks for them any more.
  expect(await world.rows("SELECT * FROM gaps")).toEqual([]);
});

test("beyond a hundred token ids, those below the first sale are looked for once: two sets of them brought each other back for ever", async () => {
  const { tokenId } = await buy(chain, agent(0), 0, 1);
  for (let more = tokenId; more <= 102; more++) await buy(chain, agent(0), 0, 1);
  world = await deploy();
  const hidden = await hideFirstSale();
  for (let sweeps = 1; sweeps <= 7; sweeps++) {
    await world.sweep(Date.now() + sweeps * 10_000);
    if (sweeps >= 4) expect(await world.rows("SELECT * FROM gaps")).toEqual([]);
  }
  expect(await world.vm(hidden.tokenId)).toMatchObject({ tier: 1, step: "create" });
});

test("a transfer that no log showed is found by the sweep, whether or not its new owner asks for anything", async () => {
  const { tokenId } = await buy(chain, agent(0), 0, 1);
  await world.scan();
  await addRpcFault({ kind: "drop_logs" });
  await transfer(chain, agent(0), agent(1).address, tokenId);
  await chain.mine(15);
  await world.scan();
  await clearRpcFaults();
  expect(await ownerOf(tokenId)).toBe(agent(0).address.toLowerCase());
  await world.sweep();
  await world.sweep(Date.now() + 61_000);
  expect(await ownerOf(tokenId)).toBe(agent(1).address.toLowerCase());
});

test("a sale that a node invents in place of one that it hides loses nobody's purchase (hard cases 4 and 61)", async () => {
  const before = await buy(chain, agent(0), 0, 1);
  await world.scan();
  const tokenId = before.tokenId + 1;
  const word = (value: number) => value.toString(16).padStart(64, "0");
  const receipt = await chain.reader.getTransactionReceipt({ hash: before.txHash });
  const logs = hexLogs(receipt.logs).map((entry) => ({
    ...entry,
    topics: entry.topics.map((topic) => (topic === `0x${word(before.tokenId)}` ? `0x${word(tokenId)}` : topic)),
    transactionHash: `0x${"7".repeat(64)}`,
  }));
  await chain.mine(1);
  await addRpcFault({ kind: "rewrite", method: "eth_getLogs", result: logs });
  await world.scan();
  expect((await world.vm(tokenId))?.["tx_hash"]).toBe(`0x${"7".repeat(64)}`);
  await clearRpcFaults();
  await addRpcFault({ kind: "drop_logs" });
  const hidden = await buy(chain, agent(1), 2, 1);
  expect(hidden.tokenId).toBe(tokenId);
  await chain.mine(15);
  await world.scan();
  await clearRpcFaults();
  // Two nodes know no such purchase, and final history has passed its block: the row gives the token up.
  await world.drain();
  expect(await world.vm(tokenId)).toBeNull();
  await world.sweep(Date.now() + 5_000);
  expect(await world.vm(tokenId)).toMatchObject({ tier: 2, tx_hash: hidden.txHash });
});

test("a log that a node repeats is one purchase", async () => {
  const { txHash } = await buy(chain, agent(0), 0, 1);
  const receipt = (await chain.reader.request({ method: "eth_getTransactionReceipt", params: [txHash] })) as {
    logs: object[];
  };
  await addRpcFault({ kind: "rewrite", method: "eth_getLogs", result: [...receipt.logs, ...receipt.logs] });
  await world.scan();
  expect(await world.rows("SELECT ordinal FROM purchases")).toEqual([{ ordinal: 0 }]);
});

test("an owner that the logs tell wrong is set right by what two nodes call final", async () => {
  const { tokenId } = await buy(chain, agent(0), 0, 1);
  await world.scan();
  await world.sql.prepare("UPDATE transfers SET recipient = '0xbad'").run();
  await world.sql.prepare("UPDATE vms SET owner = '0xbad'").run();
  await chain.mine(4);
  const refused = await world.request(`/credentials/${tokenId}`, { headers: await fixedHeaders(agent(0), tokenId) });
  expect([refused.status, refused.headers.get("retry-after")]).toEqual([503, "3"]);
  await world.sweep(Date.now() + 61_000);
  expect(await ownerOf(tokenId)).toBe(agent(0).address.toLowerCase());
  expect(await world.rows("SELECT * FROM disputes")).toEqual([]);
});

test("while one scan holds the lease another one gets none, and a stale holder's batch leaves neither rows nor cursor", async () => {
  const context = await world.scanContext();
  expect(await takeScanLease(world.db, { holder: "another", leaseUntil: Date.now() + 60_000 }, Date.now())).toBe(false);
  const later = Date.now() + 120_000;
  expect(await takeScanLease(world.db, { holder: "another", leaseUntil: later + 60_000 }, later)).toBe(true);
  const [before] = await world.rows("SELECT block_number FROM cursors");
  await buy(chain, agent(0), 0, 1);
  const failure = await scanPass(context).catch((error: unknown) => String(error));
  expect(failure).toContain("NOT NULL constraint failed: cursors.lease");
  expect(await world.rows("SELECT block_number FROM cursors")).toEqual([before]);
  expect(await world.rows("SELECT * FROM purchases")).toEqual([]);
});

test.each(["NothingIndexed", "TokenIndexed"] as const)("the purchase event of %s is understood", async (name) => {
  const artifact = artifacts[name];
  const wallet = chain.wallet(deployer);
  const hash = await wallet.deployContract({ abi: artifact.abi as Abi, bytecode: artifact.bytecode as Hex });
  const { contractAddress } = await chain.reader.waitForTransactionReceipt({ hash });
  const own = await deploy({ edge: { CONTRACT_ADDRESS: String(contractAddress) } });
  const sale = await wallet.writeContract({
    address: contractAddress as Hex,
    abi: artifact.abi as Abi,
    functionName: "purchase",
    args: [7n, agent(3).address, 5, 9, 324_000_000n],
  });
  await chain.reader.waitForTransactionReceipt({ hash: sale });
  await own.scan();
  const [purchase] = await own.rows("SELECT * FROM purchases");
  expect(purchase).toMatchObject({
    token_id: 7,
    buyer: agent(3).address.toLowerCase(),
    tier: 5,
    duration_days: 9,
    total_cost: "324000000",
  });
});

test("the event's signature can be configured", async () => {
  const event =
    "VMPurchased(uint256 tokenId, address buyer, uint8 tier, uint16 durationDays, uint256 purchaseDate, uint128 totalCost)";
  const other = await deploy({ edge: { PURCHASE_EVENT: event } });
  await buy(chain, agent(0), 0, 1);
  await other.scan();
  // The contract logs uint256: another signature is another topic.
  expect(await other.rows("SELECT * FROM purchases")).toEqual([]);
});

const hexLogs = (logs: readonly object[]) => logs.map(hexBlock) as { topics: string[] }[];

const hexBlock = (block: object) =>
  Object.fromEntries(
    Object.entries(block).map(([key, value]) => [
      key,
      typeof value === "bigint" || typeof value === "number" ? `0x${value.toString(16)}` : value,
    ]),
  );
