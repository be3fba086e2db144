// Payers whose money or token moves where it is not expected: an account that the coin blocks, a token that comes back to
// us, a payment that was signed for longer than asked. Nobody loses by it, and nobody gains.
import { parseAbi } from "viem";
import { afterEach, beforeEach, expect, test } from "vitest";
import { USDC_ADDRESS } from "../../../world/addresses.ts";
import { submit } from "../../../world/payer.ts";
import { agent, chain, operator } from "../../chain.ts";
import { type Deployment, deploy } from "../../deployment.ts";
import {
  accepted,
  claw,
  mined,
  ownerOf,
  playOn,
  post,
  setBlocked,
  signPurchaseOf,
  sold,
  usdcOf,
} from "../../edge/routes/x402/till.ts";
import { addFault } from "../../faults.ts";

const PRICE = 500_000n;
let world: Deployment;
beforeEach(async () => {
  world = await deploy({ provisioner: { CAPTURE_FIRST_TIERS: "0" }, edge: { CAPTURE_FIRST_TIERS: "0" } });
});
afterEach(async () => {
  await setBlocked(agent(1).address, false);
});

test("a payer whom the coin has blocked since waits for the refund, and nobody else does", async () => {
  await addFault("vultr", { call: "create", kind: "sold_out" });
  const [blocked, other] = [agent(1), agent(3)];
  const had = [await usdcOf(blocked.address), await usdcOf(other.address)];
  const orders = [await accepted(world, blocked), await accepted(world, other)];
  await playOn(world, async () => (await world.rows("SELECT 1 FROM payments WHERE state = 'settled'")).length === 2);
  await setBlocked(blocked.address, true);
  await playOn(world, async () => {
    await world.missDeadlines();
    return (await world.payment(orders[1]?.id ?? ""))["state"] === "refunded";
  });
  expect(await usdcOf(other.address)).toBe(had[1]);
  expect((await world.payment(orders[0]?.id ?? ""))["state"]).toBe("refund_due");
  await setBlocked(blocked.address, false);
  await playOn(world, async () => (await world.payment(orders[0]?.id ?? ""))["state"] === "refunded");
  expect(await usdcOf(blocked.address)).toBe(had[0]);
});

test("a token that its payer gives back to us is nobody's next order, and nothing is paid for it", async () => {
  const payer = agent(1);
  const had = await usdcOf(payer.address);
  const { id } = await accepted(world, payer);
  await playOn(world, async () => (await world.payment(id))["step"] === "close");
  const tokenId = (await world.payment(id))["token_id"];
  const give = { address: claw.address, abi: parseAbi(["function transferFrom(address,address,uint256)"]) } as const;
  await mined(
    chain.wallet(payer).writeContract({
      ...give,
      functionName: "transferFrom",
      args: [payer.address, operator.address, BigInt(tokenId as number)],
    }),
  );
  await playOn(world, async () => (await world.payment(id))["step"] === "idle");
  const before = await sold();
  const again = await accepted(world, payer, { region: "europe" });
  await playOn(world, async () => (await world.payment(again.id))["step"] === "idle");
  expect(await sold()).toBe(before + 1n);
  expect(await ownerOf((await world.payment(again.id))["token_id"])).toBe(payer.address);
  expect(await usdcOf(payer.address)).toBe(had - 2n * PRICE);
  expect(await world.rows("SELECT 1 FROM refunds WHERE state <> 'cancelled'")).toEqual([]);
});

test("a payment that was signed for longer than asked, and submitted some minutes ago, is not said to have charged nothing", async () => {
  const { timestamp } = await chain.reader.getBlock();
  const order = await signPurchaseOf(world, agent(3), {}, { validBefore: String(Number(timestamp) + 86_400) });
  await submit(chain, agent(4), order.signed, USDC_ADDRESS);
  await chain.mine(200);
  await world.scan();
  world.app = world.appOf({ ...world.edge });
  const answer = await post(world, "/x402/purchase-compute", order.body, order.headers);
  const body = (await answer.json()) as { charged?: unknown };
  // Sold, or at least not refused as if nothing had moved.
  expect([answer.status, body.charged]).not.toEqual([402, "none"]);
  expect(answer.status).toBe(202);
});
