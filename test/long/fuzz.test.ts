import { test } from "vitest";
import { playFuzz } from "../e2e/fuzz-run.ts";

test("thousands of requests drawn from the OpenAPI document: no 5xx, and every answer is a declared one", async () => {
  await playFuzz(20_000, { valid: 2_000, each: 20 });
});
