// The fuzzer as a test runs it, short or long.
import { expect } from "vitest";
import { fuzz } from "./fuzz.ts";

/** Sends so many requests and checks what they reached: more than `valid` whole ones, and each kind of answer more than `each` times. */
export async function playFuzz(runs: number, { valid, each }: { valid: number; each: number }): Promise<void> {
  const report = await fuzz({ runs, seed: 1 });
  expect(report.requests).toBe(runs);
  expect(report.valid).toBeGreaterThan(valid);
  // It reaches what it is meant to reach.
  for (const status of ["200", "204", "400", "401", "404", "405", "413", "415"]) {
    expect(report.byStatus[status], status).toBeGreaterThan(each);
  }
  // A nonce is used only by a signature that was accepted.
  expect(report.byCode["nonce_used"]).toBeGreaterThan(each);
}
