// Many machines that end at once, by right or by bad data of ours (hard cases 13 and 39).
import { encodeFunctionData, parseAbi } from "viem";
import { beforeEach, expect, test } from "vitest";
import { attempts } from "../../../src/db/schema.ts";
import { attemptRow } from "../../rows.ts";
import { CONTRACT_ADDRESS, USDC_ADDRESS } from "../../world/addresses.ts";
import { agent, chain } from "../chain.ts";
import { type Deployment, deploy } from "../deployment.ts";
import { addRpcFault, addRpcFaults, clearRpcFaults } from "../faults.ts";
import { takePages } from "../paged.ts";

const DAY = 86_400;
const GPU = 4;
const AT_ONCE = 25;
const abi = parseAbi([
  "function approve(address spender, uint256 amount)",
  "function purchaseVM(uint8 tier, uint16 durationDays)",
]);

let world: Deployment;
beforeEach(async () => {
  world = await deploy();
  await takePages();
});

/** So many purchases of one day, mined in a few blocks, and seen. */
async function buyMany(count: number, tier: number): Promise<void> {
  const { address } = agent(3);
  const send = (to: `0x${string}`, data: `0x${string}`) =>
    chain.node.sendTransaction({ account: address, to, data, gas: 250_000n, chain: null });
  const approval = encodeFunctionData({ abi, functionName: "approve", args: [CONTRACT_ADDRESS, 2n ** 255n] });
  await send(USDC_ADDRESS, approval);
  await chain.node.setAutomine(false);
  const data = encodeFunctionData({ abi, functionName: "purchaseVM", args: [tier, 1] });
  for (let left = count; left > 0; left -= 100) {
    for (let i = 0; i < Math.min(100, left); i++) await send(CONTRACT_ADDRESS, data);
    await chain.mine(1);
  }
  await chain.node.setAutomine(true);
  await chain.mine(1);
  await world.scan();
}

/** As if all that was bought ran at RunPod, on pods that it has let go of by the time they end. */
async function pretendToRun(): Promise<void> {
  world.sent.length = 0;
  await world.sql
    .prepare(
      `UPDATE vms SET status = 'running', step = 'idle', wake_at = NULL, running_at = 1, attempt = 1, provider = 'runpod',
        instance_id = 'gone-' || token_id, ssh_host = '192.0.2.1', ssh_port = 22`,
    )
    .run();
  const machines = await world.rows("SELECT incarnation, instance_id AS instanceId FROM vms");
  const place = { provider: "runpod", region: "SECURE", plan: "p" } as const;
  await world.insert(
    attempts,
    ...machines.map(({ incarnation, instanceId }) => attemptRow({ incarnation, instanceId, ...place })),
  );
}

async function passTime(seconds: number) {
  await chain.node.increaseTime({ seconds });
  await chain.mine(4);
  await world.scan();
}

const statuses = () => world.rows("SELECT status, count(*) AS count FROM vms GROUP BY status ORDER BY status");

/** Many consumers at once. */
async function drainTogether() {
  while (world.sent.length > 0) {
    await Promise.all(world.sent.splice(0, AT_ONCE).map(({ body }) => world.run(body)));
  }
}

test("twelve machines that were bought within a minute end within one sweep (hard case 39)", async () => {
  await buyMany(12, 0);
  await world.drain();
  expect(await world.machines("vultr")).toHaveLength(12);
  await passTime(DAY + 60);
  await takePages();
  await world.sweep();
  expect(await statuses()).toEqual([{ status: "expired", count: 12 }]);
  await world.drain();
  expect(await statuses()).toEqual([{ status: "terminated", count: 12 }]);
  expect(await world.machines("vultr")).toEqual([]);
  expect(await takePages()).toMatchObject({ pages: [], cleared: expect.arrayContaining(["ends_disputed"]) });
});

test("five hundred machines that end in the same minute end within one sweep (hard case 39)", async () => {
  await buyMany(500, GPU);
  await pretendToRun();
  await passTime(DAY + 60);
  await world.sweep();
  expect(await statuses()).toEqual([{ status: "expired", count: 500 }]);
  await drainTogether();
  expect(await statuses()).toEqual([{ status: "terminated", count: 500 }]);
  expect((await takePages()).pages).toEqual([]);
}, 300_000);

test("machines that two nodes don't agree about keep no other from its end, and end once they do (hard case 39)", async () => {
  const lastToken = async () => Number((await world.rows("SELECT MAX(token_id) AS id FROM vms"))[0]?.["id"]);
  // The last number is odd, so that no offset in a call, each a multiple of 32, contains its digits.
  await buyMany(1, 0);
  if ((await lastToken()) % 2 === 1) await buyMany(1, 0);
  world = await deploy();
  await buyMany(101, 0);
  await pretendToRun();
  await passTime(DAY + 60);
  // The last one is asked for by itself.
  const includes = (await lastToken()).toString(16).padStart(64, "0");
  await addRpcFaults({ kind: "refuse", method: "eth_call", includes, message: "out of order" });
  await world.sweep();
  expect(await statuses()).toEqual([
    { status: "expired", count: 100 },
    { status: "running", count: 1 },
  ]);
  await clearRpcFaults();
  await world.sweep();
  expect(await statuses()).toEqual([{ status: "expired", count: 101 }]);
}, 120_000);

test("machines that are over by our rows and not by the chain's end a few at a time, none of them for good, and call a person (hard case 13)", async () => {
  await buyMany(6, GPU);
  await pretendToRun();
  await chain.mine(4);
  await world.scan();
  await world.sql.prepare("UPDATE vms SET expires_at = 1, check_at = 1").run();
  await world.sweep();
  expect(await statuses()).toEqual([
    { status: "expired", count: 3 },
    { status: "running", count: 3 },
  ]);
  expect(await takePages()).toMatchObject({ pages: ["ends_disputed"] });
  await world.drain();
  expect(await statuses()).toEqual([{ status: "running", count: 6 }]);
  // Each is looked at within the hour, not with each sweep.
  await world.sweep();
  await world.drain();
  await world.sweep();
  expect(await statuses()).toEqual([{ status: "running", count: 6 }]);
  expect(await takePages()).toMatchObject({ pages: [], cleared: expect.arrayContaining(["ends_disputed"]) });
});

test("what the chain does not confirm holds nobody's end up (hard case 39)", async () => {
  await buyMany(4, GPU);
  await passTime(DAY + 60);
  await buyMany(6, GPU);
  await pretendToRun();
  await chain.mine(4);
  await world.scan();
  await world.sql
    .prepare("UPDATE vms SET expires_at = 1, check_at = 1 WHERE expires_at > (SELECT block_timestamp FROM cursors)")
    .run();
  await world.sweep();
  expect(await statuses()).toEqual([
    { status: "expired", count: 4 + 3 },
    { status: "running", count: 3 },
  ]);
  await world.drain();
  expect(await statuses()).toEqual([
    { status: "running", count: 6 },
    { status: "terminated", count: 4 },
  ]);
});

test("a second that ended between blocks of one call left final history behind the head, and what waited for it never drained", async () => {
  await untilSecondEnds();
  await chain.mine(200);
  const head = await chain.reader.getBlock();
  const first = await chain.reader.getBlock({ blockNumber: head.number - 199n });
  expect(head.timestamp).toBe(first.timestamp);
});

async function untilSecondEnds(): Promise<void> {
  while (Date.now() % 1_000 < 950) await new Promise((resolve) => setTimeout(resolve, 1));
}

test("before final history has their end, a few are passed on and nobody is called", async () => {
  await buyMany(6, GPU);
  await pretendToRun();
  await chain.mine(4);
  await chain.node.increaseTime({ seconds: DAY + 60 });
  await chain.mine(1);
  await world.scan();
  await world.sweep();
  expect(await statuses()).toEqual([
    { status: "expired", count: 3 },
    { status: "running", count: 3 },
  ]);
  expect((await takePages()).pages).toEqual([]);
  await passTime(10);
  await world.sweep();
  expect(await statuses()).toEqual([{ status: "expired", count: 6 }]);
});

test("while no two nodes can be asked nothing ends", async () => {
  await buyMany(2, GPU);
  await pretendToRun();
  await passTime(DAY + 60);
  await addRpcFault({ kind: "down" });
  await addRpcFault({ kind: "down" }, "third");
  await world.sweep();
  expect(await statuses()).toEqual([{ status: "running", count: 2 }]);
});
