// Several uses of authorizations in one transaction: a thief's, where one transfer is to pay many orders, and an honest
// settler's, where each order has its own (hard case 27). Money is counted at the coin, by Multicall3 as it is on Base.
import type { PaymentRequirements } from "@x402/core/types";
import type { Hex } from "viem";
import { beforeEach, expect, test } from "vitest";
import { REGION_NAMES } from "../../../../src/model/tiers.ts";
import { USDC_ADDRESS } from "../../../world/addresses.ts";
import { authorize, type SignedPayment, submitTogether } from "../../../world/payer.ts";
import { agent, chain, deployer, operator } from "../../chain.ts";
import { type Deployment, deploy } from "../../deployment.ts";
import { type Operator, operator as operatorClient } from "../../edge/routes/admin/operator.ts";
import {
  accepted,
  at,
  claw,
  inState,
  mined,
  orderMachine,
  ownerOf,
  playOn,
  playUntil,
  post,
  signPurchaseOf,
  sold,
  usdcOf,
} from "../../edge/routes/x402/till.ts";

type Books = {
  incoming: { transfers: number; sum: string; explained: string; unexplained: unknown[] };
  missing: { id: string }[];
};

const PRICE = 500_000n;
const thief = agent(1);
let world: Deployment;
let ask: Operator;
let had: { thief: bigint; operator: bigint; sold: bigint };
let from: number;

beforeEach(async () => {
  world = await deploy();
  ask = operatorClient(world, await world.operatorKey());
  // Who has paid once may have several orders open.
  const { id } = await accepted(world, thief);
  await playUntil(world, id, at("idle"));
  from = Number(await chain.reader.getBlockNumber()) + 1;
  had = { thief: await usdcOf(thief.address), operator: await usdcOf(operator.address), sold: await sold() };
});

/** The same order twice would be one (hard case 59). */
let drawn = 0;
const another = () => ({ region: REGION_NAMES[drawn++ % REGION_NAMES.length] ?? "europe" });

const lost = async () => had.thief - (await usdcOf(thief.address));
const running = async () =>
  (await world.rows("SELECT 1 FROM vms WHERE status = 'running' AND owner = ?", thief.address.toLowerCase())).length;

/** One real payment, and the nonces of others: logs of Used(A), Transfer(thief to us), Used(B), Transfer(thief to thief). */
async function steal(real: SignedPayment, others: readonly SignedPayment[], by = thief): Promise<Hex> {
  const spoilt = others.map(({ authorization }) =>
    authorize(by, usdc, { ...authorization, to: by.address, value: "0" }),
  );
  const { status, transactionHash } = await submitTogether(
    chain,
    by,
    [real, ...(await Promise.all(spoilt))],
    USDC_ADDRESS,
  );
  expect(status).toBe("success");
  return transactionHash;
}
const usdc: PaymentRequirements = {
  scheme: "exact",
  network: "eip155:8453",
  asset: USDC_ADDRESS,
  amount: "0",
  payTo: thief.address,
  maxTimeoutSeconds: 600,
  extra: { name: "USD Coin", version: "2" },
};
/** Until nothing is left to do; the time of what was given up is over by then. */
const toTheEnd = () =>
  playOn(world, async () => {
    await world.sql.prepare("UPDATE payments SET valid_before = 1 WHERE state = 'releasing'").run();
    return (await world.rows("SELECT 1 FROM payments WHERE step <> 'idle'")).length === 0;
  });
const books = async (): Promise<Books> => {
  await chain.mine(4);
  return (await ask<Books>("GET", `/admin/payments/reconcile?fromBlock=${from}`)).body;
};

const bought = async () => {
  await world.drain();
  await chain.mine(1);
  await world.scan();
  const waiting = "SELECT 1 FROM payments WHERE step = 'provision'";
  await world.drain(async () => (await world.rows(waiting)).length === 4);
};

test.each([
  { moment: "before anything is bought", until: async () => undefined },
  { moment: "while their machines are made", until: bought },
])(
  "four orders, one transfer and four used nonces in one transaction $moment: one is paid, three are taken back (hard case 27)",
  async ({ until }) => {
    const orders: Awaited<ReturnType<typeof accepted>>[] = [];
    for (let count = 0; count < 4; count++) orders.push(await accepted(world, thief, another()));
    await until();
    const [first, ...rest] = orders.map(({ signed }) => signed);
    if (first === undefined) throw new Error("no order");
    const txHash = await steal(first, rest);
    await toTheEnd();
    const rows = await Promise.all(orders.map(({ id }) => world.payment(id)));
    expect(rows.map(({ state }) => state)).toEqual(["settled", "released", "released", "released"]);
    expect(rows.map((row) => row["settle_tx"])).toEqual([txHash, null, null, null]);
    expect(await lost()).toBe(PRICE);
    // The first order's machine, and that of the one that is paid.
    expect([await running(), (await world.machines("vultr")).length]).toEqual([2, 2]);
    expect(await books()).toMatchObject({
      incoming: { transfers: 1, sum: "0.50", explained: "0.50", unexplained: [] },
      missing: [],
    });
  },
);

test("an order made with a nonce that an earlier transaction used for nothing is not paid by that transaction's other transfer (hard case 27)", async () => {
  const real = await signPurchaseOf(world, thief, another());
  const used = await signPurchaseOf(world, thief, another());
  await steal(real.signed, [used.signed]);
  const [paid, unpaid] = [await send(real), await send(used)];
  expect([paid.status, unpaid.status]).toEqual([202, 402]);
  await toTheEnd();
  expect(await sold()).toBe(had.sold + 1n);
  expect([await lost(), await running()]).toEqual([PRICE, 2]);
  expect(await world.rows("SELECT 1 FROM payments WHERE refund_tx IS NOT NULL OR state = 'refunded'")).toEqual([]);
});
const pauseTransfers = (paused: boolean) =>
  mined(chain.wallet(deployer).writeContract({ ...claw, functionName: "setTransfersPaused", args: [paused] }));
const send = ({ body, headers }: Awaited<ReturnType<typeof signPurchaseOf>>) =>
  post(world, "/x402/purchase-compute", body, headers);

test("orders that were refused, and whose nonces are used beside another's transfer, are not paid back (hard case 27)", async () => {
  const fresh = agent(3);
  const before = await usdcOf(fresh.address);
  const first = await accepted(world, fresh, another());
  const refused = [];
  for (let count = 0; count < 3; count++) refused.push(await orderMachine(world, fresh, another()));
  expect(refused.map(({ answer }) => answer.status)).toEqual([409, 409, 409]);
  await steal(
    first.signed,
    refused.map(({ signed }) => signed),
    fresh,
  );
  await toTheEnd();
  expect(await world.payment(first.id)).toMatchObject({ state: "settled" });
  expect(before - (await usdcOf(fresh.address))).toBe(PRICE);
  // Paid in, and out again for the one token.
  expect(await usdcOf(operator.address)).toBe(had.operator);
  expect(await books()).toMatchObject({ incoming: { transfers: 1, explained: "0.50" }, missing: [] });
});

test("an order that came to nothing, and whose nonce is used beside another's transfer, is not paid back (hard case 27)", async () => {
  await pauseTransfers(true);
  const nothing = await accepted(world, thief, another());
  await playUntil(world, nothing.id, inState("releasing"));
  await pauseTransfers(false);
  const real = await accepted(world, thief, another());
  await steal(real.signed, [nothing.signed]);
  await toTheEnd();
  expect([await world.payment(real.id), await world.payment(nothing.id)]).toMatchObject([
    { state: "settled" },
    { state: "released" },
  ]);
  expect(await lost()).toBe(PRICE);
});

test("books in which one transfer has paid four orders show three of them as missing (hard case 27)", async () => {
  const orders: Awaited<ReturnType<typeof accepted>>[] = [];
  for (let count = 0; count < 4; count++) orders.push(await accepted(world, thief, another()));
  const [first, ...rest] = orders;
  if (first === undefined) throw new Error("no order");
  const txHash = await steal(
    first.signed,
    rest.map(({ signed }) => signed),
  );
  // As a build has them that takes any transfer of the amount for the payment.
  await world.sql
    .prepare(
      "UPDATE payments SET state = 'settled', step = 'idle', settle_tx = ?, settled_at = 1, from_block = ? WHERE state = 'authorized'",
    )
    .bind(txHash, from)
    .run();
  const { incoming, missing } = await books();
  expect(incoming).toMatchObject({ transfers: 1, sum: "0.50", explained: "0.50", unexplained: [] });
  expect(missing.map(({ id }) => id).sort()).toEqual(rest.map(({ id }) => id).sort());
});

test("an honest settler's batch pays each order by its own transfer, in whatever order, and the books explain all (hard case 27)", async () => {
  const orders = [
    await accepted(world, thief, another()),
    await accepted(world, agent(2), another()),
    await accepted(world, thief, another()),
  ];
  const payments = orders.map(({ signed }) => signed).reverse();
  const { transactionHash } = await submitTogether(chain, agent(4), payments, USDC_ADDRESS);
  await toTheEnd();
  for (const { id, signed } of orders) {
    const row = await world.payment(id);
    expect(row).toMatchObject({ state: "settled", settle_tx: transactionHash });
    expect(await ownerOf(row["token_id"])).toBe(signed.authorization.from);
  }
  expect(await lost()).toBe(2n * PRICE);
  expect(await books()).toMatchObject({
    incoming: { transfers: 3, sum: "1.50", explained: "1.50", unexplained: [] },
    missing: [],
  });
});
