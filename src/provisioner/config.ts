// The provisioner's environment.
import { secp256k1 } from "@noble/curves/secp256k1.js";
import { bytesToHex, hexToBytes } from "@noble/hashes/utils.js";
import type { Hex } from "viem";
import { z } from "zod";
import { binding, chainFields, integer, items, parser, privateKey, usdc } from "../config.ts";
import { SSH_KEY_ALGORITHMS } from "../credentials/ssh-keys.ts";
import type { Job } from "../model/jobs.ts";

const provisionerFields = z.object({
  ...chainFields,
  JOBS: binding<Queue<Job>>("send"),
  VENDOR_GATE: binding<DurableObjectNamespace>("idFromName"),
  OPERATOR_WALLET: binding<DurableObjectNamespace>("idFromName"),
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

export type ProvisionerBindings = z.input<typeof provisionerSchema>;
export type ProvisionerConfig = z.output<typeof provisionerSchema>;

/** Throws `ConfigError` that names every variable which is missing or wrong. */
export const provisionerConfig = parser("provisioner", provisionerSchema);

/** Names of everything that the provisioner's environment may hold, for the test that keeps the two apart (hard case 3). */
export const PROVISIONER_VARIABLES = Object.keys(provisionerFields.shape);

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
