// An operator's day against the running world: the command line as a pipe sees it, and what the logs say of all that was
// done. Nothing secret is in them.
import { execFile } from "node:child_process";
import { promisify } from "node:util";
import { afterAll, beforeAll, expect, test } from "vitest";
import { buy, type Credentials, fixedHeaders, freshHeaders, waitForStatus } from "../world/agent.ts";
import { askAgain, fetchAgain } from "../world/http.ts";
import { startWorld, type World } from "../world/world.ts";

const run = promisify(execFile);
const WAIT_MS = 120_000;
const ADMIN_TRIES = 5;
let world: World;
beforeAll(async () => {
  // A day's calls in less than a minute.
  world = await startWorld({
    edge: { RATE_LIMITS: "admin=600/60,credentials=600/60,wallets=600/60", SCAN_INTERVAL_MS: "500" },
    vultr: { bootMs: { active: 300, ok: 600, sshd: 800, configured: 1_100 } },
  });
});
afterAll(() => world.stop());

/** Tried again where a guard of a busy machine misses its time, as the command's error says. */
async function admin(...args: string[]): Promise<string> {
  const env = { ...process.env, CLAWCLOUD_URL: world.url, CLAWCLOUD_ADMIN_KEY: world.adminKey };
  for (let tries = 1; ; tries++) {
    try {
      return (await run(process.execPath, ["src/admin/main.ts", ...args], { env, maxBuffer: 1 << 26 })).stdout;
    } catch (error) {
      if (tries === ADMIN_TRIES || !(error as { stderr: string }).stderr.includes("(guard_unavailable)")) throw error;
    }
  }
}
const json = async <T = Record<string, unknown>[]>(...args: string[]) => JSON.parse(await admin(...args)) as T;

const ask = (path: string, init: RequestInit) => askAgain(() => fetch(world.url + path, init));

const isEvent = (line: string) => line.startsWith('{"time":');
const eventsOf = (lines: readonly string[]) =>
  lines.filter(isEvent).map((line) => JSON.parse(line) as { event: string; error?: string });
const book = async (stream: string) =>
  (await fetchAgain(`${world.url}/admin/logs/${stream}`, { headers: { "x-api-key": world.adminKey } })).text();
function linesMissing(lines: readonly string[], text: string): string[] {
  const kept = new Set(text.split("\n"));
  return lines.filter((line) => !kept.has(line));
}

test("from a purchase to its end by an operator, and the logs of both Workers without a secret in them", async () => {
  const [agent] = world.chain.agents;
  if (agent === undefined) throw new Error("the world has no agent");
  const { tokenId } = await buy(world.chain, agent, 0, 1);
  await waitForStatus(world.url, tokenId, ["running"]);
  const headers = await fixedHeaders(agent, tokenId);
  const delivered = await ask(`/credentials/${tokenId}`, { headers });
  const { privateKey } = ((await delivered.json()) as Credentials).ssh;
  if (privateKey === null) throw new Error("no key was delivered");
  const signed = [headers];
  await askAgain(async () => {
    const fresh = await freshHeaders(world.url, agent, tokenId);
    signed.push(fresh);
    return fetch(`${world.url}/credentials/${tokenId}`, { headers: fresh });
  });
  // Wrong in every way, with secrets where none belong.
  await fetch(`${world.url}/${world.adminKey}?key=${world.secrets[2]}' OR '1'='1`);
  await ask(`/credentials/${tokenId}`, { headers: { authorization: `Bearer ${world.adminKey}` } });
  await ask("/admin/bans", { headers: { "x-api-key": `${world.adminKey}0` } });
  const wallet = await ask("/agents/generate-wallet", {
    method: "POST",
    headers: { "content-type": "application/json" },
    body: '{"agentId":"agent-e2e"}',
  });
  const { privateKey: walletKey } = (await wallet.json()) as { privateKey: string };

  expect(await json("vms", "list", "--status", "running")).toMatchObject([{ tokenId, status: "running" }]);
  expect(await json<object>("bans", "add", "203.0.113.9", "--reason", "scraping", "--seconds", "600")).toMatchObject({
    client: "203.0.113.9",
  });
  expect(await json("bans", "list")).toHaveLength(2);
  expect(await json("refunds", "list", "--state", "held")).toEqual([]);
  const refusal = await admin("refunds", "pay", String(tokenId), "--reason", "asked").catch(
    (error: { stderr: string }) => error.stderr,
  );
  expect(refusal).toContain("(refund_not_found)");
  await admin("bans", "lift", "203.0.113.9");
  expect(await json("bans", "list")).toEqual([]);
  const bob = await json<{ id: string; key: string }>("keys", "create", "bob");
  expect(await json("keys", "list")).toMatchObject([{ name: "bob" }, { name: "local world" }]);
  await admin("keys", "revoke", bob.id);
  const failure = await admin("keys", "revoke", bob.id).catch((error: { stderr: string }) => error.stderr);
  expect(failure).toMatch(/There is no key .* that still works\. \(api_key_not_found\)/);
  expect(await json<object>("data-keys", "reencrypt")).toMatchObject({ remaining: 0 });
  await admin("pause", "payouts", "--reason", "audit");
  expect(await json("pauses")).toMatchObject([{ what: "payouts", reason: "audit" }]);
  await admin("resume", "payouts");
  // A node whose URL carries a provider's key fails in each way (hard case 23).
  const nonsense = { kind: "rewrite", method: "eth_call", result: "0xnonsense" } as const;
  for (const [fault, ...failures] of [
    [{ kind: "down" }, "rpc_failed HttpRequestError", "scan_node_failed HttpRequestError"],
    [{ kind: "hang" }, "rpc_failed TimeoutError", "scan_node_failed TimeoutError"],
    [nonsense, "rpc_failed BaseError"],
  ] as const) {
    const from = world.lines.length;
    world.proxy.setFaults(fault);
    await fetch(`${world.url}/credentials/${tokenId}`, { headers });
    await fetch(`${world.url}/status/${99_999 + tokenId}`);
    const told = () => eventsOf(world.lines.slice(from)).map(({ event, error }) => `${event} ${error}`);
    await expect.poll(told, { timeout: WAIT_MS, interval: 200 }).toEqual(expect.arrayContaining(failures));
  }
  world.proxy.setFaults();
  await admin("vms", "terminate", String(tokenId), "--reason", "abuse");
  await waitForStatus(world.url, tokenId, ["terminated"]);

  // The last lines travel a second behind their answers: until the book has all that both Workers have printed by now.
  const printed = world.lines.filter(isEvent);
  await expect
    .poll(async () => linesMissing(printed, await book("combined")), { timeout: WAIT_MS, interval: 500 })
    .toEqual([]);
  const streams = { combined: "", error: "", security: "" };
  for (const name of ["combined", "security"] as const) streams[name] = await admin("logs", "get", name);
  const files = await json<{ stream: string }[]>("logs", "list");
  if (files.some(({ stream }) => stream === "error")) streams.error = await admin("logs", "get", "error");
  const events = (text: string) => eventsOf(text.split("\n")).map(({ event }) => event);
  for (const event of [
    "request",
    "scan_pass",
    "step",
    "machine_ordered",
    "vm_running",
    "key_delivered",
    "vm_ended_by_order",
    "sweep",
    "job",
    "rpc_failed",
    "scan_node_failed",
  ]) {
    expect(events(streams.combined), event).toContain(event);
  }
  for (const event of ["access_denied", "injection_attempt", "admin_call", "wallet_made"]) {
    expect(events(streams.security), event).toContain(event);
  }
  const secrets = [
    ...world.secrets,
    bob.key,
    walletKey.slice(2),
    ...privateKey.split("\n").filter((line) => line.length > 20 && !line.startsWith("-----")),
    ...signed.map((sent) => (sent["authorization"] ?? "").slice("Bearer 0x".length)),
    ...signed.flatMap((sent) => sent["x-access-message"] ?? []),
    "PRIVATE KEY",
    "ecc:",
  ];
  for (const [name, text] of Object.entries(streams)) {
    for (const secret of secrets) {
      expect(secret.length).toBeGreaterThan(3);
      expect(text.includes(secret), `${secret.slice(0, 12)}… in ${name}`).toBe(false);
    }
    // Machines live at private addresses here: only the clients' own may be named.
    const others = text.replace(/"(?:address|client)":"[^"]*"/g, "");
    expect(others).not.toMatch(/\b(?:127|10)\.\d+\.\d+\.\d+|\b192\.168\./);
  }
});

/** What a command that failed said, and its exit code. */
const failed = (...args: string[]) =>
  admin(...args).then(
    () => expect.fail("it did not fail"),
    ({ stderr, code }: { stderr: string; code: number }) => ({ stderr, code }),
  );

test("payments reconcile --from alone went back ten thousand blocks from the head, and left --from out", async () => {
  const { toBlock } = await json<{ toBlock: number }>("payments", "reconcile").catch(
    (error: { stdout: string }) => JSON.parse(error.stdout) as { toBlock: number },
  );
  const from = toBlock - 2;
  const books = await json<{ fromBlock: number; toBlock: number }>("payments", "reconcile", "--from", String(from));
  expect(books.fromBlock).toBe(from);
  expect(books.toBlock).toBeGreaterThanOrEqual(toBlock);
  const late = await failed("payments", "reconcile", "--from", String(toBlock + 100_000));
  expect(late.stderr).toMatch(/ends at the last final one, \d+, at the latest\. \(invalid_request\)/);
  expect((await failed("payments", "reconcile", "--from", "soon")).stderr).toContain("A block is a whole number.");
});

test("bans lift of an address that was not banned looked like a lift", async () => {
  const { stderr, code } = await failed("bans", "lift", "203.0.113.99");
  expect([code, stderr]).toEqual([1, "203.0.113.99 was not banned.\n"]);
});

test.each([
  ["http://127.0.0.1:1", /^Check CLAWCLOUD_URL, or --url: no answer from http:\/\/127\.0\.0\.1:1 \(.+\)\.\n$/],
  ["", /^Set CLAWCLOUD_URL, or --url, to the API's address, like https:\/\/api\.example\.com: "" is none\.\n$/],
])('an API at "%s" was told in the words of fetch', async (url, said) => {
  const { stderr, code } = await failed("--url", url, "vms", "list");
  expect(code).toBe(1);
  expect(stderr).toMatch(said);
});
