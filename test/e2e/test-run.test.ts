// The tools that the tests are run with: what a run prints, and which tests a change asks for.
import { execFile, execFileSync } from "node:child_process";
import { mkdirSync, mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { createRequire } from "node:module";
import { tmpdir } from "node:os";
import { dirname, join, normalize } from "node:path";
import { expect, test } from "vitest";
import { listFiles, listTests, testsOf } from "../changed.ts";
import { SLOW } from "../order.ts";

const VITEST = join(dirname(createRequire(import.meta.url).resolve("vitest/package.json")), "vitest.mjs");

test("a run ends with its areas, what was slow and, last of all, each failure whole", async () => {
  const root = mkdtempSync(join(tmpdir(), "clawcloud-report-"));
  try {
    for (const area of ["fine", "broken"]) mkdirSync(join(root, area));
    writeFileSync(
      join(root, "vitest.config.mjs"),
      `import { AreaReporter } from ${JSON.stringify(new URL("../report.ts", import.meta.url).pathname)};
export default { test: { globals: true, include: ["**/*.check.mjs"], reporters: [new AreaReporter()] } };`,
    );
    mkdirSync(join(root, "absent"));
    writeFileSync(join(root, "absent/c.check.mjs"), 'throw new Error("the import fails");');
    writeFileSync(join(root, "fine/a.check.mjs"), 'test("holds", () => {}); test.skip("is left out", () => {});');
    writeFileSync(
      join(root, "broken/b.check.mjs"),
      'test("does not hold", () => { throw new Error("the cause", { cause: new Error("the cause of the cause") }); });',
    );
    writeFileSync(
      join(root, "fine/d.check.mjs"),
      'let tries = 0; test("holds at last", { retry: 1 }, () => { if (++tries < 2) throw new Error("not yet"); });',
    );
    const env = { ...process.env, NO_COLOR: "1", FORCE_COLOR: undefined, VITEST: undefined };
    const { code, text } = await new Promise<{ code: unknown; text: string }>((resolve) => {
      execFile(process.execPath, [VITEST, "run", "--root", root], { env }, (error, stdout, stderr) =>
        resolve({ code: error?.code ?? 0, text: stdout + stderr }),
      );
    });
    expect(code, text).toBe(1);
    expect(text).toMatch(/^ +1 +1 +1 +0 +\d+\.\d {2}broken$/m);
    expect(text).toMatch(/^ +1 +0 +1 +0 +\d+\.\d {2}absent$/m);
    expect(text).toMatch(/^ +2 +3 +0 +1 +\d+\.\d {2}fine$/m);
    const order = [
      "the 10 slowest files",
      "the 10 slowest tests",
      "fine/d.check.mjs: holds at last\n    not yet",
      "Not in this run: npm run test:long",
      "FAIL",
      "Error: the cause\n",
      "Caused by: Error: the cause of the cause",
    ].map((part) => text.indexOf(part));
    expect(order, text).not.toContain(-1);
    expect(order).toEqual(order.toSorted((a, b) => a - b));
  } finally {
    rmSync(root, { recursive: true });
  }
});

test("whatever file changes, test:changed knows tests that hold it", () => {
  const tests = listTests();
  const homeless = listFiles().filter((file) => !file.startsWith("test/long/") && testsOf([file], tests).length === 0);
  expect(homeless).toEqual([]);
});

test.each([
  ["test/worker/edge/access/bans.test.ts", ["test/worker/edge/access/bans.test.ts"]],
  ["test/world/server.ts", ["test/e2e/connections.test.ts"]],
  ["test/changed.ts", ["test/e2e/test-run.test.ts"]],
  ["test/bench/figures.ts", ["test/e2e/bench.test.ts"]],
  ["durable-objects/log-book.ts", ["test/e2e/operators.test.ts", "test/worker/log.test.ts"]],
])("a change of %s asks for %j", (file, expected) => {
  expect(testsOf([file], listTests())).toEqual(expected);
});

test("a change of one area asks for no other's tests", () => {
  const access = testsOf(["src/edge/access/limits.ts"], listTests());
  expect(access).toContain("test/worker/edge/access/limits.test.ts");
  expect(access.every((file) => file.startsWith("test/worker/edge/access/"))).toBe(true);
});

test("every file that is to start first exists: a renamed one would be forgotten", () => {
  expect(SLOW.filter((file) => !listTests().includes(file))).toEqual([]);
});

test("every TypeScript file is type-checked: a folder was in no program", () => {
  const tsc = join(dirname(createRequire(import.meta.url).resolve("typescript/package.json")), "bin/tsc");
  const config = execFileSync(process.execPath, [tsc, "--showConfig"], { encoding: "utf8" });
  const { files } = JSON.parse(config) as { files: string[] };
  const checked = files.map((file) => normalize(file));
  expect(listFiles("*.ts").filter((file) => !checked.includes(file))).toEqual([]);
});
