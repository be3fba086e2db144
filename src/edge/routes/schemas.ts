// Shapes that several routes share.
import { z } from "@hono/zod-openapi";
import { getAddress, isAddress } from "viem";
import { CHARGED } from "../../errors.ts";
import { STATUSES } from "../../model/machine-life.ts";
import { WIRE_REFUND_STATES } from "../../model/refund-life.ts";
import { type Delivery, SHOP_STATES } from "../../model/shop.ts";

const errorSchema = z
  .object({
    error: z.string().openapi({ description: "A sentence for a person.", example: "There is no token 42." }),
    code: z.string().openapi({ description: "For a program.", example: "token_not_found" }),
    requestId: z.string(),
    details: z.array(z.unknown()).optional(),
  })
  .openapi("Error");

const json = <Schema extends z.ZodType>(description: string, schema: Schema) => ({
  description,
  content: { "application/json": { schema } },
});

const DESCRIPTIONS = {
  400: "Malformed input",
  401: "Missing or invalid signature or key",
  402: "Payment required, or refused: the demand is in PAYMENT-REQUIRED (x402 version 2) and in `accepts` of the body (version 1); of a payment that was refused, PAYMENT-RESPONSE has the reason",
  403: "Not the owner, token expired, or address banned",
  404: "Unknown",
  409: "In conflict with what exists",
  413: "The body is over 16 KiB",
  415: "The body is not JSON",
  429: "Too many requests; see Retry-After and X-RateLimit-Reset",
  500: "Internal error",
  502: "An RPC node or the facilitator answered nonsense",
  503: "The chain, the database or the facilitator does not answer, or nothing can be sold now; see Retry-After",
} as const;

export type ErrorStatus = keyof typeof DESCRIPTIONS;
type Responses<Status extends ErrorStatus, Schema extends z.ZodType> = {
  [S in Status | 400 | 403 | 429 | 500 | 503]: ReturnType<typeof json<Schema>>;
};

const responsesOf = <Status extends ErrorStatus, Schema extends z.ZodType>(
  statuses: readonly Status[],
  schema: Schema,
) =>
  Object.fromEntries(
    [...statuses, 400, 403, 429, 500, 503].map((status) => [status, json(DESCRIPTIONS[status as Status], schema)]),
  ) as Responses<Status, Schema>;

/** The listed statuses with their bodies, and those that every limited route has: an attack, banned, too many, our fault, D1's. */
export const errorsOf = <Status extends ErrorStatus = never>(...statuses: Status[]) =>
  responsesOf(statuses, errorSchema);

const paidErrorSchema = errorSchema
  .extend({
    charged: z.enum(CHARGED).openapi({
      description:
        "Of the payment that came with the request. none: it has moved nothing; unknown: nobody has looked, or it can't be known yet: send the same payment again and don't sign another one; yes: it was taken, and /x402/purchases says for what.",
    }),
  })
  .openapi("PaidError");

/** The same for routes that take payments. */
export const paidErrorsOf = <Status extends ErrorStatus = never>(...statuses: Status[]) =>
  responsesOf(statuses, paidErrorSchema);

/** Decimal, no sign, no leading zero, at most 2^53-1. Token 0 exists. */
export const tokenIdSchema = z
  .string()
  .regex(/^(0|[1-9]\d{0,15})$/, "must be a decimal number without sign or leading zero")
  .refine((value) => Number.isSafeInteger(Number(value)), "must be at most 9007199254740991")
  .openapi({ param: { name: "tokenId", in: "path" }, example: "42", description: "The NFT's token id." });

export const txHashSchema = z.string().regex(/^0x[0-9a-fA-F]{64}$/, "must be 0x and 64 hex digits");

/** Of a payment by x402. */
export const paymentIdSchema = z
  .string()
  .regex(/^[0-9a-f]{32}$/, "must be 32 hex digits")
  .openapi({ param: { name: "id", in: "path" }, example: "0123456789abcdef0123456789abcdef" });

/** Any case in; a mixed-case address must carry its EIP-55 checksum. */
export const addressSchema = z
  .string()
  .regex(/^0x[0-9a-fA-F]{40}$/, "must be 0x and 40 hex digits")
  .refine((value) => isAddress(value, { strict: hasMixedCase(value) }), "has a wrong EIP-55 checksum")
  .transform((value) => getAddress(value))
  .openapi({
    param: { name: "address", in: "path" },
    type: "string",
    pattern: "^0x[0-9a-fA-F]{40}$",
    example: "0x70997970C51812dc3A010C7d01b50e0d17dc79C8",
    description: "Wallet address, any case; a mixed-case one must have a right checksum.",
  });

const hasMixedCase = (value: string): boolean => /[a-f]/.test(value.slice(2)) && /[A-F]/.test(value.slice(2));

export const statusSchema = z.enum(STATUSES).openapi({ example: "running" });
export const wireTypeSchema = z.enum(["gcp", "gpu-external"]);
export const isoTime = z.string().openapi({ format: "date-time", example: "2026-02-03T12:00:00.000Z" });

/** Unix seconds of the chain as ISO 8601. */
export const isoOfChain = (seconds: number): string => new Date(seconds * 1_000).toISOString();
export const isoOf = (ms: number | null): string | null => (ms === null ? null : new Date(ms).toISOString());

export const deliverySchema = z
  .object({
    state: z.enum(SHOP_STATES).openapi({
      description:
        "paused: operators have stopped the making of machines; stalled: purchases are not read from the chain",
    }),
    message: z.string(),
    until: isoTime.nullable().openapi({
      description:
        "By the chain's time: a pause puts it off by a tenth of the paid time at most. null where it is not known yet",
    }),
    otherwise: z.enum(["refund", "no_charge"]).openapi({ description: "What follows where no machine runs by then" }),
  })
  .openapi("Delivery");

export const wireDelivery = ({ until, ...delivery }: Delivery): z.infer<typeof deliverySchema> => ({
  ...delivery,
  until: until === null ? null : isoOfChain(until),
});

export const portSchema = z.object({
  port: z.int().openapi({ description: "On the machine", example: 80 }),
  host: z.string().nullable(),
  publicPort: z.int().nullable().openapi({
    description: "Where the world reaches it: at a GPU another number; null until it runs",
    example: 31_080,
  }),
});

export const refundSchema = z
  .object({
    state: z
      .enum(WIRE_REFUND_STATES)
      .openapi({ description: "held: the token's owner claims it, or an operator decides" }),
    amount: z.string().openapi({ description: "USDC", example: "0.50" }),
    txHash: z.string().nullable(),
  })
  .openapi("Refund");
