// Virtual time: nothing happens but what was scheduled, one thing after the other. Between two of them everything that
// they set free runs to its end, since all of it is promises.

type Happening = { at: number; order: number; run: (() => void) | null };

const settle = () => new Promise<void>((resolve) => setImmediate(resolve));

export class Clock {
  /** Unix milliseconds. */
  now: number;
  readonly #heap: Happening[] = [];
  #order = 0;

  constructor(start: number) {
    this.now = start;
  }

  /** Runs it after so many milliseconds; the returned handle cancels it. */
  after(ms: number, run: () => void): Happening {
    const happening = { at: this.now + Math.max(0, ms), order: this.#order++, run };
    this.#push(happening);
    return happening;
  }

  cancel(happening: Happening | undefined): void {
    if (happening !== undefined) happening.run = null;
  }

  sleep(ms: number): Promise<void> {
    return new Promise((resolve) => this.after(ms, resolve));
  }

  /** Lets time pass until the moment, or until `done` says so. */
  async runUntil(at: number, done: () => boolean = () => false): Promise<void> {
    for (;;) {
      await settle();
      if (done()) return;
      // What was cancelled sets nothing free: most time limits are.
      while (this.#heap[0]?.run === null) this.#pop();
      const [next] = this.#heap;
      if (next === undefined || next.at > at) break;
      this.#pop();
      this.now = Math.max(this.now, next.at);
      next.run?.();
    }
    this.now = Math.max(this.now, at);
  }

  /** A moment that nobody lives through: what was due before it is late. */
  skip(to: number): void {
    this.now = Math.max(this.now, to);
  }

  #push(happening: Happening): void {
    const heap = this.#heap;
    let at = heap.push(happening) - 1;
    while (at > 0) {
      const parent = (at - 1) >> 1;
      if (!this.#before(at, parent)) break;
      this.#swap(at, parent);
      at = parent;
    }
  }

  #pop(): void {
    const heap = this.#heap;
    const last = heap.pop();
    if (last === undefined || heap.length === 0) return;
    heap[0] = last;
    for (let at = 0; ; ) {
      let least = at;
      for (const child of [2 * at + 1, 2 * at + 2])
        if (child < heap.length && this.#before(child, least)) least = child;
      if (least === at) return;
      this.#swap(at, least);
      at = least;
    }
  }

  #before(a: number, b: number): boolean {
    const [left, right] = [this.#heap[a], this.#heap[b]];
    if (left === undefined || right === undefined) return false;
    return left.at < right.at || (left.at === right.at && left.order < right.order);
  }

  #swap(a: number, b: number): void {
    const [left, right] = [this.#heap[a], this.#heap[b]];
    if (left === undefined || right === undefined) return;
    this.#heap[a] = right;
    this.#heap[b] = left;
  }
}
