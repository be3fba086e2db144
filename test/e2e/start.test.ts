// `npm start` as a script or a reader uses it.
import { type ChildProcess, spawn } from "node:child_process";
import { readdirSync, readFileSync } from "node:fs";
import { expect, test } from "vitest";

const root = new URL("../../", import.meta.url).pathname;

function start(...args: string[]): ChildProcess & { output: string; ended: Promise<number | null> } {
  const child = spawn("npm", ["start", "--", ...args], { cwd: root, stdio: ["ignore", "pipe", "pipe"] });
  const ended = new Promise<number | null>((resolve) => child.once("close", (code) => resolve(code)));
  const started = Object.assign(child, { output: "", ended });
  const collect = (data: Buffer) => {
    started.output += data.toString();
  };
  child.stdout.on("data", collect);
  child.stderr.on("data", collect);
  return started;
}

test("--once buys a VM, a GPU and a VM over x402, prints the time of each phase and exits 0", async () => {
  const run = start("--once");
  expect(await run.ended, run.output).toBe(0);
  for (const tier of [0, 4]) {
    for (const phase of ["purchase", "noticed", "machine", "credentials", "ssh"]) {
      expect(run.output).toMatch(new RegExp(`^${tier} +${phase} +\\d+\\.\\d\\d$`, "m"));
    }
  }
  for (const phase of ["quote, sign", "machine", "token", "credentials", "ssh"]) {
    expect(run.output).toMatch(new RegExp(`^x402 +${phase} +\\d+\\.\\d\\d$`, "m"));
  }
  const [, act = ""] = run.output.split("over x402, with @x402/fetch");
  const told = [
    /^ +[\d.]+ s {2}quoted 0\.5 USDC by a 402$/m,
    /^ +[\d.]+ s {2}accepted, authorized: /m,
    /^ +[\d.]+ s {2}the machine answers, 0\.50 USDC taken in transaction 0x[0-9a-f]{16}…$/m,
    /^ +[\d.]+ s {2}token \d+ is the agent's$/m,
    /^ +Linux clawcloud-local-/m,
  ].map((line) => act.search(line));
  expect(told, act).not.toContain(-1);
  expect(told).toEqual(told.toSorted((a, b) => a - b));
  expect(run.output).not.toContain("\u001b[");
});

test("--serve --json prints one line of JSON with everything, answers there, and SIGTERM leaves no process", async () => {
  const run = start("--serve", "--json");
  const line = await firstJsonLine(run);
  const info = JSON.parse(line) as { url: string; accounts: { privateKey: string }[] };
  expect(info).toMatchObject({
    url: expect.stringMatching(/^http:\/\/127/),
    chainId: 8453,
    rpcUrls: [expect.any(String), expect.any(String), expect.any(String)],
    contract: "0xF708741D37C420518852c6A15aB658066951c852",
    usdc: "0x833589fCD6eDb6E08f4c7C32D4f71b54bdA02913",
    adminKey: expect.stringMatching(/^claw_/),
    vultr: { controlUrl: expect.stringContaining("/control") },
    runpod: { controlUrl: expect.stringContaining("/control") },
    facilitator: { controlUrl: expect.stringContaining("/control") },
  });
  expect(info.accounts.every((one) => /^0x[0-9a-f]{64}$/.test(one.privateKey))).toBe(true);
  const health = await fetch(`${info.url}/health`);
  expect(((await health.json()) as { version: string }).version).toBe("1.3.0");

  const family = descendants(run.pid ?? 0);
  expect(family.length).toBeGreaterThan(2);
  run.kill("SIGTERM");
  await run.ended;
  await new Promise((resolve) => setTimeout(resolve, 500));
  expect(family.filter(isAlive)).toEqual([]);
});

test("an option that does not exist is refused with the usage", async () => {
  const run = start("--twice");
  expect(await run.ended).not.toBe(0);
  expect(run.output).toContain("Usage: npm start");
});

async function firstJsonLine(run: { output: string; exitCode: number | null }): Promise<string> {
  for (let tries = 0; tries < 600 && run.exitCode === null; tries++) {
    const line = run.output.split("\n").find((one, i, all) => one.startsWith("{") && i < all.length - 1);
    if (line !== undefined) return line;
    await new Promise((resolve) => setTimeout(resolve, 100));
  }
  throw new Error(`no JSON came: ${run.output}`);
}

/** All processes below one, by /proc. */
function descendants(pid: number): number[] {
  const parents = readdirSync("/proc")
    .filter((name) => /^\d+$/.test(name))
    .map((name) => [Number(name), parentOf(name)] as const);
  const below = (root: number): number[] =>
    parents.filter(([, parent]) => parent === root).flatMap(([id]) => [id, ...below(id)]);
  return below(pid);
}

function parentOf(pid: string): number {
  try {
    // The command, in parentheses, may hold spaces; the parent is the second field behind it.
    return Number(readFileSync(`/proc/${pid}/stat`, "utf8").split(") ").at(-1)?.split(" ")[1]);
  } catch {
    return -1;
  }
}

function isAlive(pid: number): boolean {
  try {
    return !readFileSync(`/proc/${pid}/stat`, "utf8").includes(") Z ");
  } catch {
    return false;
  }
}
