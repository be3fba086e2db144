// What both Workers' environments have alike. Each has its own beside it (edge/config.ts, provisioner/config.ts), parsed once per
// isolate, bindings included: a bad one names the variable, and nothing runs.
import { secp256k1 } from "@noble/curves/secp256k1.js";
import { hexToBytes } from "@noble/hashes/utils.js";
import { type AbiEvent, getAddress, isAddress, parseUnits } from "viem";
import { z } from "zod";
import type { LogBook } from "../durable-objects/log-book.ts";
import { parsePurchaseEvent } from "./chain/contract.ts";
import { ConfigError } from "./errors.ts";
import { LOG_LEVELS } from "./log.ts";
import "./plain-issues.ts";

/** Of the public API. */
export const VERSION = "1.3.0";
const DEFAULT_PURCHASE_EVENT =
  "VMPurchased(uint256 tokenId, address buyer, uint8 tier, uint16 durationDays, uint256 purchaseDate, uint256 totalCost)";

export const integer = (min: number, max = Number.MAX_SAFE_INTEGER) =>
  z.string().regex(/^\d+$/, "must be a whole number").transform(Number).pipe(z.number().min(min).max(max));
export const binding = <T>(method: string) =>
  z.custom<T>(
    (value) => typeof (value as Record<string, unknown> | undefined)?.[method] === "function",
    "is not bound to this Worker",
  );
export const address = z
  .string()
  .refine((value) => isAddress(value), "is no address")
  .transform((value) => getAddress(value));
const list = z
  .string()
  .transform((value) => [...new Set(value.split(",").map((item) => item.trim().replace(/\/+$/, "")))])
  .pipe(z.array(z.url({ protocol: /^https?$/ })).min(1));

export const privateKey = z
  .string()
  .refine(isPrivateKey, "must be 64 hex digits, a secp256k1 private key")
  .transform((value) => hexToBytes(value.replace(/^0x/, "")));
export const items = z
  .string()
  .default("")
  .transform((value) =>
    value
      .split(",")
      .map((item) => item.trim())
      .filter((item) => item !== ""),
  );

/** A sum in USDC, as 10^-6 USDC. */
export const usdc = z
  .string()
  .regex(/^\d{1,12}(\.\d{1,6})?$/, "must be an amount of USDC, like 2000 or 0.5")
  .transform((value) => parseUnits(value, 6));

export const chainFields = {
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

/** What both Workers need to read the chain. */
const chainSchema = z.object(chainFields);
export type ChainConfig = z.output<typeof chainSchema>;

/** Reads an environment, once for each. Throws `ConfigError` that names every variable which is missing or wrong. */
export function parser<Schema extends z.ZodType>(worker: string, schema: Schema) {
  const parsed = new WeakMap<object, z.output<Schema>>();
  return (env: object): z.output<Schema> => {
    const known = parsed.get(env);
    if (known !== undefined) return known;
    const result = schema.safeParse(env);
    if (!result.success) {
      const problems = result.error.issues.map(({ path: [name], message }) => {
        const value = (env as Record<string, unknown>)[String(name)];
        const given = value !== undefined && value !== "";
        return `${String(name)}: ${given || message.startsWith("is not set") ? message : "is not set"}`;
      });
      throw new ConfigError(worker, [...new Set(problems)]);
    }
    parsed.set(env, result.data);
    return result.data;
  };
}

function purchaseEvent(signature: string, context: z.RefinementCtx): AbiEvent {
  const event = parsePurchaseEvent(signature);
  if (event !== null) return event;
  context.addIssue("must be an event signature with tokenId, buyer, tier, durationDays, purchaseDate and totalCost");
  return z.NEVER;
}

function isPrivateKey(value: string): boolean {
  return /^(0x)?[0-9a-f]{64}$/i.test(value) && secp256k1.utils.isValidSecretKey(hexToBytes(value.replace(/^0x/, "")));
}
