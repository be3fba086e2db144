// `npm run admin -- import`: VMs and wallets of the old backend, before the first scan, so that nothing that is already
// served is bought a second time. What a token is, its purchase on chain says; what its machine is, the file says.
import { spawnSync } from "node:child_process";
import { createPrivateKey } from "node:crypto";
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { secp256k1 } from "@noble/curves/secp256k1.js";
import { hexToBytes, utf8ToBytes } from "@noble/hashes/utils.js";
import ssh2 from "ssh2";
import { getAddress, isAddress } from "viem";
import { privateKeyToAddress } from "viem/accounts";
import { z } from "zod";
import { askFirst, type Chain, connectChain, readHead } from "../chain/client.ts";
import { SECONDS_PER_DAY } from "../chain/contract.ts";
import { fetchEvents, type Purchase } from "../chain/events.ts";
import { incarnationKey } from "../chain/incarnation.ts";
import { shrinkRange } from "../chain/log-ranges.ts";
import type { EdgeConfig } from "../config.ts";
import { dataKeyId, decrypt, isEncrypted, sealSecret } from "../credentials/ecies.ts";
import { BEGUN_SQL, type ImportedRows, importSql } from "../db/import.ts";
import { TIERS } from "../vms/tiers.ts";
import { readEnvironment, WORKERS, WRANGLER } from "./environment.ts";

const ATTEMPT = 1;
const VENDORS = { vm: "vultr", gpu: "runpod" } as const;

const time = z.union([z.iso.datetime({ offset: true }), z.int()]).transform((value) => new Date(value).getTime());

/** A row of the old `vms` table as JSON; other columns are ignored. */
const oldVm = z.object({
  token_id: z.coerce.number().int().min(0),
  status: z.string(),
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
  const { config, database } = readConfig();
  const data = parseFile(file);
  const keys = readKeys(config);
  const served = data.vms.filter((vm) => ["running", "expired", "terminated"].includes(vm.status));
  const left = data.vms.filter((vm) => !served.includes(vm));
  const problems: string[] = [];
  const rows: ImportedRows = { vms: [], attempts: [], wallets: [] };
  const purchases = await findPurchases(config, new Set(served.map((vm) => vm.token_id)));
  for (const vm of served) {
    try {
      const { row, attempt } = await toRows(vm, purchases.get(vm.token_id), config, keys);
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
    if (vm.instance_id != null) console.log(`  end the old backend's machine ${vm.instance_id} by hand first`);
  }
  if (!options.local && !options.remote) {
    console.log("Nothing was written: say --remote (or --local) to write it.");
    return;
  }
  write(database, importSql(rows), options);
}

function readConfig(): { config: EdgeConfig; database: string } {
  const { vars, secrets, bindings, databases } = readEnvironment("edge");
  const config = WORKERS.edge.parse({ ...vars, ...secrets, ...fromShell(), ...bindings });
  return { config, database: databases[0]?.name ?? "" };
}

/** The shell's variables go before the files', for a trial against another chain. */
const fromShell = () =>
  Object.fromEntries(
    ["RPC_URLS", "CONTRACT_ADDRESS", "START_BLOCK", "DATA_PRIVATE_KEY", "DEPLOYMENT_ID"].flatMap((name) => {
      const value = process.env[name];
      return value === undefined ? [] : [[name, value]];
    }),
  );

function parseFile(file: string): z.output<typeof oldData> {
  const result = oldData.safeParse(JSON.parse(readFileSync(file, "utf8")));
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

async function findPurchases(config: EdgeConfig, tokens: ReadonlySet<number>): Promise<Map<number, Purchase>> {
  const chain = connectChain(config);
  const found = new Map<number, Purchase>();
  if (tokens.size === 0) return found;
  const { number: head } = await askFirst(chain, (node) => readHead(node));
  let range = config.SCAN_MAX_RANGE;
  for (let from = config.START_BLOCK; from <= head && found.size < tokens.size; ) {
    const to = Math.min(head, from + range - 1);
    try {
      for (const purchase of await readPurchases(chain, config, from, to)) {
        if (tokens.has(purchase.tokenId)) found.set(purchase.tokenId, purchase);
      }
      from = to + 1;
    } catch (error) {
      if (range === 1) throw error;
      range = shrinkRange(range, error);
    }
  }
  return found;
}

const readPurchases = async (chain: Chain, config: EdgeConfig, from: number, to: number): Promise<Purchase[]> => {
  const source = { contract: config.CONTRACT_ADDRESS, purchaseEvent: config.PURCHASE_EVENT };
  return (await askFirst(chain, (node) => fetchEvents(node, source, from, to))).purchases;
};

async function toRows(vm: OldVm, purchase: Purchase | undefined, config: EdgeConfig, keys: Keys) {
  if (purchase === undefined) throw new Error("the chain has no purchase of it");
  const spec = TIERS[purchase.tier];
  if (spec === undefined) throw new Error(`its tier ${purchase.tier} is not sold here`);
  const running = vm.status === "running";
  // What the old backend called expired and never deleted is proved and ended like any other.
  const unended = vm.status === "expired" && vm.instance_id != null;
  if (running && (vm.instance_id == null || vm.ssh_host == null)) {
    throw new Error("a running VM needs instance_id and ssh_host");
  }
  const login = await readLogin(vm, keys);
  const incarnation = incarnationKey({
    deploymentId: config.DEPLOYMENT_ID,
    contract: config.CONTRACT_ADDRESS,
    tokenId: purchase.tokenId,
    txHash: purchase.txHash,
    ordinal: purchase.ordinal,
  });
  const expiresAt = purchase.purchaseDate + purchase.durationDays * SECONDS_PER_DAY;
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
    instanceId: running || unended ? (vm.instance_id ?? null) : null,
    sshHost: vm.ssh_host ?? null,
    sshPort: vm.ssh_port ?? 22,
    sshPrivateKey: login.secret === null || !running ? null : await sealSecret(keys.publicKey, context, login.secret),
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
    goneAt: running || unended ? null : startedAt,
  };
  return { row, attempt };
}

/** The key as this backend stores it (PKCS#8 DER where the type allows), and its public half. */
async function readLogin(vm: OldVm, keys: Keys): Promise<{ secret: Uint8Array | null; publicKey: string }> {
  if (vm.ssh_private_key == null) {
    if (vm.status === "running" && vm.ssh_public_key == null) {
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
      "Nothing was imported: the scan has begun, and machines are on order for what it found. Import into an empty, migrated database before the first deployment.",
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
