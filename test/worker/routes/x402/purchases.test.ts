import { expect, test } from "vitest";
import { agent, chain, deploy } from "../../deployment.ts";
import { orderMachine, playUntil, usdcOf } from "./till.ts";

test("an order is charged once its machine answers, and the token goes to the payer", async () => {
  const world = await deploy();
  const payer = agent(1);
  const before = await usdcOf(payer.address);
  const { answer } = await orderMachine(world, payer);
  const accepted = (await answer.json()) as { purchaseId: string };
  expect(answer.status, JSON.stringify(accepted)).toBe(202);
  expect(await usdcOf(payer.address)).toBe(before);
  const row = await playUntil(world, accepted.purchaseId, ({ step }) => step === "close");
  expect(row).toMatchObject({ state: "settled" });
  expect(await usdcOf(payer.address)).toBe(before - 500_000n);
  expect(await world.vm(Number(row["token_id"]))).toMatchObject({ status: "running" });
  await chain.mine(5);
  const closed = await playUntil(world, accepted.purchaseId, ({ step }) => step === "idle");
  expect(closed).toMatchObject({ state: "settled" });
});
