// When each block was first seen here: its own timestamp has whole seconds.
import type { Chain } from "../world/chain.ts";

const LOOK_MS = 25;
/** A look whose answer comes later than this after the one before does not say when a block came. */
const LATE_MS = 250;

/** `late`: the previous look was more than `LATE_MS` earlier; `at` is then that look, so times from it on may be too long. */
export type Sight = { at: number; late: boolean };

/** Looks until it is stopped. From the first one seen on no block is left out, however many come between two looks. */
export function watchBlocks({ reader }: Pick<Chain, "reader">, look = LOOK_MS) {
  const seen = new Map<number, Sight>();
  let last: { number: number; askedAt: number } | undefined;
  let stopped = false;

  async function lookOnce(): Promise<void> {
    const askedAt = Date.now();
    const number = Number(await reader.getBlockNumber({ cacheTime: 0 }));
    const now = Date.now();
    const before = last ?? { number: number - 1, askedAt };
    const late = now - before.askedAt > LATE_MS;
    for (let next = before.number + 1; next <= number; next++)
      seen.set(next, { at: late ? before.askedAt : now, late });
    last = { number: Math.max(number, before.number), askedAt };
  }

  const watching = (async () => {
    while (!stopped) {
      // A look that fails makes the next one late.
      await lookOnce().catch(() => undefined);
      await new Promise((resolve) => setTimeout(resolve, look));
    }
  })();
  return {
    seen,
    /** When a block was seen that is mined already; undefined where that does not show in time. */
    sightOf: async (number: number, timeoutMs = 10_000): Promise<Sight | undefined> => {
      const until = Date.now() + timeoutMs;
      while ((last?.number ?? -1) < number && Date.now() < until)
        await new Promise((resolve) => setTimeout(resolve, look));
      return seen.get(number);
    },
    stop: async (): Promise<void> => {
      stopped = true;
      await watching;
    },
  };
}
