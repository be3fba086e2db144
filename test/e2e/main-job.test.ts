// The main job on the local world: purchase, SSH with the delivered key, transfer, expiry; both Workers in workerd with
// real queues. Then every request that went to a vendor, and every answer, against the vendors' documents.
import { execFile, execFileSync } from "node:child_process";
import { existsSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { promisify } from "node:util";
import { afterAll, beforeAll, expect, test } from "vitest";
import {
  buy,
  type Credentials,
  fetchCredentials,
  fixedHeaders,
  freshHeaders,
  transfer,
  waitForStatus,
} from "../world/agent.ts";
import { askAgain } from "../world/http.ts";
import { runOverSsh } from "../world/ssh-client.ts";
import { startWorld, type World } from "../world/world.ts";
import { exampleOf, runExample } from "./examples.ts";
import { checkJournal } from "./vendor-documents.ts";

const DAY = 86_400;
const run = promisify(execFile);
const documents = new URL("../../../shared/vendors/", import.meta.url);
const hasDocuments = existsSync(documents.pathname);
if (!hasDocuments)
  console.warn("SKIPPED: the vendors' documents are not beside this checkout; their checks did not run");
const hasOpenSsh = isInstalled("ssh") && isInstalled("ssh-keygen");
if (!hasOpenSsh) console.warn("SKIPPED: no OpenSSH client on this machine; its checks did not run");
const hasCurl = isInstalled("curl") && isInstalled("jq");
if (!hasCurl) console.warn("SKIPPED: no curl or no jq on this machine; the README's examples with them did not run");

let world: World;
let tokenId: number;
let gpu: ReturnType<typeof buy>;
let credentials: Credentials;
let examples: Promise<[viem: string, x402: string]>;
const folder = mkdtempSync(join(tmpdir(), "clawcloud-e2e-"));

beforeAll(async () => {
  world = await startWorld({
    // What polls here is in a hurry.
    edge: { RATE_LIMITS: "status=6000/60,credentials=6000/60", SCAN_INTERVAL_MS: "500" },
    vultr: { bootMs: { active: 300, ok: 600, sshd: 800, configured: 1_100 } },
    runpod: { bootMs: { starting: 200, running: 700, sshd: 1_000 } },
  });
  // Its machine is made while the other one is: the test that looks at it comes later.
  world.runpod.server.addFault({ call: "create", kind: "sold_out", region: "COMMUNITY" });
  world.runpod.server.addFault({ call: "create", kind: "error_after", region: "SECURE", times: 1 });
  gpu = buy(world.chain, agent(2), 4, 1);
  gpu.catch(() => undefined);
  // So are those of the README's examples.
  examples = Promise.all([example("viem", "js", 3), example("x402", "js", 4)]);
  examples.catch(() => undefined);
});
afterAll(async () => {
  await world?.stop();
  rmSync(folder, { recursive: true, force: true });
});

const agent = (index: number) => {
  const account = world.chain.agents[index];
  if (account === undefined) throw new Error(`there is no agent ${index}`);
  return account;
};
const example = (heading: string, language: "js" | "sh", index: number, variables: Record<string, string> = {}) =>
  runExample(heading, language, join(folder, heading), {
    API: world.url,
    RPC_URL: world.chain.url,
    PRIVATE_KEY: `0x${Buffer.from(agent(index).getHdKey().privateKey ?? []).toString("hex")}`,
    ...variables,
  });
type Sign = () => Promise<Record<string, string>>;
async function getCredentials(sign: Sign, id = tokenId) {
  const response = await askAgain(async () => fetch(`${world.url}/credentials/${id}`, { headers: await sign() }));
  return { status: response.status, body: (await response.json()) as Credentials & { code?: string } };
}
const post = (path: string, sign: Sign) =>
  askAgain(async () => fetch(world.url + path, { method: "POST", headers: await sign() }));

test("USDC in, a token out, a shell on the machine with the delivered key", async () => {
  ({ tokenId } = await buy(world.chain, agent(0), 0, 1));
  await waitForStatus(world.url, tokenId, ["running"]);
  const { status, body } = await getCredentials(() => fixedHeaders(agent(0), tokenId));
  expect(status).toBe(200);
  credentials = body;
  expect(body).toMatchObject({
    tokenId: String(tokenId),
    username: "root",
    tier: 0,
    type: "gcp",
    privateKey: body.ssh.privateKey,
  });
  expect(await runOverSsh(body, "nproc")).toEqual({ output: "1\n", code: 0 });
  expect((await runOverSsh(body, "uname -a")).output).toContain("Linux clawcloud-local-");
});

test.skipIf(!hasOpenSsh)(
  "OpenSSH takes the key, derives the public half, knows the host and runs the instructions",
  async () => {
    const keyFile = join(folder, `clawcloud-${tokenId}.pem`);
    const hostsFile = join(folder, "known_hosts");
    writeFileSync(keyFile, credentials.ssh.privateKey ?? "", { mode: 0o600 });
    writeFileSync(hostsFile, `${credentials.ssh.knownHosts}\n`);
    const derived = await run("ssh-keygen", ["-y", "-f", keyFile]);
    expect(derived.stdout.trim().split(" ").slice(0, 2).join(" ")).toBe(credentials.ssh.publicKey);
    const print = await run("ssh-keygen", ["-l", "-f", keyFile]);
    expect(print.stdout).toContain(`4096 ${credentials.ssh.fingerprint}`);
    const [program = "", ...args] = credentials.instructions.split(" ");
    const strict = [
      "-F",
      "none",
      "-o",
      `UserKnownHostsFile=${hostsFile}`,
      "-o",
      "StrictHostKeyChecking=yes",
      "-o",
      "BatchMode=yes",
    ];
    const shell = await run(program, [...strict, ...args, "whoami"], { cwd: folder });
    expect(shell.stdout).toBe("root\n");
  },
);

test.skipIf(!hasOpenSsh)("the machine refuses any other key", async () => {
  const other = join(folder, "other");
  await run("ssh-keygen", ["-q", "-t", "ed25519", "-N", "", "-f", other]);
  const options = [
    "-F",
    "none",
    "-o",
    "StrictHostKeyChecking=no",
    "-o",
    "UserKnownHostsFile=/dev/null",
    "-o",
    "BatchMode=yes",
  ];
  const attempt = run("ssh", [
    ...options,
    "-i",
    other,
    "-p",
    String(credentials.ssh.port),
    `root@${credentials.host}`,
    "whoami",
  ]);
  await expect(attempt).rejects.toThrow("Permission denied");
});

test("the key comes once by the fixed form, and again by the fresh form, each nonce once", async () => {
  const repeat = await getCredentials(() => fixedHeaders(agent(0), tokenId));
  expect([repeat.status, repeat.body.ssh.privateKey]).toEqual([200, null]);
  expect(repeat.body.ssh.deliveredAt).not.toBeNull();
  let headers: Record<string, string> = {};
  const again = await getCredentials(async () => {
    headers = await freshHeaders(world.url, agent(0), tokenId);
    return headers;
  });
  expect(again.body.ssh.privateKey).toBe(credentials.ssh.privateKey);
  const replay = await getCredentials(async () => headers);
  expect([replay.status, replay.body.code]).toEqual([401, "nonce_used"]);
});

test("a transfer of the token moves access from one wallet to the other", async () => {
  await transfer(world.chain, agent(0), agent(1).address, tokenId);
  await settled(async () => (await getCredentials(() => fixedHeaders(agent(1), tokenId))).status === 200);
  const former = await getCredentials(() => fixedHeaders(agent(0), tokenId));
  expect([former.status, former.body.code]).toEqual([403, "not_owner"]);
  const body = await fetchCredentials(world.url, agent(1), tokenId);
  expect(await runOverSsh(body, "whoami")).toEqual({ output: "root\n", code: 0 });
  const owned = async (index: number) =>
    ((await (await askAgain(() => fetch(`${world.url}/vms/${agent(index).address}`))).json()) as { count: number })
      .count;
  expect([await owned(0), await owned(1)]).toEqual([0, 1]);
});

test("an acknowledgement by the fresh form erases the stored key", async () => {
  const acknowledged = async (sign: Sign) => (await post(`/credentials/${tokenId}/ack`, sign)).status;
  expect(await acknowledged(() => fixedHeaders(agent(1), tokenId))).toBe(401);
  expect(await acknowledged(() => freshHeaders(world.url, agent(1), tokenId))).toBe(401);
  expect(await acknowledged(() => freshHeaders(world.url, agent(1), tokenId, "/ack"))).toBe(200);
  expect((await fetchCredentials(world.url, agent(1), tokenId)).ssh.privateKey).toBeNull();
});

test("the new owner is told that the former one has the key, rotates it, and the old key opens nothing (hard case 15)", async () => {
  const before = await fetchCredentials(world.url, agent(1), tokenId);
  expect(before.ssh.knownToFormerOwner).toBe(true);
  // Until then the seller can still log in.
  expect((await runOverSsh(credentials, "whoami")).output).toBe("root\n");
  const after = await rotated(1, tokenId);
  expect(after.ssh).toMatchObject({ privateKey: expect.stringContaining("PRIVATE KEY"), knownToFormerOwner: false });
  expect(await runOverSsh(after, "whoami")).toEqual({ output: "root\n", code: 0 });
  // The same machine under the same address, with another login key and another host key.
  expect(after.host).toBe(credentials.host);
  const oldKey = { ...after, ssh: { ...after.ssh, privateKey: credentials.ssh.privateKey } };
  await expect(runOverSsh(oldKey, "whoami")).rejects.toThrow("authentication methods failed");
  const oldHost = { ...after, ssh: { ...after.ssh, knownHosts: credentials.ssh.knownHosts } };
  await expect(runOverSsh(oldHost, "whoami")).rejects.toThrow("verification failed");
  const attempts = (await waitForStatus(world.url, tokenId, ["running"])).attempts.map(({ outcome }) => outcome);
  expect(attempts).toEqual(["running", "running"]);
  // What the vendor keeps of the machine holds no key.
  await settled(async () =>
    [...world.vultr.instances.values()].every(({ userData }) => !/PRIVATE|ssh-/.test(userData)),
  );
});

test("a GPU purchase through a sold-out cloud and a lost answer ends in one pod with a shell", async () => {
  // Bought before the first test, from vendors that fail so.
  const { tokenId } = await gpu;
  const status = await waitForStatus(world.url, tokenId, ["running", "failed"]);
  expect(status.attempts.map((attempt) => attempt.outcome)).toEqual(["sold_out", "running"]);
  const { body } = await getCredentials(() => fixedHeaders(agent(2), tokenId), tokenId);
  expect(body).toMatchObject({ type: "gpu-external", privateKey: null });
  expect((await runOverSsh(body, "nvidia-smi")).output).toContain("RTX 4090");
  expect(world.runpod.pods.size).toBe(1);
  world.runpod.server.clearFaults();

  // Another key is another pod, since the old one's has a key to its own API inside (hard case 15).
  const [old] = world.runpod.pods.keys();
  const after = await rotated(2, tokenId);
  expect((await runOverSsh(after, "nvidia-smi")).output).toContain("RTX 4090");
  await expect(runOverSsh(body, "whoami")).rejects.toThrow();
  expect([...world.runpod.pods.keys()]).toEqual([expect.not.stringMatching(old ?? "")]);
});

test("README: the prices are those of the local world", async () => {
  type Tier = { tier: number; pricePerDay: string; specs: { vcpu: number; memoryGb: number; gpu: string | null } };
  const { tiers } = (await (await fetch(`${world.url}/tiers`)).json()) as { tiers: Tier[] };
  const rows = tiers.map(({ tier, pricePerDay, specs: { vcpu, memoryGb, gpu } }) => [
    String(tier),
    gpu ?? `VM, ${vcpu} vCPU, ${memoryGb} GB`,
    pricePerDay,
  ]);
  const table = [...readFileSync("README.md", "utf8").matchAll(/^\| (\d) \| (.+) \| (\d+\.\d\d) \|$/gm)];
  expect(table.map(([, ...cells]) => cells)).toEqual(rows);
});

test.skipIf(!hasCurl)("README: the first request gets the answer beside it", async () => {
  const answer = JSON.parse(await example("First request", "sh", 0)) as object;
  const shown = JSON.parse(exampleOf("First request", "json")) as object;
  expect(answer).toEqual({ ...shown, stock: expect.any(String) });
});

test("README: what viem buys, the printed command and the saved key log in to", async () => {
  const [printed] = await examples;
  expect(await runOverSsh(savedLogin("viem", printed), "whoami")).toEqual({ output: "root\n", code: 0 });
});

test.skipIf(!hasCurl)("README: what x402 buys, curl logs in to by what it printed", async () => {
  const [, printed] = await examples;
  const [, TOKEN_ID = "", SIGNATURE = ""] = /^export TOKEN_ID=(\d+) SIGNATURE=(0x\w+)\n$/.exec(printed) ?? [];
  const answer = await example("curl", "sh", 0, { TOKEN_ID, SIGNATURE });
  expect(answer).toContain('"accepts"');
  const command = answer.slice(answer.lastIndexOf("ssh -i"));
  const login = savedLogin("curl", command);
  const knownHosts = readFileSync(join(folder, "curl/.ssh/known_hosts"), "utf8").trim();
  expect(await runOverSsh({ ...login, ssh: { ...login.ssh, knownHosts } }, "whoami")).toEqual({
    output: "root\n",
    code: 0,
  });
});

/** By the printed command, with the key that lies where it names it. */
function savedLogin(heading: string, command: string) {
  const [, file = "", port, username = "", host = ""] = /^ssh -i (\S+) .*-p (\d+) (\w+)@(\S+)\n$/.exec(command) ?? [];
  const privateKey = readFileSync(join(folder, heading, file), "utf8");
  return { host, username, ssh: { port: Number(port), privateKey, knownHosts: null as string | null } };
}

/** Orders other keys for a token's machine, and waits for them. */
async function rotated(index: number, id: number): Promise<Credentials> {
  const ordered = await post(`/credentials/${id}/rotate`, () => freshHeaders(world.url, agent(index), id, "/rotate"));
  expect(ordered.status).toBe(202);
  await waitForStatus(world.url, id, ["running"]);
  return fetchCredentials(world.url, agent(index), id);
}

test("the end of the paid time ends both machines, and SSH with them", async () => {
  await world.chain.node.increaseTime({ seconds: DAY + 10 });
  // Final history, two blocks behind, knows it at once.
  await world.chain.node.mine({ blocks: 3 });
  await waitForStatus(world.url, tokenId, ["terminated"]);
  await settled(async () => world.vultr.instances.size === 0 && world.runpod.pods.size === 0);
  await expect(runOverSsh(credentials, "whoami")).rejects.toThrow("ECONNREFUSED");
});

test.skipIf(!hasDocuments)(
  "every request to a vendor, and every answer, is as the vendor's document says",
  async () => {
    const vultr = await checkJournal(new URL("vultr-v2.openapi.json", documents), "/v2", world.vultr.server.journal);
    expect(vultr.problems).toEqual([]);
    const runpod = await checkJournal(
      new URL("runpod-v2.mock.openapi.json", documents),
      "",
      // The document is older than the question for the balance.
      world.runpod.server.journal.filter(({ path }) => path !== "/v2/billing/balance"),
    );
    expect(runpod.problems).toEqual([]);
    // All verbs of both adapters went by.
    for (const operation of [
      "POST /instances",
      "GET /instances",
      "PATCH /instances/{instance-id}",
      "POST /instances/{instance-id}/reinstall",
      "DELETE /instances/{instance-id}",
      "POST /firewalls",
      "GET /os",
    ]) {
      expect(vultr.operations).toContain(operation);
    }
    for (const operation of ["POST /v2/pods", "GET /v2/pods", "DELETE /v2/pods/{id}", "GET /v2/catalog/gpus"]) {
      expect(runpod.operations).toContain(operation);
    }
  },
);

test.skipIf(!hasDocuments)("the check against the documents notices what is wrong", async () => {
  const sample = world.vultr.server.journal.find((one) => one.method === "POST" && one.path === "/v2/instances");
  if (sample === undefined) throw new Error("no create is on record");
  const wrong = [
    { ...sample, requestBody: { ...(sample.requestBody as object), os_id: "2284" } },
    { ...sample, responseBody: { instance: { id: 7 } } },
    { ...sample, path: "/v2/servers" },
    { ...sample, path: "/v2/instances?tags=x" },
  ];
  for (const exchange of wrong) {
    const { problems } = await checkJournal(new URL("vultr-v2.openapi.json", documents), "/v2", [exchange]);
    expect(problems).not.toEqual([]);
  }
});

async function settled(condition: () => Promise<boolean>, timeoutMs = 120_000): Promise<void> {
  const until = Date.now() + timeoutMs;
  while (!(await condition())) {
    if (Date.now() > until) throw new Error("it did not settle in time");
    await new Promise((resolve) => setTimeout(resolve, 300));
  }
}

function isInstalled(program: string): boolean {
  try {
    execFileSync("sh", ["-c", `command -v ${program}`], { stdio: "ignore" });
    return true;
  } catch {
    return false;
  }
}
