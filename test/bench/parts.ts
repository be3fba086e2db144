// Parts of the bench one after the other: one that throws is told of, and the next one runs.

export type Part = { title: string; run: () => Promise<void> };

/** Resolves with the exit code: 1 where any part threw. */
export async function runParts(parts: readonly Part[]): Promise<number> {
  let failed = 0;
  for (const { title, run } of parts) {
    console.log(`\n${title}\n`);
    try {
      await run();
    } catch (error) {
      failed += 1;
      // With its stack, its causes and, of several, each one.
      console.error(`this part failed: ${title}\n`, error);
    }
  }
  if (failed > 0) console.error(`\n${failed} of ${parts.length} parts failed`);
  return failed === 0 ? 0 : 1;
}
