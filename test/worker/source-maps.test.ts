import { expect, test } from "vitest";

// Types are gone once it is compiled, so that whatever follows moves up.
type Compiled = { away: string };

test("a failure names the line that is in the file: it was the compiled one's", () => {
  const compiled: Compiled = { away: new Error("here").stack ?? "" };
  expect(compiled.away).toContain("source-maps.test.ts:7:");
});
