// Nodes that give few blocks, few logs or nothing readable (hard case 30), storms of transfers (hard case 31), and chains
// that were set back (hard case 32): the shop works at the head, and nobody waits.
import { type Abi, type Address, type Hex, toEventSelector } from "viem";
import { expect, test, vi } from "vitest";
import { readAuthorizationUse } from "../../../src/chain/authorization.ts";
import { connectChain } from "../../../src/chain/client.ts";
import { readCoinTransfers } from "../../../src/chain/coin-transfers.ts";
import { hasRoom, inBackground } from "../../../src/db/client.ts";
import { loadCursor } from "../../../src/db/scan.ts";
import { transfers } from "../../../src/db/schema.ts";
import { scanPass } from "../../../src/edge/scan.ts";
import { CONTRACT_ADDRESS, USDC_ADDRESS } from "../../world/addresses.ts";
import { buy, transfer } from "../../world/agent.ts";
import artifacts from "../../world/contracts/artifacts.json";
import { submit } from "../../world/payer.ts";
import type { RpcFault } from "../../world/rpc-proxy.ts";
import { agent, chain, deployer, operator } from "../chain.ts";
import { type Deployment, deploy, PATIENCE_MS } from "../deployment.ts";
import { accepted, mined, playOn, signedTo } from "../edge/routes/x402/till.ts";
import { addRpcFault, addRpcFaults, CONTROLLED_NODES, clearRpcFaults, takeLogRequests } from "../faults.ts";

const TRANSFER = toEventSelector("event Transfer(address indexed, address indexed, uint256 indexed)");
const cursorOf = async (world: Deployment) => (await world.rows("SELECT * FROM cursors"))[0] ?? {};
const ownerOf = async (world: Deployment, tokenId: number) => (await world.vm(tokenId))?.["owner"];
const lower = (index: number) => agent(index).address.toLowerCase();

const PLANS: { name: string; fault: RpcFault; settings?: Record<string, string> }[] = [
  { name: "10 blocks, said in words", fault: { kind: "max_range", blocks: 10 } },
  { name: "10 blocks, said beside 10K logs", fault: { kind: "max_range", blocks: 10, as: "prose" } },
  { name: "10 blocks, not said", fault: { kind: "max_range", blocks: 10, as: "unnamed" } },
  { name: "10 blocks, and a 400 beyond", fault: { kind: "max_range", blocks: 10, as: "page", status: 400 } },
  { name: "10 blocks, and a 413 beyond", fault: { kind: "max_range", blocks: 10, as: "page", status: 413 } },
  { name: "10 blocks, and a 504 beyond", fault: { kind: "max_range", blocks: 10, as: "page", status: 504 } },
  {
    name: "10 blocks, and no answer beyond",
    fault: { kind: "max_range", blocks: 10, as: "nothing" },
    settings: { RPC_TIMEOUT_MS: "250" },
  },
  { name: "3 logs", fault: { kind: "max_logs", logs: 3, as: "unnamed" } },
  { name: "1 block, said in words", fault: { kind: "max_range", blocks: 1 } },
  { name: "1 block, not said", fault: { kind: "max_range", blocks: 1, as: "page" } },
];

test.each(PLANS)(
  "where every node gives $name, the scan catches up and then works at the head (hard case 30)",
  async ({ fault, settings }) => {
    const world = await deploy({ edge: { RPC_URLS: CONTROLLED_NODES, ...settings } });
    await addRpcFaults(fault);
    const early = await buy(chain, agent(0), 0, 1);
    await chain.mine(40);
    const late = await buy(chain, agent(1), 1, 1);
    await world.scan();
    expect(await ownerOf(world, early.tokenId)).toBe(lower(0));
    expect(await ownerOf(world, late.tokenId)).toBe(lower(1));
    // What was learned of each is known to the next pass, and next to nothing is refused any more.
    for (let pass = 0; pass < 2; pass++) {
      await chain.mine(1);
      await world.scan();
    }
    await takeLogRequests();
    await transfer(chain, agent(0), agent(2).address, early.tokenId);
    await world.scan();
    expect(await ownerOf(world, early.tokenId)).toBe(lower(2));
    const refused = (await takeLogRequests()).filter((request) => request.refused);
    expect(refused.length).toBeLessThanOrEqual(fault.kind === "max_logs" ? 2 : 1);
  },
);

test("an order is paid, served and found in the books where every node gives ten blocks, or one (hard case 30)", async () => {
  for (const blocks of [10, 1]) {
    const nodes = { RPC_URLS: CONTROLLED_NODES };
    const world = await deploy({ edge: nodes, provisioner: nodes });
    const before = Number(await chain.reader.getBlockNumber());
    await addRpcFaults({ kind: "max_range", blocks });
    const { id } = await accepted(world, agent(1));
    await chain.mine(30);
    await playOn(world, async () => (await world.payment(id))["step"] === "idle");
    expect(await world.payment(id)).toMatchObject({ state: "settled", reason: null });
    await chain.mine(4);
    const answer = await world.request(`/admin/payments/reconcile?fromBlock=${before}`, {
      headers: { "x-api-key": await world.operatorKey() },
    });
    expect(await answer.json()).toMatchObject({ incoming: { transfers: 1, unexplained: [] }, missing: [] });
    await clearRpcFaults();
  }
});

test("what became of an authorization, and the coin's transfers, are found in whatever range a node gives (hard case 30)", async () => {
  const world = await deploy();
  const { signed, payment } = await signedTo(agent(2), 500_000n);
  await chain.mine(20);
  await submit(chain, deployer, signed, USDC_ADDRESS);
  await chain.mine(20);
  const head = Number(await chain.reader.getBlockNumber());
  for (const fault of PLANS.map((plan) => plan.fault)) {
    await addRpcFaults(fault);
    const nodes = connectChain({ ...world.edge, RPC_URLS: CONTROLLED_NODES.split(","), RPC_TIMEOUT_MS: 500 });
    const sought = { ...payment, value: BigInt(payment.value) };
    const use = await readAuthorizationUse(nodes, USDC_ADDRESS, sought, payment.fromBlock);
    expect(use.state, JSON.stringify(fault)).toBe("paid");
    const moved = await readCoinTransfers(nodes, USDC_ADDRESS, operator.address, payment.fromBlock, head);
    expect(
      moved.map(({ amount }) => amount),
      JSON.stringify(fault),
    ).toEqual([500_000n]);
    await clearRpcFaults();
  }
});

const NONSENSE = ['{"jsonrpc":"2.0","id":1,"result":null}', '{"message":"no Route"}', "[]", "", "null", "<html>"];
test.each([...NONSENSE, '{"jsonrpc":"2.0","id":1,"result":[null]}', '{"jsonrpc":"2.0","id":1,"result":{}}'])(
  "a first node that answers %j is passed over (hard case 30)",
  async (body) => {
    const world = await deploy();
    await addRpcFault({ kind: "body", method: "eth_getLogs", body });
    const { tokenId } = await buy(chain, agent(0), 0, 1);
    expect((await scanPass(await world.scanContext())).outcome).toBe("advanced");
    expect(await world.vm(tokenId)).toMatchObject({ step: "create" });
    await clearRpcFaults();
    await addRpcFault({ kind: "body", method: "eth_getBlockByNumber", body });
    await chain.mine(1);
    expect((await scanPass(await world.scanContext())).outcome).toBe("advanced");
    // Nonsense is no reason to ask for less.
    expect((await cursorOf(world))["spans"]).toBe("{}");
  },
);

test("a node that gives no logs at all is asked last for a while, and costs one pass (hard case 30)", async () => {
  const world = await deploy();
  await addRpcFault({ kind: "max_range", blocks: 0, as: "page" });
  const { tokenId } = await buy(chain, agent(0), 0, 1);
  expect((await scanPass(await world.scanContext())).outcome).toBe("advanced");
  expect(await world.vm(tokenId)).toMatchObject({ step: "create" });
  await takeLogRequests();
  const scanned = Number((await cursorOf(world))["block_number"]);
  await chain.mine(1);
  expect((await scanPass(await world.scanContext())).outcome).toBe("advanced");
  // A pass of an earlier test that ran out of time may still be asking for older blocks.
  const refused = (await takeLogRequests()).filter((request) => request.refused && request.from > scanned);
  expect(refused).toEqual([]);
});

test("SCAN_MAX_RANGE binds at once: no request asks for more, whatever was learned before it was set (hard case 30)", async () => {
  const world = await deploy({ edge: { RPC_URLS: CONTROLLED_NODES, SCAN_MAX_RANGE: "7" } });
  const known = { transfers: { given: 1_000, refused: 1_001, refusedAt: Date.now() } };
  await world.sql
    .prepare("UPDATE cursors SET spans = ?")
    .bind(JSON.stringify({ "rpc-0": known, "rpc-1": known }))
    .run();
  const { tokenId } = await buy(chain, agent(0), 0, 1);
  const scanned = Number((await cursorOf(world))["block_number"]);
  await chain.mine(60);
  await takeLogRequests();
  await world.scan();
  await world.sweep();
  expect(await world.vm(tokenId)).not.toBeNull();
  const requests = (await takeLogRequests()).filter(({ from }) => from > scanned);
  expect(requests.length).toBeGreaterThan(0);
  expect(requests.filter(({ blocks }) => blocks > 7)).toEqual([]);
});

test("what one isolate learned of a node is known to the next (hard case 30)", async () => {
  const world = await deploy({ edge: { RPC_URLS: CONTROLLED_NODES } });
  await addRpcFaults({ kind: "max_range", blocks: 10, as: "unnamed" });
  const refusals = async (scan: () => Promise<unknown>) => {
    await chain.mine(60);
    await takeLogRequests();
    await scan();
    return (await takeLogRequests()).filter(({ refused }) => refused);
  };
  // A pass that its time ends may have learned of one node alone.
  await vi.waitFor(async () => expect(await refusals(() => world.scan())).toEqual([]), PATIENCE_MS);
  await chain.mine(60);
  await takeLogRequests();
  const config = { ...world.edge };
  const isolate = { ...(await world.scanContext()), config, chain: connectChain(config) };
  expect((await scanPass(isolate)).outcome).toBe("advanced");
  const requests = await takeLogRequests();
  expect(requests.filter(({ refused }) => refused)).toEqual([]);
  expect(Math.max(...requests.map(({ blocks }) => blocks))).toBe(10);
});

/** A token of agent 0 whose transfers are as many as somebody pays for. */
async function startStorm() {
  const { abi, bytecode } = artifacts.TokenStorm;
  const sent = chain.wallet(deployer).deployContract({ abi: abi as Abi, bytecode: bytecode as Hex });
  const address = (await mined(sent)).contractAddress as Address;
  const call = (functionName: string, args: unknown[]) =>
    chain.wallet(deployer).writeContract({
      address,
      abi: abi as Abi,
      functionName,
      args: [CONTRACT_ADDRESS, ...args],
      gas: 16_000_000n,
    });
  return {
    address,
    /** A block of so many transfers; two transactions carry them. */
    blow: async (tokenId: number, times: number) => {
      await chain.node.setAutomine(false);
      const sent = [await call("blow", [BigInt(tokenId), BigInt(times / 2)])];
      sent.push(await call("blow", [BigInt(tokenId), BigInt(times / 2)]));
      await chain.mine(1);
      await chain.node.setAutomine(true);
      for (const hash of sent) expect((await chain.reader.getTransactionReceipt({ hash })).status).toBe("success");
    },
    giveTo: async (to: Address, tokenId: number) => mined(call("giveTo", [to, BigInt(tokenId)])),
  };
}

test("a storm of 24,000 transfers in 12 blocks holds up no purchase, and leaves one row per token and block (hard case 31)", async () => {
  const world = await deploy();
  const storm = await startStorm();
  const { tokenId } = await buy(chain, agent(0), 0, 1);
  await world.scan();
  await transfer(chain, agent(0), storm.address, tokenId);
  const first = Number(await chain.reader.getBlockNumber()) + 1;
  for (let block = 0; block < 12; block++) await storm.blow(tokenId, 2_000);
  const others = await buy(chain, agent(1), 1, 1);
  await storm.giveTo(agent(2).address, tokenId);
  const began = Date.now();
  await world.scan();
  expect(Date.now() - began).toBeLessThan(60_000);
  expect(await world.vm(others.tokenId)).toMatchObject({ step: "create" });
  expect(await ownerOf(world, tokenId)).toBe(lower(2));
  const rows = await world.rows(
    "SELECT COUNT(*) AS n FROM transfers WHERE token_id = ? AND block_number >= ?",
    tokenId,
    first,
  );
  expect(rows[0]?.["n"]).toBeLessThanOrEqual(13);
  expect((await cursorOf(world))["block_number"]).toBe(Number(await chain.reader.getBlockNumber()));
});

test("a block whose transfers no node gives: purchases and chain time go on, owners come from the contract (hard case 31)", async () => {
  const world = await deploy({ edge: { RPC_URLS: CONTROLLED_NODES } });
  const first = await buy(chain, agent(0), 0, 1);
  await world.scan();
  await addRpcFaults({ kind: "refuse", method: "eth_getLogs", includes: TRANSFER, message: "response is too large" });
  await transfer(chain, agent(0), agent(1).address, first.tokenId);
  const second = await buy(chain, agent(2), 1, 1);
  await transfer(chain, agent(2), agent(3).address, second.tokenId);
  await chain.mine(2);
  await world.scan();
  expect(await world.vm(second.tokenId)).toMatchObject({ tier: 1, step: "create" });
  expect(await ownerOf(world, first.tokenId)).toBe(lower(1));
  expect(await ownerOf(world, second.tokenId)).toBe(lower(3));
  const { number, timestamp } = await chain.reader.getBlock();
  expect(await cursorOf(world)).toMatchObject({ block_number: Number(number), block_timestamp: Number(timestamp) });
  // The owners can't be had either: time goes on, and the sweep finds what was missed.
  await addRpcFaults({ kind: "refuse", method: "eth_call", message: "out of order" });
  await transfer(chain, agent(1), agent(4).address, first.tokenId);
  await chain.mine(1);
  await world.scan();
  expect((await cursorOf(world))["block_number"]).toBe(Number(await chain.reader.getBlockNumber()));
  await clearRpcFaults();
  await chain.mine(3);
  await world.sweep();
  await world.sweep(Date.now() + 61_000);
  expect(await ownerOf(world, first.tokenId)).toBe(lower(4));
});

test("transfers that a node shows one after the other leave one row per token and block (hard case 31)", async () => {
  const world = await deploy();
  const { tokenId } = await buy(chain, agent(0), 0, 1);
  await world.scan();
  await chain.node.setAutomine(false);
  await transferUnmined(0, 1, tokenId);
  await transferUnmined(1, 2, tokenId);
  await chain.mine(1);
  await chain.node.setAutomine(true);
  const number = await chain.reader.getBlockNumber();
  const logs = (await chain.reader.request({
    method: "eth_getLogs",
    params: [{ address: CONTRACT_ADDRESS, fromBlock: `0x${number.toString(16)}`, toBlock: "latest" }],
  })) as object[];
  expect(logs).toHaveLength(2);
  await addRpcFault({ kind: "rewrite", method: "eth_getLogs", result: logs.slice(0, 1) });
  await world.scan();
  expect(await ownerOf(world, tokenId)).toBe(lower(1));
  await clearRpcFaults();
  await chain.mine(1);
  await world.scan();
  expect(await ownerOf(world, tokenId)).toBe(lower(2));
  expect(await world.rows("SELECT recipient FROM transfers WHERE block_number = ?", Number(number))).toEqual([
    { recipient: lower(2) },
  ]);
});

const transferUnmined = (from: number, to: number, tokenId: number) =>
  chain.wallet(agent(from)).writeContract({
    address: CONTRACT_ADDRESS,
    abi: artifacts.ClawCloudVMs.abi as Abi,
    functionName: "transferFrom",
    args: [agent(from).address, agent(to).address, BigInt(tokenId)],
    gas: 200_000n,
  });

test("of transfers older than final history and a week, each token keeps its last (hard case 31)", async () => {
  const world = await deploy();
  const { tokenId } = await buy(chain, agent(0), 0, 1);
  await world.scan();
  const week = 302_400;
  const final = Number((await chain.reader.getBlock({ blockTag: "finalized" })).number);
  const old = { logIndex: 0, blockHash: "0x", sender: "" };
  await world.insert(
    transfers,
    { ...old, tokenId: 900, blockNumber: final - week - 30, recipient: "0xa" },
    { ...old, tokenId: 901, blockNumber: final - week - 29, recipient: "0xb" },
    { ...old, tokenId: 900, blockNumber: final - week - 2, recipient: "0xc" },
    { ...old, tokenId: 902, blockNumber: final - week - 1, recipient: "0xd" },
    // Its follower may still be taken back by whatever a week can bring.
    { ...old, tokenId: 902, blockNumber: final - week + 1_000, recipient: "0xe" },
  );
  await world.sweep();
  const left = await world.rows(
    "SELECT token_id, recipient FROM transfers WHERE token_id >= 900 ORDER BY block_number",
  );
  expect(left).toEqual([
    { token_id: 901, recipient: "0xb" },
    { token_id: 900, recipient: "0xc" },
    { token_id: 902, recipient: "0xd" },
    { token_id: 902, recipient: "0xe" },
  ]);
  expect(await ownerOf(world, tokenId)).toBe(lower(0));
});

test("old transfers of which an invocation has no room to delete all wait for the next one's hour (hard case 54)", async () => {
  const world = await deploy();
  const final = Number((await chain.reader.getBlock({ blockTag: "finalized" })).number);
  const old = { tokenId: 900, blockNumber: final - 302_400 - 30, blockHash: "0x", sender: "", recipient: "0xa" };
  await world.insert(transfers, ...Array.from({ length: 11 }, (_, logIndex) => ({ ...old, logIndex })));
  const left = async () => (await world.rows("SELECT COUNT(*) AS n FROM transfers WHERE token_id = 900"))[0]?.["n"];
  await inBackground(async () => {
    while (hasRoom()) await loadCursor(world.db);
    await world.sweep();
  });
  expect(await left()).toBe(11);
  await inBackground(() => world.sweep(Date.now() + 3_600_000));
  expect(await left()).toBe(1);
});

/** Scans a purchase and blocks on top of it, `perScan` at a time, then sets the chain back to before it. */
async function setBack(world: Deployment, blocks: number, perScan: number): Promise<number> {
  await world.scan();
  const snapshot = await chain.node.snapshot();
  const { tokenId } = await buy(chain, agent(0), 0, 1);
  for (let mined = 2; mined < blocks; mined += perScan) {
    await chain.mine(perScan);
    await world.scan();
  }
  expect(await ownerOf(world, tokenId)).toBe(lower(0));
  await chain.node.revert({ id: snapshot });
  return tokenId;
}

async function expectRolledBack(world: Deployment, tokenId: number): Promise<void> {
  const before = await cursorOf(world);
  expect(Number(await chain.reader.getBlockNumber())).toBeLessThan(before["block_number"]);
  expect((await scanPass(await world.scanContext())).outcome).toBe("rolled_back");
  await world.scan();
  expect((await cursorOf(world))["block_number"]).toBe(Number(await chain.reader.getBlockNumber()));
  expect(await ownerOf(world, tokenId)).toBe("");
  const again = await buy(chain, agent(1), 2, 1);
  await world.scan();
  expect(again.tokenId).toBe(tokenId);
  expect(await world.vm(tokenId)).toMatchObject({ tier: 2, owner: lower(1) });
}

test("a chain set back by 36 blocks, below the cursor, is a reorg as soon as a block is there that was scanned (hard case 32)", async () => {
  const world = await deploy();
  const tokenId = await setBack(world, 36, 1);
  await chain.mine(3);
  await expectRolledBack(world, tokenId);
});

test("a chain set back by 600 blocks is a reorg at the first checkpoint that it passes (hard case 32)", async () => {
  const world = await deploy();
  const tokenId = await setBack(world, 600, 200);
  await chain.mine(260);
  await expectRolledBack(world, tokenId);
});

test("a chain set back whose next block is later than the cursor's needs no checkpoint to show it (hard case 32)", async () => {
  const world = await deploy();
  const tokenId = await setBack(world, 36, 40);
  const timestamp = BigInt((await cursorOf(world))["block_timestamp"]) + 2n;
  await chain.node.setNextBlockTimestamp({ timestamp });
  await chain.mine(1);
  await expectRolledBack(world, tokenId);
});

test("two nodes that lag are no reorg (hard case 32)", async () => {
  const world = await deploy({ edge: { RPC_URLS: CONTROLLED_NODES } });
  for (let round = 0; round < 4; round++) {
    await chain.mine(2);
    await world.scan();
  }
  const before = await cursorOf(world);
  await addRpcFaults({ kind: "lag", blocks: 5 });
  await expect(scanPass(await world.scanContext())).rejects.toMatchObject({ code: "chain_unavailable" });
  expect((await cursorOf(world))["block_hash"]).toBe(before["block_hash"]);
});

test("a contract that answers the zero address for what it does not know has no such token (hard case 30)", async () => {
  // Whatever is called returns one word of zeros.
  const address = "0x00000000000000000000000000000000000000ff";
  await chain.node.setCode({ address, bytecode: "0x60206000f3" });
  const world = await deploy({ edge: { CONTRACT_ADDRESS: address } });
  await world.sweep();
  expect(await world.rows("SELECT * FROM gaps")).toEqual([]);
  expect((await world.request("/status/1")).status).toBe(404);
});
