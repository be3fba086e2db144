// Counts by name, for events that are too frequent for a log line each. The counts are logged once a minute.

const TELL_EVERY_MS = 60_000;
const TOLD_BY_NAME = 10;
/** Further names are counted together. */
const MAX_NAMES = 50_000;

export type Told<Name> = { name: Name; count: number } | { names: number; count: number };

export class Tally<Name> {
  readonly #counts = new Map<Name, number>();
  #unnamed = 0;
  #toldAt = 0;

  add(name: Name): void {
    const count = this.#counts.get(name);
    if (count === undefined && this.#counts.size >= MAX_NAMES) this.#unnamed += 1;
    else this.#counts.set(name, (count ?? 0) + 1);
  }

  /** Once a minute: the ten names with the highest counts, and the sum of all others. `now`: unix milliseconds. */
  take(now: number): Told<Name>[] {
    if (this.#counts.size === 0 || now - this.#toldAt < TELL_EVERY_MS) return [];
    this.#toldAt = now;
    const sorted = [...this.#counts].sort(([, one], [, other]) => other - one);
    const others = sorted.slice(TOLD_BY_NAME);
    const count = others.reduce((sum, [, times]) => sum + times, this.#unnamed);
    this.#counts.clear();
    this.#unnamed = 0;
    return [
      ...sorted.slice(0, TOLD_BY_NAME).map(([name, times]) => ({ name, count: times })),
      ...(count === 0 ? [] : [{ names: others.length, count }]),
    ];
  }
}
