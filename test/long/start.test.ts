// An end of `npm start --once` beyond those that `npm test` plays.
import { expect, test } from "vitest";
import { killNamed, startChild } from "../e2e/child.ts";

test("with --once an act that fails ends the run with 1 and the name of its phase", async (context) => {
  const run = startChild(context, "npm", ["start", "--", "--once"]);
  await run.says(/the chain and the vendors are up/);
  killNamed(run.pid, "anvil");
  expect(await run.ended).toBe(1);
  expect(run.output()).toMatch(/^failed: phase "purchase" of tier 0$/m);
  expect(run.output()).not.toContain("over x402");
});
