// Counts by name that are told of once a minute.
import { expect, test } from "vitest";
import { Tally } from "../../src/tally.ts";

const NOW = Date.now();

test("what goes on is told of once a minute, not once a second: once a banned client washed the audit away", () => {
  const tally = new Tally<string>();
  const told = [];
  for (let second = 0; second < 180; second++) {
    for (let count = 0; count < 5; count++) tally.add("198.51.100.70");
    told.push(...tally.take(NOW + second * 1_000));
  }
  expect(told).toEqual([5, 300, 300].map((count) => ({ name: "198.51.100.70", count })));
});

test("of many names the ten that were counted most are told of by name, the others together", () => {
  const tally = new Tally<number>();
  for (let name = 1; name <= 30; name++) for (let count = 0; count < name; count++) tally.add(name);
  const told = tally.take(NOW);
  expect(told).toHaveLength(11);
  expect(told[0]).toEqual({ name: 30, count: 30 });
  expect(told[9]).toEqual({ name: 21, count: 21 });
  expect(told[10]).toEqual({ names: 20, count: 210 });
});

test("more names than it keeps are counted all the same", () => {
  const tally = new Tally<number>();
  for (let name = 0; name < 50_010; name++) tally.add(name);
  expect(tally.take(NOW).at(-1)).toEqual({ names: 49_990, count: 50_000 });
});

test("where nothing was counted there is nothing to tell", () => {
  expect(new Tally<string>().take(NOW)).toEqual([]);
});
