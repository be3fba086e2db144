/** A stream of numbers that its seed decides: mulberry32. */
export type Random = {
  /** 0 up to 1. */
  unit(): number;
  /** A whole number from `min` to `max`, both included. */
  int(min: number, max: number): number;
  pick<T>(list: readonly T[]): T | undefined;
  /** As many random hex digits. */
  hex(digits: number): string;
  /** A stream of its own: what is drawn from it changes nothing here. */
  fork(): Random;
};

export function createRandom(seed: number): Random {
  let state = (seed ^ 0x9e3779b9) >>> 0;
  const unit = (): number => {
    state = (state + 0x6d2b79f5) >>> 0;
    let mixed = Math.imul(state ^ (state >>> 15), state | 1);
    mixed ^= mixed + Math.imul(mixed ^ (mixed >>> 7), mixed | 61);
    return ((mixed ^ (mixed >>> 14)) >>> 0) / 2 ** 32;
  };
  const int = (min: number, max: number) => min + Math.floor(unit() * (max - min + 1));
  return {
    unit,
    int,
    pick: (list) => list[int(0, list.length - 1)],
    hex: (digits) => {
      let text = "";
      while (text.length < digits) text += int(0, 0xffffff).toString(16).padStart(6, "0");
      return text.slice(0, digits);
    },
    fork: () => createRandom(int(0, 2 ** 31)),
  };
}
