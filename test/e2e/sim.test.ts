// The seeded simulator: fifty worlds in which everything may go wrong, and proof that its checks find what they are
// there for. test/long plays some thousand and every bug; `npm run sim` as many as one has time for.
import { readFileSync } from "node:fs";
import { expect, test } from "vitest";
import { FAILED_SEEDS } from "../sim/failed-seeds.ts";
import { PLANTS } from "../sim/plants.ts";
import { hunt, sim } from "../sim/spawn.ts";

test("fifty worlds: every rule holds in all of them", async () => {
  const { code, output } = await sim("--seed", "1", "--runs", "50");
  expect(output).toContain("50 runs");
  expect(code).toBe(0);
});

/** All of them are played by one process, once the first test asks. */
const replay = (() => {
  let played: ReturnType<typeof sim> | undefined;
  return () => {
    played ??= sim("--seeds", FAILED_SEEDS.map(({ seed }) => seed).join(","), "--jobs", "1", "--no-shrink");
    return played;
  };
})();

test.each(FAILED_SEEDS)("seed $seed, which once broke a rule: $story", async ({ seed }) => {
  const { output } = await replay();
  const own = output.split(/^(?=Seed \d)/m).find((part) => new RegExp(`^Seed ${seed}\\b`).test(part));
  expect(own ?? output).toContain(`Seed ${seed}: every rule held`);
});

test("the process that plays them ends well", async () => {
  const { code, output } = await replay();
  expect(code, output).toBe(0);
});

test("a search that goes on plays every world, and ends with a total by rule", async () => {
  const { seed } = await hunt("release_at_once", 1_000, "--no-shrink");
  const planted = ["--plant", "release_at_once", "--seed", String(Math.max(1, seed - 3)), "--runs", "12"];
  const { code, output } = await sim(...planted, "--jobs", "1", "--go-on");
  expect(output).toContain("12 runs");
  const found = [...output.matchAll(/^Seed (\d+) breaks "([^"]+)"/gm)];
  expect(found.length).toBeGreaterThan(0);
  const totals = [...output.matchAll(/^"[^"]+" (\d+): /gm)].reduce((sum, [, count]) => sum + Number(count), 0);
  expect(totals).toBe(found.length);
  expect(code).toBe(1);
});

test("every bug that can be planted finds its place: one had lost it when the line that it changes was rewritten", () => {
  for (const [name, edits] of Object.entries(PLANTS)) {
    for (const { file, from } of edits) {
      expect(readFileSync(new URL(`../../${file}`, import.meta.url).pathname, "utf8"), name).toContain(from);
    }
  }
});

test("a planted bug is found within a thousand seeds", async () => {
  const { code, output, seed } = await hunt("retry_a_create_blindly", 1_000);
  expect(seed, output).toBeLessThanOrEqual(1_000);
  expect(output).toContain("The shortest history that breaks the same rule:");
  expect(code).toBe(1);
});
