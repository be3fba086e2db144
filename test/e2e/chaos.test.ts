// A small `npm run chaos`: purchases while the Workers are killed, vendors and nodes fail and blocks are taken back. The
// long tests play a larger one.
import { expect, test } from "vitest";
import { playChaos, startChaos } from "./chaos-run.ts";
import { processesOf, untilGone } from "./child.ts";

test.concurrent("purchases made through kills, faults and a reorg all end with a machine or their money, and no process stays", async (context) => {
  // The outage lets leases of the dead run out at once, instead of after minutes.
  await playChaos(context, { seed: 1, purchases: 6, seconds: 10, kills: 2, reorgs: 2, outage: 300, deadline: 300 });
}, 400_000);

test.concurrent("an interrupt in the middle leaves no process behind", async (context) => {
  const run = startChaos(context, { purchases: 2, seconds: 60 });
  await run.says(/begins to blow/);
  const family = processesOf(run.pid);
  // anvil, the Workers' own process and workerd below it.
  expect(family.length).toBeGreaterThan(2);
  run.kill("SIGINT");
  expect(await run.ended).toBe(130);
  await untilGone(family);
});
