// What the paid routes share: their middleware, shapes and discovery metadata.
import { z } from "@hono/zod-openapi";
import { WIRE_PAYMENT_STATES } from "../../../model/payment-life.ts";
import { limited } from "../../access/admission.ts";
import type { Discovery } from "../../payments/wire.ts";
import { deliverySchema, isoTime } from "../schemas.ts";

export const paidRoute = [limited("x402")] as const;

/** Headers that a payment comes in; one of the two. */
export const PAYMENT_HEADERS = [
  {
    in: "header" as const,
    name: "PAYMENT-SIGNATURE",
    schema: { type: "string" as const },
    description: "The payment payload of x402 in base64 or base64url: the name that version 2 has for it.",
  },
  {
    in: "header" as const,
    name: "X-PAYMENT",
    schema: { type: "string" as const },
    description: "The same: the name that version 1 has for it. Either version is read under either name.",
  },
];

export const purchaseSchema = z
  .object({
    purchaseId: z.string(),
    kind: z.enum(["credentials", "compute"]),
    status: z.enum(WIRE_PAYMENT_STATES).openapi({
      description:
        "Where the money is. releasing: given up by us; released once the chain is past the authorization's time without it.",
    }),
    step: z.string(),
    charged: z.boolean().openapi({ description: "Money has moved, and has not come back" }),
    chargedFirst: z.boolean().openapi({
      description: "The payment is taken before a machine is had, and paid back where there is none",
    }),
    message: z.string(),
    reason: z.string().nullable(),
    payer: z.string(),
    amount: z.string().openapi({ description: "USDC", example: "0.50" }),
    delivery: deliverySchema.optional().openapi({ description: "While the order waits for its machine" }),
    tier: z.number().nullable(),
    durationDays: z.number().nullable(),
    ports: z.array(z.number()).openapi({ description: "TCP ports that it asks for beside SSH" }),
    tokenId: z.string().nullable(),
    validBefore: isoTime,
    transactions: z.object({
      purchase: z.string().nullable(),
      settlement: z.string().nullable(),
      transfer: z.string().nullable(),
      refund: z.string().nullable(),
    }),
    statusUrl: z.string(),
    credentialsUrl: z.string().nullable().openapi({
      description: "Once the token is the payer's: the login, for the owner's signature",
    }),
  })
  .openapi("Purchase");

/** 202 of a payment that is not known to have arrived. */
export const settlingSchema = z.object({
  purchaseId: z.string(),
  status: z.literal("settling"),
  charged: z.literal("unknown"),
  message: z.string(),
  statusUrl: z.string(),
});

const object = (properties: Record<string, unknown>, required: readonly string[]) => ({
  type: "object",
  properties,
  required,
});

/** Bazaar's metadata of a route, in the form that its facilitators read. */
export function discoveryOf(
  method: "GET" | "POST",
  example: Record<string, unknown>,
  properties: Record<string, unknown>,
  required: readonly string[],
  answer: Record<string, unknown>,
): Discovery {
  const isGet = method === "GET";
  const name = isGet ? "queryParams" : "body";
  const input = { type: "http", method, ...(isGet ? {} : { bodyType: "json" }), [name]: example };
  return {
    input,
    output: { type: "json", example: answer },
    schema: {
      $schema: "https://json-schema.org/draft/2020-12/schema",
      ...object(
        {
          input: {
            ...object(
              {
                type: { type: "string", const: "http" },
                method: { type: "string", enum: [method] },
                ...(isGet ? {} : { bodyType: { type: "string", enum: ["json"] } }),
                [name]: object(properties, required),
              },
              isGet ? ["type"] : ["type", "bodyType", "body"],
            ),
            additionalProperties: false,
          },
          output: object({ type: { type: "string" }, example: { type: "object" } }, ["type"]),
        },
        ["input"],
      ),
    },
  };
}
