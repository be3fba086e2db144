// A small `npm run chaos`: purchases while the Workers are killed, vendors and nodes fail and blocks are taken back.
import { spawn } from "node:child_process";
import { readdirSync, readFileSync } from "node:fs";
import { expect, test } from "vitest";

const root = new URL("../../", import.meta.url).pathname;

test("purchases made through kills, faults and a reorg all end with a machine or their money, and no process stays", async () => {
  // The outage lets leases of the dead run out at once, instead of after minutes.
  const seed = ["--seed", "8"];
  const blows = ["--purchases", "6", "--seconds", "25", "--kills", "2", "--reorgs", "2", "--outage", "300"];
  const run = start([...seed, ...blows, "--deadline", "160"]);
  expect(await run.ended, run.output()).toBe(0);
  const figure = (name: string) => Number(new RegExp(`^${name} +(\\d+)`, "m").exec(run.output())?.[1]);
  expect(figure("purchases that stand")).toBe(6);
  expect(figure("running, SSH answers") + figure("refunded on chain")).toBe(6);
  expect(figure("Workers killed and started again")).toBe(2);
  expect(figure("reorgs")).toBe(2);
  expect(processesOf(run.pid)).toEqual([]);
});

test("an interrupt in the middle leaves no process behind", async () => {
  const run = start(["--purchases", "2", "--seconds", "60"]);
  await run.says("begins to blow");
  const family = processesOf(run.pid);
  // anvil, the Workers' own process and workerd below it.
  expect(family.length).toBeGreaterThan(2);
  run.interrupt();
  expect(await run.ended).toBe(130);
  expect(family.filter(isAlive)).toEqual([]);
});

function start(args: readonly string[]) {
  const child = spawn(process.execPath, ["test/chaos/run.ts", ...args], {
    cwd: root,
    stdio: ["ignore", "pipe", "pipe"],
  });
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
    interrupt: () => child.kill("SIGINT"),
    says: async (text: string) => {
      for (let tries = 0; tries < 600 && !output.includes(text); tries++) {
        await new Promise((resolve) => setTimeout(resolve, 100));
      }
      expect(output).toContain(text);
    },
  };
}

/** Everything below a process, by /proc; groups of their own included. */
function processesOf(pid: number): number[] {
  const parents = readdirSync("/proc")
    .filter((name) => /^\d+$/.test(name))
    .map((name) => [Number(name), Number(statOf(Number(name))[1])] as const);
  const below = (root: number): number[] =>
    parents.filter(([, parent]) => parent === root).flatMap(([id]) => [id, ...below(id)]);
  return below(pid);
}

const isAlive = (pid: number): boolean => {
  const [state = "Z"] = statOf(pid);
  return state !== "Z";
};

/** What follows a process's name in its stat: state, parent, … Nothing where there is no such process. */
function statOf(pid: number): string[] {
  try {
    return readFileSync(`/proc/${pid}/stat`, "utf8").split(") ").at(-1)?.split(" ") ?? [];
  } catch {
    return [];
  }
}
