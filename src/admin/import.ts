// `npm run admin -- import`: VMs and wallets of the old backend, before the first scan, so that nothing that is already
// served is bought a second time. What a token is, its purchase on chain says; what its machine is, the file says.
import { spawnSync } from "node:child_process";
import { createPrivateKey } from "node:crypto";
import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { secp256k1 } from "@noble/curves/secp256k1.js";
import { hexToBytes, utf8ToBytes } from "@noble/hashes/utils.js";
import ssh2 from "ssh2";
import { getAddress, isAddress } from "viem";
import { privateKeyToAddress } from "viem/accounts";
import { z } from "zod";
import { connectChain, readHead } from "../chain/client.ts";
import { SECONDS_PER_DAY } from "../chain/contract.ts";
import { fetchSales, type Purchase } from "../chain/events.ts";
import { askFirst } from "../chain/witness.ts";
import { dataKeyId, decrypt, isEncrypted, sealSecret } from "../credentials/ecies.ts";
import { BEGUN_SQL, type ImportedRows, importSql } from "../db/import.ts";
import type { EdgeConfig } from "../edge/config.ts";
import { incarnationKey } from "../model/purchase-key.ts";
import { TIERS } from "../model/tiers.ts";
import { readEnvironment, WORKERS } from "./environment.ts";
import { readJson } from "./secrets.ts";
import { WRANGLER } from "./wrangler.ts";

const ATTEMPT = 1;
const VENDORS = { vm: "vultr", gpu: "runpod" } as const;

const SMALLEST_MS = 1_000_000_000_000;
// A number of seconds taken for milliseconds would be 1970, and a key whose grace is over.
const time = z
  .union([z.iso.datetime({ offset: true }), z.int().min(SMALLEST_MS, "must be unix milliseconds or ISO 8601")])
  .transform((value) => new Date(value).getTime());
/** `coerce` would make token 0 of null and of "". */
const tokenId = z.union([z.int().min(0), z.string().regex(/^\d+$/).transform(Number).pipe(z.int())]);

/** A row of the old `vms` table as JSON; other columns are ignored. */
const oldVm = z.object({
  token_id: tokenId,
  /** The statuses of version 1.3.0 of the API, and `failed`. */
  status: z.enum(["provisioning", "running", "terminated", "expired", "failed"]),
  instance_id: z.string().min(1).nullish(),
  provider: z.enum(["vultr", "runpod"]).nullish(),
  ssh_host: z.string().min(1).nullish(),
  ssh_port: z.int().min(1).max(65_535).nullish(),
  /** PEM or OpenSSH's format in clear, or `ecc:…` under the old backend's key; null once it was handed out and erased. */
  ssh_private_key: z.string().min(1).nullish(),
  /** authorized_keys line; needed where the private key is gone. */
  ssh_public_key: z.string().min(1).nullish(),
  delivered_at: time.nullish(),
});
const oldWallet = z.object({
  agent_id: z.string().regex(/^[A-Za-z0-9][A-Za-z0-9_-]{2,63}$/),
  address: z.string().refine((value) => isAddress(value, { strict: false }), "is no address"),
  /** Hex, or `ecc:…` of it. */
  private_key: z.string().min(1),
  created_at: time.nullish(),
});
const oldData = z.object({ vms: z.array(oldVm).default([]), agent_wallets: z.array(oldWallet).default([]) });

type OldVm = z.output<typeof oldVm>;
type Keys = { publicKey: Uint8Array; openers: readonly Uint8Array[] };
export type ImportOptions = { local?: boolean; remote?: boolean; persistTo?: string };

/** Reads the file, looks its tokens up on chain and writes the rows with wrangler. Throws an `Error` that says what to do. */
export async function importOldBackend(file: string, options: ImportOptions): Promise<void> {
  const { config, database } = readConfig(options);
  const data = parseFile(file);
  const keys = readKeys(config);
  const served = data.vms.filter((vm) => ["running", "expired", "terminated"].includes(vm.status));
  const left = data.vms.filter((vm) => !served.includes(vm));
  const problems = [...findDuplicates(data), ...left.flatMap(findUnended)];
  const rows: ImportedRows = { vms: [], attempts: [], wallets: [] };
  const history = await readHistory(config, new Set(served.map((vm) => vm.token_id)));
  for (const vm of served) {
    try {
      const { row, attempt } = await toRows(vm, history, config, keys);
      rows.vms.push(row);
      rows.attempts.push(attempt);
    } catch (error) {
      problems.push(`token ${vm.token_id}: ${(error as Error).message}`);
    }
  }
  for (const wallet of data.agent_wallets) {
    try {
      rows.wallets.push(await toWallet(wallet, keys));
    } catch (error) {
      problems.push(`wallet ${wallet.agent_id}: ${(error as Error).message}`);
    }
  }
  if (problems.length > 0) throw new Error(`Nothing was imported.\n  ${problems.join("\n  ")}`);
  const running = rows.vms.filter((row) => row.status === "running").length;
  console.log(`${running} running and ${rows.vms.length - running} ended VMs, ${rows.wallets.length} wallets`);
  for (const vm of left) {
    console.log(`token ${vm.token_id} is "${vm.status}": left to the scan, which orders a machine for it`);
  }
  if (!options.local && !options.remote) {
    console.log("Nothing was written: say --remote (or --local) to write it.");
    return;
  }
  write(database, importSql(rows), options);
}

/** Two rows for one machine, and the scan would take the second for a machine that nobody has. */
function findDuplicates({ vms, agent_wallets: wallets }: z.output<typeof oldData>): string[] {
  const twice = (what: string, values: (string | number)[]) =>
    [...new Set(values.filter((value, i) => values.indexOf(value) !== i))].map(
      (value) => `${what} ${value} is there twice`,
    );
  return [
    ...twice(
      "token",
      vms.map((vm) => vm.token_id),
    ),
    ...twice(
      "instance_id",
      vms.flatMap((vm) => vm.instance_id ?? []),
    ),
    ...twice(
      "wallet",
      wallets.map((wallet) => wallet.agent_id),
    ),
  ];
}

/** A machine behind a purchase that the scan will serve again would run beside the new one for ever. */
const findUnended = ({ token_id, status, instance_id }: OldVm): string[] =>
  instance_id == null
    ? []
    : [
        `token ${token_id}: it is "${status}" and has a machine; end ${instance_id} at the vendor and drop its instance_id`,
      ];

function readConfig({ local }: ImportOptions): { config: EdgeConfig; database: string } {
  const { vars, secrets, bindings, databases } = readEnvironment("edge");
  const config = WORKERS.edge.parse({ ...vars, ...secrets, ...(local ? fromShell() : {}), ...bindings });
  return { config, database: databases[0]?.name ?? "" };
}

/** A trial against another chain is set up in the shell; what goes to an account comes from the files alone. */
const fromShell = () =>
  Object.fromEntries(
    ["RPC_URLS", "CONTRACT_ADDRESS", "START_BLOCK", "DATA_PRIVATE_KEY", "DEPLOYMENT_ID"].flatMap((name) => {
      const value = process.env[name];
      return value === undefined ? [] : [[name, value]];
    }),
  );

function parseFile(file: string): z.output<typeof oldData> {
  const result = oldData.safeParse(readJson(file));
  if (result.success) return result.data;
  // Paths and rules only: the values may be keys.
  const issues = result.error.issues.map((issue) => `${issue.path.join(".")}: ${issue.message}`);
  throw new Error(`${file} is not as expected.\n  ${issues.join("\n  ")}`);
}

/** `LEGACY_DATA_KEY` is the private half that the old backend sealed with, where it is not today's. */
function readKeys(config: EdgeConfig): Keys {
  const legacy = process.env["LEGACY_DATA_KEY"]?.replace(/^0x/, "");
  return {
    publicKey: secp256k1.getPublicKey(config.DATA_PRIVATE_KEY),
    openers: [...(legacy === undefined ? [] : [hexToBytes(legacy)]), config.DATA_PRIVATE_KEY],
  };
}

async function readSecret(value: string, { openers }: Keys): Promise<Uint8Array> {
  if (!isEncrypted(value)) return utf8ToBytes(value);
  for (const key of openers) {
    const secret = await decrypt(key, value).catch(() => null);
    if (secret !== null) return secret;
  }
  throw new Error("its ecc: value does not open; set LEGACY_DATA_KEY to the old backend's private key");
}

type History = { purchases: Map<number, Purchase>; expiries: Map<number, number> };

/** The purchases of these tokens and how far renewals have moved their end, up to the chain's head. */
async function readHistory(config: EdgeConfig, tokens: ReadonlySet<number>): Promise<History> {
  const history: History = { purchases: new Map(), expiries: new Map() };
  if (tokens.size === 0) return history;
  const chain = connectChain(config);
  const source = { contract: config.CONTRACT_ADDRESS, purchaseEvent: config.PURCHASE_EVENT };
  const { number: head } = await askFirst(chain, (node) => readHead(node));
  for (let from = config.START_BLOCK; from <= head; ) {
    const found = await askFirst(chain, (node) => fetchSales(node, source, from, head));
    for (const purchase of found.purchases) history.purchases.set(purchase.tokenId, purchase);
    for (const { tokenId, newExpiry } of found.renewals) history.expiries.set(tokenId, newExpiry);
    from = found.to + 1;
  }
  return history;
}

async function toRows(vm: OldVm, { purchases, expiries }: History, config: EdgeConfig, keys: Keys) {
  const purchase = purchases.get(vm.token_id);
  if (purchase === undefined) throw new Error("the chain has no purchase of it");
  const spec = TIERS[purchase.tier];
  if (spec === undefined) throw new Error(`its tier ${purchase.tier} is not sold here`);
  const running = vm.status === "running";
  // What the old backend called expired and never deleted goes through the proof like any other, and may be running after it.
  const unended = vm.status === "expired" && vm.instance_id != null;
  const alive = running || unended;
  if (alive && (vm.instance_id == null || vm.ssh_host == null)) {
    throw new Error("a VM whose machine exists needs instance_id and ssh_host");
  }
  const login = await readLogin(vm, keys);
  const incarnation = incarnationKey({
    deploymentId: config.DEPLOYMENT_ID,
    contract: config.CONTRACT_ADDRESS,
    tokenId: purchase.tokenId,
    txHash: purchase.txHash,
    ordinal: purchase.ordinal,
  });
  const paidUntil = purchase.purchaseDate + purchase.durationDays * SECONDS_PER_DAY;
  const expiresAt = Math.max(paidUntil, expiries.get(purchase.tokenId) ?? 0);
  const startedAt = purchase.purchaseDate * 1_000;
  const provider = vm.provider ?? VENDORS[spec.type];
  const owner = purchase.buyer.toLowerCase();
  const keyId = dataKeyId(keys.publicKey);
  const context = { kind: "legacy", subject: incarnation, attempt: ATTEMPT } as const;
  const row: ImportedRows["vms"][number] = {
    incarnation,
    tokenId: purchase.tokenId,
    owner,
    tier: purchase.tier,
    vmType: spec.type,
    txHash: purchase.txHash,
    blockNumber: purchase.blockNumber,
    status: running ? "running" : unended ? "expired" : "terminated",
    step: unended ? "prove" : "idle",
    wakeAt: unended ? startedAt : null,
    expiredAt: unended ? expiresAt : null,
    deadline: purchase.purchaseDate,
    createdAt: purchase.purchaseDate,
    expiresAt,
    checkAt: running ? expiresAt + config.EXPIRY_GRACE_SECONDS : null,
    attempt: ATTEMPT,
    provider,
    instanceId: alive ? (vm.instance_id ?? null) : null,
    sshHost: vm.ssh_host ?? null,
    sshPort: vm.ssh_port ?? 22,
    sshPrivateKey: login.secret === null || !alive ? null : await sealSecret(keys.publicKey, context, login.secret),
    keyId,
    runningAt: startedAt,
    deliveredAt: vm.delivered_at ?? (login.secret === null ? startedAt : null),
    deliveredTo: vm.delivered_at != null || login.secret === null ? owner : null,
  };
  const attempt: ImportedRows["attempts"][number] = {
    incarnation,
    number: ATTEMPT,
    provider,
    region: "imported",
    plan: "imported",
    // No machine at a vendor bears these: the old one is known by its instance id alone.
    label: `imported-${purchase.tokenId}`,
    mark: "",
    publicKey: login.publicKey,
    keyId,
    hostPublicKey: "",
    createSentAt: startedAt,
    instanceId: vm.instance_id ?? null,
    startedAt,
    endedAt: startedAt,
    outcome: "running",
    goneAt: alive ? null : startedAt,
  };
  return { row, attempt };
}

/** The key as this backend stores it (PKCS#8 DER where the type allows), and its public half. */
async function readLogin(vm: OldVm, keys: Keys): Promise<{ secret: Uint8Array | null; publicKey: string }> {
  if (vm.ssh_private_key == null) {
    if (vm.instance_id != null && vm.status !== "terminated" && vm.ssh_public_key == null) {
      throw new Error("it needs ssh_private_key, or ssh_public_key where the private one is gone");
    }
    return { secret: null, publicKey: vm.ssh_public_key ?? "" };
  }
  const text = await readSecret(vm.ssh_private_key, keys);
  const parsed = ssh2.utils.parseKey(Buffer.from(text));
  if (parsed instanceof Error) throw new Error("its ssh_private_key is no private key that can be read");
  const publicKey = `${parsed.type} ${parsed.getPublicSSH().toString("base64")}`;
  if (parsed.type !== "ssh-rsa" && parsed.type !== "ssh-ed25519") return { secret: text, publicKey };
  const der = createPrivateKey(parsed.getPrivatePEM()).export({ format: "der", type: "pkcs8" });
  return { secret: new Uint8Array(der), publicKey };
}

async function toWallet(wallet: z.output<typeof oldWallet>, keys: Keys): Promise<ImportedRows["wallets"][number]> {
  const hex = new TextDecoder()
    .decode(await readSecret(wallet.private_key, keys))
    .trim()
    .replace(/^0x/, "");
  if (!/^[0-9a-f]{64}$/i.test(hex)) throw new Error("its private_key is not 64 hex digits");
  const address = privateKeyToAddress(`0x${hex}`);
  if (address !== getAddress(wallet.address)) throw new Error("its private_key is not that of its address");
  const context = { kind: "legacy", subject: wallet.agent_id, attempt: 0 } as const;
  return {
    agentId: wallet.agent_id,
    address,
    privateKey: await sealSecret(keys.publicKey, context, hexToBytes(hex)),
    keyId: dataKeyId(keys.publicKey),
    createdAt: wallet.created_at ?? Date.now(),
  };
}

function write(database: string, sql: string, options: ImportOptions): void {
  const place = options.remote
    ? ["--remote"]
    : ["--local", ...(options.persistTo === undefined ? [] : ["--persist-to", options.persistTo])];
  const begun = d1(database, [...place, "--json", "--command", BEGUN_SQL]);
  const [answer] = JSON.parse(begun) as { results: { begun: number }[] }[];
  if (answer?.results[0]?.begun !== 0) {
    throw new Error(
      "Nothing was imported: the database has rows already, of a scan that has begun or of an import. It takes an import once, before the first deployment.",
    );
  }
  const folder = mkdtempSync(join(tmpdir(), "clawcloud-import-"));
  try {
    const path = join(folder, "import.sql");
    writeFileSync(path, sql, { mode: 0o600 });
    if (sql !== "") d1(database, [...place, "--yes", "--file", path]);
  } finally {
    rmSync(folder, { recursive: true });
  }
  console.log("Written. The scan will find these tokens served.");
}

function d1(database: string, args: readonly string[]): string {
  const command = [WRANGLER, "d1", "execute", database, "-c", WORKERS.edge.file, ...args];
  const { status, stdout, stderr } = spawnSync(process.execPath, command, { encoding: "utf8" });
  if (status !== 0) throw new Error(`wrangler d1 execute failed:\n${stderr || stdout}`);
  return stdout;
}
