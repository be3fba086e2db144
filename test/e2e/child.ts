// Programs of the repository as a script or a person runs them, and what they leave behind.
import { spawn } from "node:child_process";
import { readdirSync, readFileSync } from "node:fs";
import { fileURLToPath } from "node:url";
import { expect, type TestContext } from "vitest";

const root = fileURLToPath(new URL("../../", import.meta.url).href);
/** Generous: on a machine that others use as well, a world takes minutes to come up. */
const WAIT_MS = 240_000;

export type Child = ReturnType<typeof startChild>;

/**
 * Starts a program in the repository's folder, or another, and keeps what it prints. When the test is finished, in whichever way, nothing of
 * it lives on.
 */
export function startChild(
  { onTestFinished }: Pick<TestContext, "onTestFinished">,
  program: string,
  args: readonly string[],
  { detached = false, cwd = root }: { detached?: boolean; cwd?: string } = {},
) {
  const child = spawn(program, args, { cwd, detached, stdio: ["ignore", "pipe", "pipe"] });
  let output = "";
  const collect = (data: Buffer) => {
    output += data.toString();
  };
  child.stdout.on("data", collect);
  child.stderr.on("data", collect);
  let over = false;
  const ended = new Promise<number | null>((resolve) => {
    child.once("close", (code) => {
      // By now all that it printed is here.
      over = true;
      resolve(code);
    });
  });
  onTestFinished(() => {
    if (child.pid !== undefined && child.exitCode === null && child.signalCode === null) killFamily(child.pid);
  });
  return {
    pid: child.pid ?? 0,
    ended,
    output: () => output,
    kill: (signal: "SIGINT" | "SIGTERM") => child.kill(signal),
    /** What a terminal does on Ctrl-C to all that it runs; for one that was started `detached`. */
    interruptAll: () => process.kill(-(child.pid ?? Number.NaN), "SIGINT"),
    /** Waits until it has printed what matches. */
    says: async (what: RegExp, waitMs = WAIT_MS): Promise<string> => {
      for (const until = Date.now() + waitMs; Date.now() < until; ) {
        // Looked at first: what came before the end counts.
        const wasOver = over;
        const found = what.exec(output);
        if (found !== null) return found[0];
        if (wasOver) break;
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

/** Kills the processes of that name below a process. */
export function killNamed(pid: number, name: string): void {
  const found = processesOf(pid).filter((id) => readFileSync(`/proc/${id}/comm`, "utf8").trim() === name);
  expect(found).not.toEqual([]);
  for (const id of found) process.kill(id, "SIGKILL");
}

/** Kills a process and everything below it. */
function killFamily(pid: number): void {
  for (const id of [pid, ...processesOf(pid)]) {
    try {
      process.kill(id, "SIGKILL");
    } catch {
      // Gone by itself.
    }
  }
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
