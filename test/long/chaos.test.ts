// Larger runs of `npm run chaos` than the one that `npm test` plays, and one that is interrupted.
import { expect, test } from "vitest";
import { playChaos, startChaos } from "../e2e/chaos-run.ts";
import { processesOf, untilGone } from "../e2e/child.ts";

const MINUTE = 60_000;

test(
  "forty purchases made through two minutes of kills, faults and reorgs all end with a machine or their money",
  async (context) => {
    await playChaos(context, { seed: 8, purchases: 40, seconds: 120, kills: 6, reorgs: 6, deadline: 1_500 });
  },
  30 * MINUTE,
);

test(
  "six purchases through half a minute of them, with outages of five minutes after each kill, do so too",
  async (context) => {
    const blows = { seed: 8, purchases: 6, seconds: 25, kills: 2, reorgs: 2, outage: 300 };
    await playChaos(context, { ...blows, deadline: 1_500 });
  },
  30 * MINUTE,
);

test("an interrupt in the middle leaves no process behind", async (context) => {
  const run = startChaos(context, { purchases: 2, seconds: 60 });
  await run.says(/begins to blow/);
  const family = processesOf(run.pid);
  // anvil, the Workers' own process and workerd below it.
  expect(family.length).toBeGreaterThan(2);
  run.kill("SIGINT");
  expect(await run.ended).toBe(130);
  await untilGone(family);
});
