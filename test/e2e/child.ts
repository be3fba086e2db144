// Programs of the repository as a script or a person runs them, and what they leave behind.
import { spawn } from "node:child_process";
import { readdirSync, readFileSync } from "node:fs";
import { expect } from "vitest";

const root = new URL("../../", import.meta.url).pathname;
const WAIT_MS = 120_000;

export type Child = ReturnType<typeof startChild>;

/** Starts a program in the repository's folder and keeps what it prints. */
export function startChild(program: string, args: readonly string[]) {
  const child = spawn(program, args, { cwd: root, stdio: ["ignore", "pipe", "pipe"] });
  let output = "";
  const collect = (data: Buffer) => {
    output += data.toString();
  };
  child.stdout.on("data", collect);
  child.stderr.on("data", collect);
  const ended = new Promise<number | null>((resolve) => child.once("close", (code) => resolve(code)));
  return {
    pid: child.pid ?? 0,
    ended,
    output: () => output,
    kill: (signal: "SIGINT" | "SIGTERM") => child.kill(signal),
    /** Waits until it has printed what matches. */
    says: async (what: RegExp, waitMs = WAIT_MS): Promise<string> => {
      const isOver = () => child.exitCode !== null || child.signalCode !== null;
      for (const until = Date.now() + waitMs; Date.now() < until; ) {
        // Looked at first: what came before the end counts.
        const over = isOver();
        const found = what.exec(output);
        if (found !== null) return found[0];
        if (over) break;
        await pause();
      }
      return expect.fail(`${what} was not said: ${output}`);
    },
  };
}

/** Everything below a process, by /proc; groups of their own included. */
export function processesOf(pid: number): number[] {
  const parents = readdirSync("/proc")
    .filter((name) => /^\d+$/.test(name))
    .map((name) => [Number(name), Number(statOf(Number(name))[1])] as const);
  const below = (of: number): number[] =>
    parents.filter(([, parent]) => parent === of).flatMap(([id]) => [id, ...below(id)]);
  return below(pid);
}

/** Waits until none of these processes lives; what a signal has ended takes a moment to go. */
export async function untilGone(family: readonly number[]): Promise<void> {
  for (const until = Date.now() + WAIT_MS; Date.now() < until && family.some(isAlive); ) await pause();
  expect(family.filter(isAlive)).toEqual([]);
}

export const isAlive = (pid: number): boolean => {
  const [state = "Z"] = statOf(pid);
  return state !== "Z";
};

/** What follows a process's name in its stat: state, parent, … Nothing where there is no such process. */
function statOf(pid: number): string[] {
  try {
    // The name, in parentheses, may hold spaces.
    return readFileSync(`/proc/${pid}/stat`, "utf8").split(") ").at(-1)?.split(" ") ?? [];
  } catch {
    return [];
  }
}

const pause = () => new Promise((resolve) => setTimeout(resolve, 100));
