// Orders for the operator wallet as somebody would have them given who writes every row of the database: the wallet asks
// the chain and its own ledger, and lets no more leave for a payment or a purchase than came in by it (hard case 34).
import { runDurableObjectAlarm } from "cloudflare:test";
import { beforeEach, expect, test } from "vitest";
import { agent, chain } from "../../chain.ts";
import { type Deployment, deploy } from "../../deployment.ts";
import { ownerOf, paidUs, sold, usdcOf } from "../../edge/routes/x402/till.ts";

const DAY_OF_GPU = 18_000_000n;
const [thief, honest] = [agent(1), agent(2)];
const served = { state: "waiting", why: "served" };
/** The other one has been signed, or is on its way. */
const comesSecond = { state: "waiting", why: expect.stringMatching(/^(served|unproven)$/) };
let world: Deployment;
beforeEach(async () => {
  world = await deploy();
});

type Paid = Awaited<ReturnType<typeof paidUs>>;
const nameOf = ({ nonce }: Paid) => nonce.slice(2, 34);

/** A token that the wallet buys for a payment. */
async function buyFor(paid: Paid, tier = 0) {
  const tokenId = Number(await sold());
  const order = { kind: "purchase", payment: nameOf(paid), tier, durationDays: 1, cost: paid.value, paid } as const;
  expect(await world.wallet.order({ ...order, id: `purchase/${nameOf(paid)}` })).toMatchObject({ state: "sent" });
  await world.scan();
  const [row] = await world.rows("SELECT incarnation FROM vms WHERE token_id = ?", tokenId);
  return { tokenId, purchase: String(row?.["incarnation"]), order };
}
const transferOf = (paid: Paid, { tokenId, purchase }: { tokenId: number; purchase: string }) =>
  ({ kind: "transfer", id: `transfer/${nameOf(paid)}/${tokenId}`, to: paid.from, tokenId, purchase, paid }) as const;
async function handOver(paid: Paid, token: { tokenId: number; purchase: string }): Promise<void> {
  const sent = await world.wallet.order(transferOf(paid, token));
  expect(sent, JSON.stringify(sent)).toMatchObject({ state: "sent" });
}
/** A token that the wallet has bought for a payment, and handed over. */
async function sell(paid: Paid, tier = 0) {
  const token = await buyFor(paid, tier);
  await handOver(paid, token);
  await chain.mine(4);
  await runDurableObjectAlarm(world.wallet);
  return token;
}
const refundOf = (id: string, paid: Paid, amount: bigint, purchase?: string) =>
  ({
    kind: "pay",
    id,
    to: paid.from,
    amount: String(amount),
    owed: { payment: paid, ...(purchase === undefined ? {} : { purchase }) },
  }) as const;

test("a purchase whose numbers are written with zeros in front is no other purchase: it was paid back once for each spelling", async () => {
  const { tokenId } = await world.buy(1);
  await world.scan();
  await chain.mine(4);
  const [row] = await world.rows("SELECT incarnation FROM vms WHERE token_id = ?", tokenId);
  const own = String(row?.["incarnation"]);
  const refund = (id: string, purchase: string) =>
    ({ kind: "pay", id, to: thief.address, amount: "500000", owed: { purchase } }) as const;
  const before = await usdcOf(thief.address);
  expect(await world.wallet.order(refund("first", own))).toMatchObject({ state: "sent" });
  const spellings = [own.replace(`/${tokenId}/`, `/0${tokenId}/`), own.replace(/\/0$/, "/00")];
  for (const [i, purchase] of spellings.entries()) {
    const state = await world.wallet.order(refund(`spelling ${i}`, purchase)).catch(() => null);
    expect(state?.state ?? "refused").not.toBe("sent");
  }
  expect(await usdcOf(thief.address)).toBe(before + 500_000n);
});

test("somebody's payment is not paid back to whoever has another token: 18 USDC went to the buyer of a machine of fifty cents", async () => {
  const cheap = await sell(await paidUs(thief, 500_000n));
  const dear = await paidUs(honest, DAY_OF_GPU);
  const { purchase } = await sell(dear, 4);
  const before = await usdcOf(thief.address);
  const stolen = { ...refundOf("stolen", dear, DAY_OF_GPU, cheap.purchase), to: thief.address };
  expect(await world.wallet.order(stolen)).toEqual({ state: "waiting", why: "not_owed" });
  expect(await usdcOf(thief.address)).toBe(before);
  // To whom it was sold it is paid back.
  expect(await world.wallet.order(refundOf("honest", dear, DAY_OF_GPU, purchase))).toMatchObject({ state: "sent" });
});

test("a token and its price don't both leave for a payment, asked for at the same moment", async () => {
  const paid = await paidUs(thief, 500_000n);
  const token = await buyFor(paid);
  await chain.mine(4);
  const before = await usdcOf(thief.address);
  const states = await Promise.all([
    world.wallet.order(transferOf(paid, token)),
    world.wallet.order(refundOf("at the same moment", paid, 500_000n)),
  ]);
  expect(states.filter(({ state }) => state === "sent").length).toBe(1);
  expect(states).toContainEqual(comesSecond);
  const isTheirs = (await ownerOf(token.tokenId)) === thief.address;
  expect((await usdcOf(thief.address)) - before).toBe(isTheirs ? 0n : 500_000n);
});

test("two tokens don't leave for one payment, asked for at the same moment", async () => {
  const [paid, other] = [await paidUs(thief, 500_000n), await paidUs(honest, 500_000n)];
  const tokens = [await buyFor(paid), await buyFor(other)];
  const askForAll = () => Promise.all(tokens.map((token) => world.wallet.order(transferOf(paid, token))));
  expect((await askForAll()).filter(({ state }) => state === "sent").length).toBe(1);
  // While the first is on its way the second waits to see what becomes of it.
  await chain.mine(1);
  const states = await askForAll();
  expect(states.filter(({ state }) => state === "sent").length).toBe(1);
  expect(states).toContainEqual(comesSecond);
});

test("two tokens don't leave for one payment, the second while the first is on its way (seed 282949)", async () => {
  const [paid, other] = [await paidUs(thief, 500_000n), await paidUs(honest, 500_000n)];
  const [token, another] = [await buyFor(paid), await buyFor(other)];
  await chain.node.setAutomine(false);
  await handOver(paid, token);
  expect(await world.wallet.order(transferOf(paid, another))).toEqual({ state: "waiting", why: "unproven" });
  await chain.node.setAutomine(true);
  await chain.mine(1);
  expect(await ownerOf(token.tokenId)).toBe(thief.address);
  expect(await world.wallet.order(transferOf(paid, another))).toEqual(served);
});

test("nothing is bought for a payment that was paid back", async () => {
  const paid = await paidUs(thief, 500_000n);
  expect(await world.wallet.order(refundOf("back", paid, 500_000n))).toMatchObject({ state: "sent" });
  const before = await sold();
  const order = {
    kind: "purchase",
    id: "afterwards",
    payment: "p",
    tier: 0,
    durationDays: 1,
    cost: "500000",
    paid,
  } as const;
  expect(await world.wallet.order(order)).toEqual(served);
  expect(await sold()).toBe(before);
});
