// What an isolate knows of bans by itself, and what it tells of the refused.
import { beforeEach, expect, test } from "vitest";
import { forgetBan, refuseKnownBan, rememberBan, takeRefusals } from "../../../src/access/bans.ts";

// Each test is a day after the one before: what the isolate told last is state of the isolate.
const DAY = 86_400_000;
let now = Date.now();
beforeEach(() => {
  now += DAY;
  takeRefusals(now);
  now += DAY;
});

const refuse = (address: string, times: number) => {
  rememberBan(address, Date.now() + 60_000, Date.now(), 10);
  const request = new Request("https://api.example/tiers", { headers: { "cf-connecting-ip": address } });
  for (let count = 0; count < times; count++) {
    expect(refuseKnownBan(request, { RATE_LIMITS: {} }, {})?.status).toBe(403);
  }
  forgetBan(address);
};

test("a banned client that goes on is one line a minute, not one a second: once it washed the audit away", () => {
  const told = [];
  for (let second = 0; second < 180; second++) {
    refuse("198.51.100.70", 5);
    told.push(...takeRefusals(now + second * 1_000));
  }
  expect(told).toEqual([
    { address: "198.51.100.70", count: 5 },
    { address: "198.51.100.70", count: 300 },
    { address: "198.51.100.70", count: 300 },
  ]);
});

test("of many banned clients the ten most refused have a line each, the others one together", () => {
  for (let client = 1; client <= 30; client++) refuse(`198.51.100.${client}`, client);
  const told = takeRefusals(now);
  expect(told).toHaveLength(11);
  expect(told[0]).toEqual({ address: "198.51.100.30", count: 30 });
  expect(told[9]).toEqual({ address: "198.51.100.21", count: 21 });
  expect(told[10]).toEqual({ clients: 20, count: 210 });
});

test("where nobody was refused there is nothing to tell", () => {
  expect(takeRefusals(now)).toEqual([]);
});
