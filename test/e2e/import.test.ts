// `npm run admin -- import` as an operator runs it, into wrangler's local database; then the edge scans the same chain.
import { execFile } from "node:child_process";
import { generateKeyPairSync } from "node:crypto";
import { cp, mkdtemp, readdir, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { DatabaseSync } from "node:sqlite";
import { promisify } from "node:util";
import { secp256k1 } from "@noble/curves/secp256k1.js";
import { encrypt } from "eciesjs";
import ssh2 from "ssh2";
import { generatePrivateKey, privateKeyToAddress } from "viem/accounts";
import { afterAll, afterEach, beforeAll, expect, test, vi } from "vitest";
import { unstable_readConfig } from "wrangler";
import { importOldBackend } from "../../src/admin/import.ts";
import { openSecret } from "../../src/credentials/ecies.ts";
import { cursors } from "../../src/db/schema.ts";
import { insertion } from "../rows.ts";
import { CONTRACT_ADDRESS, USDC_ADDRESS } from "../world/addresses.ts";
import { buy, fixedHeaders } from "../world/agent.ts";
import { type BareWorkers, type BuiltWorkers, buildWorkers, runWorkers } from "../world/bare-workers.ts";
import { type Chain, clawAbi, startChain, usdcAbi } from "../world/chain.ts";
import { askAgain } from "../world/http.ts";
import { makeLoginPair } from "../world/ssh-client.ts";

const run = promisify(execFile);
const dataKey = secp256k1.keygen();
const legacyKey = secp256k1.keygen();
const hex = (bytes: Uint8Array) => Buffer.from(bytes).toString("hex");

/** `ecc:` as the old backend wrote it: eciesjs, parts in hex. */
function seal(text: string): string {
  const sealed = encrypt(legacyKey.publicKey, Buffer.from(text));
  const parts = [sealed.subarray(0, 65), sealed.subarray(65, 81), sealed.subarray(81, 97), sealed.subarray(97)];
  return `ecc:${parts.map(hex).join(":")}`;
}

const rsa = generateKeyPairSync("rsa", { modulusLength: 2_048 }).privateKey.export({ type: "pkcs1", format: "pem" });
const ed25519 = makeLoginPair().private;
const walletKeys = [generatePrivateKey(), generatePrivateKey()] as const;

let chain: Chain;
let folder: string;
let built: BuiltWorkers;
const tokens: number[] = [];

beforeAll(async () => {
  chain = await startChain({ blockTimeSeconds: 0 });
  folder = await mkdtemp(join(tmpdir(), "clawcloud-test-"));
  const [owner] = chain.agents;
  if (owner === undefined) throw new Error("the chain has no accounts");
  for (let count = 0; count < 5; count++) tokens.push((await buy(chain, owner, count % 4, 1)).tokenId);
  await renew(tokens[4] ?? -1, 2);
  built = await buildEdge();
  // Leaves a migrated database where wrangler keeps its local one.
  await (await runWorkers(built, () => undefined, join(folder, "v3"))).stop();
});
afterEach(() => {
  vi.unstubAllEnvs();
});
afterAll(async () => {
  await chain?.stop();
  await rm(folder, { recursive: true });
});

const variables = () => ({
  DEPLOYMENT_ID: "import",
  CONTRACT_ADDRESS,
  RPC_URLS: chain.url,
  START_BLOCK: "0",
  DATA_PRIVATE_KEY: hex(dataKey.secretKey),
});

/** What both ways of importing run with. */
const shell = () => ({
  ...variables(),
  LEGACY_DATA_KEY: hex(legacyKey.secretKey),
  WRANGLER_SEND_METRICS: "false",
  CLOUDFLARE_CF_FETCH_ENABLED: "false",
});

async function writeOldRows(data: object): Promise<string> {
  const file = join(folder, "old.json");
  await writeFile(file, JSON.stringify(data));
  return file;
}

/** The command as an operator runs it. */
async function importFile(data: object): Promise<{ failed: boolean; text: string }> {
  const env = { ...process.env, ...shell() };
  const args = ["src/admin/main.ts", "import", await writeOldRows(data), "--local", "--persist-to", folder];
  return run(process.execPath, args, { env }).then(
    ({ stdout }) => ({ failed: false, text: stdout }),
    (error: { stdout: string; stderr: string }) => ({ failed: true, text: error.stdout + error.stderr }),
  );
}

/** What the command prints of the error behind it. */
async function refusalOf(data: object): Promise<string> {
  for (const [name, value] of Object.entries(shell())) vi.stubEnv(name, value);
  const imported = importOldBackend(await writeOldRows(data), { local: true, persistTo: folder });
  return imported.then(
    () => "imported",
    (error: Error) => error.message,
  );
}

type Row = Record<string, string | number | null>;

/** Reads or changes the database that wrangler keeps in the folder. It is open while nothing else runs. */
async function query(sql: string, ...values: string[]): Promise<Row[]> {
  const place = join(folder, "v3/d1/miniflare-D1DatabaseObject");
  const [file, ...others] = (await readdir(place)).filter((name) => /^[0-9a-f]+\.sqlite$/.test(name));
  if (file === undefined || others.length > 0) throw new Error(`${place} holds not one database`);
  const database = new DatabaseSync(join(place, file));
  try {
    return database
      .prepare(sql)
      .all(...values)
      .map((row) => ({ ...row })) as Row[];
  } finally {
    database.close();
  }
}

const machine = { instance_id: "11111111-aaaa-4bbb-8ccc-000000000001", ssh_host: "203.0.113.5", ssh_port: 2222 };

test("what can't be imported is listed, nothing is written, and no key is told", async () => {
  const { failed, text } = await importFile({
    vms: [
      { ...machine, instance_id: "i-9", token_id: 999, status: "running", ssh_private_key: rsa },
      { ...machine, token_id: tokens[3], status: "terminated" },
      { token_id: tokens[3], status: "terminated" },
      { token_id: tokens[4], status: "provisioning", instance_id: "i-4" },
      { ...machine, token_id: tokens[0], status: "running", ssh_private_key: "secret-but-no-key" },
      { token_id: tokens[1], status: "running", ssh_private_key: rsa },
      { ...machine, token_id: tokens[2], status: "running" },
    ],
    agent_wallets: [
      { agent_id: "agent-1", address: `0x${"1".repeat(40)}`, private_key: walletKeys[0] },
      {
        agent_id: "agent-2",
        address: privateKeyToAddress(walletKeys[1]),
        private_key: seal("x").replace(/.$/, (last) => (last === "0" ? "1" : "0")),
      },
    ],
  });
  expect(failed).toBe(true);
  for (const line of [
    "token 999: the chain has no purchase of it",
    `token ${tokens[0]}: its ssh_private_key is no private key that can be read`,
    `token ${tokens[1]}: a VM whose machine exists needs instance_id and ssh_host`,
    // Either would leave a machine that is ended as nobody's, or one that is bought twice.
    `token ${tokens[3]} is there twice`,
    `instance_id ${machine.instance_id} is there twice`,
    `token ${tokens[4]}: it is "provisioning" and has a machine; end i-4 at the vendor and drop its instance_id`,
    `token ${tokens[2]}: it needs ssh_private_key, or ssh_public_key where the private one is gone`,
    "wallet agent-1: its private_key is not that of its address",
    "wallet agent-2: its ecc: value does not open; set LEGACY_DATA_KEY to the old backend's private key",
  ]) {
    expect(text).toContain(line);
  }
  for (const secret of ["secret-but-no-key", walletKeys[0].slice(2)]) expect(text).not.toContain(secret);
  expect(await query("SELECT count(*) AS n FROM vms")).toEqual([{ n: 0 }]);
});

test.each([
  ["a status that no one knows", { token_id: 1, status: "Running" }, "vms.0.status"],
  ["no token id, which must not become token 0", { token_id: null, status: "running" }, "vms.0.token_id"],
  ["seconds for milliseconds", { token_id: 1, status: "running", delivered_at: 1_790_000_000 }, "vms.0.delivered_at"],
])("%s is refused by its place in the file", async (_, vm, place) => {
  expect(await refusalOf({ vms: [vm] })).toContain(`${place}: `);
});

test("imported VMs are served and not bought again; what the old backend had not made is left to the scan", async () => {
  const { failed, text } = await importFile({
    vms: [
      { ...machine, token_id: tokens[0], status: "running", vm_type: "gcp", ssh_private_key: rsa },
      {
        ...machine,
        instance_id: "i-2",
        token_id: String(tokens[1]),
        status: "running",
        ssh_private_key: seal(ed25519),
      },
      { token_id: tokens[2], status: "terminated" },
      { token_id: tokens[3], status: "provisioning" },
      { ...machine, instance_id: "i-5", token_id: tokens[4], status: "expired", ssh_private_key: rsa },
    ],
    agent_wallets: walletKeys.map((key, i) => ({
      agent_id: `agent-${i}`,
      address: privateKeyToAddress(key).toLowerCase(),
      private_key: i === 0 ? key : seal(key.slice(2)),
    })),
  });
  expect([failed, text]).toEqual([false, expect.stringContaining("2 running and 2 ended VMs, 2 wallets")]);
  expect(text).toContain(`token ${tokens[3]} is "provisioning": left to the scan`);
  // Its end may be disproved: then it needs its key and the end of what was paid for, renewal included.
  const [renewed] = await query(
    `SELECT ssh_private_key, expires_at - created_at AS paid FROM vms WHERE token_id = ${tokens[4]}`,
  );
  expect(renewed).toMatchObject({ ssh_private_key: expect.stringMatching(/^ecc:/), paid: 3 * 86_400 });

  for (const row of await query("SELECT * FROM agent_wallets ORDER BY agent_id")) {
    const context = { kind: "wallet", subject: String(row["agent_id"]), attempt: 0 } as const;
    const { secret } = await openSecret(dataKey.secretKey, context, String(row["private_key"]));
    expect(privateKeyToAddress(`0x${hex(secret)}`)).toBe(row["address"]);
  }

  const logs: string[] = [];
  // Over a copy: the next test changes the database itself.
  await cp(join(folder, "v3"), join(folder, "copy"), { recursive: true });
  const workers = await runWorkers(built, ({ message }) => logs.push(message), join(folder, "copy"));
  try {
    const edge = await workers.miniflare.getWorker("edge");
    await edge.scheduled({ cron: "* * * * *" });
    const seen = logs.map((line) => JSON.parse(line) as { event: string; count?: number });
    expect(seen.filter((line) => line.event === "scan_pass")).toMatchObject([{ purchases: 1 }]);
    const statuses = [];
    for (const tokenId of tokens) {
      const answer = await askAgain(() => fetch(`${workers.url("edge")}/status/${tokenId}`));
      statuses.push(((await answer.json()) as { status: string }).status);
    }
    expect(statuses).toEqual(["running", "running", "terminated", "provisioning", "expired"]);
    await chain.node.mine({ blocks: 1 });
    expect(await credentialsOf(workers, tokens[0] ?? -1)).toMatchObject({
      host: machine.ssh_host,
      privateKey: rsa,
      ssh: { port: 2222, knownHosts: null, publicKey: publicLine(rsa.toString()) },
    });
    const second = await credentialsOf(workers, tokens[1] ?? -1);
    expect(second.ssh.publicKey).toBe(publicLine(ed25519));
    expect(publicLine(second.privateKey)).toBe(publicLine(ed25519));
  } finally {
    await workers.stop();
  }
});

test("a second import is refused, as is one after the scan has begun", async () => {
  const again = () => refusalOf({ vms: [{ token_id: tokens[2], status: "terminated" }] });
  const refused = expect.stringContaining("Nothing was imported: the database has rows already");
  expect(await again()).toEqual(refused);
  for (const table of ["vms", "attempts", "agent_wallets"]) await query(`DELETE FROM ${table}`);
  const block = { blockNumber: 1, blockHash: "0x", blockTimestamp: 1 };
  const { sql, json } = insertion(cursors, [{ id: 1, ...block, checkpoints: [], range: 500, scannedAt: 1 }]);
  await query(sql, json);
  expect(await again()).toEqual(refused);
});

async function renew(tokenId: number, days: number): Promise<void> {
  const [owner] = chain.agents;
  if (owner === undefined) throw new Error("the chain has no accounts");
  const wallet = (account: typeof owner) => chain.wallet(account);
  const confirm = async (hash: `0x${string}`) => chain.reader.waitForTransactionReceipt({ hash });
  const contract = { address: CONTRACT_ADDRESS, abi: clawAbi } as const;
  await confirm(
    await wallet(chain.deployer).writeContract({ ...contract, functionName: "setOptions", args: [true, true] }),
  );
  const approval = {
    address: USDC_ADDRESS,
    abi: usdcAbi,
    functionName: "approve",
    args: [CONTRACT_ADDRESS, 10n ** 12n],
  } as const;
  await confirm(await wallet(owner).writeContract(approval));
  await confirm(
    await wallet(owner).writeContract({ ...contract, functionName: "renewVM", args: [BigInt(tokenId), days] }),
  );
}

const buildEdge = () =>
  buildWorkers([
    {
      name: "edge",
      config: "wrangler.toml",
      variables: {
        ...variables(),
        CHAIN_ID: "8453",
        CONFIRMATIONS: "0",
        SCAN_RUN_SECONDS: "2",
        PUBLIC_URLS: "https://api.example",
      },
      objects: { IP_GUARD: { className: "IpGuard" }, LOG_BOOK: { className: "LogBook" } },
      database: unstable_readConfig({ config: "wrangler.toml" }).d1_databases[0]?.database_id ?? "",
    },
  ]);

async function credentialsOf(workers: Pick<BareWorkers, "url">, tokenId: number) {
  const [owner] = chain.agents;
  if (owner === undefined) throw new Error("the chain has no accounts");
  const headers = await fixedHeaders(owner, tokenId);
  const answer = await askAgain(() => fetch(`${workers.url("edge")}/credentials/${tokenId}`, { headers }));
  return (await answer.json()) as { host: string; privateKey: string; ssh: { publicKey: string } };
}

function publicLine(privateKey: string): string {
  const parsed = ssh2.utils.parseKey(privateKey);
  if (parsed instanceof Error) throw parsed;
  return `${parsed.type} ${parsed.getPublicSSH().toString("base64")}`;
}
