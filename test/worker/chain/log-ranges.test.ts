import { expect, test } from "vitest";
import { growRange, shrinkRange } from "../../../src/chain/log-ranges.ts";

test.each([
  ["eth_getLogs is limited to a 1,000 range", 1_000],
  ["eth_getLogs is limited to a 10000 range", 1_000],
  ["You can make eth_getLogs requests with up to a 500 block range.", 500],
  ["exceed maximum block range: 800", 800],
  ["query returned more than 10000 results", 1_000],
  ["Log response size exceeded. response size should not greater than 10MB", 1_000],
  ["block range is too large", 1_000],
  ["ranges over 750 blocks are not supported", 750],
  ["Max block range is 600", 600],
  ["something else entirely", 1_000],
])("after %j a range of 2000 becomes %i", (message, next) => {
  expect(shrinkRange(2_000, new Error(message))).toBe(message.includes("10000 range") ? 1_000 : next);
});

test("a range always shrinks, and never below one block", () => {
  for (let range = 2_000; range > 1; ) {
    const next = shrinkRange(range, new Error("eth_getLogs is limited to a 5000 range"));
    expect(next).toBeLessThan(range);
    expect(next).toBeGreaterThanOrEqual(1);
    range = next;
  }
  expect(shrinkRange(1, new Error("block range is too large"))).toBe(1);
});

test("a range grows to its ceiling and no further", () => {
  expect(growRange(100, 2_000)).toBe(200);
  expect(growRange(1_500, 2_000)).toBe(2_000);
});
