// The facilitator: somebody else's server that checks and submits payments for us. What it says is advice: the chain is
// the witness (hard case 2). Its words never reach a payer; its codes are mapped, here and nowhere else.
import { bytesToHex, randomBytes } from "@noble/hashes/utils.js";
import { FacilitatorResponseError, FacilitatorTimeoutError, HTTPFacilitatorClient } from "@x402/core/http";
import type { FacilitatorConfig } from "@x402/core/server";
import {
  type PaymentPayload,
  type PaymentRequirements,
  SettleError,
  type SupportedResponse,
  VerifyError,
} from "@x402/core/types";
import { importJWK, SignJWT } from "jose";
import { AppError } from "../../errors.ts";
import { errorFields, log } from "../../log.ts";
import { inTurn } from "../../outbound.ts";
import type { EdgeConfig } from "../config.ts";

const JWT_SECONDS = 120;
const RETRY_SECONDS = 5;

/** Why a payment won't do, as a payer reads it, and x402's code for that. Facilitators' codes end in these; any other is the last. */
const REFUSALS = {
  insufficient_funds: ["The payer's USDC balance is below the price.", "insufficient_funds"],
  signature: ["The signature is not the payer's.", "invalid_exact_evm_payload_signature"],
  valid_before: [
    "The authorization has expired or is about to: sign a new one.",
    "invalid_exact_evm_payload_authorization_valid_before",
  ],
  valid_after: ["The authorization is not valid yet.", "invalid_exact_evm_payload_authorization_valid_after"],
  nonce: ["The authorization was used or cancelled before: sign a new one.", "invalid_transaction_state"],
  value: ["The amount is not the price.", "invalid_exact_evm_payload_authorization_value"],
  recipient: ["The payment goes to somebody else.", "invalid_exact_evm_payload_recipient_mismatch"],
  requirement: [
    "The payment is of another amount, recipient or asset than this request asks for.",
    "invalid_payment_requirements",
  ],
  other: ["The facilitator refused the payment.", "unexpected_verify_error"],
} as const;
export type Refusal = keyof typeof REFUSALS;
export const refusalSentence = (refusal: Refusal): string => REFUSALS[refusal][0];
export const refusalReason = (refusal: Refusal): string => REFUSALS[refusal][1];

const PATTERNS: readonly [RegExp, Refusal][] = [
  [/insufficient_funds|insufficient_balance/, "insufficient_funds"],
  [/signature/, "signature"],
  [/valid_before|expired/, "valid_before"],
  [/valid_after/, "valid_after"],
  [/nonce/, "nonce"],
  [/value|amount/, "value"],
  [/recipient|pay_to/, "recipient"],
];
const refusalOf = (reason: string | undefined): Refusal =>
  PATTERNS.find(([pattern]) => pattern.test(reason ?? ""))?.[1] ?? "other";

type Verdict = { valid: true } | { valid: false; refusal: Refusal };
type Settlement =
  /** It says so. */
  | { outcome: "settled"; transaction: string }
  | { outcome: "refused"; refusal: Refusal }
  /** No answer, or none that can be read: it may have been submitted. */
  | { outcome: "unknown" };

export type Facilitator = {
  /** Throws `AppError` 503 where it does not answer, 502 where it answers nonsense. */
  verify: (payload: PaymentPayload, requirement: PaymentRequirements) => Promise<Verdict>;
  settle: (payload: PaymentPayload, requirement: PaymentRequirements) => Promise<Settlement>;
};

/** Says what we support without asking: a quote needs no facilitator. */
class PinnedFacilitatorClient extends HTTPFacilitatorClient {
  readonly #network: `${string}:${string}`;

  constructor(config: FacilitatorConfig, network: `${string}:${string}`) {
    super(config);
    this.#network = network;
  }

  override async getSupported(): Promise<SupportedResponse> {
    return { kinds: [{ x402Version: 2, scheme: "exact", network: this.#network }], extensions: [], signers: {} };
  }
}

type Settings = Pick<
  EdgeConfig,
  "FACILITATOR_URL" | "FACILITATOR_TIMEOUT_MS" | "FACILITATOR_AUTH" | "CDP_API_KEY_ID" | "CDP_API_KEY_SECRET"
>;

export const facilitatorClient = (config: Settings & Pick<EdgeConfig, "CHAIN_ID">): PinnedFacilitatorClient =>
  new PinnedFacilitatorClient(connectionOf(config), `eip155:${config.CHAIN_ID}`);

function connectionOf(config: Settings): FacilitatorConfig {
  const url = config.FACILITATOR_URL ?? "";
  return {
    url,
    timeoutMs: config.FACILITATOR_TIMEOUT_MS,
    ...(config.FACILITATOR_AUTH === "cdp" ? { createAuthHeaders: () => cdpHeaders(config, url) } : {}),
  };
}

/** What the facilitator itself says that it supports. */
export const askSupported = (config: Settings): Promise<SupportedResponse> =>
  new HTTPFacilitatorClient(connectionOf(config)).getSupported();

export function createFacilitator(client: HTTPFacilitatorClient): Facilitator {
  return {
    verify: async (payload, requirement) => {
      try {
        const { isValid, invalidReason } = await inTurn(() => client.verify(payload, requirement));
        return isValid ? { valid: true } : refused(invalidReason);
      } catch (error) {
        if (error instanceof VerifyError) return refused(error.invalidReason);
        log("warn", "facilitator_failed", { call: "verify", ...errorFields(error) });
        throw unverified(error);
      }
    },
    settle: async (payload, requirement) => {
      try {
        const { success, errorReason, transaction } = await inTurn(() => client.settle(payload, requirement));
        return success ? { outcome: "settled", transaction } : settlementRefused(errorReason);
      } catch (error) {
        if (error instanceof SettleError) return settlementRefused(error.errorReason);
        log("warn", "facilitator_failed", { call: "settle", ...errorFields(error) });
        return { outcome: "unknown" };
      }
    },
  };
}

function refused(reason: string | undefined): Verdict {
  const refusal = refusalOf(reason);
  log("info", "payment_refused", { refusal });
  return { valid: false, refusal };
}

/** What it can know before it submits anything is a refusal; of a submission that went wrong only the chain knows. */
const settlementRefused = (reason: string | undefined): Settlement => {
  const refusal = refusalOf(reason);
  log("warn", "settlement_refused", { refusal });
  return refusal === "other" || refusal === "nonce" ? { outcome: "unknown" } : { outcome: "refused", refusal };
};

const unverified = (cause: unknown): AppError =>
  cause instanceof FacilitatorResponseError && !(cause instanceof FacilitatorTimeoutError)
    ? new AppError(
        "facilitator_answered_nonsense",
        "The payment could not be checked: the facilitator's answer can't be read. Send the same payment again.",
        { cause, retryAfterSeconds: RETRY_SECONDS },
      )
    : new AppError(
        "facilitator_unavailable",
        "The payment could not be checked: the facilitator does not answer. Send the same payment again.",
        { cause, retryAfterSeconds: RETRY_SECONDS },
      );

/**
 * A JWT for each call, signed by an Ed25519 key (base64 of seed and public key) as Coinbase's CDP asks for:
 * docs.cdp.coinbase.com, "Authentication".
 */
export async function cdpHeaders(
  { CDP_API_KEY_ID: id = "", CDP_API_KEY_SECRET: secret = "" }: Pick<Settings, "CDP_API_KEY_ID" | "CDP_API_KEY_SECRET">,
  url: string,
): Promise<Record<"verify" | "settle" | "supported", { Authorization: string }>> {
  const bytes = Buffer.from(secret, "base64");
  const part = (from: number) => bytes.subarray(from, from + 32).toString("base64url");
  const key = await importJWK({ kty: "OKP", crv: "Ed25519", d: part(0), x: part(32) }, "EdDSA");
  const { host, pathname } = new URL(url);
  const headersOf = async (call: string, method = "POST") => {
    const now = Math.floor(Date.now() / 1_000);
    const token = await new SignJWT({ uris: [`${method} ${host}${pathname.replace(/\/$/, "")}/${call}`] })
      .setProtectedHeader({ alg: "EdDSA", kid: id, typ: "JWT", nonce: bytesToHex(randomBytes(16)) })
      .setSubject(id)
      .setIssuer("cdp")
      .setAudience("cdp_service")
      .setIssuedAt(now)
      .setNotBefore(now)
      .setExpirationTime(now + JWT_SECONDS)
      .sign(key);
    return { Authorization: `Bearer ${token}` };
  };
  return {
    verify: await headersOf("verify"),
    settle: await headersOf("settle"),
    supported: await headersOf("supported", "GET"),
  };
}
