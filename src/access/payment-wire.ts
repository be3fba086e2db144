// Demands for payment and payments as x402 writes them, version 2 in headers and version 1 beside it on the same route.
// The signed EIP-712 message is the same in both: a version 1 payment is read as one of version 2.
import {
  decodePaymentSignatureHeader,
  encodePaymentRequiredHeader,
  encodePaymentResponseHeader,
} from "@x402/core/http";
import { x402ResourceServer } from "@x402/core/server";
import type { PaymentPayload, PaymentRequired, PaymentRequirements } from "@x402/core/types";
import { ExactEvmScheme } from "@x402/evm/exact/server";
import { getAddress, type Hex } from "viem";
import { z } from "zod";
import type { Authorization, Coin } from "../chain/authorization.ts";
import { coinOf } from "../chain/coin.ts";
import type { EdgeConfig } from "../config.ts";
import { AppError } from "../errors.ts";
import { createFacilitator, type Facilitator, facilitatorClient } from "./facilitator.ts";
import { requireShort } from "./headers.ts";

const MAX_HEADER_CHARS = 16_384;
/** Version 1 names networks; those of CAIP-2 that it has no name for it can't pay on. */
const V1_NETWORKS: Readonly<Record<number, string>> = { 8453: "base", 84532: "base-sepolia" };
export const PAYMENT_ID = /^[a-zA-Z0-9_-]{16,128}$/;

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

export type Payment = {
  version: 1 | 2;
  authorization: Authorization;
  /** Of the payment-identifier extension. */
  identifier: string | null;
  payload: PaymentPayload;
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

/** 402 with both versions of the demand: the header for version 2, the body for version 1. */
export async function paymentRequired(
  till: Till,
  config: EdgeConfig,
  demand: Demand,
  sentence: string,
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
  return new AppError("payment_required", sentence, {
    headers: { "PAYMENT-REQUIRED": encodePaymentRequiredHeader(required), "Cache-Control": "no-store" },
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

const seconds = z
  .string()
  .regex(/^\d{1,15}$/)
  .transform(Number);
const signedSchema = z.object({
  signature: z
    .string()
    .regex(/^0x(?:[0-9a-fA-F]{2}){65,2048}$/)
    .transform((value) => value as Hex),
  authorization: z.object({
    from: z.string().regex(/^0x[0-9a-fA-F]{40}$/),
    to: z.string().regex(/^0x[0-9a-fA-F]{40}$/),
    value: z
      .string()
      .regex(/^\d{1,30}$/)
      .transform(BigInt),
    validAfter: seconds,
    validBefore: seconds,
    nonce: z
      .string()
      .regex(/^0x[0-9a-fA-F]{64}$/)
      .transform((value) => value.toLowerCase() as Hex),
  }),
});
const v1Schema = z.object({
  x402Version: z.literal(1),
  scheme: z.string(),
  network: z.string(),
  payload: signedSchema,
});
const v2Schema = z.object({
  x402Version: z.literal(2),
  accepted: z.looseObject({ scheme: z.string(), network: z.string(), amount: z.string() }),
  payload: signedSchema,
  extensions: z.record(z.string(), z.unknown()).optional(),
});

/** The payment that a request carries, of either version; null where there is none. Throws 400 on one that can't be read. */
export function readPayment(headers: Headers, config: EdgeConfig): Payment | null {
  const v2 = headers.get("payment-signature");
  const v1 = headers.get("x-payment");
  if (v2 === null && v1 === null) return null;
  requireShort("PAYMENT-SIGNATURE", v2 ?? undefined, MAX_HEADER_CHARS);
  requireShort("X-PAYMENT", v1 ?? undefined, MAX_HEADER_CHARS);
  try {
    return v2 !== null ? readV2(v2) : readV1(v1 ?? "", config);
  } catch (cause) {
    throw new AppError(
      "payment_malformed",
      "The payment header can't be read: send an x402 payload of the scheme exact, with an EIP-3009 authorization.",
      { cause },
    );
  }
}

function readV2(header: string): Payment {
  const payload = decodePaymentSignatureHeader(header);
  const { payload: signed, extensions } = v2Schema.parse(payload);
  const named = (extensions?.["payment-identifier"] as { info?: { id?: unknown } } | undefined)?.info?.id;
  // A malformed one is refused: whoever sends it counts on its being kept.
  if (named !== undefined && (typeof named !== "string" || !PAYMENT_ID.test(named))) throw new Error("identifier");
  return { version: 2, authorization: toAuthorization(signed), identifier: named ?? null, payload };
}

function readV1(header: string, config: EdgeConfig): Payment {
  const {
    network,
    scheme,
    payload: signed,
  } = v1Schema.parse(JSON.parse(new TextDecoder().decode(Buffer.from(header, "base64"))));
  const authorization = toAuthorization(signed);
  // The rest of `accepted` is filled in once the requirement that it pays is known.
  const ours = network === V1_NETWORKS[config.CHAIN_ID];
  const accepted = { scheme, network: ours ? networkOf(config) : network } as PaymentRequirements;
  return {
    version: 1,
    authorization,
    identifier: null,
    payload: { x402Version: 2, accepted, payload: signedOf(authorization) },
  };
}

const toAuthorization = ({ signature, authorization }: z.infer<typeof signedSchema>): Authorization => ({
  ...authorization,
  from: getAddress(authorization.from),
  to: getAddress(authorization.to),
  signature,
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
export function matchPayment(
  { server }: Till,
  payment: Payment,
  requirement: PaymentRequirements,
): PaymentPayload | null {
  const { authorization, payload, version } = payment;
  if (String(authorization.value) !== requirement.amount || authorization.to !== getAddress(requirement.payTo))
    return null;
  if (version === 1) {
    const { scheme, network } = payload.accepted;
    return scheme === requirement.scheme && network === requirement.network
      ? { ...payload, accepted: requirement }
      : null;
  }
  return server.findMatchingRequirements([requirement], payload) === undefined ? null : payload;
}

/** The receipt's headers, for both versions. */
export function receiptHeaders(config: EdgeConfig, payer: string, transaction: string): Record<string, string> {
  const receipt = { success: true, transaction, payer };
  const v1 = { ...receipt, network: V1_NETWORKS[config.CHAIN_ID] ?? networkOf(config) };
  return {
    "PAYMENT-RESPONSE": encodePaymentResponseHeader({ ...receipt, network: networkOf(config) }),
    "X-PAYMENT-RESPONSE": Buffer.from(JSON.stringify(v1)).toString("base64"),
  };
}
