// The variables and bindings that both Workers have; edge/config.ts and provisioner/config.ts add their own. An environment is
// parsed once per isolate. With a bad variable the Worker refuses to run, and the error names the variable.
import { secp256k1 } from "@noble/curves/secp256k1.js";
import { hexToBytes } from "@noble/hashes/utils.js";
import { type AbiEvent, getAddress, isAddress, parseUnits } from "viem";
import { z } from "zod";
import type { LogBook } from "../durable-objects/log-book.ts";
import { parsePurchaseEvent } from "./chain/contract.ts";
import { ConfigError } from "./errors.ts";
import { LOG_LEVELS } from "./log.ts";
import "./plain-issues.ts";

/** The version of the public API. */
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
  .refine((value) => isAddress(value), "is not an address")
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

/** An amount in USDC, parsed to 10^-6 USDC. */
export const usdc = z
  .string()
  .regex(/^\d{1,12}(\.\d{1,6})?$/, "must be an amount of USDC, like 2000 or 0.5")
  .transform((value) => parseUnits(value, 6));

export const chainFields = {
  DB: binding<D1Database>("prepare"),
  /** Separates deployments that share a vendor account. It is part of every machine's label. */
  DEPLOYMENT_ID: z.string().regex(/^[a-z0-9-]{1,16}$/, "must match [a-z0-9-]{1,16}"),
  CHAIN_ID: integer(1).prefault("8453"),
  CONTRACT_ADDRESS: address.default("0xF708741D37C420518852c6A15aB658066951c852"),
  /** Comma-separated. Two nodes have to agree, so production needs URLs of different providers. */
  RPC_URLS: list,
  RPC_TIMEOUT_MS: integer(100).prefault("4000"),
  /** The most blocks that one eth_getLogs may span. */
  SCAN_MAX_RANGE: integer(1).prefault("2000"),
  /** How far a block's time may be ahead of our clock (hard case 29). */
  CHAIN_MAX_AHEAD_SECONDS: integer(1).prefault("60"),
  /** Blocks on top of a purchase's or payment's block before it counts. */
  CONFIRMATIONS: integer(0, 1_000).prefault("1"),
  USDC_ADDRESS: address.default("0x833589fCD6eDb6E08f4c7C32D4f71b54bdA02913"),
  /** The coin's name in its EIP-712 domain, if it differs from USDC's on Base or Base Sepolia. */
  USDC_NAME: z
    .string()
    .regex(/^[A-Za-z][A-Za-z0-9 .]{0,40}$/, "must be a coin's name")
    .optional(),
  /** How long a quoted price is honoured. */
  QUOTE_SECONDS: integer(1).prefault("300"),
  /** The base fee above which nothing is sold over x402. */
  MAX_BASE_FEE_GWEI: z
    .string()
    .regex(/^\d{1,6}(\.\d{1,9})?$/, "must be an amount of gwei, like 5 or 0.5")
    .transform((value) => parseUnits(value, 9))
    .prefault("5"),
  /** Tiers whose payment is captured before a machine is ordered, and refunded if no machine can be had. */
  CAPTURE_FIRST_TIERS: items.pipe(
    z.array(
      z
        .string()
        .regex(/^[0-7]$/, "must be tiers, comma-separated")
        .transform(Number),
    ),
  ),
  /** The operator wallet's daily limit for the purchase of tokens that x402 has sold. Refunds have a limit of their own. */
  PURCHASE_LIMIT_USDC_PER_DAY: usdc.default(2_000_000_000n),
  /** The URLs at which clients reach the API. Responses and the notes on machines name the first. */
  PUBLIC_URLS: list,
  PURCHASE_EVENT: z.string().default(DEFAULT_PURCHASE_EVENT).transform(purchaseEvent),
  EXPIRY_GRACE_SECONDS: integer(0).prefault("0"),
  LOG_BOOK: binding<DurableObjectNamespace<LogBook>>("idFromName"),
  LOG_LEVEL: z.enum(LOG_LEVELS, `must be one of ${LOG_LEVELS.join(", ")}`).default("info"),
};

/** The schema of the shared variables alone: enough for reads of the chain. */
const chainSchema = z.object(chainFields);
export type ChainConfig = z.output<typeof chainSchema>;

/**
 * A parser of environments, which parses each one once. It throws a `ConfigError` that names every missing or wrong variable.
 */
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
