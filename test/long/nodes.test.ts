// Bad days of the chain's nodes, and storms that a few dollars buy, against both Workers as they are deployed: whoever has
// paid meanwhile gets a machine.
import type { Abi, Address, Hex } from "viem";
import { afterAll, afterEach, beforeAll, expect, test } from "vitest";
import { buy, fixedHeaders, transfer, waitForStatus } from "../world/agent.ts";
import { artifacts } from "../world/chain.ts";
import type { RpcFault } from "../world/rpc-proxy.ts";
import { startWorld, type World } from "../world/world.ts";

let world: World;
beforeAll(async () => {
  world = await startWorld({
    noHonestNode: true,
    edge: { RATE_LIMITS: "status=6000/60,credentials=6000/60", SCAN_INTERVAL_MS: "500" },
    vultr: { bootMs: { active: 100, ok: 200, sshd: 300, configured: 400 } },
    provisioner: { SSH_KEY_ALGORITHM: "ed25519" },
  });
});
afterEach(() => everyNode());
afterAll(async () => {
  await world?.stop();
});

const agent = (index: number) => {
  const account = world.chain.agents[index];
  if (account === undefined) throw new Error(`there is no agent ${index}`);
  return account;
};
const everyNode = (...faults: RpcFault[]) => {
  for (const node of [world.proxy, world.second]) node.setFaults(...faults);
};
/** Buys a machine and waits until it runs. */
async function buyAndWait(index: number): Promise<{ tokenId: number }> {
  const { tokenId } = await buy(world.chain, agent(index), 0, 1);
  await waitForStatus(world.url, tokenId, ["running"]);
  return { tokenId };
}
const first = async <T>(query: string) => (await world.workers.database.prepare(query).first()) as T;

test.each<{ blocks: number; behind: number; as: "unnamed" | "page" }>([
  { blocks: 10, behind: 400, as: "unnamed" },
  { blocks: 1, behind: 30, as: "page" },
])(
  "where every node gives $blocks blocks of logs at a time, the shop catches up and sells at the head (hard case 30)",
  async ({ blocks, behind, as }) => {
    everyNode({ kind: "max_range", blocks, as });
    await world.chain.node.mine({ blocks: behind });
    const { tokenId } = await buyAndWait(0);
    const answer = await fetch(`${world.url}/credentials/${tokenId}`, {
      headers: await fixedHeaders(agent(0), tokenId),
    });
    expect(answer.status).toBe(200);
  },
);

test("a chain that is set back by hundreds of blocks sells again with its next ones (hard case 32)", async () => {
  const { chain } = world;
  const before = Number(await chain.reader.getBlockNumber());
  const lost = await buyAndWait(3);
  await chain.node.mine({ blocks: 300 });
  const head = Number(await chain.reader.getBlockNumber());
  const scanned = async () => (await first<{ n: number }>("SELECT block_number AS n FROM cursors")).n;
  await expect.poll(scanned, { timeout: 90_000 }).toBeGreaterThanOrEqual(head - 1);
  const depth = Number(await chain.reader.getBlockNumber()) - before;
  await chain.node.request({ method: "anvil_rollback", params: [depth] } as never);
  // Anvil's clock goes back with its blocks: a chain whose time is behind ours is one that stands still.
  await chain.node.setNextBlockTimestamp({ timestamp: BigInt(Math.floor(Date.now() / 1_000)) });
  const { tokenId } = await buy(chain, agent(4), 0, 1);
  expect(tokenId).toBe(lost.tokenId);
  // Not only when the chain has outgrown what it was: that takes a second a block.
  const credentials = async () => {
    const answer = await fetch(`${world.url}/credentials/${tokenId}`, {
      headers: await fixedHeaders(agent(4), tokenId),
    });
    const { code } = (await answer.json()) as { code?: string };
    const cursor = await first("SELECT block_number, checkpoints, scanned_at FROM cursors");
    return answer.status === 200 ? "served" : JSON.stringify({ status: answer.status, code, cursor });
  };
  await expect.poll(credentials, { timeout: 180_000, interval: 500 }).toBe("served");
  expect(Number(await chain.reader.getBlockNumber())).toBeLessThan(before + depth);
});

// Last: whoever reads its blocks again, after a reorg, needs longer.
test("24,000 transfers of a token, in a few blocks, hold up nobody's purchase (hard case 31)", async () => {
  const { chain } = world;
  const wallet = chain.wallet(chain.deployer);
  const { abi, bytecode } = artifacts.TokenStorm;
  const deployed = await wallet.deployContract({ abi: abi as Abi, bytecode: bytecode as Hex });
  const storm = (await chain.reader.waitForTransactionReceipt({ hash: deployed })).contractAddress as Address;
  const { tokenId } = await buyAndWait(1);
  await transfer(chain, agent(1), storm, tokenId);
  const hashes: Hex[] = [];
  for (let i = 0; i < 24; i++) {
    hashes.push(
      await wallet.writeContract({
        address: storm,
        abi: abi as Abi,
        functionName: "blow",
        args: [world.contract, BigInt(tokenId), 1_000n],
        gas: 16_000_000n,
      }),
    );
  }
  await buyAndWait(2);
  const blocks = new Set<bigint>();
  for (const hash of hashes) {
    const { status, blockNumber } = await chain.reader.waitForTransactionReceipt({ hash });
    expect(status).toBe("success");
    blocks.add(blockNumber);
  }
  const last = [...blocks].reduce((a, b) => (a > b ? a : b));
  const scanned = () =>
    first<{ n: number; at: number }>("SELECT block_number AS n, block_timestamp AS at FROM cursors");
  // Who took one block at a time in the tests before is asked for more after a minute.
  await expect.poll(async () => BigInt((await scanned()).n) >= last, { timeout: 180_000 }).toBe(true);
  const rows = await first<{ n: number }>(`SELECT COUNT(*) AS n FROM transfers WHERE token_id = ${tokenId}`);
  // One for each block, its sale's and the one to the storm.
  expect(rows.n).toBeLessThanOrEqual(blocks.size + 2);
  expect(await first(`SELECT owner FROM vms WHERE token_id = ${tokenId} AND current = 1`)).toEqual({
    owner: storm.toLowerCase(),
  });
  // The chain's time went on with its blocks.
  expect(Date.now() / 1_000 - (await scanned()).at).toBeLessThan(600);
});
