// A payment as a header carries it. Either version of x402 comes under either header, in base64 or base64url, padded or not:
// what can be meant in one way only is taken, and what is sent on to others is written anew.
import { getAddress, type Hex } from "viem";
import { z } from "zod";
import type { Authorization } from "../../chain/authorization.ts";

export const PAYMENT_ID = /^[a-zA-Z0-9_-]{16,128}$/;
const BASE64 = /^[A-Za-z0-9+/_-]+={0,2}$/;

/** What a payer says it pays: of version 1 the scheme and the network alone. Addresses are in lower case. */
type Accepted = { scheme: string; network: string; amount?: string; asset?: string; payTo?: string };

export type Payload = {
  version: 1 | 2;
  accepted: Accepted;
  authorization: Authorization;
  /** Of the payment-identifier extension. */
  identifier: string | null;
  /** Of version 2: what facilitators read of it beside the payment. */
  more: Record<string, unknown>;
};

/** Why a header can't be read, as its sender reads it. */
export class Unreadable extends Error {
  override readonly name = "Unreadable";
}

/** Hex digits, of any case; `0X` is what some libraries make of `0x`. */
const hex = (digits: string, what: string) =>
  z
    .string(`must be ${what}`)
    .regex(new RegExp(`^0[xX]${digits}$`), `must be ${what}`)
    .transform((value): Hex => `0x${value.slice(2).toLowerCase()}`);
const address = hex("[0-9a-fA-F]{40}", "an address, 0x and 40 hex digits").transform((value) => getAddress(value));
/** As text, or as a number that JSON can carry. */
const whole = (digits: number) =>
  z.preprocess(
    (value) => (Number.isSafeInteger(value) ? String(value) : value),
    z
      .string("must be a whole number")
      .regex(new RegExp(`^\\d{1,${digits}}$`), `must be a whole number of at most ${digits} digits`),
  );
const seconds = whole(15).transform(Number);

const signedSchema = z.object({
  signature: hex("(?:[0-9a-fA-F]{2}){65,2048}", "a signature, 0x and at least 130 hex digits"),
  authorization: z.object({
    from: address,
    to: address,
    value: whole(30).transform(BigInt),
    validAfter: seconds,
    validBefore: seconds,
    nonce: hex("[0-9a-fA-F]{64}", "0x and 64 hex digits"),
  }),
});
const lower = z.string().transform((value) => value.toLowerCase());
const acceptedSchema = z.object({
  scheme: z.string(),
  network: z.string(),
  amount: whole(30).transform((value) => String(BigInt(value))),
  asset: lower,
  payTo: lower,
});
const identifierSchema = z.object({
  info: z
    .object({ id: z.string().regex(PAYMENT_ID, "must be 16 to 128 letters, digits, _ or -").optional() })
    .optional(),
});
const payloadSchema = z.discriminatedUnion(
  "x402Version",
  [
    z.object({ x402Version: z.literal(1), scheme: z.string(), network: z.string(), payload: signedSchema }),
    z.object({
      x402Version: z.literal(2),
      accepted: acceptedSchema,
      payload: signedSchema,
      resource: z.unknown().optional(),
      // A malformed identifier is refused: whoever sends it counts on its being kept.
      extensions: z.looseObject({ "payment-identifier": identifierSchema.optional() }).optional(),
    }),
  ],
  "must be a payload of x402, version 1 or 2",
);

/** Throws `Unreadable`. */
export function readPayload(header: string): Payload {
  const result = payloadSchema.safeParse(jsonOf(header), { error: () => "is missing or malformed" });
  if (!result.success) {
    const [issue] = result.error.issues;
    throw new Unreadable(`${issue?.path.join(".") || "it"} ${issue?.message ?? "is malformed"}`, {
      cause: result.error,
    });
  }
  const { data } = result;
  const authorization = { ...data.payload.authorization, signature: data.payload.signature };
  if (data.x402Version === 1) {
    const { scheme, network } = data;
    return { version: 1, accepted: { scheme, network }, authorization, identifier: null, more: {} };
  }
  const { accepted, resource, extensions } = data;
  const more = { ...(resource === undefined ? {} : { resource }), ...(extensions === undefined ? {} : { extensions }) };
  const identifier = extensions?.["payment-identifier"]?.info?.id ?? null;
  return { version: 2, accepted, authorization, identifier, more };
}

function jsonOf(header: string): unknown {
  if (!BASE64.test(header)) throw new Unreadable("it is neither base64 nor base64url");
  try {
    return JSON.parse(
      new TextDecoder("utf-8", { fatal: true, ignoreBOM: false }).decode(Buffer.from(header, "base64")),
    );
  } catch (cause) {
    throw new Unreadable("what it encodes is no JSON", { cause });
  }
}
