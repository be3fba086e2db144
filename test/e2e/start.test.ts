// `npm start` as a script or a reader uses it.
import { readFileSync } from "node:fs";
import { expect, type TestContext, test } from "vitest";
import { signOfLife, type Telling } from "../world/narrator.ts";
import { isAlive, killNamed, processesOf, startChild, untilGone } from "./child.ts";

const start = (context: TestContext, ...args: string[]) => startChild(context, "npm", ["start", "--", ...args]);

const MAIN_ACT = [
  /^ *[\d.]+ s {2}agent 0x\w{40} buys tier 0 for one day$/m,
  /^ *[\d.]+ s {2}paid 0\.5 USDC, got token \d+ in transaction 0x[0-9a-f]{16}…$/m,
  /^ *[\d.]+ s {2}the purchase was seen on chain and a machine is on order$/m,
  /^ *[\d.]+ s {2}status running \(vultr ewr\)$/m,
  /^ *[\d.]+ s {2}credentials: ssh -i /m,
  /^ +Linux clawcloud-local-/m,
];
const PAID_ACT = [
  /^ *[\d.]+ s {2}quoted 0\.5 USDC by a 402$/m,
  /^ *[\d.]+ s {2}accepted, authorized: /m,
  /^ *[\d.]+ s {2}the machine answers, 0\.50 USDC taken in transaction 0x[0-9a-f]{16}…$/m,
  /^ *[\d.]+ s {2}token \d+ is the agent's$/m,
  /^ +Linux clawcloud-local-/m,
];

function expectInOrder(text: string, lines: readonly RegExp[]): void {
  const places = lines.map((line) => text.search(line));
  expect(places, text).not.toContain(-1);
  expect(places).toEqual(places.toSorted((a, b) => a - b));
}

test.concurrent("the README's picture shows the lines that a start prints: npm run picture draws it anew", () => {
  const drawn = readFileSync(".github/npm-start.svg", "utf8").matchAll(/^<text [^>]*>(.*)<\/text>$/gm);
  const text = [...drawn].map(([, line = ""]) => line.replaceAll(/<[^>]*>/g, "")).join("\n");
  const [main = "", paid = ""] = text.split("over x402, with @x402/fetch");
  expectInOrder(main, MAIN_ACT);
  expectInOrder(paid, [...PAID_ACT, /^The world is up\. Ctrl-C ends it\.$/m]);
});

test.concurrent("--once buys a VM, a GPU and a VM over x402, prints the time of each phase and exits 0", async (context) => {
  const run = start(context, "--once");
  expect(await run.ended, run.output()).toBe(0);
  const output = run.output();
  expectInOrder(output, MAIN_ACT);
  for (const tier of [0, 4]) {
    for (const phase of ["purchase", "noticed", "machine", "credentials", "ssh"]) {
      expect(output).toMatch(new RegExp(`^${tier} +${phase} +\\d+\\.\\d\\d$`, "m"));
    }
  }
  for (const phase of ["quote, sign", "machine", "token", "credentials", "ssh"]) {
    expect(output).toMatch(new RegExp(`^x402 +${phase} +\\d+\\.\\d\\d$`, "m"));
  }
  const [, act = ""] = output.split("over x402, with @x402/fetch");
  expectInOrder(act, PAID_ACT);
  expect(output).not.toContain("\u001b[");
}, 600_000);

test.concurrent("--serve --json prints one line of JSON with everything, answers there, and SIGTERM leaves no process", async (context) => {
  const run = start(context, "--serve", "--json");
  const line = await run.says(/^\{.*(?=\n)/m);
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

  const family = processesOf(run.pid);
  expect(family.length).toBeGreaterThan(2);
  run.kill("SIGTERM");
  await run.ended;
  await untilGone(family);
});

test.concurrent("a signal while the world is coming up leaves no process", async (context) => {
  const run = start(context, "--serve");
  await run.says(/starting the chain/);
  const family = new Set<number>();
  let over = false;
  const ended = run.ended.then(() => {
    over = true;
  });
  // npm, its shell and node are there already: what comes after is the world's.
  const before = processesOf(run.pid).length;
  let signalled = false;
  while (!over) {
    const now = processesOf(run.pid);
    for (const id of now) family.add(id);
    if (!signalled && now.length > before) signalled = run.kill("SIGTERM");
    await new Promise((resolve) => setTimeout(resolve, 50));
  }
  await ended;
  expect(signalled).toBe(true);
  expect(run.output()).not.toContain("The world is up");
  await untilGone([...family]);
});

test.concurrent("an act that fails says which phase and why, and the world stays up until Ctrl-C", async (context) => {
  const run = startChild(context, "npm", ["start"], { detached: true });
  await run.says(/the chain and the vendors are up/);
  killNamed(run.pid, "anvil");
  await run.says(/The world is up\. Ctrl-C ends it\./);
  expect(run.output()).toMatch(/^failed: phase "purchase" of tier 0\n {2}because: /m);
  expect(run.output()).toMatch(
    /^failed: phase "quote, sign" of x402\n {2}because: \/x402\/purchase-compute answered 503/m,
  );
  expect(run.output().match(/^ {2}The world stays up: .* Ctrl-C and npm start again\.$/gm)).toHaveLength(2);
  expect(run.output()).toMatch(/s {2}this takes about 40 s /);
  const [, url] = /API +(http:\S+)/.exec(run.output()) ?? [];
  expect((await fetch(`${url}/llms.txt`)).status).toBe(200);
  const family = processesOf(run.pid);
  expect(family.every(isAlive)).toBe(true);
  // A terminal's Ctrl-C reaches the chain and workerd as well.
  run.interruptAll();
  await run.ended;
  await untilGone(family);
});

test.concurrent("a step that takes long gives a sign of life every four seconds", () => {
  const telling: Telling = { began: 1_000, lastAt: 1_000, step: undefined };
  const signs = (from: number, to: number) => {
    const lines: string[] = [];
    for (let now = from; now < to; now += 250) {
      const line = signOfLife(telling, now);
      if (line === undefined) continue;
      lines.push(line);
      telling.lastAt = now;
    }
    return lines;
  };
  expect(signs(1_000, 10_000)).toEqual([]);
  Object.assign(telling, { lastAt: 10_000, step: { name: "building", since: 10_000 } });
  expect(signs(10_000, 19_000)).toEqual([
    " 13.0 s  … building, for 4.0 s so far",
    " 17.0 s  … building, for 8.0 s so far",
  ]);
});

test.concurrent.for(["9", "8", "-1", "x", ""])(
  "--tier=%s is refused before anything starts, with the tiers that there are",
  async (tier, context) => {
    const run = start(context, `--tier=${tier}`);
    expect(await run.ended).toBe(2);
    expect(run.output()).toContain(
      `--tier takes 0, 1, 2, 3 (VMs) or 4, 5, 6, 7 (GPUs), not "${tier}"\nUsage: npm start`,
    );
    expect(run.output()).not.toContain("starting the chain");
  },
);

test.concurrent("an option that does not exist is refused with the usage", async (context) => {
  const run = start(context, "--twice");
  expect(await run.ended).not.toBe(0);
  expect(run.output()).toContain("Usage: npm start");
});
