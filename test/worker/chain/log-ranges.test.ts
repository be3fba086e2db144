import { expect, test } from "vitest";
import { afterAnswer, afterRefusal, namedRange, nextRange, type Span } from "../../../src/chain/log-ranges.ts";

const MAX = 2_000;
const NOW = 1_000_000;

test.each([
  ["eth_getLogs is limited to a 1,000 range", 1_000],
  ["eth_getLogs is limited to a 10000 range", null],
  ["You can make eth_getLogs requests with up to a 500 block range.", 500],
  ["exceed maximum block range: 800", 800],
  ["query returned more than 10000 results", null],
  ["Log response size exceeded. response size should not greater than 10MB", null],
  ["block range is too large", null],
  ["ranges over 750 blocks are not supported", 750],
  ["Max block range is 600", 600],
  ["something else entirely", null],
  // Alchemy's two texts; in the first, ten thousand logs were read as ten blocks.
  [
    "Log response size exceeded. You can make eth_getLogs requests with up to a 2K block range and no limit on the response size, or you can request any block range with a cap of 10K logs in the response. Based on your parameters and the response size limit, this block range should work: [0x1, 0x2]",
    null,
  ],
  [
    "You can make eth_getLogs requests with up to a 1K block range and no limit on the response size, or you can request any block range with a cap of 10K logs in the response.",
    1_000,
  ],
  [
    "Under the Free tier plan, you can make eth_getLogs requests with up to a 10 block range. Based on your parameters, this block range should work: [0x1, 0xa]",
    10,
  ],
  ["max block range 2K", null],
  ["max block range 1K", 1_000],
  ["block range is too large, max is 1k blocks", 1_000],
  ["block range exceeds the limit of 1.5 k", 1_500],
  ["eth_getLogs is limited to 1024 block range", 1_024],
  ["eth_getLogs and eth_newFilter are limited to a 1,000 blocks range", 1_000],
  ["The response is limited to 10MB", null],
  ["limited to 2.5 MB", null],
  ["answers are limited to 500 logs", null],
  ["you are limited to 25 requests in a minute", null],
  ["This block range holds too much. 10 retries are left", null],
  ["no limit on the block range, with a cap of 100 logs", null],
])("%j names a range of %s", (message, named) => {
  expect(namedRange(new Error(message), MAX)).toBe(named);
});

// What is counted in thousands, what counts something else, and what is of another sentence.
const ALCHEMY =
  "Log response size exceeded. You can make eth_getLogs requests with up to a 2K block range and no limit on the response size, or you can request any block range with a cap of 10K logs in the response. Based on your parameters and the response size limit, this block range should work: [0x12, 0x34]";
const FREE_TIER =
  "Under the Free tier plan, you can make eth_getLogs requests with up to a 10 block range. Based on your parameters, this block range should work: [0xbcd10, 0xbcd19].";
test.each([
  [ALCHEMY, 10_000, 2_000],
  [ALCHEMY, 2_000, null],
  [FREE_TIER, 2_000, 10],
  ["any block range with a cap of 10K logs in the response", 20_000, null],
  ["max block range 2K", 10_000, 2_000],
  ["block range is too large, max is 1k blocks", 2_000, 1_000],
  ["eth_getLogs is limited to a 10K range", 20_000, 10_000],
  ["eth_getLogs is limited to 500 results", 2_000, null],
  ["block range too wide. Code 35", 2_000, null],
  ["this block range should work: [0x1, 0x2]", 2_000, null],
])("of a provider's prose only a span is read: %j, asked for %i, names %s", (message, asked, named) => {
  expect(namedRange(new Error(message), asked)).toBe(named);
});

/** Asks a node of that plan until so many blocks are read; all requests, refused ones included. */
function catchUp(plan: number, blocks: number, names: boolean, max = MAX, sizes: number[] = []): number {
  let span: Span | undefined;
  let requests = 0;
  for (let left = blocks; left > 0; requests++) {
    const asked = Math.min(left, nextRange(span, max, NOW));
    sizes.push(asked);
    if (asked > plan) span = afterRefusal(span, asked, names ? plan : null, NOW);
    else {
      span = afterAnswer(span, asked, max);
      left -= asked;
    }
  }
  return requests;
}

test.each([1, 2, 7, 10, 50, 100, 999, 2_000])(
  "a plan of %i blocks is found by itself, whatever its refusals say",
  (plan) => {
    const blocks = plan * 200;
    for (const names of [true, false]) expect(catchUp(plan, blocks, names)).toBeLessThanOrEqual(200 * 1.2);
  },
);

test("no request asks for more than the configured range, whatever was known before", () => {
  const sizes: number[] = [];
  catchUp(10_000, 5_000, true, 300, sizes);
  expect(Math.max(...sizes)).toBe(300);
  expect(nextRange({ given: 2_000, refused: 2_001, refusedAt: NOW }, 50, NOW)).toBe(50);
  expect(nextRange({ given: 0, refused: 2_000, refusedAt: NOW }, 50, NOW)).toBe(50);
});

test("a refused range shrinks, never below one block", () => {
  let span: Span | undefined;
  for (let asked = MAX; asked > 1; ) {
    span = afterRefusal(span, asked, null, NOW);
    const next = nextRange(span, MAX, NOW);
    expect(next).toBeLessThan(asked);
    asked = next;
  }
  expect(nextRange(afterRefusal(span, 1, null, NOW), MAX, NOW)).toBe(1);
});

test("a minute after a refusal a range grows by steps again, up to all that may be asked", () => {
  let span: Span | undefined = { given: 10, refused: 11, refusedAt: NOW };
  const steps: number[] = [];
  for (let i = 0; i < 40 && span !== undefined; i++) {
    const asked = nextRange(span, MAX, NOW + 60_000);
    steps.push(asked);
    span = afterAnswer(span, asked, MAX);
  }
  expect(steps.slice(0, 4)).toEqual([13, 17, 22, 28]);
  expect(span).toBeUndefined();
});
