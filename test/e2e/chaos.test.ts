// A small `npm run chaos`: purchases while the Workers are killed, vendors and nodes fail and blocks are taken back. The
// long tests play a larger one.
import { test } from "vitest";
import { playChaos } from "./chaos-run.ts";

test("purchases made through kills, faults and a reorg all end with a machine or their money, and no process stays", async (context) => {
  // The outage lets leases of the dead run out at once, instead of after minutes.
  await playChaos(context, { seed: 1, purchases: 6, seconds: 10, kills: 2, reorgs: 2, outage: 300, deadline: 300 });
}, 400_000);
