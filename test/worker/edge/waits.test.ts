// An agent that does as it is told, for an hour and more, against the limit of /credentials (hard case 22).
import { expect, test } from "vitest";
import type { Limit } from "../../../durable-objects/ip-guard.ts";
import { LIMITS } from "../../../src/edge/access/limits.ts";
import { pollAgainAfter } from "../../../src/edge/waits.ts";

const { requests, windowSeconds } = LIMITS.credentials;
const HOURS = 6;

/**
 * Polls `tokens` as an obedient client would, each after the wait that it was last told, against an exact window; `ageAt`
 * is the age of the purchase at a second, null where nobody knows it. Returns the seconds at which polls were let in, and
 * how many were refused.
 */
function poll(tokens: number, ageAt: (second: number) => number | null, limit: Limit = { requests, windowSeconds }) {
  const passed: number[] = [];
  let refused = 0;
  const due = Array.from({ length: tokens }, () => 0);
  for (let second = 0; second < HOURS * 3_600; second++) {
    for (const [token, at] of due.entries()) {
      if (at > second) continue;
      const inWindow = passed.filter((time) => time > second - limit.windowSeconds);
      if (inWindow.length >= limit.requests) {
        refused += 1;
        due[token] = (inWindow[0] ?? second) + limit.windowSeconds;
        continue;
      }
      passed.push(second);
      const remaining = limit.requests - inWindow.length - 1;
      due[token] = second + pollAgainAfter(ageAt(second), { remaining, windowSeconds: limit.windowSeconds });
    }
  }
  return { passed, refused };
}

test("a poller of a purchase that takes hours is never refused, and asks every ten seconds at first", () => {
  const { passed, refused } = poll(1, (second) => second);
  expect(refused).toBe(0);
  expect(passed.slice(0, 13)).toEqual(Array.from({ length: 13 }, (_, index) => index * 10));
  expect(passed.length).toBeGreaterThan(HOURS * 14);
});

test("nor is a poller of a token that our scan has not seen, however long that lasts", () => {
  expect(poll(1, () => null).refused).toBe(0);
});

test("nor one whose purchase stays young: a machine that is made again and again", () => {
  expect(poll(1, (second) => second % 100).refused).toBe(0);
});

test("one that polls for two purchases shares its limit between them, and is refused once each at most in hours", () => {
  const { refused, passed } = poll(2, (second) => second);
  expect(refused).toBeLessThanOrEqual(2);
  expect(passed.length).toBeGreaterThan(HOURS * 25);
});

test("other limits are kept to as well", () => {
  expect(poll(1, (second) => second, { requests: 15, windowSeconds: 3_600 }).refused).toBe(0);
  expect(poll(1, () => null, { requests: 100, windowSeconds: 60 }).refused).toBe(0);
});

test("where nothing is counted, the age alone decides", () => {
  expect([0, 119, 120, 100_000, null].map((age) => pollAgainAfter(age, undefined))).toEqual([10, 10, 240, 240, 10]);
});
