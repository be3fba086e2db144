// Time, chance and network of this process become those of the run that is under way. The product runs unchanged on top.
import type { Clock } from "./clock.ts";
import type { Random } from "./random.ts";

export type Surroundings = {
  clock: Clock;
  /** What the product itself draws. */
  random: Random;
  fetch: (url: string, init: RequestInit) => Promise<unknown>;
  /** Takes the product's log, some lines at a time. */
  log: (lines: string) => void;
};

const RealDate = Date;
let current: Surroundings | undefined;

const surroundings = (): Surroundings => {
  if (current === undefined) throw new Error("no run is under way");
  return current;
};

export const enter = (next: Surroundings): void => {
  current = next;
};

class VirtualDate extends RealDate {
  constructor(...values: [] | [number | string | Date]) {
    if (values.length === 0) super(surroundings().clock.now);
    else super(values[0]);
  }

  static override now(): number {
    return surroundings().clock.now;
  }
}

/** Once per process. */
export function install(): void {
  // Nobody reads where an error comes from, and finding it out takes longer than what was tried.
  Error.stackTraceLimit = 0;
  const bytes = <T extends ArrayBufferView>(view: T): T => {
    const target = new Uint8Array(view.buffer, view.byteOffset, view.byteLength);
    for (let i = 0; i < target.length; i++) target[i] = surroundings().random.int(0, 255);
    return view;
  };
  const uuid = () =>
    surroundings()
      .random.hex(32)
      .replace(/^(.{8})(.{4})(.{4})(.{4})(.{12})$/, "$1-$2-$3-$4-$5");
  Object.assign(globalThis, {
    Date: VirtualDate,
    setTimeout: (run: () => void, ms = 0) => surroundings().clock.after(ms, run),
    clearTimeout: (timer: ReturnType<Clock["after"]> | undefined) => surroundings().clock.cancel(timer),
    fetch: (url: string | URL, init: RequestInit = {}) => surroundings().fetch(String(url), init),
  });
  Object.defineProperties(crypto, {
    getRandomValues: { value: bytes, configurable: true },
    randomUUID: { value: uuid, configurable: true },
  });
  Math.random = () => surroundings().random.unit();
  for (const level of ["log", "warn", "error"] as const) console[level] = (lines: string) => surroundings().log(lines);
}
