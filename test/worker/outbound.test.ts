// Cloudflare's six connections, which Miniflare does not enforce: here `fetch` queues the seventh, as the platform does.
import { afterEach, beforeEach, expect, test, vi } from "vitest";
import { connectChain } from "../../src/chain/client.ts";
import type { ChainConfig } from "../../src/config.ts";
import { Connections, inTurn, takeSocket } from "../../src/outbound.ts";
import { callVendor } from "../../src/provisioner/vendors/request.ts";
import { deploy } from "./deployment.ts";
import { asInvocation } from "./meter.ts";

const ANSWER_MS = 3_000;
const LIMIT_MS = 4_000;
const NODES = ["https://one.example", "https://two.example", "https://three.example"];
/** A time limit that ends before a second round of answers. */
const chainOf = () =>
  connectChain({
    CHAIN_ID: 8453,
    RPC_URLS: NODES,
    RPC_TIMEOUT_MS: LIMIT_MS,
    CHAIN_MAX_AHEAD_SECONDS: 60,
    SCAN_MAX_RANGE: 10,
    CONTRACT_ADDRESS: `0x${"11".repeat(20)}`,
  } as unknown as ChainConfig);

let open = 0;
let mostQueued = 0;

beforeEach(() => {
  vi.useFakeTimers({ toFake: ["setTimeout", "clearTimeout", "Date"] });
  open = 0;
  mostQueued = 0;
  const queue: (() => void)[] = [];
  vi.stubGlobal("fetch", async (_url: string, { signal }: RequestInit) => {
    if (open === 6) {
      const turn = new Promise<void>((resolve) => queue.push(resolve));
      mostQueued = Math.max(mostQueued, queue.length);
      await turn;
    }
    open += 1;
    await new Promise((resolve) => setTimeout(resolve, ANSWER_MS));
    open -= 1;
    queue.shift()?.();
    signal?.throwIfAborted();
    return Response.json({ jsonrpc: "2.0", id: 1, result: "0x2105" });
  });
});

afterEach(() => {
  vi.unstubAllGlobals();
  vi.useRealTimers();
});

/** How many of some pieces of work ended well, once all have ended. */
async function countDone(work: () => Promise<unknown>[]): Promise<number> {
  const all = Promise.allSettled(work());
  await vi.advanceTimersByTimeAsync(600_000);
  return (await all).filter(({ status }) => status === "fulfilled").length;
}

const blocks = () => {
  const { nodes } = chainOf();
  return nodes.flatMap(({ client }) => [1, 2, 3, 4].map(() => client.getGasPrice()));
};
const vendor = { vendor: "vultr", baseUrl: "https://vendor.example", apiKey: "k", timeoutMs: LIMIT_MS } as const;
const machines = () => Array.from({ length: 12 }, () => callVendor(vendor, "GET", "/instances"));

test.each([
  { of: "a chain's nodes", ask: blocks },
  { of: "a vendor", ask: machines },
])(
  "twelve calls of $of in one invocation: none has its time limit run out while it queues (hard case 52)",
  async ({ ask }) => {
    // Without turns those that the platform queues are given up, and nobody ever sent them.
    expect(await countDone(ask)).toBeLessThan(12);
    expect(mostQueued).toBeGreaterThan(0);
    mostQueued = 0;
    expect(await countDone(() => new Connections().run<Promise<unknown>[]>(ask))).toBe(12);
    expect([mostQueued, open]).toEqual([0, 0]);
  },
);

test("an invocation waits for no other's connections, and what fails gives its turn back", async () => {
  const [one, other] = [new Connections(), new Connections()];
  const never = () => new Promise<never>(() => {});
  for (let i = 0; i < 6; i++) void one.run(() => inTurn(never));
  let isSent = false;
  void one.run(() => inTurn(async () => (isSent = true)));
  const fails = () => other.run(() => inTurn(() => Promise.reject(new Error("refused"))));
  for (let i = 0; i < 20; i++) await expect(fails()).rejects.toThrow("refused");
  expect(await other.run(() => inTurn(async () => "answer"))).toBe("answer");
  expect(isSent).toBe(false);
});

test("what is sent within a turn needs no other: six such pieces of work don't wait for each other", async () => {
  const nested = () => inTurn(() => inTurn(async () => "answer"));
  const all = await new Connections().run(() => Promise.all(Array.from({ length: 6 }, nested)));
  expect(all).toEqual(Array(6).fill("answer"));
});

test("sockets take half of the connections at most, in turn, until they are closed", async () => {
  await new Connections().run(async () => {
    const closed = [await takeSocket(), await takeSocket(), await takeSocket()];
    const opened: string[] = [];
    const fourth = takeSocket().then((close) => {
      opened.push("socket");
      return close;
    });
    await Promise.all([1, 2, 3].map(() => inTurn(async () => opened.push("request"))));
    expect(opened).toEqual(["request", "request", "request"]);
    closed[0]?.();
    (await fourth)();
    expect(opened).toContain("socket");
  });
});

test("an invocation of the tests is refused the statement that D1 would refuse it (hard case 54)", async () => {
  vi.unstubAllGlobals();
  vi.useRealTimers();
  const { sql } = await deploy();
  const select = (count: number) => sql.batch(Array.from({ length: count }, () => sql.prepare("SELECT 1")));
  await asInvocation(async () => {
    await select(999);
    await sql.prepare("SELECT 1").run();
    await expect(sql.prepare("SELECT 1").run()).rejects.toThrow("Too many API requests by single Worker invocation.");
  });
  await asInvocation(() => select(1_000));
});
