// The border between the product's code and the world. Each invocation of a Worker and each object in memory is a task;
// every call that leaves one crosses here, may take time, and may be the last thing that its task does. A task that died
// goes on nowhere: what it waits for never comes.
import { AsyncLocalStorage } from "node:async_hooks";
import type { Clock } from "./clock.ts";
import type { Faults } from "./faults.ts";
import type { Random } from "./random.ts";

export type Task = { name: string; dead: boolean; onDeath: () => void };

const MAX_DELAY_MS = 4_000;
const tasks = new AsyncLocalStorage<Task>();

export class Runtime {
  readonly clock: Clock;
  readonly faults: Faults;
  readonly random: Random;
  readonly note: (text: string) => void;

  constructor(clock: Clock, faults: Faults, random: Random, note: (text: string) => void) {
    this.clock = clock;
    this.faults = faults;
    this.random = random;
    this.note = note;
  }

  /** Runs work as a task. Resolves with how it ended; a crash is an end as well. */
  async run(name: string, work: () => Promise<unknown>): Promise<"done" | "failed" | "crashed"> {
    return new Promise((resolve) => {
      const task: Task = { name, dead: false, onDeath: () => resolve("crashed") };
      tasks.run(task, () => {
        work().then(
          () => resolve("done"),
          () => resolve("failed"),
        );
      });
    });
  }

  /** Runs work in a task that lives on, as an object does. */
  within<T>(task: Task, work: () => T): T {
    return tasks.run(task, work);
  }

  /** A call of the current task to something outside. `effect` happens once or never, and its answer may be lost. */
  async cross<T>(what: string, effect: () => T | Promise<T>): Promise<T> {
    const task = tasks.getStore();
    if (task?.dead) return never();
    if (this.faults.strikes("crash_before")) return this.#die(task, `before ${what}`);
    if (this.faults.strikes("slow")) await this.clock.sleep(this.random.int(1, MAX_DELAY_MS));
    if (task?.dead) return never();
    const answer = await effect();
    if (task?.dead) return never();
    if (this.faults.strikes("crash_after")) return this.#die(task, `after ${what}`);
    return answer;
  }

  kill(task: Task): void {
    if (task.dead) return;
    task.dead = true;
    task.onDeath();
  }

  #die<T>(task: Task | undefined, where: string): Promise<T> {
    if (task === undefined) throw new Error(`${where}: outside of any task`);
    this.note(`${task.name} crashes ${where}`);
    this.kill(task);
    return never();
  }
}

/** What a dead task waits for. */
export const never = <T>(): Promise<T> => new Promise(() => {});
