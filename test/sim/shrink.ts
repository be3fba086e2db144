// Leaves out what went wrong, piece by piece, for as long as the same rule stays broken.
import { type RunResult, runSeed, type Violation } from "./world.ts";

const MAX_TRIES = 400;

/** The run with the fewest strikes that this many tries find. */
export async function shrink(seed: number, { rule }: Violation): Promise<RunResult> {
  let without = new Set<number>();
  let best = await runSeed(seed);
  let tries = 0;
  const attempt = async (numbers: readonly number[]): Promise<boolean> => {
    if (numbers.length === 0 || tries++ >= MAX_TRIES) return false;
    const fewer = new Set([...without, ...numbers]);
    const result = await runSeed(seed, fewer);
    if (result.violation?.rule !== rule) return false;
    without = fewer;
    best = result;
    return true;
  };
  const left = () => best.faults.drawn.map(({ number }) => number).filter((number) => !without.has(number));
  // Halves first, then quarters, then one by one.
  for (let size = Math.ceil(left().length / 2); size >= 1; size = size === 1 ? 0 : Math.ceil(size / 2)) {
    for (let from = 0; from < left().length; ) {
      if (!(await attempt(left().slice(from, from + size)))) from += size;
    }
  }
  return best;
}
