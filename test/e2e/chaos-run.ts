// `npm run chaos` as a test runs it, short or long.
import { expect, type TestContext } from "vitest";
import { processesOf, startChild, untilGone } from "./child.ts";

export type Blows = {
  seed: number;
  purchases: number;
  seconds: number;
  kills: number;
  reorgs: number;
  /** Seconds, for everything. */
  deadline: number;
  /** By how many seconds more than they were down the killed Workers seem to have been. */
  outage?: number;
};

const SECONDS_OF_A_LONG_ONE = 60;

export const startChaos = (context: TestContext, options: Record<string, number>) =>
  startChild(context, process.execPath, [
    "test/chaos/run.ts",
    ...Object.entries(options).flatMap(([name, value]) => [`--${name}`, String(value)]),
  ]);

/** Plays it to its end: every purchase stands and has a machine or its money back, and everything happened that was planned. */
export async function playChaos(context: TestContext, blows: Blows): Promise<void> {
  const run = startChaos(context, blows);
  await run.says(/begins to blow/);
  const family = processesOf(run.pid);
  await run.says(/calm; waiting/, blows.deadline * 1_000);
  family.push(...processesOf(run.pid));
  expect(await run.ended, run.output()).toBe(0);
  const figure = (name: string) => Number(new RegExp(`^${name} +(\\d+)`, "m").exec(run.output())?.[1]);
  expect(figure("purchases that stand")).toBe(blows.purchases);
  expect(figure("running, SSH answers") + figure("refunded on chain")).toBe(blows.purchases);
  expect(figure("Workers killed and started again")).toBe(blows.kills);
  expect(figure("reorgs")).toBe(blows.reorgs);
  // On a busy machine a short one is over before the first order has reached a vendor.
  if (blows.seconds >= SECONDS_OF_A_LONG_ONE) {
    expect(run.output(), "nothing was under way while it blew").toMatch(/^faults that met a call +\w/m);
  }
  // anvil, the Workers' own process and workerd below it, before the blows and after them.
  expect(family.length).toBeGreaterThan(4);
  await untilGone(family);
}
