// The seeded simulator: some hundred worlds in which everything may go wrong, and proof that its checks find what they are
// there for. `npm run sim` plays as many as one has time for.
import { execFile } from "node:child_process";
import { readFileSync } from "node:fs";
import { expect, test } from "vitest";
import { FAILED_SEEDS } from "../sim/failed-seeds.ts";
import { PLANT_NAMES, PLANTS } from "../sim/plants.ts";

/** Output and exit code of `npm run sim -- …`. */
const sim = (...args: string[]) =>
  new Promise<{ code: number; output: string }>((resolve) => {
    const all = [
      "--disable-warning=ExperimentalWarning",
      "--import",
      "./test/sim/hooks.ts",
      "test/sim/run.ts",
      ...args,
    ];
    execFile(process.execPath, all, { maxBuffer: 1 << 26 }, (error, stdout, stderr) =>
      resolve({ code: typeof error?.code === "number" ? error.code : error === null ? 0 : 1, output: stdout + stderr }),
    );
  });

test("three hundred worlds: every rule holds in all of them", async () => {
  const { code, output } = await sim("--seed", "1", "--runs", "300");
  expect(output).toContain("300 runs");
  expect(code).toBe(0);
});

test("a seed repeats exactly, whatever was played before it", async () => {
  const digestOf = async (...args: string[]) =>
    /digest (\S+)/.exec((await sim("--digest", "--jobs", "1", ...args)).output)?.[1];
  const whole = await sim("--seed", "31", "--runs", "12", "--jobs", "1", "--history");
  const later = await sim("--seed", "37", "--runs", "6", "--jobs", "1", "--history");
  expect(later.output).toContain("seed 37");
  expect(whole.output.slice(whole.output.indexOf("seed 37\n"), whole.output.indexOf("12 runs"))).toBe(
    later.output.slice(later.output.indexOf("seed 37\n"), later.output.indexOf("6 runs")),
  );
  expect(await digestOf("--seed", "31", "--runs", "3")).toBe(await digestOf("--seed", "31", "--runs", "3"));
});

test.each(FAILED_SEEDS)("seed $seed, which once broke a rule: $story", async ({ seed }) => {
  const { code, output } = await sim("--seed", String(seed), "--runs", "1", "--jobs", "1");
  expect(output).toContain("every rule held");
  expect(code).toBe(0);
});

test("every bug that can be planted finds its place: one had lost it when the line that it changes was rewritten", () => {
  for (const [name, edits] of Object.entries(PLANTS)) {
    for (const { file, from } of edits) {
      expect(readFileSync(new URL(`../../${file}`, import.meta.url), "utf8"), name).toContain(from);
    }
  }
});

test.each(PLANT_NAMES.slice(0, 7))("the bug %s is found within a thousand seeds", async (plant) => {
  const { code, output } = await sim("--runs", "1000", "--plant", plant);
  expect(output).toMatch(/Seed \d+ breaks "/);
  expect(code).toBe(1);
});
