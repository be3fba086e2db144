// Demands for payment and payments as x402 writes them, version 2 in headers and version 1 beside it on the same route.
// The signed EIP-712 message is the same in both: a version 1 payment is read as one of version 2.
import { encodePaymentRequiredHeader, encodePaymentResponseHeader } from "@x402/core/http";
import { x402ResourceServer } from "@x402/core/server";
import type { PaymentPayload, PaymentRequired, PaymentRequirements, SettleResponse } from "@x402/core/types";
import { ExactEvmScheme } from "@x402/evm/exact/server";
import { getAddress } from "viem";
import type { Authorization, Coin } from "../../chain/authorization.ts";
import { coinOf } from "../../chain/coin.ts";
import { AppError, type Charged } from "../../errors.ts";
import { requireShort } from "../access/headers.ts";
import type { EdgeConfig } from "../config.ts";
import { createFacilitator, type Facilitator, facilitatorClient, type Refusal, refusalReason } from "./facilitator.ts";
import { PAYMENT_ID, type Payload, readPayload, Unreadable } from "./payload.ts";

const MAX_HEADER_CHARS = 16_384;
/** Version 1 names networks; those of CAIP-2 that it has no name for it can't pay on. */
const V1_NETWORKS: Readonly<Record<number, string>> = { 8453: "base", 84532: "base-sepolia" };

/** What is asked for one request. */
export type Demand = {
  /** 10^-6 USDC. */
  amount: bigint;
  /** How long the authorization has to be good for. */
  seconds: number;
  /** Path behind the base URL. */
  path: string;
  description: string;
  /** Bazaar's discovery metadata, `extensions.bazaar` of version 2 and `outputSchema` of version 1. */
  discovery: Discovery;
};
export type Discovery = {
  input: Record<string, unknown>;
  output: { type: "json"; example: Record<string, unknown> };
  /** JSON Schema of both. */
  schema: Record<string, unknown>;
};

export type Payment = Payload;

/** A payment that was shown and won't do. */
export type Refused = {
  payer: string;
  refusal: Refusal;
  charged: Charged;
  code?: "payment_invalid";
};

export type Till = { server: x402ResourceServer; facilitator: Facilitator; coin: Coin; payTo: `0x${string}` };

const tills = new WeakMap<EdgeConfig, Promise<Till>>();

/** Where payments are taken, one per configuration. Throws 503 where nothing is sold over x402. */
export function tillOf(config: EdgeConfig): Promise<Till> {
  const { X402_PAY_TO: payTo } = config;
  if (payTo === undefined) {
    throw new AppError(
      "payments_off",
      "This deployment sells nothing over x402; buy on the contract, as /llms.txt says.",
    );
  }
  const known = tills.get(config);
  if (known !== undefined) return known;
  const open = async (): Promise<Till> => {
    const client = facilitatorClient(config);
    const server = new x402ResourceServer(client).register(networkOf(config), new ExactEvmScheme());
    await server.initialize();
    return { server, facilitator: createFacilitator(client), coin: coinOf(config), payTo };
  };
  const till = open();
  tills.set(config, till);
  return till;
}

const networkOf = ({ CHAIN_ID }: Pick<EdgeConfig, "CHAIN_ID">): `eip155:${number}` => `eip155:${CHAIN_ID}`;

/** The requirement that a demand makes. */
export async function requirementOf(
  { server, coin, payTo }: Till,
  { amount, seconds }: Demand,
): Promise<PaymentRequirements> {
  const [requirement] = await server.buildPaymentRequirements({
    scheme: "exact",
    network: `eip155:${coin.chainId}`,
    payTo,
    price: { amount: String(amount), asset: coin.address, extra: { name: coin.name, version: coin.version } },
    maxTimeoutSeconds: seconds,
  });
  if (requirement === undefined) throw new Error("no requirement was built");
  return requirement;
}

/**
 * 402 with both versions of the demand: the header for version 2, the body for version 1. Where a payment was refused, its
 * reason is beside them.
 */
export async function paymentRequired(
  till: Till,
  config: EdgeConfig,
  demand: Demand,
  sentence: string,
  refused?: Refused,
): Promise<AppError> {
  const requirement = await requirementOf(till, demand);
  const url = `${config.PUBLIC_URLS[0]}${demand.path}`;
  const { input, output, schema } = demand.discovery;
  const required: PaymentRequired = await till.server.createPaymentRequiredResponse(
    [requirement],
    { url, description: demand.description, mimeType: "application/json" },
    sentence,
    {
      bazaar: { info: { input, output }, schema },
      "payment-identifier": { info: { required: false }, schema: IDENTIFIER_SCHEMA },
    },
  );
  const network = V1_NETWORKS[config.CHAIN_ID];
  const { scheme, payTo, maxTimeoutSeconds, asset, extra } = requirement;
  const v1 = {
    scheme,
    network,
    maxAmountRequired: requirement.amount,
    resource: url,
    description: demand.description,
    mimeType: "application/json",
    payTo,
    maxTimeoutSeconds,
    asset,
    outputSchema: { input: { ...input, discoverable: true }, output: output.example },
    extra,
  };
  return new AppError(refused?.code ?? "payment_required", sentence, {
    charged: refused?.charged ?? "none",
    headers: {
      "PAYMENT-REQUIRED": encodePaymentRequiredHeader(required),
      "Cache-Control": "no-store",
      ...(refused === undefined ? {} : failureHeaders(config, refusalReason(refused.refusal), refused.payer)),
    },
    body: { x402Version: 1, accepts: network === undefined ? [] : [v1] },
  });
}

// The extension's own, by @x402/extensions; that package's validators need a code generator that Workers don't have.
const IDENTIFIER_SCHEMA = {
  $schema: "https://json-schema.org/draft/2020-12/schema",
  type: "object",
  properties: {
    required: { type: "boolean" },
    id: { type: "string", minLength: 16, maxLength: 128, pattern: PAYMENT_ID.source },
  },
  required: ["required"],
};

/**
 * The payment that a request carries, of either version under either header; null where there is none. Throws 400 on one
 * that can't be read, and on two different ones.
 */
export function readPayment(headers: Headers, config: EdgeConfig): Payment | null {
  // What is sent twice comes joined by a comma.
  const shown = ["PAYMENT-SIGNATURE", "X-PAYMENT"].flatMap((name) => {
    const value = headers.get(name);
    requireShort(name, value, MAX_HEADER_CHARS);
    return value === null ? [] : value.split(",").map((one) => one.trim());
  });
  const different = [...new Set(shown)];
  // Nobody has looked into the other one.
  const charged = different.length > 1 ? "unknown" : "none";
  const payments = different.map((header) => paymentOf(header, config, charged));
  const [first] = payments;
  if (first === undefined) return null;
  if (new Set(payments.map(({ authorization }) => JSON.stringify(signedOf(authorization)))).size > 1) {
    throw malformed(config, charged, "The request carries two different payments: send one of them.");
  }
  const identifiers = new Set(payments.flatMap(({ identifier }) => identifier ?? []));
  if (identifiers.size > 1) {
    throw malformed(config, charged, "The request carries two payment identifiers: send one of them.");
  }
  return payments.find(({ identifier }) => identifier !== null) ?? first;
}

function paymentOf(header: string, config: EdgeConfig, charged: Charged): Payment {
  try {
    const { more, ...payment } = readPayload(header);
    const { scheme, network, ...rest } = payment.accepted;
    // Version 1 names networks. The rest of `accepted` is filled in once the requirement that it pays is known.
    const ours = network === V1_NETWORKS[config.CHAIN_ID];
    const accepted = { scheme, network: ours ? networkOf(config) : network, ...rest };
    return { ...payment, accepted, more };
  } catch (cause) {
    if (!(cause instanceof Unreadable)) throw cause;
    throw malformed(config, charged, `The payment header can't be read: ${cause.message}.`, cause);
  }
}

const malformed = (config: EdgeConfig, charged: Charged, sentence: string, cause?: unknown): AppError =>
  new AppError("payment_malformed", sentence, {
    cause,
    charged,
    headers: failureHeaders(config, "invalid_payload"),
  });

/** As x402 writes it: every number is text. */
export const signedOf = ({ signature, value, validAfter, validBefore, ...rest }: Authorization) => ({
  signature,
  authorization: {
    ...rest,
    value: String(value),
    validAfter: String(validAfter),
    validBefore: String(validBefore),
  },
});

/** The payment against a requirement, as the facilitator takes both; null where it pays something else. */
export function matchPayment(payment: Payment, requirement: PaymentRequirements): PaymentPayload | null {
  const { authorization, accepted, more } = payment;
  const { scheme, network, amount, asset, payTo } = requirement;
  if (String(authorization.value) !== amount || authorization.to !== getAddress(payTo)) return null;
  // What version 1 does not say is as it was asked for.
  const said = { amount, asset: asset.toLowerCase(), payTo: payTo.toLowerCase(), ...accepted };
  if (said.scheme !== scheme || said.network !== network || said.amount !== amount) return null;
  if (said.asset !== asset.toLowerCase() || said.payTo !== payTo.toLowerCase()) return null;
  return { x402Version: 2, ...more, accepted: requirement, payload: signedOf(authorization) };
}

/** The receipt's headers, for both versions. */
export const receiptHeaders = (config: EdgeConfig, payer: string, transaction: string): Record<string, string> =>
  responseHeaders(config, { success: true, transaction, payer });

/** The same headers of a payment that was refused; `reason` is a code of x402's. */
const failureHeaders = (config: EdgeConfig, reason: string, payer?: string): Record<string, string> =>
  responseHeaders(config, {
    success: false,
    errorReason: reason,
    transaction: "",
    ...(payer === undefined ? {} : { payer: getAddress(payer) }),
  });

function responseHeaders(config: EdgeConfig, response: Omit<SettleResponse, "network">): Record<string, string> {
  const v1 = { ...response, network: V1_NETWORKS[config.CHAIN_ID] ?? networkOf(config) };
  return {
    "PAYMENT-RESPONSE": encodePaymentResponseHeader({ ...response, network: networkOf(config) }),
    "X-PAYMENT-RESPONSE": Buffer.from(JSON.stringify(v1)).toString("base64"),
  };
}
