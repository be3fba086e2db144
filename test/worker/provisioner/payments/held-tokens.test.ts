// Tokens that are left of orders which came to nothing: they serve the next order that asks for what is left of them, and
// no bargain (hard case 33). Money and time are read at the coin and the contract.
import { parseAbi } from "viem";
import { afterEach, beforeEach, expect, test } from "vitest";
import { reap } from "../../../../src/provisioner/machines/reap.ts";
import { agent, chain } from "../../chain.ts";
import { type Deployment, deploy, type Row } from "../../deployment.ts";
import { accepted, claw, ownerOf, playOn, setTier, sold, usdcOf } from "../../edge/routes/x402/till.ts";
import { addFault, clearFaults } from "../../faults.ts";
import { unlocked } from "../../parts.ts";
import { forgetLists } from "../../vendors.ts";

const PRICE = 500_000n;
const GPU = 4;
const GPU_PRICE = 18_000_000n;
const HOUR = 3_600;
const unlucky = agent(1);
const next = agent(2);
let world: Deployment;
beforeEach(async () => {
  // What a long order of a GPU costs, bought before it is paid; and lateness is paid for.
  world = await deploy({
    edge: { UNCAPTURED_LIMIT_USDC_PER_HOUR: "100000" },
    provisioner: { LATE_REFUNDS: "pay" },
  });
});
afterEach(async () => {
  await setTier(PRICE);
});

const vendorOf = (tier: number) => (tier < GPU ? "vultr" : "runpod");

/** Orders while nothing can be had, until the token that was bought for it is left with us. Resolves with the token. */
async function leave(tier: number, durationDays: number): Promise<unknown> {
  await addFault(vendorOf(tier), { call: "create", kind: "sold_out" });
  const before = await usdcOf(unlucky.address);
  const { id } = await accepted(world, unlucky, { tier, durationDays });
  await playOn(world, async () => {
    await world.missDeadlines();
    await world.sql.prepare("UPDATE payments SET valid_before = 1 WHERE state = 'releasing'").run();
    return (await world.payment(id))["step"] === "idle";
  });
  const row = await world.payment(id);
  expect([row["held"], await usdcOf(unlucky.address)]).toEqual([1, before]);
  await clearFaults();
  // Vendors that were sold out are asked again.
  world.passTime(HOUR);
  return row["token_id"];
}
async function pass(seconds: number): Promise<void> {
  await chain.node.increaseTime({ seconds });
  await chain.mine(4);
  await world.scan();
  forgetOffers();
}
/** Another isolate answers, which has no price and no time of the chain in its cache. */
const forgetOffers = () => {
  world.app = world.appOf({ ...world.edge });
};
/** Orders, and plays until the books are closed and nothing is owed any more. */
async function serve(tier: number, durationDays: number): Promise<Row> {
  const { id } = await accepted(world, next, { tier, durationDays });
  await playOn(world, async () => (await world.payment(id))["step"] === "idle");
  const row = await world.payment(id);
  expect(row).toMatchObject({ state: "settled", reason: null });
  expect(await ownerOf(row["token_id"])).toBe(next.address);
  return row;
}
/** Until no refund is on its way. */
const untilPaidBack = () =>
  playOn(world, async () => {
    const owed = "SELECT 1 FROM refunds WHERE state IN ('recorded', 'waiting', 'due', 'paying')";
    return (await world.rows(owed)).length === 0;
  });
const leaseAbi = parseAbi(["function leases(uint256) view returns (uint64 expiresAt, uint8 tier, bool terminated)"]);
async function secondsLeft(tokenId: unknown): Promise<number> {
  const args = [BigInt(tokenId as number)] as const;
  const { address } = claw;
  const [expiresAt] = await chain.reader.readContract({ address, abi: leaseAbi, functionName: "leases", args });
  return Number(expiresAt) - Number((await chain.reader.getBlock()).timestamp);
}

test.each([
  { held: 1, hours: 1, ordered: 1, short: HOUR },
  { held: 2, hours: 23, ordered: 1, short: 0 },
  { held: 2, hours: 25, ordered: 1, short: HOUR },
  { held: 20, hours: 12, ordered: 20, short: 12 * HOUR },
])(
  "a token of $held days that was left $hours hours ago serves an order of $ordered days, and what it is short of is paid back (hard case 33)",
  async ({ held, hours, ordered, short }) => {
    const token = await leave(0, held);
    await pass(hours * HOUR);
    const before = [await usdcOf(next.address), await sold()] as const;
    expect(await serve(0, ordered)).toMatchObject({ token_id: token });
    expect(await sold()).toBe(before[1]);
    const charged = async () => Number(before[0] - (await usdcOf(next.address)));
    // What goes back is rounded down.
    const due = (seconds: number) => Number(PRICE) * ordered - Math.floor((seconds * Number(PRICE)) / 86_400);
    // The test itself takes a while.
    if (short > 0) await playOn(world, async () => (await charged()) <= due(short));
    await untilPaidBack();
    expect(await charged()).toBeLessThanOrEqual(due(short));
    expect(await charged()).toBeGreaterThan(due(short + 300));
  },
);

test.each([
  { held: 20, hours: 0, ordered: 1, what: "nineteen days more than was ordered" },
  { held: 2, hours: 0, ordered: 1, what: "a day more than was ordered" },
  { held: 1, hours: 3, ordered: 1, what: "three hours less than was ordered" },
  { held: 20, hours: 36, ordered: 20, what: "more than a twentieth less than was ordered" },
])(
  "a token that has $what stays in stock: the order gets one of its own (hard case 33)",
  async ({ held, hours, ordered }) => {
    const token = await leave(0, held);
    if (hours > 0) await pass(hours * HOUR);
    const before = [await usdcOf(next.address), await sold()] as const;
    const row = await serve(0, ordered);
    expect(row["token_id"]).not.toBe(token);
    expect(await sold()).toBe(before[1] + 1n);
    expect(await usdcOf(next.address)).toBe(before[0] - PRICE * BigInt(ordered));
    expect(Math.abs((await secondsLeft(row["token_id"])) - ordered * 86_400)).toBeLessThan(300);
  },
);

/** The order's machine vanishes at its vendor, and no other can be had. */
async function loseFor({ incarnation }: Row, tier: number): Promise<void> {
  const [vm] = await world.rows("SELECT instance_id FROM vms WHERE incarnation = ?", incarnation);
  await unlocked();
  await world.context.vendors[vendorOf(tier)].delete(String(vm?.["instance_id"]));
  await addFault(vendorOf(tier), { call: "create", kind: "sold_out" });
  await forgetLists();
  await reap(world.context);
  await playOn(world, async () => {
    await world.missDeadlines();
    return (await world.rows("SELECT 1 FROM vms WHERE incarnation = ? AND status = 'failed'", incarnation)).length > 0;
  });
}

test("a GPU of twenty days that came to nothing is not had for the price of one day, nor its price when it is lost (hard case 33)", async () => {
  const token = await leave(GPU, 20);
  const before = await usdcOf(next.address);
  const row = await serve(GPU, 1);
  expect(await usdcOf(next.address)).toBe(before - GPU_PRICE);
  await loseFor(row, GPU);
  await untilPaidBack();
  const after = await usdcOf(next.address);
  expect(after).toBeLessThanOrEqual(before);
  expect(after).toBeGreaterThan(before - GPU_PRICE / 10n);
  expect(row["token_id"]).not.toBe(token);
});

test("what goes back for a machine on a token that was left is at most what its payer paid, whatever the token cost (hard case 33)", async () => {
  const token = await leave(0, 1);
  // Half of it, which still pays for the machine.
  await setTier(PRICE / 2n);
  forgetOffers();
  const before = await usdcOf(next.address);
  const row = await serve(0, 1);
  expect(row).toMatchObject({ token_id: token, amount: String(PRICE / 2n) });
  await loseFor(row, 0);
  await untilPaidBack();
  const after = await usdcOf(next.address);
  expect(after).toBeLessThanOrEqual(before);
  expect(after).toBeGreaterThan(before - PRICE / 20n);
});

test("a token that lasts longer than was ordered gives back no day that was used: a machine was had for nothing until its last days", async () => {
  await leave(0, 20);
  await pass(2 * HOUR);
  const before = [await usdcOf(next.address), await sold()] as const;
  const row = await serve(0, 19);
  expect(await sold()).toBe(before[1]);
  await pass(20 * HOUR);
  await loseFor(row, 0);
  await untilPaidBack();
  const used = Number(before[0] - (await usdcOf(next.address)));
  expect(used).toBeGreaterThanOrEqual((19 * HOUR * Number(PRICE)) / 86_400);
  expect(used).toBeLessThanOrEqual((21 * HOUR * Number(PRICE)) / 86_400);
});
