// One process at a time has a folder: its lock is a file that holds the process's id.
import { mkdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { dirname } from "node:path";

/** Takes the lock until this process ends; where another one has it that lives, the answer is that one's id. */
export function takeLock(file: string): number | undefined {
  mkdirSync(dirname(file), { recursive: true });
  while (!create(file)) {
    const holder = Number(read(file));
    if (holder > 0 && isRunning(holder)) return holder;
    rmSync(file, { force: true });
  }
  process.once("exit", () => rmSync(file, { force: true }));
  return undefined;
}

function create(file: string): boolean {
  try {
    writeFileSync(file, String(process.pid), { flag: "wx" });
    return true;
  } catch (error) {
    if (codeOf(error) !== "EEXIST") throw error;
    return false;
  }
}

function read(file: string): string {
  try {
    return readFileSync(file, "utf8");
  } catch (error) {
    // Given back since.
    if (codeOf(error) !== "ENOENT") throw error;
    return "";
  }
}

/** Another user's process can't be signalled, and runs. */
function isRunning(pid: number): boolean {
  try {
    return process.kill(pid, 0);
  } catch (error) {
    return codeOf(error) === "EPERM";
  }
}

const codeOf = (error: unknown): unknown => (error instanceof Error && "code" in error ? error.code : undefined);
