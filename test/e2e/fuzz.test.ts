import { test } from "vitest";
import { playFuzz } from "./fuzz-run.ts";

test("hundreds of requests drawn from the OpenAPI document: no 5xx, and every answer is a declared one", async () => {
  await playFuzz(500, { valid: 40, each: 0 });
});
