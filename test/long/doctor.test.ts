// `npm run doctor` and `npm run smoke` against the local world: well, and with a fault at a time. Nothing secret is printed,
// nothing is changed, and whatever a service answers is a row of the table.
import { execFile, spawn } from "node:child_process";
import { once } from "node:events";
import { existsSync, mkdtempSync, rmSync } from "node:fs";
import { writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { promisify } from "node:util";
import ssh2 from "ssh2";
import { afterAll, afterEach, beforeAll, beforeEach, expect, test, vi } from "vitest";
import { examine, type Report } from "../../src/admin/doctor/examine.ts";
import { hideSecrets, type PartName } from "../../src/admin/doctor/finding.ts";
import { quote } from "../../src/admin/doctor/reason.ts";
import { readSettings } from "../../src/admin/settings.ts";
import { runOverSsh } from "../../src/admin/smoke/login.ts";
import { prepare } from "../../src/admin/smoke/prepare.ts";
import { describe, exitCodeOf, tell } from "../../src/admin/smoke/report.ts";
import { makeTrip } from "../../src/admin/smoke/run.ts";
import { generateHostKey } from "../../src/credentials/ssh-keys.ts";
import { setLogLevel } from "../../src/log.ts";
import { checkJournal } from "../e2e/vendor-documents.ts";
import { type Variables, writeCheckout } from "../world/checkout.ts";
import { API_TOKEN, startCloudflare, startRegistry } from "../world/cloudflare.ts";
import { readMigrations } from "../world/migrations.ts";
import { freePort } from "../world/ports.ts";
import { startWorld, type World, workerVariables } from "../world/world.ts";

const run = promisify(execFile);
const DATABASE_ID = "11111111-2222-4333-8444-555555555555";
const IMAGE = "runpod/pytorch:2.1.0-py3.10-cuda11.8.0-devel-ubuntu22.04";
const MIGRATIONS = readMigrations().map(({ name }) => name);
const documents = new URL("../../../shared/vendors/", import.meta.url);
const hasDocuments = existsSync(documents.pathname);
if (!hasDocuments)
  console.warn("SKIPPED: the vendors' documents are not beside this checkout; their checks did not run");

let world: World;
let cloudflare: Awaited<ReturnType<typeof startCloudflare>>;
let registry: Awaited<ReturnType<typeof startRegistry>>;
let variables: Variables;
let buyerKey: string;
const root = mkdtempSync(join(tmpdir(), "clawcloud-doctor-"));
const folder = join(root, "checkout");

beforeAll(async () => {
  const edge = { RATE_LIMITS: "status=6000/60", SCAN_INTERVAL_MS: "500", SWEEP_INTERVAL_SECONDS: "1" };
  [world, registry, cloudflare] = await Promise.all([
    startWorld({
      edge,
      runpod: { requestsPerMinute: 600 },
      vultr: { bootMs: { active: 300, ok: 600, sshd: 800, configured: 1_100 }, requestsPerSecond: 300 },
    }),
    startRegistry(IMAGE),
    startCloudflare({
      databases: [{ uuid: DATABASE_ID, name: "clawcloud" }],
      migrations: MIGRATIONS,
      queues: ["clawcloud-jobs", "clawcloud-jobs-dead"],
      secrets: { "clawcloud-edge": ["RPC_URLS", "DATA_PRIVATE_KEY"], "clawcloud-provisioner": null },
    }),
  ]);
  const { edge: ofEdge, provisioner } = workerVariables(world, world.url);
  variables = {
    edge: ofEdge,
    provisioner: { ...provisioner, RUNPOD_IMAGE: `${registry.host}/${IMAGE}` },
  };
  buyerKey = Buffer.from(world.chain.agents[0]?.getHdKey().privateKey ?? []).toString("hex");
  setLogLevel("error");
});
afterAll(async () => {
  setLogLevel("info");
  await Promise.all([world?.stop(), registry?.stop(), cloudflare?.stop()]);
  rmSync(root, { recursive: true, force: true });
});
beforeEach(async () => {
  world.proxy.setFaults();
  world.vultr.server.clearFaults();
  world.runpod.server.clearFaults();
  for (const [name, value] of Object.entries({
    CLOUDFLARE_API_BASE_URL: cloudflare.baseUrl,
    CLOUDFLARE_API_TOKEN: API_TOKEN,
    WRANGLER_WRITE_LOGS: "false",
    CLAWCLOUD_URL: world.url,
    CLAWCLOUD_ADMIN_KEY: world.adminKey,
    SMOKE_PRIVATE_KEY: buyerKey,
  })) {
    vi.stubEnv(name, value);
  }
  await writeCheckout(folder, variables, { databaseId: DATABASE_ID });
});
afterEach(() => vi.unstubAllEnvs());

type Run = { code: number; stdout: string; stderr: string };
/** A command as an operator runs it, in his checkout. */
const command = (script: string, ...args: readonly string[]): Promise<Run> =>
  run(process.execPath, [join(process.cwd(), script), ...args], { cwd: folder, env: process.env }).then(
    ({ stdout, stderr }) => ({ code: 0, stdout, stderr }),
    (error: Run) => error,
  );

/** What nothing that is printed may hold; a wallet's address and a machine's are no secrets. */
function expectNoSecrets(text: string): void {
  for (const secret of [...world.secrets, API_TOKEN, buyerKey])
    expect(text.includes(secret), secret.slice(0, 8)).toBe(false);
}

/** The doctor's report on some parts, by the names of rows and the sentences for a person. */
async function look(...parts: PartName[]): Promise<Report & { row: (what: string | RegExp) => string }> {
  const report = await examine(parts, folder);
  expectNoSecrets(JSON.stringify(report));
  const row = (what: string | RegExp) =>
    report.findings
      .filter((one) => (typeof what === "string" ? one.what === what : what.test(one.what)))
      .map(({ state, answer }) => `${state}: ${answer}`)
      .join("\n");
  return { ...report, row };
}

test("in a world that is well: a row for each thing, nothing to do, exit code 0, nothing changed and no secret told", async () => {
  const before = { vultr: world.vultr.server.journal.length, runpod: world.runpod.server.journal.length };
  const { code, stdout, stderr } = await command("src/admin/doctor.ts");
  expect(stdout).toMatch(/\n\nAll is well\.\n$/);
  expect([code, stderr]).toEqual([0, ""]);
  expectNoSecrets(stdout);
  for (const row of [
    /rpc-0 127\.0\.0\.1:\d+ blocks +chain 8453, head \d+ \(\d+ s old\), final \d+/,
    /rpc-2 127\.0\.0\.1:\d+ eth_simulateV1 +a purchase plays through/,
    /agreement +3 nodes show the same block/,
    /tiers, USDC a day +0: 0\.50, .*7: 84\.00/,
    /renew: renewVM\(uint256,uint16\); terminate: terminateVM\(uint256\)/,
    /wallet's USDC +[\d.]+ USDC at 0x\w{40}: \d+ days of tier 0 or \d+ days of tier 7/,
    /vultr +key +taken from IPv4/,
    /operating system +Ubuntu 24\.04 LTS x64/,
    /tier 3 +vc2-4c-8gb, 40 USD a month: in stock in 8 of 8 regions/,
    /tier 7 +NVIDIA H100 PCIe: COMMUNITY high 1\.99 USD\/h/,
    /runpod +key +reads pods, and may change them/,
    /image +.* is at its registry/,
    /balance +435\.85 USD/,
    /data key +[0-9a-f]+: its halves belong together/,
    /migrations +all \d+ applied/,
    /queues +clawcloud-jobs, clawcloud-jobs-dead/,
    /provisioner's secrets +the Worker is not deployed yet/,
    /facilitator +.*exact v2/,
  ]) {
    expect(stdout).toMatch(row);
  }
  const asked = [
    ...world.vultr.server.journal.slice(before.vultr),
    ...world.runpod.server.journal.slice(before.runpod),
  ];
  const changes = asked
    .filter(({ method }) => method !== "GET")
    .map(({ method, path, status }) => `${method} ${path} ${status}`);
  // The one question that is no read, and changes nothing, since there is no such pod.
  expect(changes.filter((one) => !one.startsWith("POST /v2/")).sort()).toContain("PATCH /v2/pods/no-such-pod 404");
  const d1 = cloudflare.asked.filter((one) => !one.startsWith("GET"));
  expect(d1).toEqual([`POST /accounts/0123456789abcdef0123456789abcdef/d1/database/${DATABASE_ID}/query`]);
});

test("Cloudflare: an account without what the settings name, and a login that is over", async () => {
  const { account } = cloudflare;
  const full = { ...account };
  Object.assign(account, {
    databases: [{ uuid: "99999999-2222-4333-8444-555555555555", name: "clawcloud" }],
    queues: ["clawcloud-jobs"],
    secrets: { "clawcloud-edge": ["RPC_URLS"], "clawcloud-provisioner": null },
  });
  const poor = await look("cloudflare");
  Object.assign(account, full);
  expect(poor.todo).toEqual([
    'Set database_id = "99999999-2222-4333-8444-555555555555" in both wrangler.toml files: that is the account\'s clawcloud.',
    'Make the queues: "npx wrangler queues create clawcloud-jobs-dead".',
    expect.stringMatching(/the edge Worker has no DATA_PRIVATE_KEY/),
  ]);
  vi.stubEnv("CLOUDFLARE_API_TOKEN", "wrong-token-of-no-account");
  const { code, stdout } = await command("src/admin/doctor.ts", "cloudflare", "--json");
  expect(code).toBe(1);
  expect(JSON.parse(stdout)).toMatchObject({ well: false, todo: [expect.stringContaining("npx wrangler login")] });
  expect(stdout).not.toContain("wrong-token");
});

test("settings: half of them missing, halves of two data keys, a file that is none", async () => {
  vi.stubEnv("CLOUDFLARE_API_TOKEN", "wrong-token-of-no-account");
  const half = {
    edge: { ...variables.edge, DATA_PRIVATE_KEY: "22".repeat(32), RPC_URLS: "", START_BLOCK: "soon" },
    provisioner: { ...variables.provisioner, RPC_URLS: "", VULTR_API_KEY: "" },
  };
  await writeCheckout(folder, half, { databaseId: DATABASE_ID });
  const report = await look("chain", "vultr", "runpod", "cloudflare");
  expect(report.row("RPC_URLS")).toBe("todo: is not set\ntodo: is not set");
  expect(report.row("VULTR_API_KEY")).toBe("todo: is not set");
  // These were "Set RPC_URLS for the edge: is not set." and the parser's "expected string to have >=1 characters".
  expect(report.todo).toEqual(
    expect.arrayContaining([
      "Set RPC_URLS in .secrets/edge.json: it is not set.",
      "Set VULTR_API_KEY in .secrets/provisioner.json: it is not set.",
      expect.stringMatching(/provisioner: RPC_URLS: is not set; provisioner: VULTR_API_KEY: is not set/),
    ]),
  );
  expect(report.row("data key")).toMatch(/^todo: the edge opens [0-9a-f]+, the provisioner seals under [0-9a-f]+$/);
  expect(report.row("settings")).toMatch(/^todo: \d that a deployment refuses$/);
  // The part whose settings are there goes on.
  expect(report.row("pods")).toBe("ok: 0 in the account, 0 of this deployment");

  await writeFile(
    join(folder, ".secrets/provisioner.json"),
    `{"VULTR_API_KEY": ${variables.provisioner["VULTR_API_KEY"]}}`,
  );
  const broken = await look("vultr");
  expect(broken.findings).toHaveLength(1);
  expect(broken.row("files")).toMatch(/provisioner\.json is not valid JSON$/);
});

test("chain: nodes that can't be reached were told in the words of a library, with two full stops", async () => {
  const edge = { ...variables.edge, RPC_URLS: `http://127.0.0.1:${await freePort()},http://127.0.0.1:1` };
  const provisioner = { ...variables.provisioner, RPC_URLS: "nowhere" };
  await writeCheckout(folder, { edge, provisioner }, { databaseId: DATABASE_ID });
  const { todo } = await look("chain");
  expect(todo).toEqual(
    expect.arrayContaining([
      "Set RPC_URLS in .secrets/provisioner.json: it must be an http(s) URL.",
      expect.stringMatching(/^Correct or replace the URL of rpc-0 .* in RPC_URLS: nobody listens there\.$/),
      expect.stringMatching(/^Correct or replace the URL of rpc-1 .* in RPC_URLS: no client asks that port\.$/),
    ]),
  );
  expect(todo.filter((one) => one.endsWith(".."))).toEqual([]);
});

test.each<[string, () => void, RegExp, RegExp]>([
  [
    "a node that is down",
    () => world.proxy.setFaults({ kind: "down" }),
    /^todo: it answers HTTP 503$/m,
    /Correct or replace the URL of rpc-0/,
  ],
  [
    "a node of another chain",
    () => world.proxy.setFaults({ kind: "rewrite", method: "eth_chainId", result: "0x1" }),
    /^todo: chain 1$/m,
    /it is of chain 1, and CHAIN_ID is 8453/,
  ],
  [
    "a node that is far behind",
    () =>
      world.proxy.setFaults({
        kind: "patch",
        method: "eth_getBlockByNumber",
        includes: "latest",
        fields: { timestamp: "0x60000000" },
      }),
    /^todo: chain 8453, head \d+ \(\d+ h old\)/m,
    /its head is \d+ h old/,
  ],
  [
    "a node that calls its newest block final",
    () => world.proxy.setFaults({ kind: "finalized_is_latest" }),
    /^todo: chain 8453/m,
    /it calls its newest block final/,
  ],
  [
    "a node that gives logs of ten blocks",
    () => world.proxy.setFaults({ kind: "max_range", blocks: 10, as: "named" }),
    /^todo: about 10 blocks in one request; of more it answers error -32614: eth_getLogs is limited to a 10 range$/m,
    /Take a larger plan for rpc-0/,
  ],
  [
    "receipts without their logs",
    () => world.proxy.setFaults({ kind: "patch", method: "eth_getTransactionReceipt", fields: { logs: [] } }),
    /^todo: without their logs$/m,
    /its receipts leave out logs/,
  ],
  [
    "a node without eth_simulateV1",
    () =>
      world.proxy.setFaults({
        kind: "refuse",
        method: "eth_simulateV1",
        message: "the method eth_simulateV1 does not exist",
      }),
    /^todo: it answers error -32000: the method eth_simulateV1 does not exist$/m,
    /without eth_simulateV1 nothing can be bought/,
  ],
  [
    "a node without old state",
    () => world.proxy.setFaults({ kind: "refuse", method: "eth_getBalance", message: "missing trie node" }),
    /^todo: of less than an hour: it answers error -32000: missing trie node$/m,
    /keeps state for a day/,
  ],
  [
    "a node on a fork",
    () =>
      world.proxy.setFaults({
        kind: "patch",
        method: "eth_getBlockByNumber",
        includes: "0x",
        fields: { hash: `0x${"ab".repeat(32)}` },
      }),
    /^todo: rpc-0 127.0.0.1:\d+ differ at block \d+$/m,
    /it shows another block than the others/,
  ],
  [
    "a node that answers nonsense",
    () => world.proxy.setFaults({ kind: "body", method: "eth_chainId", body: "<html>welcome</html>" }),
    /^todo: it answers what is no JSON$/m,
    /Correct or replace the URL of rpc-0/,
  ],
])("chain: %s", async (_, fault, answer, todo) => {
  fault();
  const report = await look("chain");
  expect(report.row(/^rpc-0|agreement/)).toMatch(answer);
  expect(report.todo.join("\n")).toMatch(todo);
  // The others are as before.
  expect(report.row(/^rpc-[12] /)).not.toContain("todo");
});

test.each<[string, () => void, string, RegExp, RegExp]>([
  [
    "an address that Vultr's key does not take",
    () =>
      world.vultr.server.addFault({
        call: "account",
        kind: "answer",
        status: 401,
        body: { error: "Unauthorized IP address: 203.0.113.9", status: 401 },
      }),
    "key",
    /refused from IPv4: HTTP 401 Unauthorized IP address: 203\.0\.113\.9/,
    /Allow any IPv4 and any IPv6 address in the access control of Vultr's key/,
  ],
  [
    "an account that owes",
    () => Object.assign(world.vultr.account, { balance: 31.5 }),
    "account",
    /todo: balance 31\.5 USD/,
    /Pay what Vultr's account owes: 31\.5 USD/,
  ],
  [
    "plans that are sold out",
    () => world.vultr.server.addFault({ call: "catalog", kind: "sold_out" }),
    "tier 2",
    /todo: vc2-2c-4gb, 20 USD a month: in stock in 0 of 8 regions/,
    /vc2-2c-4gb \(tier 2\) is in stock in none of ewr/,
  ],
  [
    "a catalog that fails",
    () => world.vultr.server.addFault({ call: "catalog", kind: "error_before" }),
    "plans",
    /todo: not read: vultr: GET 500 \{"error":"Internal server error"/,
    /Mend what keeps the doctor from reading this/,
  ],
])("Vultr: %s", async (_, fault, what, answer, todo) => {
  fault();
  const report = await look("vultr");
  Object.assign(world.vultr.account, { balance: -250 });
  expect(report.row(what)).toMatch(answer);
  expect(report.todo.join("\n")).toMatch(todo);
  expect(report.row("operating system")).toBe("ok: Ubuntu 24.04 LTS x64");
});

test("Vultr: a system and a region that it does not have, and a key that it does not know", async () => {
  const provisioner = {
    ...variables.provisioner,
    VULTR_OS: "Ubuntu 24.4 LTS",
    VULTR_REGIONS: "ewr,xyz",
    VULTR_API_KEY: world.keys.vultr,
  };
  await writeCheckout(folder, { ...variables, provisioner }, { databaseId: DATABASE_ID });
  const named = await look("vultr");
  expect(named.row("operating system")).toBe('todo: Vultr has no "Ubuntu 24.4 LTS"');
  expect(named.todo).toEqual([
    expect.stringContaining("like Ubuntu 22.04 LTS x64, Ubuntu 24.04 LTS x64"),
    expect.stringContaining("Take xyz out of VULTR_REGIONS"),
  ]);
  provisioner.VULTR_API_KEY = "another-key-of-nobody-0001";
  await writeCheckout(folder, { ...variables, provisioner }, { databaseId: DATABASE_ID });
  const unknown = await look("vultr");
  expect(unknown.row("key")).toBe("todo: refused from IPv4: HTTP 401 Invalid API token.");
  expect(JSON.stringify(unknown)).not.toContain(provisioner.VULTR_API_KEY);
});

test.each<[string, () => void, string, RegExp, RegExp]>([
  [
    "a key that only reads",
    () => Object.assign(world.runpod.account, { mayWrite: false }),
    "key",
    /todo: reads pods and may not change them: PATCH 403/,
    /All, or Restricted with Read\/Write for pods: this one only reads/,
  ],
  [
    "a balance at zero",
    () => Object.assign(world.runpod.account, { balance: 0 }),
    "balance",
    /todo: 0\.00 USD, prepaid/,
    /at zero it ends pods with their disks/,
  ],
  [
    "a balance that version 2 does not tell",
    () =>
      world.runpod.server.addFault({
        call: "account",
        kind: "answer",
        status: 404,
        body: { title: "Not Found", status: 404 },
      }),
    "balance",
    /ok: 435\.85 USD; it spends 0\.34 of at most 80 USD\/h/,
    /^$/,
  ],
  [
    "no card in stock",
    () => world.runpod.server.addFault({ call: "catalog", kind: "sold_out" }),
    "tier 4",
    /todo: NVIDIA GeForce RTX 4090: COMMUNITY none/,
    /of tier 4 no card is in stock/,
  ],
])("RunPod: %s", async (_, fault, what, answer, todo) => {
  fault();
  const report = await look("runpod");
  Object.assign(world.runpod.account, { balance: 435.85, mayWrite: true });
  expect(report.row(what)).toMatch(answer);
  expect(report.todo.join("\n")).toMatch(todo);
});

test("RunPod: an image without that tag; x402: a facilitator of another chain, one that nobody is", async () => {
  const provisioner = { ...variables.provisioner, RUNPOD_IMAGE: `${registry.host}/runpod/pytorch:1.0-none` };
  const edge = { ...variables.edge, FACILITATOR_URL: `http://127.0.0.1:${await freePort()}` };
  await writeCheckout(folder, { edge, provisioner }, { databaseId: DATABASE_ID });
  const report = await look("runpod", "x402");
  expect(report.row("image")).toMatch(/^todo: .*pytorch:1\.0-none: HTTP 404$/);
  expect(report.row("facilitator")).toMatch(/^todo: 127\.0\.0\.1:\d+: nobody listens there$/);
  await writeCheckout(
    folder,
    { provisioner, edge: { ...edge, CHAIN_ID: "84532", FACILITATOR_URL: world.facilitator.url } },
    { databaseId: DATABASE_ID },
  );
  expect((await look("x402")).todo).toEqual([expect.stringContaining("on eip155:84532: this one names eip155:8453")]);
});

test.skipIf(!hasDocuments)(
  "what the doctor asks of the vendors, and what is answered, is as their documents say",
  async () => {
    world.vultr.server.journal.length = 0;
    world.runpod.server.journal.length = 0;
    await look("vultr", "runpod");
    const vultr = await checkJournal(new URL("vultr-v2.openapi.json", documents), "/v2", world.vultr.server.journal);
    expect(vultr.problems).toEqual([]);
    expect(vultr.operations).toEqual(expect.arrayContaining(["GET /account", "GET /plans", "GET /regions", "GET /os"]));
    // The balance is newer than the document at hand: RunPod's reference of November 2026 has it.
    const asked = world.runpod.server.journal.filter(({ path }) => path !== "/v2/billing/balance");
    const runpod = await checkJournal(new URL("runpod-v2.mock.openapi.json", documents), "", asked);
    expect(runpod.problems).toEqual([]);
  },
);

test("smoke: buys, logs in, ends the machine and tells what it took and cost", async () => {
  const { code, stdout, stderr } = await command("src/admin/smoke.ts", "--yes");
  expect([code, stderr]).toEqual([0, ""]);
  expect(stdout).toMatch(
    /^One day of tier 0 \(VM 1 vCPU \/ 1 GB\) .*: 0\.50 USDC, .* from the wallet 0x\w{40} on chain 8453/,
  );
  for (const phase of ["paid", "seen", "ordered", "booted", "first login", "ended", "gone"]) {
    expect(stdout).toMatch(new RegExp(`^${phase} +[\\d.]+ s`, "m"));
  }
  expect(stdout).toMatch(/All went well\. It cost 0\.50 USDC, [\d.e-]+ ether of gas and about 0\.007 USD at Vultr/);
  expect(world.vultr.instances.size).toBe(0);
  expectNoSecrets(stdout);
});

const options = () => ({ tier: "0", url: world.url, minutes: "20" });
const prepared = (more: object = {}) => prepare(readSettings(folder), { ...options(), ...more });

test("smoke: a machine that never answers is ended all the same, and the way of the money is told", async () => {
  world.vultr.server.addFault({ call: "create", kind: "unconfigured" });
  const trip = await prepared({ minutes: "0.05" });
  expect(describe(trip)).toContain("0.50 USDC");
  const outcome = await makeTrip({ ...trip, interrupted: new AbortController().signal, onPhase: () => undefined });
  expect(exitCodeOf(outcome)).toBe(2);
  const said = tell(outcome, trip).join("\n");
  expect(said).toMatch(/Failed: (seen|ordered|booted): it took more than 3 s\./);
  expect(said).toMatch(/Paid: 0\.50 USDC and [\d.e-]+ ether of gas, by 0x[0-9a-f]{64} for token \d+\./);
  expect(said).toMatch(/State: terminated/);
  expect(said).toContain("Its machine is gone, by the vendor's own list.");
  expect(world.vultr.instances.size).toBe(0);
  expectNoSecrets(said);
});

test("smoke: what is interrupted after it was paid ends its machine, and the exit code says so", async () => {
  const trip = await prepared();
  const interrupt = new AbortController();
  // While it waits for the next phase: that was told as "The operation was aborted".
  const onPhase = (name: string) => {
    if (name === "paid") setTimeout(() => interrupt.abort(new Error("it was interrupted")), 300);
  };
  const outcome = await makeTrip({ ...trip, interrupted: interrupt.signal, onPhase });
  expect(exitCodeOf(outcome)).toBe(2);
  expect(tell(outcome, trip).join("\n")).toMatch(/Failed: seen: it was interrupted\.[\s\S]*Its machine is gone/);
  expect(world.vultr.instances.size).toBe(0);
});

test("smoke: interrupted twice, it left a machine that ran on unnamed; now it says how to end it", async () => {
  world.vultr.server.addFault({ call: "delete", kind: "locked" });
  const child = spawn(process.execPath, [join(process.cwd(), "src/admin/smoke.ts"), "--yes"], { cwd: folder });
  let stdout = "";
  let stderr = "";
  child.stdout.on("data", (part: Buffer) => {
    stdout += part.toString();
  });
  child.stderr.on("data", (part: Buffer) => {
    stderr += part.toString();
  });
  const ended = once(child, "exit");
  try {
    await expect.poll(() => stdout, { timeout: 60_000 }).toContain("booted");
    // The last of these is the second press.
    while (child.exitCode === null && child.signalCode === null) {
      child.kill("SIGINT");
      await sleep(300);
    }
    await ended;
  } finally {
    child.kill("SIGKILL");
    world.vultr.server.clearFaults();
  }
  const token = /for token (\d+)/.exec(stdout)?.[1];
  expect([child.exitCode, stderr]).toEqual([
    2,
    expect.stringContaining(`vms terminate ${token} --reason smoke" ends it`),
  ]);
  expectNoSecrets(stderr);
  const { code } = await command("src/admin/main.ts", "vms", "terminate", String(token), "--reason", "smoke");
  expect(code).toBe(0);
  await expect.poll(() => world.vultr.instances.size, { timeout: 60_000 }).toBe(0);
}, 180_000);

test.each<[string, () => void, RegExp]>([
  [
    "from the operator's own wallet",
    () => vi.stubEnv("SMOKE_PRIVATE_KEY", variables.provisioner["OPERATOR_PRIVATE_KEY"]),
    /Give SMOKE_PRIVATE_KEY another wallet/,
  ],
  ["without a wallet", () => vi.stubEnv("SMOKE_PRIVATE_KEY", ""), /Set SMOKE_PRIVATE_KEY to the private key/],
  ["from an empty wallet", () => vi.stubEnv("SMOKE_PRIVATE_KEY", "33".repeat(32)), /Send USDC to 0x\w{40}/],
  ["without a key that could end it", () => vi.stubEnv("CLAWCLOUD_ADMIN_KEY", "claw_nobody"), /\(api_key_invalid\)/],
  [
    "while the vendor can't show that it is gone",
    () => world.vultr.server.addFault({ call: "list", kind: "error_before" }),
    /vultr: GET 500/,
  ],
  [
    "while the vendor does not take the key",
    () =>
      world.vultr.server.addFault({
        call: "list",
        kind: "answer",
        status: 401,
        body: { error: "Invalid API token.", status: 401 },
      }),
    /^Put a valid key of Vultr's into VULTR_API_KEY/,
  ],
])("smoke: nothing is bought %s", async (_, fault, why) => {
  fault();
  const nonce = () => world.chain.reader.getTransactionCount({ address: world.chain.agents[0]?.address ?? "0x" });
  const before = await nonce();
  await expect(prepared()).rejects.toThrow(why);
  expect(await nonce()).toBe(before);
});

test("smoke: nobody is there to be asked, and nothing is bought", async () => {
  const { code, stdout, stderr } = await command("src/admin/smoke.ts");
  expect([code, stderr]).toEqual([1, "Nothing was bought: Answer on a terminal, or give --yes.\n"]);
  expect(stdout).toContain("0.50 USDC");
});

test("what is cut short shows no part of a secret", () => {
  const secret = `k${"3f9a".repeat(8)}`;
  const shown = hideSecrets(quote(`${"the project of this key is over ".repeat(4)}with the key ${secret} today`), [
    secret,
  ]);
  expect(shown).toContain("with the key");
  expect(shown).not.toContain(secret.slice(0, 6));
});

test("a machine that takes the login and never answers does not keep the smoke test from ending it", async () => {
  const hostKey = generateHostKey();
  const server = new ssh2.Server({ hostKeys: [hostKey.privateKey] }, (client) => {
    client.on("error", () => undefined);
    client.on("authentication", (context) => context.accept());
    client.on("session", (accept) => accept().on("exec", (take) => void take()));
  });
  await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve));
  try {
    const { port } = server.address() as { port: number };
    const knownHosts = `127.0.0.1 ${hostKey.publicKey}`;
    const credentials = {
      host: "127.0.0.1",
      username: "root",
      ssh: { port, privateKey: hostKey.privateKey, knownHosts },
    };
    await expect(runOverSsh(credentials, "whoami", 2_000)).rejects.toThrow("no answer over SSH in time");
  } finally {
    server.close();
  }
}, 20_000);
