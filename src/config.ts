// Both Workers' environments, parsed once per isolate, bindings included. A bad one names the variable and nothing runs.
import { secp256k1 } from "@noble/curves/secp256k1.js";
import { bytesToHex, hexToBytes } from "@noble/hashes/utils.js";
import { type AbiEvent, getAddress, type Hex, isAddress, parseAbiItem, parseUnits } from "viem";
import { z } from "zod";
import type { IpGuard, Limit } from "../durable-objects/ip-guard.ts";
import type { LogBook } from "../durable-objects/log-book.ts";
import type { OperatorWallet } from "../durable-objects/operator-wallet.ts";
import type { VendorGate } from "../durable-objects/vendor-gate.ts";
import { KNOWN_FACTORIES } from "./chain/wallet-factories.ts";
import { isWellFormedKey } from "./credentials/admin-key.ts";
import { SSH_KEY_ALGORITHMS } from "./credentials/ssh-keys.ts";
import { clientAddress } from "./edge/access/client-name.ts";
import { LIMITS } from "./edge/access/limits.ts";
import { ConfigError } from "./errors.ts";
import { LOG_LEVELS } from "./log.ts";
import type { Job } from "./model/jobs.ts";

/** Of the public API. */
export const VERSION = "1.3.0";
const DEFAULT_PURCHASE_EVENT =
  "VMPurchased(uint256 tokenId, address buyer, uint8 tier, uint16 durationDays, uint256 purchaseDate, uint256 totalCost)";

const integer = (min: number, max = Number.MAX_SAFE_INTEGER) =>
  z.string().regex(/^\d+$/, "must be a whole number").transform(Number).pipe(z.number().min(min).max(max));
const binding = <T>(method: string) =>
  z.custom<T>(
    (value) => typeof (value as Record<string, unknown> | undefined)?.[method] === "function",
    "is not bound to this Worker",
  );
const address = z
  .string()
  .refine((value) => isAddress(value), "is no address")
  .transform((value) => getAddress(value));
const list = z
  .string()
  .transform((value) => [...new Set(value.split(",").map((item) => item.trim().replace(/\/+$/, "")))])
  .pipe(z.array(z.url({ protocol: /^https?$/ })).min(1));

const privateKey = z
  .string()
  .refine(isPrivateKey, "must be 64 hex digits, a secp256k1 private key")
  .transform((value) => hexToBytes(value.replace(/^0x/, "")));
const items = z
  .string()
  .default("")
  .transform((value) =>
    value
      .split(",")
      .map((item) => item.trim())
      .filter((item) => item !== ""),
  );

/** A sum in USDC, as 10^-6 USDC. */
const usdc = z
  .string()
  .regex(/^\d{1,12}(\.\d{1,6})?$/, "must be an amount of USDC, like 2000 or 0.5")
  .transform((value) => parseUnits(value, 6));

const chainFields = {
  DB: binding<D1Database>("prepare"),
  /** Keeps deployments that share a vendor account apart; part of every machine's label. */
  DEPLOYMENT_ID: z.string().regex(/^[a-z0-9-]{1,16}$/, "must match [a-z0-9-]{1,16}"),
  CHAIN_ID: integer(1).prefault("8453"),
  CONTRACT_ADDRESS: address.default("0xF708741D37C420518852c6A15aB658066951c852"),
  /** Comma-separated; of different providers in production, since two of them have to agree. */
  RPC_URLS: list,
  RPC_TIMEOUT_MS: integer(100).prefault("4000"),
  /** Blocks that one request for logs spans at most. */
  SCAN_MAX_RANGE: integer(1).prefault("2000"),
  /** How far a node's block may be ahead of our clock. */
  CHAIN_MAX_AHEAD_SECONDS: integer(1).prefault("60"),
  /** Blocks on top before a purchase or a payment counts. */
  CONFIRMATIONS: integer(0, 1_000).prefault("1"),
  USDC_ADDRESS: address.default("0x833589fCD6eDb6E08f4c7C32D4f71b54bdA02913"),
  /** The coin's name in its EIP-712 domain, where it is not the one that it has on Base or Base Sepolia. */
  USDC_NAME: z
    .string()
    .regex(/^[A-Za-z][A-Za-z0-9 .]{0,40}$/, "must be a coin's name")
    .optional(),
  /** How long a price that was quoted is kept. */
  QUOTE_SECONDS: integer(1).prefault("300"),
  /** Above this base fee nothing is sold over x402. */
  MAX_BASE_FEE_GWEI: z
    .string()
    .regex(/^\d{1,6}(\.\d{1,9})?$/, "must be an amount of gwei, like 5 or 0.5")
    .transform((value) => parseUnits(value, 9))
    .prefault("5"),
  /** Tiers whose payment is taken before there is a machine, and given back where there is none. */
  CAPTURE_FIRST_TIERS: items.pipe(
    z.array(
      z
        .string()
        .regex(/^[0-7]$/, "must be tiers, comma-separated")
        .transform(Number),
    ),
  ),
  /** The most that leaves the operator wallet for tokens that x402 has sold; refunds have their own limit. */
  PURCHASE_LIMIT_USDC_PER_DAY: usdc.default(2_000_000_000n),
  /** Where clients reach the API; the first one is what answers and machines' notes name. */
  PUBLIC_URLS: list,
  PURCHASE_EVENT: z.string().default(DEFAULT_PURCHASE_EVENT).transform(purchaseEvent),
  EXPIRY_GRACE_SECONDS: integer(0).prefault("0"),
  LOG_BOOK: binding<DurableObjectNamespace<LogBook>>("idFromName"),
  LOG_LEVEL: z.enum(LOG_LEVELS, `must be one of ${LOG_LEVELS.join(", ")}`).default("info"),
};

const edgeFields = z.object({
  ...chainFields,
  JOBS: binding<Queue<Job>>("send"),
  IP_GUARD: binding<DurableObjectNamespace<IpGuard>>("idFromName"),
  START_BLOCK: integer(0),
  SCAN_INTERVAL_MS: integer(100).prefault("1500"),
  SCAN_RUN_SECONDS: integer(1, 600).prefault("60"),
  SWEEP_INTERVAL_SECONDS: integer(1).prefault("30"),
  /** Machines that one sweep passes on without final history's word, or 5 % of those running if that is more. */
  SWEEP_MAX_ENDS: integer(1).prefault("3"),
  CATALOG_SECONDS: integer(1).prefault("120"),
  DATA_PRIVATE_KEY: privateKey,
  /** Private halves of data keys that were replaced, comma-separated: they open what is not re-encrypted yet. */
  RETIRED_DATA_KEYS: items.pipe(z.array(privateKey)),
  /** Makes the first operator's key, and nothing else. */
  ADMIN_API_KEY: z.string().refine(isWellFormedKey, 'must be a key that "npm run keys" made').optional(),
  /** Through these a smart wallet that is not deployed yet may sign for its token. */
  WALLET_FACTORIES: items
    .pipe(z.array(address))
    .transform((factories) => (factories.length === 0 ? KNOWN_FACTORIES : factories)),
  REQUIRE_FRESH_SIGNATURES: z.stringbool("must be true or false").prefault("false"),
  /** Gets a signed POST for each line of level `page`. */
  ALERT_WEBHOOK_URL: z.url({ protocol: /^https?$/, error: "must be an http(s) URL" }).optional(),
  ALERT_WEBHOOK_SECRET: z
    .string()
    .regex(/^whsec_(?:[A-Za-z0-9+/]{4}){6,}(?:[A-Za-z0-9+/]{2}==|[A-Za-z0-9+/]{3}=)?$/, "must be whsec_ and base64")
    .optional(),
  /** The operator wallet's address: what payments go to. Without it nothing is sold over x402. */
  X402_PAY_TO: address.optional(),
  /** CAIP-2. Stated at all, it must be the contract's chain (hard case 24). */
  X402_NETWORK: z
    .string()
    .regex(/^eip155:\d+$/, "must be a CAIP-2 network, like eip155:8453")
    .optional(),
  FACILITATOR_URL: z.url({ protocol: /^https?$/, error: "must be an http(s) URL" }).optional(),
  FACILITATOR_TIMEOUT_MS: integer(100, 60_000).prefault("10000"),
  /** `cdp`: a JWT for each request, by the two keys below. */
  FACILITATOR_AUTH: z.enum(["none", "cdp"], "must be none or cdp").default("none"),
  CDP_API_KEY_ID: z
    .string()
    .regex(/^[A-Za-z0-9/_-]{8,200}$/, "must be a key's id, as CDP's portal shows it")
    .optional(),
  CDP_API_KEY_SECRET: z
    .string()
    .regex(/^[A-Za-z0-9+/]{86}==$/, "must be an Ed25519 key of CDP: 64 bytes in base64")
    .optional(),
  /** What /x402/vm-credentials costs. */
  CREDENTIALS_PRICE_USDC: usdc.default(10_000n),
  /**
   * What may be on its way or bought without having been paid for, within an hour: orders above a tenth of it, and all beyond
   * its half, are captured first (hard case 38).
   */
  UNCAPTURED_LIMIT_USDC_PER_HOUR: usdc.default(500_000_000n),
  KEY_GRACE_SECONDS: integer(0).prefault("86400"),
  CHAIN_MAX_AGE_SECONDS: integer(1).prefault("20"),
  PROVISION_DEADLINE_SECONDS: integer(1).prefault("3600"),
  /** `route=requests/seconds`, comma-separated, over the table in access/limits.ts. */
  RATE_LIMITS: z
    .string()
    .regex(/^(\w+=\d+\/[1-9]\d*(,\w+=\d+\/[1-9]\d*)*)?$/, "must be route=requests/seconds, comma-separated")
    .default("")
    .transform(limitsOf)
    .refine((limits) => Object.keys(limits).every((route) => Object.hasOwn(LIMITS, route)), {
      error: `must name routes of ${Object.keys(LIMITS).join(", ")}`,
    }),
  /** How long an isolate remembers a ban without asking again. */
  BAN_CACHE_SECONDS: integer(0, 3_600).prefault("10"),
  /** Addresses that are neither counted nor banned: one's own monitoring, a security scan. */
  UNLIMITED_CLIENTS: items
    .pipe(z.array(z.union([z.ipv4(), z.ipv6()], "must be IP addresses, comma-separated")))
    .transform((addresses) => new Set(addresses.map(clientAddress))),
});

/** The test network's, by x402.org. On mainnet nobody is trusted with payments unless an operator says so (hard case 24). */
const DEFAULT_FACILITATORS: Readonly<Record<number, string>> = { 84532: "https://x402.org/facilitator" };

const edgeSchema = edgeFields
  // A page that nobody can tell from a stranger's is worth nothing.
  .refine(({ ALERT_WEBHOOK_URL: url, ALERT_WEBHOOK_SECRET: secret }) => url === undefined || secret !== undefined, {
    path: ["ALERT_WEBHOOK_SECRET"],
    error: "is not set, although ALERT_WEBHOOK_URL is",
  })
  .refine(({ X402_NETWORK: network, CHAIN_ID: id }) => network === undefined || network === `eip155:${id}`, {
    path: ["X402_NETWORK"],
    error: "must be the contract's chain: anything else sells machines for another chain's money",
  })
  .refine(({ FACILITATOR_AUTH: auth, CDP_API_KEY_ID: id }) => auth === "none" || id !== undefined, {
    path: ["CDP_API_KEY_ID"],
    error: "is not set, although FACILITATOR_AUTH is cdp",
  })
  .refine(({ FACILITATOR_AUTH: auth, CDP_API_KEY_SECRET: secret }) => auth === "none" || secret !== undefined, {
    path: ["CDP_API_KEY_SECRET"],
    error: "is not set, although FACILITATOR_AUTH is cdp",
  })
  .transform((config) => ({
    ...config,
    FACILITATOR_URL: config.FACILITATOR_URL ?? DEFAULT_FACILITATORS[config.CHAIN_ID],
  }))
  .refine(({ X402_PAY_TO: payTo, FACILITATOR_URL: url }) => payTo === undefined || url !== undefined, {
    path: ["FACILITATOR_URL"],
    error: "is not set, although X402_PAY_TO is, and this chain has no default",
  });

const provisionerFields = z.object({
  ...chainFields,
  JOBS: binding<Queue<Job>>("send"),
  VENDOR_GATE: binding<DurableObjectNamespace<VendorGate>>("idFromName"),
  OPERATOR_WALLET: binding<DurableObjectNamespace<OperatorWallet>>("idFromName"),
  /** Of the wallet that pays refunds. */
  OPERATOR_PRIVATE_KEY: privateKey.transform((key): Hex => `0x${bytesToHex(key)}`).optional(),
  /** `manual`: what is owed waits for an operator. */
  REFUNDS: z.enum(["automatic", "manual"], "must be automatic or manual").default("automatic"),
  /** How old a machine must be that no row explains before it is ended, on the chain's proof. */
  ORPHAN_GRACE_SECONDS: integer(0).prefault("3600"),
  /** For a machine in place of one that vanished; of chain time. */
  REPLACE_DEADLINE_SECONDS: integer(1).prefault("3600"),
  /** What a machine that came late costs us: `pay` the lost share of the price, or `record` it. */
  LATE_REFUNDS: z.enum(["record", "pay"], "must be record or pay").default("record"),
  /** From how many seconds between purchase and login on a machine came late. */
  LATE_AFTER_SECONDS: integer(0).prefault("600"),
  /** The most that leaves the operator wallet as refunds within 24 hours; what is beyond it waits. */
  REFUND_LIMIT_USDC_PER_DAY: usdc.default(2_000_000_000n),
  /** The most of them that operators may approve, for what was delivered as well. */
  APPROVAL_LIMIT_USDC_PER_DAY: usdc.default(500_000_000n),
  /** Below this the wallet calls for more. */
  LOW_FUNDS_USDC: usdc.default(100_000_000n),
  /** The share of a price that the vendor may take, where x402 has sold the machine before it was paid for. */
  MAX_COST_SHARE: z
    .string()
    .regex(/^\d{1,2}(\.\d{1,4})?$/, "must be a share, like 0.9")
    .transform(Number)
    .prefault("1"),
  DATA_PUBLIC_KEY: z
    .string()
    .refine(isPublicKey, "must be a secp256k1 public key, 33 or 65 bytes of hex")
    .transform((value) => hexToBytes(value.replace(/^0x/, ""))),
  SSH_KEY_ALGORITHM: z.enum(SSH_KEY_ALGORITHMS).default("rsa-4096"),
  VULTR_API_KEY: z.string().min(1),
  VULTR_API_URL: z.url({ protocol: /^https?$/ }).default("https://api.vultr.com/v2"),
  VULTR_SSH_PORT: integer(1, 65_535).prefault("22"),
  VULTR_OS: z.string().default("Ubuntu 24.04 LTS x64"),
  /** In the order in which a machine is looked for: US East, US West, Europe, Asia. */
  VULTR_REGIONS: items
    .transform((regions) => (regions.length === 0 ? ["ewr", "lax", "ams", "sgp", "sea", "sjc", "fra", "nrt"] : regions))
    .pipe(z.array(z.string().regex(/^[a-z]{3}$/, "must be region ids of three letters, comma-separated"))),
  /** Whether Vultr's support has enabled cloud GPUs for the account: then they stand in for RunPod's A100s. */
  VULTR_GPUS: z.stringbool("must be true or false").prefault("false"),
  RUNPOD_API_KEY: z.string().min(1),
  RUNPOD_API_URL: z.url({ protocol: /^https?$/ }).default("https://api.runpod.io"),
  /** The id of a container registry login in RunPod's account, for pulls of the image. */
  RUNPOD_REGISTRY: z
    .string()
    .regex(/^[A-Za-z0-9_-]{1,64}$/, "must be the id of a registry login, as RunPod's console shows it")
    .optional(),
  RUNPOD_IMAGE: z.string().default("runpod/pytorch:2.1.0-py3.10-cuda11.8.0-devel-ubuntu22.04"),
  RUNPOD_MIN_CUDA: z
    .string()
    .regex(/^\d+\.\d+$/)
    .default("11.8"),
  /** In the order in which a pod is looked for. Community first: the cheaper one. */
  RUNPOD_CLOUDS: items
    .transform((clouds) => (clouds.length === 0 ? ["COMMUNITY", "SECURE"] : clouds))
    .pipe(z.array(z.enum(["COMMUNITY", "SECURE"], "must be COMMUNITY and SECURE, comma-separated"))),
  RUNPOD_DISK_GB: integer(1).prefault("40"),
  RUNPOD_REQUESTS_PER_MINUTE: integer(1).prefault("60"),
  /** Below so many dollars at that vendor a person is called; 0: its balance is not read. */
  LOW_VULTR_USD: integer(0).prefault("100"),
  LOW_RUNPOD_USD: integer(0).prefault("100"),
  VENDOR_TIMEOUT_MS: integer(100).prefault("30000"),
  /** How long a machine may exist at the vendor before a complete list shows it. */
  LISTING_LAG_MS: integer(0).prefault("60000"),
  POLL_SECONDS: integer(0, 3_600).prefault("2"),
  BOOT_TIMEOUT_SECONDS: integer(1).prefault("600"),
  /** A machine whose system has run for so long without a public address gets none. */
  ADDRESS_TIMEOUT_SECONDS: integer(1).prefault("120"),
});

// Without a wallet nothing can be paid back: whoever wants that says so.
const provisionerSchema = provisionerFields.refine(
  ({ REFUNDS: refunds, OPERATOR_PRIVATE_KEY: key }) => refunds === "manual" || key !== undefined,
  { path: ["OPERATOR_PRIVATE_KEY"], error: "is not set, although REFUNDS is automatic" },
);

export type EdgeBindings = z.input<typeof edgeSchema>;
export type ProvisionerBindings = z.input<typeof provisionerSchema>;
export type EdgeConfig = z.output<typeof edgeSchema>;
export type ProvisionerConfig = z.output<typeof provisionerSchema>;
/** What both Workers need to read the chain. */
export type ChainConfig = Pick<EdgeConfig, keyof typeof chainFields>;

/** The edge's configuration. Throws `ConfigError` naming every variable that is missing or wrong. */
export const edgeConfig = parser("edge", edgeSchema);
/** The provisioner's configuration. Throws `ConfigError` naming every variable that is missing or wrong. */
export const provisionerConfig = parser("provisioner", provisionerSchema);

function parser<Schema extends z.ZodType>(worker: string, schema: Schema) {
  const parsed = new WeakMap<object, z.output<Schema>>();
  return (env: object): z.output<Schema> => {
    const known = parsed.get(env);
    if (known !== undefined) return known;
    const result = schema.safeParse(env);
    if (!result.success) {
      // Messages name what is expected; zod never quotes the value it was given in these.
      throw new ConfigError(
        worker,
        result.error.issues.map((issue) => {
          const name = issue.path.join(".");
          const given = issue.path.length > 1 || (env as Record<string, unknown>)[name] !== undefined;
          const why = given || issue.message.startsWith("is not set") ? issue.message : "is not set";
          return `${name}: ${why}`;
        }),
      );
    }
    parsed.set(env, result.data);
    return result.data;
  };
}

function limitsOf(setting: string): Readonly<Record<string, Limit>> {
  const entries = [...setting.matchAll(/(\w+)=(\d+)\/(\d+)/g)];
  return Object.fromEntries(
    entries.map(([, route, requests, windowSeconds]) => [
      route,
      { requests: Number(requests), windowSeconds: Number(windowSeconds) },
    ]),
  );
}

function purchaseEvent(signature: string, context: z.RefinementCtx): AbiEvent {
  try {
    const item = parseAbiItem(`event ${signature.replace(/^event\s+/, "")}`) as AbiEvent;
    const names = item.inputs.map((input) => input.name);
    for (const name of ["tokenId", "buyer", "tier", "durationDays", "purchaseDate", "totalCost"]) {
      if (!names.includes(name)) throw new Error(name);
    }
    return item;
  } catch {
    context.addIssue("must be an event signature with tokenId, buyer, tier, durationDays, purchaseDate and totalCost");
    return z.NEVER;
  }
}

function isPrivateKey(value: string): boolean {
  return /^(0x)?[0-9a-f]{64}$/i.test(value) && secp256k1.utils.isValidSecretKey(hexToBytes(value.replace(/^0x/, "")));
}

function isPublicKey(value: string): boolean {
  return /^(0x)?([0-9a-f]{66}|[0-9a-f]{130})$/i.test(value) && isPoint(value.replace(/^0x/, ""));
}

function isPoint(hex: string): boolean {
  try {
    secp256k1.Point.fromHex(hex);
    return true;
  } catch {
    return false;
  }
}

/** Names of everything that a Worker's environment may hold, for the test that keeps the two apart (hard case 3). */
export const EDGE_VARIABLES = Object.keys(edgeFields.shape);
export const PROVISIONER_VARIABLES = Object.keys(provisionerFields.shape);
