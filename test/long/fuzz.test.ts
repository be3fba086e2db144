import { expect, test } from "vitest";
import { fuzz } from "../e2e/fuzz.ts";

test("thousands of requests drawn from the OpenAPI document: no 5xx, and every answer is a declared one", async () => {
  const report = await fuzz({ runs: 20_000, seed: 1 });
  expect(report.requests).toBe(20_000);
  expect(report.valid).toBeGreaterThan(2_000);
  // It reaches what it is meant to reach.
  for (const status of ["200", "204", "400", "401", "404", "405", "413", "415"]) {
    expect(report.byStatus[status], status).toBeGreaterThan(20);
  }
  // A nonce is used only by a signature that was accepted.
  expect(report.byCode["nonce_used"]).toBeGreaterThan(20);
});
