import { expect, test } from "vitest";
import { fuzz } from "./fuzz.ts";

test("hundreds of requests drawn from the OpenAPI document: no 5xx, and every answer is a declared one", async () => {
  const report = await fuzz({ runs: 1_000, seed: 1 });
  expect(report.requests).toBe(1_000);
  expect(report.valid).toBeGreaterThan(80);
  // It reaches what it is meant to reach.
  for (const status of ["200", "204", "400", "401", "404", "405", "413", "415"]) {
    expect(report.byStatus[status], status).toBeGreaterThan(0);
  }
  // A nonce is used only by a signature that was accepted.
  expect(report.byCode["nonce_used"]).toBeGreaterThan(0);
});
