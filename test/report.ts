// How a test run ends: counts, a table of areas, what was slow, what passed at a second try, and the failures last, each with
// its whole story.
import { dirname } from "node:path";
import { DefaultReporter, type TestCase, type TestModule } from "vitest/node";

const SLOWEST = 10;

export class AreaReporter extends DefaultReporter {
  override reportSummary(...[files, errors]: Parameters<DefaultReporter["reportSummary"]>): void {
    super.reportTestSummary(files, errors, 0);
    const modules = this.ctx.state.getTestModules();
    this.#printAreas(modules);
    this.#printSlowest(modules);
    this.#printSecondTries(modules);
    this.#nameWhatDidNotRun();
    // The default order is failures first: they scroll away.
    super.reportSummary(files, errors);
  }

  /** `reportSummary` has printed it already. */
  override reportTestSummary(): void {}

  #printAreas(modules: readonly TestModule[]): void {
    const areas = new Map<string, { files: number; tests: number; failed: number; skipped: number; ms: number }>();
    for (const one of modules) {
      const area = dirname(one.relativeModuleId);
      const sum = areas.get(area) ?? { files: 0, tests: 0, failed: 0, skipped: 0, ms: 0 };
      areas.set(area, sum);
      sum.files += 1;
      sum.ms += durationOf(one);
      for (const test of one.children.allTests()) {
        const { state } = test.result();
        sum.tests += 1;
        if (state === "failed") sum.failed += 1;
        if (state === "skipped") sum.skipped += 1;
      }
      // A file whose import or hook fails has no failed test of its own.
      const hasFailedTest = [...one.children.allTests("failed")].length > 0;
      if (one.state() === "failed" && !hasFailedTest) sum.failed += 1;
    }
    const rows = [...areas].sort(([a], [b]) => a.localeCompare(b));
    this.log("  files   tests  failed  skipped  seconds  area");
    for (const [area, { files, tests, failed, skipped, ms }] of rows) {
      const figures = [pad(files, 7), pad(tests, 8), pad(failed, 8), pad(skipped, 9), pad(seconds(ms), 9)];
      this.log(`${figures.join("")}  ${area}`);
    }
    this.log();
  }

  #printSlowest(modules: readonly TestModule[]): void {
    const print = (title: string, rows: readonly { ms: number; name: string }[]) => {
      this.log(`  seconds  ${title}`);
      for (const { ms, name } of rows.toSorted((a, b) => b.ms - a.ms).slice(0, SLOWEST)) {
        this.log(`${pad(seconds(ms), 9)}  ${name}`);
      }
      this.log();
    };
    const fileRows = modules.map((one) => ({ ms: durationOf(one), name: one.relativeModuleId }));
    print(`the ${SLOWEST} slowest files`, fileRows);
    const tests: TestCase[] = modules.flatMap((one) => [...one.children.allTests()]);
    const testRows = tests.map((test) => ({
      ms: test.diagnostic()?.duration ?? 0,
      name: `${test.module.relativeModuleId}: ${test.fullName}`,
    }));
    print(`the ${SLOWEST} slowest tests`, testRows);
  }

  /** CI tries a failed test once more, so that one defect of a test doesn't hold up the rest: it is one all the same. */
  #printSecondTries(modules: readonly TestModule[]): void {
    const flaky = modules.flatMap((one) => [...one.children.allTests("passed")]).filter((test) => isFlaky(test));
    if (flaky.length === 0) return;
    this.log("  Failed first, and passed when tried again:");
    for (const test of flaky) {
      const [why] = test.result().errors ?? [];
      this.log(`  ${test.module.relativeModuleId}: ${test.fullName}\n    ${why?.message ?? "without an error"}`);
    }
    this.log();
  }

  #nameWhatDidNotRun(): void {
    if (this.ctx.projects.some(({ name }) => name === "long")) return;
    this.log("  Not in this run: npm run test:long, which a release needs.\n");
  }
}

const isFlaky = (test: TestCase): boolean => test.diagnostic()?.flaky === true;

/** Set-up of the file included. */
function durationOf(module: TestModule): number {
  const { collectDuration, duration, prepareDuration, setupDuration } = module.diagnostic();
  return prepareDuration + setupDuration + collectDuration + duration;
}

const seconds = (ms: number) => (ms / 1_000).toFixed(1);
const pad = (value: string | number, width: number) => String(value).padStart(width);
