// A larger `npm run chaos` than the one that `npm test` plays.
import { test } from "vitest";
import { playChaos } from "../e2e/chaos-run.ts";

test("forty purchases made through two minutes of kills, faults and reorgs all end with a machine or their money", async (context) => {
  await playChaos(context, { seed: 8, purchases: 40, seconds: 120, kills: 6, reorgs: 6, deadline: 600 });
}, 720_000);
