// POST /x402/purchase-compute: a machine for a signed authorization that is used only once the machine answers SSH; and
// the look-ups that answer "was I charged, and for what?".
import { createRoute, z } from "@hono/zod-openapi";
import type { Context } from "hono";
import { type Address, getAddress, type Hex, hashMessage, recoverAddress } from "viem";
import { limited } from "../../access/admission.ts";
import { jsonBody, limitedBody } from "../../access/body.ts";
import {
  type Checked,
  checkPayment,
  claim,
  findClaim,
  requestHash,
  requireSameRequest,
  requireWindow,
  takeUp,
  verify,
} from "../../access/payment-gate.ts";
import { type Demand, PAYMENT_ID, paymentRequired, readPayment, type Till, tillOf } from "../../access/payment-wire.ts";
import type { App, Router } from "../../app.ts";
import { readBalance } from "../../chain/authorization.ts";
import { isContractSignature, whyNotSigned } from "../../chain/client.ts";
import type { Offer } from "../../chain/offers.ts";
import { PLAIN_SIGNATURE_CHARS } from "../../chain/plain-signature.ts";
import { parsePublicKey } from "../../credentials/ssh-keys.ts";
import * as store from "../../db/payments.ts";
import { AppError } from "../../errors.ts";
import { log } from "../../log.ts";
import { orderSeconds, wirePayment } from "../../vms/payments.ts";
import { REGION_NAMES, TIER_COUNT, TIERS } from "../../vms/tiers.ts";
import { errorsOf, paymentIdSchema, txHashSchema } from "../schemas.ts";
import { currentOffer, RETRY_SECONDS, requireSaleable } from "./offer.ts";
import { discoveryOf, PAYMENT_HEADERS, paidRoute, purchaseSchema } from "./shared.ts";

const WAKE_MS = 60_000;
const POLL_SECONDS = 5;
const MAX_DAYS = 365;
/** An RSA key of 16,384 bits, with room for a comment. */
const MAX_KEY_CHARS = 3_000;

const bodySchema = z
  .strictObject({
    tier: z
      .int("must be a tier, 0 to 7")
      .min(0)
      .max(TIER_COUNT - 1)
      .openapi({ description: "0-7, see /tiers" }),
    durationDays: z
      .int("must be a whole number of days")
      .min(1)
      .max(MAX_DAYS)
      .openapi({ description: `1-${MAX_DAYS}` }),
    sshPublicKey: z
      .string()
      .max(MAX_KEY_CHARS)
      .transform((text, context) => {
        const key = parsePublicKey(text);
        if ("line" in key) return key.line;
        context.addIssue(key.problem);
        return z.NEVER;
      })
      .optional()
      .openapi({
        type: "string",
        maxLength: MAX_KEY_CHARS,
        // Space around it is taken off: files of ssh-keygen end with a newline.
        pattern: "^\\s*[a-z0-9@.-]+ [A-Za-z0-9+/]{40,2800}={0,2}( [^\\r\\n]*)?\\s*$",
        description:
          "Your own login key, of ssh-ed25519, ssh-rsa (2,048 to 16,384 bits) or ecdsa-sha2-nistp256, -384 or -521: no private key is made. Needs X-Body-Signature, since a payment alone does not say who wrote the body.",
        example: "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIOMqqnkVzrm0SdG6UOoqKLsabgH5C9okWi0dh2l9GKJl",
      }),
    region: z.enum(REGION_NAMES).optional().openapi({ description: "Tiers 0-3 alone" }),
  })
  .refine(({ tier, region }) => region === undefined || TIERS[tier]?.type === "vm", {
    path: ["region"],
    error: "is for tiers 0 to 3: GPUs are where there are any",
  });

const content = { "application/json": { schema: purchaseSchema } };

const buyRoute = createRoute({
  method: "post",
  path: "/x402/purchase-compute",
  summary: "Buy a machine with a signed payment",
  description:
    "x402 of either version; the price is the contract's, kept for a while after it was quoted. The payment is taken once the machine answers SSH, and the token goes to the payer then: a machine that can't be had costs nothing. Poll `statusUrl`; once it is settled, GET /credentials/{tokenId} has the login. The same payment, or another one with the same payment-identifier, buys once. Clients cap what they pay: raise the cap (`@x402/fetch` $1, `x402-fetch` $0.10) to the quoted amount.",
  middleware: [...paidRoute, limitedBody, jsonBody] as const,
  parameters: [
    ...PAYMENT_HEADERS,
    {
      in: "header",
      name: "X-Body-Signature",
      schema: { type: "string" },
      description:
        "With sshPublicKey: the payer's EIP-191 signature of `ClawCloud Purchase: <SHA-256 of the body as sent, hex>`.",
    },
  ],
  request: { body: { required: true, content: { "application/json": { schema: bodySchema } } } },
  responses: {
    202: { description: "Accepted; poll statusUrl", content },
    ...errorsOf(400, 401, 402, 409, 413, 415, 502, 503),
  },
});

const readRoute = createRoute({
  method: "get",
  path: "/x402/purchases/{id}",
  summary: "What became of a payment",
  middleware: [limited("x402")] as const,
  request: {
    params: z.object({
      id: paymentIdSchema,
    }),
  },
  responses: { 200: { description: "The payment", content }, ...errorsOf(400, 404) },
});

// Unlike a transform, zod's own `toLowerCase` leaves the pattern in the document.
const hash = (what: string) => txHashSchema.toLowerCase().optional().openapi({ description: what });
const findRoute = createRoute({
  method: "get",
  path: "/x402/purchases",
  summary: "Find a payment whose answer was lost",
  description:
    "By the authorization's nonce, by the hash of any of its transactions, or by the payer and the payment identifier.",
  middleware: [limited("x402")] as const,
  request: {
    query: z
      .object({
        nonce: hash("The authorization's nonce"),
        tx: hash("Of the purchase, settlement, transfer or refund"),
        payer: z
          .string()
          .regex(/^0x[0-9a-fA-F]{40}$/, "must be 0x and 40 hex digits")
          .toLowerCase()
          .optional()
          .openapi({ description: "With identifier" }),
        identifier: z.string().regex(PAYMENT_ID, "must be a payment identifier").optional(),
      })
      .refine(({ nonce, tx, payer, identifier }) => nonce ?? tx ?? (payer === undefined ? undefined : identifier), {
        path: ["nonce"],
        error: "is missing: give nonce, or tx, or payer and identifier",
      }),
  },
  responses: { 200: { description: "The payment", content }, ...errorsOf(400, 404) },
});

const DISCOVERY = discoveryOf(
  "POST",
  { tier: 0, durationDays: 1 },
  {
    tier: { type: "integer", minimum: 0, maximum: TIER_COUNT - 1 },
    durationDays: { type: "integer", minimum: 1, maximum: MAX_DAYS },
    sshPublicKey: { type: "string" },
    region: { type: "string", enum: REGION_NAMES },
  },
  ["tier", "durationDays"],
  { purchaseId: "0123456789abcdef0123456789abcdef", status: "authorized", statusUrl: "https://…" },
);

export function computeDemand(pricePerDay: bigint, tier: number, durationDays: number, capturedFirst: boolean): Demand {
  const rule = capturedFirst
    ? "Charged at once, and paid back where no machine can be had."
    : "Charged only once the machine answers SSH.";
  return {
    amount: pricePerDay * BigInt(durationDays),
    seconds: orderSeconds(tier),
    path: "/x402/purchase-compute",
    description: `A ClawCloud machine of tier ${tier} for ${durationDays} days. ${rule} Your client may cap payments below this amount: raise its cap.`,
    discovery: DISCOVERY,
  };
}

export function mountPurchases(app: Router): void {
  app.openapi(buyRoute, async (c) => {
    const body = c.req.valid("json");
    const { config, db } = c.var;
    const now = Date.now();
    const till = await tillOf(config);
    c.header("Cache-Control", "no-store");
    const payment = readPayment(c.req.raw.headers, config);
    const offer = await currentOffer(c.var, till, body.tier, now);
    const demandAt = (pricePerDay: bigint) =>
      computeDemand(pricePerDay, body.tier, body.durationDays, config.CAPTURE_FIRST_TIERS.includes(body.tier));
    if (payment === null) {
      await requireSaleable(c.var, offer, body, now);
      throw await paymentRequired(
        till,
        config,
        demandAt(offer.pricePerDay),
        "Sign the payment and send the same request with it.",
      );
    }
    const quoted = await store.quotedSince(db, body.tier, now - config.QUOTE_SECONDS * 1_000);
    const kept = quoted.filter((quote) => BigInt(quote.pricePerDay) !== offer.pricePerDay);
    const demands = [demandAt(offer.pricePerDay), ...kept.map((quote) => demandAt(BigInt(quote.pricePerDay)))] as const;
    const checked = await checkPayment(c.var, till, payment, demands);
    if (body.sshPublicKey !== undefined) await requireBodySignature(c, checked.payment.authorization.from);
    const request = requestHash(
      JSON.stringify(["compute", body.tier, body.durationDays, body.sshPublicKey ?? null, body.region ?? null]),
    );
    const known = await findClaim(c.var, checked);
    if (known !== null) requireSameRequest(known, checked, request);
    const taken = known === null ? null : await takeUp(c.var, known, checked, now);
    if (known !== null && taken === null) return answer(c, known);
    await requireWindow(c.var, till, checked, offer.blockTimestamp, now);
    await requireSaleable(c.var, offer, body, now);
    const row =
      taken ??
      (await claim(
        c.var,
        checked,
        {
          kind: "compute",
          request,
          tier: body.tier,
          durationDays: body.durationDays,
          sshPublicKey: body.sshPublicKey ?? null,
          region: body.region ?? null,
          quotedBlock:
            kept.find((quote) => demandAt(BigInt(quote.pricePerDay)).amount === checked.demand.amount)?.blockNumber ??
            offer.blockNumber,
        },
        offer.blockNumber,
        now,
      ));
    if (row === null) {
      const other = await findClaim(c.var, checked);
      // Another payment had the identifier, and nothing came of it meanwhile.
      if (other === null) {
        throw new AppError("order_open", "Another payment with this identifier has just been refused: send it again.", {
          retryAfterSeconds: POLL_SECONDS,
        });
      }
      requireSameRequest(other, checked, request);
      return answer(c, other);
    }
    await requireWithinLimits(c.var, till, checked, row, offer, now);
    const verified = await verify(c.var, till, row, checked);
    const accepted = await store.movePayment(db, row, {
      step: "check",
      wakeAt: now + WAKE_MS,
      ...(verified.verdict === "paid"
        ? { state: "settled" as const, settleTx: verified.txHash, settledAt: now }
        : { state: "authorized" as const }),
    });
    if (accepted === null) return answer(c, (await store.loadPayment(db, row.id)) ?? row);
    await config.JOBS.send({ kind: "payment", payment: row.id, generation: accepted.generation });
    log("info", "order_accepted", {
      payment: row.id,
      payer: row.payer,
      tier: body.tier,
      durationDays: body.durationDays,
    });
    return answer(c, accepted);
  });

  app.openapi(readRoute, async (c) => {
    const payment = await store.loadPayment(c.var.db, c.req.valid("param").id);
    if (payment === null) throw new AppError("payment_not_found", "There is no payment of that id.");
    return c.json(wire(c, payment), 200);
  });

  app.openapi(findRoute, async (c) => {
    const { nonce, tx, payer, identifier } = c.req.valid("query");
    const { db } = c.var;
    const find = async () => {
      if (nonce !== undefined) return store.paymentByNonce(db, nonce);
      if (tx !== undefined) return store.paymentByTransaction(db, tx);
      return payer !== undefined && identifier !== undefined ? store.paymentByIdentifier(db, payer, identifier) : null;
    };
    const payment = await find();
    if (payment === null) {
      throw new AppError("payment_not_found", "No such payment was shown to us: nothing was charged by us.");
    }
    return c.json(wire(c, payment), 200);
  });
}

const wire = (c: Context<App>, payment: store.Payment) => ({
  ...wirePayment(payment),
  payer: getAddress(payment.payer),
  statusUrl: `${c.var.config.PUBLIC_URLS[0]}/x402/purchases/${payment.id}`,
});

function answer(c: Context<App>, payment: store.Payment) {
  c.header("Retry-After", String(POLL_SECONDS));
  return c.json(wire(c, payment), 202);
}

/** Nobody gets an option on our money (hard case 18). */
async function requireWithinLimits(
  services: App["Variables"],
  till: Till,
  checked: Checked,
  row: store.Payment,
  offer: Offer,
  now: number,
): Promise<void> {
  const { chain, config, db } = services;
  const balance = await readBalance(chain, till.coin.address, checked.payment.authorization.from);
  const limits = { balance, float: offer.usdc6, uncaptured: config.UNCAPTURED_LIMIT_USDC_PER_HOUR };
  const exceeded = await store.exceededLimit(db, row, limits, now);
  if (exceeded === null) return;
  // Nothing happened by it: the payer may come again with the same payment.
  await store.movePayment(db, row, { state: "releasing", step: "release", reason: exceeded });
  log("warn", "order_refused", { payer: row.payer, why: exceeded });
  const retryAfterSeconds = RETRY_SECONDS;
  switch (exceeded) {
    case "payer_refused":
      throw new AppError(
        "payer_refused",
        "An earlier order of this payer could not be paid when its machine was ready; buy on the contract instead.",
      );
    case "order_open":
      throw new AppError("order_open", "One order at a time until the first is paid: wait for the one that is open.", {
        retryAfterSeconds,
      });
    case "balance":
      throw await paymentRequired(
        till,
        config,
        checked.demand,
        "The payer's USDC balance does not cover this and its other open orders.",
      );
    case "float":
    case "uncaptured":
      throw new AppError(
        "orders_full",
        "Too many orders are open at the moment; try again later, or buy on the contract.",
        { retryAfterSeconds },
      );
  }
}

/** The payer says what is in the body: somebody else's key there would be somebody else's machine (hard case 1). */
async function requireBodySignature(c: Context<App>, payer: Address): Promise<void> {
  const header = c.req.header("x-body-signature");
  const digest = requestHash(await c.req.text());
  const message = `ClawCloud Purchase: ${digest}`;
  if (header === undefined) {
    throw new AppError(
      "body_signature_missing",
      `With sshPublicKey the payer has to sign the body: send X-Body-Signature, an EIP-191 signature of "${message}".`,
    );
  }
  const sentence = `X-Body-Signature has to be the payer's EIP-191 signature of "${message}".`;
  if (!/^0x(?:[0-9a-fA-F]{2}){65,2048}$/.test(header)) throw new AppError("body_signature_invalid", sentence);
  const hashed = hashMessage(message);
  const signature = header as Hex;
  const signer =
    signature.length === PLAIN_SIGNATURE_CHARS
      ? await recoverAddress({ hash: hashed, signature }).catch(() => null)
      : null;
  if (signer === payer) return;
  if (await isContractSignature(c.var.chain, payer, { hash: hashed, signature, plain: true })) return;
  throw new AppError("body_signature_invalid", await whyNotSigned(c.var.chain, payer, signature, sentence));
}
