// The seeded simulator at length: some thousand worlds, and every bug that can be planted.
import { mkdtempSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { expect, test } from "vitest";
import { FAILED_SEEDS } from "../sim/failed-seeds.ts";
import { FOUND_AT, PLANT_NAMES } from "../sim/plants.ts";
import { hunt, sim } from "../sim/spawn.ts";

const MINUTE = 60_000;

test("three thousand worlds: every rule holds in all of them", { timeout: 30 * MINUTE }, async () => {
  const { code, output } = await sim("--seed", "1", "--runs", "3000");
  expect(output).toContain("3000 runs");
  expect(code).toBe(0);
});

test("a seed repeats exactly, whatever was played before it", { timeout: 5 * MINUTE }, async () => {
  const digestOf = (output: string) => /digest (\S+)/.exec(output)?.[1];
  // What the processes say of a world that breaks a rule comes when it comes.
  const historiesIn = (output: string) =>
    output.slice(output.indexOf("seed 61\n"), output.search(/^\d+ runs in/m)).replace(/^Seed .*\n/gm, "");
  const play = (first: number, ...more: string[]) =>
    sim("--seed", String(first), "--runs", String(91 - first), "--jobs", "1", "--digest", "--go-on", ...more);
  const [whole, later, again] = await Promise.all([play(31, "--history"), play(61, "--history"), play(31)]);
  expect(later.output).toContain("seed 61\n");
  expect(historiesIn(whole.output)).toBe(historiesIn(later.output));
  expect(digestOf(again.output)).toMatch(/^[0-9a-f]{64}$/);
  expect(digestOf(again.output)).toBe(digestOf(whole.output));
});

test("a search in slices ends with the total of all of them, and no world counts twice", async () => {
  const tally = join(mkdtempSync(join(tmpdir(), "sim-")), "worlds.jsonl");
  const slice = (first: number) => sim("--seed", String(first), "--runs", "4", "--tally", tally);
  await slice(1);
  expect((await slice(5)).output).toContain("Total of 2 slices: 8 worlds,");
  expect(await slice(7)).toMatchObject({ code: 1, output: expect.stringContaining("the tally has seeds 5 to 8") });
});

/** One takes a node that invents a sale and hides another by it. */
const RARE: Record<string, number> = { keep_what_was_invented: 3_000 };

test.each(PLANT_NAMES.map((plant) => ({ plant, seeds: RARE[plant] ?? 1_000, known: FOUND_AT[plant] })))(
  "the bug $plant is found at seed $known, or within $seeds seeds",
  { timeout: 20 * MINUTE },
  async ({ plant, seeds, known }) => {
    const { code, output, seed } = await hunt(plant, seeds);
    expect(seed, output).toBeLessThanOrEqual(Math.max(seeds, known));
    expect(output).toContain("The shortest history that breaks the same rule:");
    expect(code).toBe(1);
  },
);

test.each(FAILED_SEEDS.filter(({ plant }) => plant !== undefined))(
  "seed $seed is still one that finds $plant",
  async ({ seed, plant = "" }) => {
    const { output } = await sim("--seed", String(seed), "--runs", "1", "--jobs", "1", "--no-shrink", "--plant", plant);
    expect(output).toContain(`Seed ${seed} breaks "`);
  },
);
