// The bench reports what it has, says what it missed, and goes on: nothing here looks at a figure's size.
import { inspect } from "node:util";
import { afterEach, expect, test, vi } from "vitest";
import { watchBlocks } from "../bench/blocks.ts";
import { inRounds, printRows } from "../bench/figures.ts";
import { type Load, type Purchase, summarize } from "../bench/overhead.ts";
import { runParts } from "../bench/parts.ts";
import { startChain } from "../world/chain.ts";

afterEach(() => vi.restoreAllMocks());

/** What is printed from here on, errors as Node prints them. */
function listenIn(): () => string {
  const spies = [vi.spyOn(console, "log"), vi.spyOn(console, "error")];
  return () =>
    spies
      .flatMap(({ mock }) => mock.calls.map((call, i) => ({ call, order: mock.invocationCallOrder[i] ?? 0 })))
      .sort((a, b) => a.order - b.order)
      .map(({ call }) => call.map((one) => (typeof one === "string" ? one : inspect(one))).join(" "))
      .join("\n");
}

test("a part that throws is reported with its cause, the next one runs, and the exit code is 1", async () => {
  const printed = listenIn();
  const broken = async () => {
    throw new Error("no machine runs", { cause: new Error("the node is down") });
  };
  const fine = async () => printRows(["route", "req/s"], ["/health"], async (route) => [route, 1_000]);
  const code = await runParts([
    { title: "The first part", run: broken },
    { title: "The second part", run: fine },
  ]);
  expect(code).toBe(1);
  const told = ["The first part", "no machine runs", "the node is down", "The second part", "/health   1000"];
  const places = told.map((text) => printed().indexOf(text));
  expect(places, printed()).not.toContain(-1);
  expect(places).toEqual(places.toSorted((a, b) => a - b));
  expect(printed()).toContain("1 of 2 parts failed");
  expect(await runParts([{ title: "Alone", run: fine }])).toBe(0);
});

test("a row that fails takes no other row of its table with it", async () => {
  const printed = listenIn();
  const rows = printRows(["burst", "seconds"], [100, 1_000, 10_000], async (burst) => {
    if (burst === 1_000) throw new Error("998 of 1000 machines run");
    return [burst, 1];
  });
  await expect(rows).rejects.toMatchObject({
    message: "1 of 3 rows could not be made",
    errors: [expect.objectContaining({ message: "998 of 1000 machines run" })],
  });
  expect(printed()).toBe("burst  seconds\n100          1\n10000        1");
});

test("a row with wrong answers bears a star and a line below, and more than 1 % of them are thrown after the table", async () => {
  const printed = listenIn();
  const wrongOf = (wrong: number, name: string) => async () => ({ row: [name, 500], wrong, answers: 1_000 });
  await printRows(["route", "req/s"], [wrongOf(0, "/health"), wrongOf(10, "/tiers")], (row) => row());
  expect(printed()).toBe(
    "route     req/s\n/health     500\n/tiers *    500\n* /tiers: 10 of 1000 answers were wrong or did not come",
  );
  await expect(printRows(["route", "req/s"], [wrongOf(11, "/tiers")], (row) => row())).rejects.toMatchObject({
    message: "1 of 1 rows have more than 1 % wrong answers",
    errors: [new Error("/tiers: 11 of 1000 answers were wrong or did not come")],
  });
  expect(printed().match(/^\/tiers \* +500$/gm)).toHaveLength(2);
});

test("a round that fails is told of and left out; where all fail their errors are thrown", async () => {
  const printed = listenIn();
  const odd = async (index: number) => {
    if (index % 2 === 0) throw new Error(`round ${index} is slow`);
    return index;
  };
  expect(await inRounds(4, odd)).toEqual([1, 3]);
  expect(printed()).toContain("round 1 of 4 failed and is left out");
  await expect(inRounds(1, odd)).rejects.toMatchObject({ errors: [new Error("round 0 is slow")] });
});

const LOAD: Load = { name: "5 at once", tiers: [0], purchases: 5, everyMs: 0, bootMs: 3_000 };

test("the overhead's figures come out of the purchases that are known, and the others are counted by what they lack", () => {
  const block = { at: 1_000, late: false };
  const purchases: Purchase[] = [
    { tokenId: 1, block, runningAt: 7_000, keyMs: 1_000 },
    { tokenId: 2, block: { at: 1_000, late: true }, runningAt: 9_000, keyMs: 2_000 },
    { tokenId: 3, runningAt: 9_500, keyMs: 1_500 },
    { block },
  ];
  const { row, missed } = summarize(LOAD, purchases);
  expect(row).toEqual(["5 at once", "2.0", "3.0", "3.0", "1.5", "2.0", "3.0", "8.0"]);
  expect(missed).toEqual([
    "5 at once: 1 of 5 not sent",
    "5 at once: 1 of 5 without a token",
    "5 at once: 1 of 5 without a block time",
    "5 at once: 1 of 5 with a block that was seen late: their times are too long, if anything",
    "5 at once: 1 of 5 without a machine",
    "5 at once: 1 of 5 without the time of their key",
  ]);
});

test("where nothing is known of a load its row has no figures, and nothing throws", () => {
  const { row, missed } = summarize(LOAD, []);
  expect(row).toEqual(["5 at once", "-", "-", "-", "-", "-", "3.0", "-"]);
  expect(missed).toEqual(["5 at once: 5 of 5 not sent"]);
});

test("no block is missed, though several come between two looks", async () => {
  const chain = await startChain({ blockTimeSeconds: 0 });
  try {
    // Too seldom to see each.
    const blocks = watchBlocks(chain, 500);
    const first = Number(await chain.reader.getBlockNumber());
    expect(await blocks.sightOf(first, 60_000)).toBeDefined();
    await chain.node.mine({ blocks: 5 });
    const minedBy = Date.now();
    expect(await blocks.sightOf(first + 5, 60_000)).toBeDefined();
    for (let number = first + 1; number <= first + 5; number++) {
      const sight = blocks.seen.get(number);
      expect(sight?.late, `block ${number}`).toBe(true);
      // No later than it came.
      expect(sight?.at).toBeLessThanOrEqual(minedBy);
    }
    await blocks.stop();
    expect(await blocks.sightOf(first + 6, 0)).toBeUndefined();
  } finally {
    await chain.stop();
  }
});
