// The border between the product's code and the world. Each invocation of a Worker and each object in memory is a task;
// every call that leaves one crosses here, may take time, and may be the last thing that its task does. A task that died
// goes on nowhere: what it waits for never comes.
import { AsyncLocalStorage } from "node:async_hooks";
import type { Clock } from "./clock.ts";
import type { Faults } from "./faults.ts";
import type { Random } from "./random.ts";

export type Task = { name: string; dead: boolean; onDeath: () => void; connections: number };
/** What D1 counts: an object has as many of these as calls. */
type Invocation = { task: Task; statements: number };

const MAX_DELAY_MS = 4_000;
/** What Cloudflare lets an invocation have and make: connections that wait for an answer, sockets, statements. */
const MAX_CONNECTIONS = 6;
const MAX_STATEMENTS = 1_000;
const TOO_MANY_STATEMENTS = "D1_ERROR: Too many API requests by single Worker invocation.";
/** What D1 and objects are seen to stall for. */
const MIN_STALL_MS = 30_000;
export const MAX_STALL_MS = 80_000;
/** Of statements while D1 is down: the others get through. */
const DOWN = { fails: 0.6, losesAnswer: 0.8 };
/** What D1 says then, in turn. */
const D1_WORDS = [
  "D1_ERROR: Network connection lost.",
  "D1_ERROR: Currently processing a long-running export.",
  "D1_ERROR: database is locked: SQLITE_BUSY",
];
const invocations = new AsyncLocalStorage<Invocation>();
/** Without what the product keeps of its invocation: none of it reaches an object. */
const apart = AsyncLocalStorage.snapshot();

/** Which task makes the call that is under way. */
export const taskName = (): string | undefined => invocations.getStore()?.task.name;

export class Runtime {
  readonly clock: Clock;
  readonly faults: Faults;
  readonly random: Random;
  readonly note: (text: string) => void;
  readonly violate: (rule: string, text: string) => void;
  /** Seconds in which most statements fail. */
  databaseDownUntil = 0;
  #databaseFaults = 0;

  constructor(clock: Clock, faults: Faults, random: Random, { note, violate }: Pick<Runtime, "note" | "violate">) {
    this.clock = clock;
    this.faults = faults;
    this.random = random;
    this.note = note;
    this.violate = violate;
  }

  /** Runs work as a task. Resolves with how it ended; a crash is an end as well. */
  async run(name: string, work: () => Promise<unknown>): Promise<"done" | "failed" | "crashed"> {
    return new Promise((resolve) => {
      const task: Task = { name, dead: false, onDeath: () => resolve("crashed"), connections: 0 };
      invocations.run({ task, statements: 0 }, () => {
        work().then(
          () => resolve("done"),
          () => resolve("failed"),
        );
      });
    });
  }

  /** Runs a call of a task that lives on, as an object does. */
  within<T>(task: Task, work: () => T): T {
    return apart(() => invocations.run({ task, statements: 0 }, work));
  }

  /** A call of the current task to something outside. `effect` happens once or never, and its answer may be lost. */
  async cross<T>(what: string, effect: () => T | Promise<T>): Promise<T> {
    const task = invocations.getStore()?.task;
    if (task?.dead) return never();
    if (this.faults.strikes("crash_before")) return this.#die(task, `before ${what}`);
    if (this.faults.strikes("slow")) await this.clock.sleep(this.random.int(1, MAX_DELAY_MS));
    if (task?.dead) return never();
    let answer: T;
    try {
      answer = await effect();
    } catch (error) {
      if (task?.dead) return never();
      throw error;
    }
    if (task?.dead) return never();
    if (this.faults.strikes("crash_after")) return this.#die(task, `after ${what}`);
    return answer;
  }

  /**
   * A connection of the current task; the returned function ends it. One that the platform would queue breaks a rule: its
   * time limit runs, and nothing is sent (hard case 52).
   */
  openConnection(what: string): () => void {
    const task = invocations.getStore()?.task;
    if (task === undefined) return () => undefined;
    task.connections += 1;
    if (task.connections > MAX_CONNECTIONS)
      this.violate("what leaves an invocation does not wait for a connection", `${what}, of ${task.name}`);
    return () => {
      task.connections -= 1;
    };
  }

  /** A round trip to D1. */
  crossDatabase<T>(what: string, statements: number, effect: () => T): Promise<T> {
    const invocation = invocations.getStore();
    if (invocation !== undefined) invocation.statements += statements;
    if (invocation !== undefined && invocation.statements > MAX_STATEMENTS) {
      this.violate("an invocation makes a thousand statements at most", invocation.task.name);
      return Promise.reject(new Error(TOO_MANY_STATEMENTS));
    }
    const isDown = this.faults.active && this.clock.now < this.databaseDownUntil;
    const luck = isDown ? this.random.unit() : 1;
    const fate = { fails: luck < DOWN.fails, losesAnswer: luck < DOWN.losesAnswer };
    const fault = () => new Error(D1_WORDS[this.#databaseFaults++ % D1_WORDS.length]);
    return this.#crossPlatform("d1", what, effect, fate, fault);
  }

  /** A call of an object. */
  crossObject<T>(what: string, effect: () => Promise<T>): Promise<T> {
    const fault = () => Object.assign(new Error("Network connection lost."), { retryable: true, remote: true });
    return this.#crossPlatform("object", what, effect, { fails: false, losesAnswer: false }, fault);
  }

  /** What stalls has its effect once the stall is over, whoever has given it up by then. */
  #crossPlatform<T>(
    part: "d1" | "object",
    what: string,
    effect: () => T | Promise<T>,
    fate: { fails: boolean; losesAnswer: boolean },
    fault: () => Error,
  ): Promise<T> {
    return this.cross(what, async () => {
      if (this.faults.strikes(`${part}_stalls`)) {
        this.note(`${what} stalls`);
        await this.clock.sleep(this.random.int(MIN_STALL_MS, MAX_STALL_MS));
      }
      if (fate.fails || this.faults.strikes(`${part}_fails`)) throw fault();
      const answer = await effect();
      if (fate.losesAnswer || this.faults.strikes(`${part}_loses_answer`)) throw fault();
      return answer;
    });
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
