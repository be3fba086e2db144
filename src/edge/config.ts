// The edge's environment.
import { z } from "zod";
import type { IpGuard, Limit } from "../../durable-objects/ip-guard.ts";
import { KNOWN_FACTORIES } from "../chain/wallet-factories.ts";
import { address, binding, chainFields, integer, items, parser, privateKey, usdc } from "../config.ts";
import { isWellFormedKey } from "../credentials/admin-key.ts";
import { clientAddress } from "../model/client-name.ts";
import type { Job } from "../model/jobs.ts";
import { LIMITS } from "./access/limits.ts";

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

export type EdgeBindings = z.input<typeof edgeSchema>;
export type EdgeConfig = z.output<typeof edgeSchema>;

/** Throws `ConfigError` that names every variable which is missing or wrong. */
export const edgeConfig = parser("edge", edgeSchema);

/** Names of everything that the edge's environment may hold, for the test that keeps the two apart (hard case 3). */
export const EDGE_VARIABLES = Object.keys(edgeFields.shape);

function limitsOf(setting: string): Readonly<Record<string, Limit>> {
  const entries = [...setting.matchAll(/(\w+)=(\d+)\/(\d+)/g)];
  return Object.fromEntries(
    entries.map(([, route, requests, windowSeconds]) => [
      route,
      { requests: Number(requests), windowSeconds: Number(windowSeconds) },
    ]),
  );
}
