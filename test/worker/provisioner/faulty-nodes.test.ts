// Nodes that are wrong while others are right: an honest payer is neither refused, nor told to pay again, nor charged for
// nothing, whatever one of them says, and whatever two of them do not know yet.
import { runDurableObjectAlarm } from "cloudflare:test";
import { generatePrivateKey, privateKeyToAccount } from "viem/accounts";
import { beforeEach, expect, test } from "vitest";
import { readAuthorizationUse } from "../../../src/chain/authorization.ts";
import { USDC_ADDRESS } from "../../world/addresses.ts";
import { submit } from "../../world/payer.ts";
import type { RpcFault } from "../../world/rpc-proxy.ts";
import { agent, chain } from "../chain.ts";
import { buyAndRun, type Deployment, deploy } from "../deployment.ts";
import {
  accepted,
  give,
  orderMachine,
  ownerOf,
  playOn,
  post,
  signedTo,
  signPurchaseOf,
  sold,
  usdcOf,
} from "../edge/routes/x402/till.ts";
import { addFault, addRpcFault, addRpcFaults, clearRpcFaults } from "../faults.ts";

const PRICE = 500_000n;
const payer = agent(1);
let world: Deployment;
let had: { usdc: bigint; sold: bigint };
beforeEach(async () => {
  world = await deploy();
  had = { usdc: await usdcOf(payer.address), sold: await sold() };
});

const charged = async () => had.usdc - (await usdcOf(payer.address));
const closed = (id: string) => async () => {
  const { step, state } = await world.payment(id);
  return step === "idle" && state !== "refund_due";
};

/** Two of the three know the newest state, and the logs and receipts of their newest blocks later. */
const keepLogsBack = (blocks: number) => addRpcFaults({ kind: "logs_behind", blocks });

async function expectDelivered(id: string): Promise<void> {
  const row = await world.payment(id);
  expect(row).toMatchObject({ state: "settled", reason: null });
  expect([await charged(), (await sold()) - had.sold]).toEqual([PRICE, 1n]);
  expect(await ownerOf(row["token_id"])).toBe(payer.address);
  expect((await world.machines("vultr")).length).toBe(1);
}

test.each([1, 3])(
  "two nodes whose logs are %i blocks behind their state: an order is paid and delivered, and its payer welcome (hard case 28)",
  async (blocks) => {
    await keepLogsBack(blocks);
    const { id } = await accepted(world, payer);
    await playOn(world, closed(id));
    await expectDelivered(id);
    const { answer } = await orderMachine(world, payer, { region: "europe" });
    expect(answer.status).toBe(202);
  },
);

test("what a stranger has submitted, and two nodes have no log of yet, is neither refused nor to be signed again (hard case 28)", async () => {
  const order = await signPurchaseOf(world, payer);
  await keepLogsBack(2);
  await submit(chain, agent(3), order.signed, USDC_ADDRESS);
  const send = () => post(world, "/x402/purchase-compute", order.body, order.headers);
  const unclear = await send();
  expect(unclear.status, await unclear.clone().text()).toBeOneOf([202, 503]);
  await chain.mine(2);
  await clearRpcFaults();
  const clear = await send();
  expect(clear.status, await clear.clone().text()).toBe(202);
  const { purchaseId } = (await clear.json()) as { purchaseId: string };
  await playOn(world, closed(purchaseId));
  await expectDelivered(purchaseId);
});

test("nor is it where its payer has nothing left: the order is found, and its payer gets what it paid for (hard cases 28 and 60)", async () => {
  const poor = privateKeyToAccount(generatePrivateKey());
  await give(payer, poor.address, PRICE);
  const order = await signPurchaseOf(world, poor);
  await keepLogsBack(2);
  await submit(chain, agent(3), order.signed, USDC_ADDRESS);
  const unclear = await post(world, "/x402/purchase-compute", order.body, order.headers);
  expect(unclear.status, await unclear.clone().text()).toBe(202);
  const { purchaseId } = (await unclear.json()) as { purchaseId: string };
  await chain.mine(2);
  await clearRpcFaults();
  await playOn(world, closed(purchaseId));
  const row = await world.payment(purchaseId);
  expect(row).toMatchObject({ state: "settled", reason: null });
  expect(await ownerOf(row["token_id"])).toBe(poor.address);
});

test("an order that a stranger pays while two nodes have no log of it yet is not given up (hard case 28)", async () => {
  const { id, signed } = await accepted(world, payer);
  await keepLogsBack(1);
  await submit(chain, agent(3), signed, USDC_ADDRESS);
  await playOn(world, closed(id));
  await expectDelivered(id);
});

/** One of three is a block behind, and heard before one of the others: the first two to answer agree on the block before. */
async function lagByOne(): Promise<void> {
  await addRpcFault({ kind: "lag", blocks: 1 }, "third");
  await addRpcFault({ kind: "delay", ms: 300 }, "first");
}

/** An order that is taken so, played to its end once all nodes are well; its id. */
async function takenWhileOneLags(order: Awaited<ReturnType<typeof signPurchaseOf>>): Promise<string> {
  await lagByOne();
  const sent = await post(world, "/x402/purchase-compute", order.body, order.headers);
  const { purchaseId, ...body } = (await sent.json()) as { purchaseId: string };
  expect(sent.status, JSON.stringify(body)).toBe(202);
  await clearRpcFaults();
  await playOn(world, closed(purchaseId));
  return purchaseId;
}

test("what a stranger has submitted in the newest block is not to be signed again: a refusal was seen there, and the use looked up a block earlier (hard cases 28 and 60)", async () => {
  const order = await signPurchaseOf(world, payer);
  await submit(chain, agent(3), order.signed, USDC_ADDRESS);
  await expectDelivered(await takenWhileOneLags(order));
});

test("nor is it where its payer has nothing left, and nothing was written for it: the money stayed with us (hard case 60)", async () => {
  const poor = privateKeyToAccount(generatePrivateKey());
  await give(payer, poor.address, PRICE);
  const order = await signPurchaseOf(world, poor);
  await submit(chain, agent(3), order.signed, USDC_ADDRESS);
  const id = await takenWhileOneLags(order);
  expect(await ownerOf((await world.payment(id))["token_id"])).toBe(poor.address);
});

test("an empty account that one node alone has seen is no reason to sign again: two have not got the block that emptied it (hard case 60)", async () => {
  const poor = privateKeyToAccount(generatePrivateKey());
  await give(payer, poor.address, PRICE);
  const order = await signPurchaseOf(world, poor);
  await submit(chain, agent(3), order.signed, USDC_ADDRESS);
  const send = () => post(world, "/x402/purchase-compute", order.body, order.headers);
  world.app = world.appOf({ ...world.edge, RPC_URLS: behindOne(world.edge.RPC_URLS) });
  await addRpcFault({ kind: "lag", blocks: 1 }, "third");
  const unclear = await send();
  expect(unclear.status, await unclear.clone().text()).toBe(503);
  expect(await unclear.json()).toMatchObject({ charged: "unknown" });
  await clearRpcFaults();
  expect((await send()).status).toBe(202);
});

test("a facilitator that has seen a use which two of our nodes have not got yet refuses nothing: our own look an instant later finds it", async () => {
  const order = await signPurchaseOf(world, payer);
  await submit(chain, agent(3), order.signed, USDC_ADDRESS);
  world.app = world.appOf({ ...world.edge, RPC_URLS: behindOne(world.edge.RPC_URLS) });
  await addRpcFault({ kind: "lag", blocks: 1 }, "third");
  const { status } = await post(world, "/x402/purchase-compute", order.body, order.headers);
  await clearRpcFaults();
  expect(status).toBe(202);
  const [row] = await world.rows("SELECT id FROM payments");
  await playOn(world, closed(String(row?.["id"])));
  await expectDelivered(String(row?.["id"]));
});

/** The honest one first, and the third twice. */
const behindOne = ([, honest = "", third = ""]: readonly string[]) => [honest, `${third}/a`, `${third}/b`];

test("an order that a stranger pays in the newest block is not given up at its check (hard case 28)", async () => {
  const { id, signed } = await accepted(world, payer);
  await submit(chain, agent(3), signed, USDC_ADDRESS);
  await lagByOne();
  let looks = 0;
  await world.drain(async () => ++looks > 3 || (await world.payment(id))["step"] !== "check");
  expect(await world.payment(id)).toMatchObject({ state: "authorized", reason: null });
  await clearRpcFaults();
  await playOn(world, closed(id));
  await expectDelivered(id);
});

test.each(["unused", "paid"] as const)(
  "of an authorization that is %s in the newest block, a look before a refusal says so, and never by an older block than two have",
  async (state) => {
    const { signed, payment } = await signedTo(payer, PRICE);
    if (state === "paid") await submit(chain, agent(3), signed, USDC_ADDRESS);
    else await chain.mine(1);
    await lagByOne();
    const number = Number(await chain.reader.getBlockNumber());
    const sought = { ...payment, value: PRICE };
    const look = (block: "latest" | "newest") =>
      readAuthorizationUse(world.context.chain, USDC_ADDRESS, sought, payment.fromBlock, block);
    expect(await look("latest")).toMatchObject({ state: "unused", blockNumber: number - 1 });
    expect(await look("newest")).toMatchObject({ state, blockNumber: number });
  },
);

/** One liar, heard after an honest node and before the other: what it says is what two agree on, where only a part is held against another. */
async function lieSecond(...lies: RpcFault[]): Promise<void> {
  for (const lie of lies) await addRpcFault(lie);
  await addRpcFault({ kind: "delay", ms: 20 });
  await addRpcFault({ kind: "delay", ms: 60 }, "third");
}
const receiptsWith = (fields: Record<string, unknown>): RpcFault => ({
  kind: "patch",
  method: "eth_getTransactionReceipt",
  fields,
});

test.each([
  { receipts: "without logs", fields: { logs: [] } },
  { receipts: "that say reverted", fields: { status: "0x0" } },
  { receipts: "of a block far ahead", fields: { blockNumber: "0xffffff" } },
])(
  "one node with receipts $receipts: an order is paid and delivered all the same (hard case 29)",
  async ({ fields }) => {
    await lieSecond(receiptsWith(fields));
    const { id } = await accepted(world, payer);
    await playOn(world, closed(id));
    await expectDelivered(id);
  },
);

test.each([
  { receipts: "without logs", fields: { logs: [] } },
  { receipts: "that say reverted", fields: { status: "0x0" } },
])(
  "one node with receipts $receipts releases no payment that was given up and is used (hard case 29)",
  async ({ fields }) => {
    await addFault("vultr", { call: "create", kind: "sold_out" });
    const { id, signed } = await accepted(world, payer);
    await playOn(world, async () => {
      await world.missDeadlines();
      return (await world.payment(id))["state"] === "releasing";
    });
    await submit(chain, agent(3), signed, USDC_ADDRESS);
    await lieSecond(receiptsWith(fields));
    await playOn(world, closed(id));
    expect(await world.payment(id)).toMatchObject({ state: "refunded" });
    expect(await charged()).toBe(0n);
  },
);

test("one node that says of every transaction that it would fail gives up no order, and bars nobody (hard case 29)", async () => {
  for (const method of ["eth_estimateGas", "eth_simulateV1"])
    await addRpcFault({ kind: "refuse", method, message: "execution reverted" });
  const { id } = await accepted(world, payer);
  await playOn(world, closed(id));
  await expectDelivered(id);
});

test("what a payer has spent before its quote counts, though two nodes are behind: a token was bought for an empty account, and nobody was barred for it", async () => {
  const poor = privateKeyToAccount(generatePrivateKey());
  await chain.node.setBalance({ address: poor.address, value: 10n ** 18n });
  await give(payer, poor.address, PRICE);
  const { id } = await accepted(world, poor);
  await give(poor, payer.address, PRICE);
  await chain.mine(1);
  // As if the edge's node had quoted here, and told of the balance before.
  const quoted = Number(await chain.reader.getBlockNumber());
  await world.sql.prepare("UPDATE payments SET quoted_block = ?").bind(quoted).run();
  await addRpcFaults({ kind: "lag", blocks: 2 });
  let looks = 0;
  await world.drain(async () => ++looks > 4);
  expect(await world.payment(id)).toMatchObject({ step: "check", cost: null });
  await clearRpcFaults();
  await playOn(world, async () => (await world.payment(id))["reason"] !== null);
  expect(await world.payment(id)).toMatchObject({ state: "releasing", reason: "balance" });
  expect(await sold()).toBe(had.sold);
});

test("one node that puts a purchase's receipt into an old block makes it final for nobody (hard case 29)", async () => {
  const { payment: paid } = await signedTo(payer, PRICE);
  const purchase = {
    kind: "purchase",
    id: "early",
    payment: "p",
    tier: 0,
    durationDays: 1,
    cost: String(PRICE),
  } as const;
  const order = { ...purchase, paid };
  await world.wallet.order(order);
  await lieSecond(receiptsWith({ blockNumber: "0x1" }));
  await runDurableObjectAlarm(world.wallet);
  expect(await world.wallet.order(order)).toMatchObject({ state: "sent" });
});

test("one node that calls its newest block final ends no machine whose purchase a reorg has, and gives back (hard case 29)", async () => {
  const snapshot = await chain.node.snapshot();
  const tokenId = await buyAndRun(world, 0);
  const { block_number: block, incarnation } = (await world.vm(tokenId)) ?? {};
  await chain.node.revert({ id: snapshot });
  // The head is past the purchase's block, final history is not.
  await chain.mine(block + 1 - Number(await chain.reader.getBlockNumber()));
  await lieSecond({ kind: "finalized_is_latest" });
  await world.sql.prepare("UPDATE vms SET step = 'retire', generation = generation + 1").run();
  const { generation } = (await world.vm(tokenId)) ?? {};
  await world.run({ kind: "advance", incarnation, generation });
  expect(await world.rows("SELECT status, step FROM vms")).toEqual([{ status: "running", step: "retire" }]);
  expect(await world.machines("vultr")).toHaveLength(1);
});

test("one head whose time is a day ahead fails no purchase, and expires no machine (hard case 29)", async () => {
  // Other tests have moved the chain's clock ahead of ours.
  const { timestamp } = await chain.reader.getBlock();
  const ahead = Math.max(0, Number(timestamp) - Math.floor(Date.now() / 1_000));
  const settings = { CHAIN_MAX_AHEAD_SECONDS: String(ahead + 120) };
  world = await deploy({ edge: settings, provisioner: settings });
  const running = await buyAndRun(world, 0);
  const { tokenId } = await world.buy(2);
  const { id } = await accepted(world, payer);
  await addRpcFault({ kind: "ahead", seconds: 86_400 + 60 });
  await chain.mine(1);
  await world.scan();
  await world.sweep();
  expect(await world.vm(running)).toMatchObject({ status: "running", step: "idle" });
  await playOn(world, closed(id));
  expect(await world.payment(id)).toMatchObject({ state: "settled", reason: null });
  for (const token of [running, tokenId]) expect(await world.vm(token)).toMatchObject({ status: "running" });
});
