// Orders for the operator wallet as somebody would have them given who writes every row of the database: the wallet asks
// the chain and its own ledger, and lets no more leave for a payment or a purchase than came in by it (hard case 34).
import { beforeEach, expect, test } from "vitest";
import { agent, chain, type Deployment, deploy } from "../deployment.ts";
import { usdcOf } from "../routes/x402/till.ts";

const thief = agent(1);
let world: Deployment;
beforeEach(async () => {
  await chain.node.setAutomine(true);
  world = await deploy();
});

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
