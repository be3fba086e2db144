// POST /x402/purchase-compute: a machine for a signed authorization that is used only once the machine answers SSH; and
// the look-ups that answer "was I charged, and for what?".
import { createRoute, z } from "@hono/zod-openapi";
import type { Context } from "hono";
import { type Address, getAddress, type Hex, hashMessage, recoverAddress } from "viem";
import { isContractSignature, whyNotSigned } from "../../../chain/contract-signature.ts";
import { plainSignatureOf } from "../../../chain/plain-signature.ts";
import { parsePublicKey } from "../../../credentials/ssh-keys.ts";
import * as store from "../../../db/payments.ts";
import { statementsOf } from "../../../db/reads.ts";
import { AppError } from "../../../errors.ts";
import { captureDeadline, isCharged, orderSeconds, wirePayment } from "../../../model/payment.ts";
import { paymentStates } from "../../../model/payment-life.ts";
import { MAX_PORTS, portsProblem } from "../../../model/ports.ts";
import { deliveryOfOrder } from "../../../model/shop.ts";
import { REGION_NAMES, TIER_COUNT, TIERS } from "../../../model/tiers.ts";
import { limited, requireRoom } from "../../access/admission.ts";
import { jsonBody, limitedBody } from "../../access/body.ts";
import { makeRoom } from "../../access/bounded.ts";
import { preferredWait } from "../../access/prefer.ts";
import type { App, Router } from "../../http.ts";
import { requestHash } from "../../payments/gate.ts";
import { PAYMENT_ID } from "../../payments/payload.ts";
import { type Demand, paymentRequired, readPayment, receiptHeaders, tillOf } from "../../payments/wire.ts";
import { errorsOf, paidErrorsOf, paymentIdSchema, txHashSchema, wireDelivery } from "../schemas.ts";
import { acceptOrder } from "./accept.ts";
import { currentOffer, isCapturedFirst, requireSaleable } from "./offer.ts";
import { discoveryOf, PAYMENT_HEADERS, paidRoute, purchaseSchema } from "./shared.ts";

const POLL_SECONDS = 5;
/** Between two looks at an order whose answer is held: a minute of them is far below what D1 takes from one request. */
const LOOK_MS = 1_000;
/** Answers about one order that this isolate holds at a time: each costs a look at the database every second. */
const MAX_HELD = 2;
const MAX_HELD_ORDERS = 10_000;
const MAX_DAYS = 365;
const PORTS_RULE = "must be whole numbers from 1 to 65535; only TCP can be opened";
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
      .int(`must be a whole number of days, 1 to ${MAX_DAYS}`)
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
    ports: z
      .array(z.int(PORTS_RULE).min(1, PORTS_RULE).max(65_535, PORTS_RULE))
      .max(MAX_PORTS, `must be ${MAX_PORTS} ports at most`)
      .refine((ports) => portsProblem(ports) === null, {
        error: ({ input }) => portsProblem(input as number[]) ?? PORTS_RULE,
      })
      .optional()
      .openapi({
        uniqueItems: true,
        description:
          "TCP ports to be open to the world beside SSH; without it SSH is all. Not 22, which is open in any case, nor 25. A VM has them under their own numbers; a GPU's are mapped to others: `ports` of /status and /credentials says to which. They stay with the machine, whoever owns it, through rotations and replacements.",
        example: [80, 443],
      }),
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
    "x402 of either version; the price is the contract's, kept for a while after it was quoted. The payment is taken once the machine answers SSH, and the token goes to the payer then: a machine that can't be had costs nothing. The demand says so where it is taken first instead, for large orders and while many are open; it is paid back then where no machine can be had. Poll `statusUrl`, or ask with `Prefer: wait=60` for an answer that is held; once it is settled, `credentialsUrl` has the login for the owner's signature. The same payment, or another one with the same payment-identifier, buys once; so does the same order by the same payer within a minute, unless it carries another identifier. SSH alone is open on the machine unless the order asks for `ports`. What can't be sold is refused without a payment as well, with what could be sold instead in `details`: `{tier, durationDays, amount}`, the nearest first. Clients cap what they pay: raise the cap (`@x402/fetch` $1, `x402-fetch` $0.10) to the quoted amount.",
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
    {
      in: "header",
      name: "Prefer",
      schema: { type: "string" },
      description:
        "RFC 7240, `wait=N`: the answer is held for up to N seconds (60 at most) until the token is the payer's; then it is 200. `Preference-Applied` says so.",
    },
  ],
  request: { body: { required: true, content: { "application/json": { schema: bodySchema } } } },
  responses: {
    200: { description: "Delivered: the token is the payer's, and credentialsUrl has the login", content },
    202: { description: "Accepted; poll statusUrl", content },
    ...paidErrorsOf(400, 401, 402, 409, 413, 415, 502),
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
    "By payer and the authorization's nonce, by the hash of any of its transactions, or by payer and payment identifier. Payers choose their nonces: a nonce alone is enough while one payer alone has used it. A payment of which nothing ever came can be read of for a day.",
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
          .openapi({ description: "With nonce or identifier" }),
        identifier: z.string().regex(PAYMENT_ID, "must be a payment identifier").optional(),
      })
      .refine(({ nonce, tx, payer, identifier }) => nonce ?? tx ?? (payer === undefined ? undefined : identifier), {
        path: ["nonce"],
        error: "is missing: give payer and nonce, or tx, or payer and identifier",
      }),
  },
  responses: { 200: { description: "The payment", content }, ...errorsOf(400, 404, 409) },
});

const DISCOVERY = discoveryOf(
  "POST",
  { tier: 0, durationDays: 1 },
  {
    tier: { type: "integer", minimum: 0, maximum: TIER_COUNT - 1 },
    durationDays: { type: "integer", minimum: 1, maximum: MAX_DAYS },
    sshPublicKey: { type: "string" },
    region: { type: "string", enum: REGION_NAMES },
    ports: {
      type: "array",
      items: { type: "integer", minimum: 1, maximum: 65_535 },
      maxItems: MAX_PORTS,
      uniqueItems: true,
      description: "TCP ports to be open beside SSH; without it SSH is all",
    },
  },
  ["tier", "durationDays"],
  { purchaseId: "0123456789abcdef0123456789abcdef", status: "authorized", statusUrl: "https://…" },
);

export function computeDemand(
  amount: bigint,
  { tier, durationDays }: { tier: number; durationDays: number },
  capturedFirst: boolean,
): Demand {
  const rule = capturedFirst
    ? "Charged at once, and paid back where no machine can be had."
    : "Charged only once the machine answers SSH (at once, and paid back where no machine can be had, if too much is open by then).";
  return {
    amount,
    seconds: orderSeconds(tier),
    path: "/x402/purchase-compute",
    description: `A ClawCloud machine of tier ${tier} for ${durationDays} days. ${rule} Your client may cap payments below this amount: raise its cap.`,
    discovery: DISCOVERY,
  };
}

export function mountPurchases(app: Router): void {
  app.openapi(buyRoute, async (c) => {
    const order = c.req.valid("json");
    const { config, db } = c.var;
    const now = Date.now();
    const till = await tillOf(config);
    c.header("Cache-Control", "no-store");
    const { headers } = c.req.raw;
    const wait = preferredWait(headers);
    const payment = readPayment(headers, config);
    const offer = await currentOffer(c.var, till, order.tier, now);
    const demandAt = (pricePerDay: bigint, unpaid = 0n) => {
      const amount = pricePerDay * BigInt(order.durationDays);
      return computeDemand(amount, order, isCapturedFirst(config, order.tier, amount, unpaid));
    };
    if (payment === null) {
      const market = await store.readMarket(db, now);
      requireSaleable(config, offer, order, market, now);
      const demand = demandAt(offer.pricePerDay, market.unpaid);
      throw await paymentRequired(till, config, demand, "Sign the payment and send the same request with it.");
    }
    const requireBody = async ({ payment: { authorization } }: { payment: typeof payment }) => {
      if (order.sshPublicKey !== undefined) await requireBodySignature(c, authorization.from);
    };
    const row = await acceptOrder(c.var, { till, payment, order, offer, demandAt, requireBody, now });
    return answer(c, row, wait);
  });

  app.openapi(readRoute, async (c) => {
    const payment = await store.loadPayment(c.var.db, c.req.valid("param").id);
    if (payment === null) throw new AppError("payment_not_found", "There is no payment of that id.");
    return c.json(await wire(c, payment), 200);
  });

  app.openapi(findRoute, async (c) => {
    const { nonce, tx, payer, identifier } = c.req.valid("query");
    const { db } = c.var;
    const find = async () => {
      if (nonce !== undefined) {
        const [payment = null, another] = await store.paymentsByNonce(db, nonce, payer);
        if (another === undefined) return payment;
        throw new AppError("nonce_ambiguous", "Several payers have used this nonce: give payer as well.");
      }
      if (tx !== undefined) return store.paymentByTransaction(db, tx);
      return payer !== undefined && identifier !== undefined ? store.paymentByIdentifier(db, payer, identifier) : null;
    };
    const payment = await find();
    if (payment === null) {
      throw new AppError("payment_not_found", "No such payment is known here: nothing was charged by us.");
    }
    return c.json(await wire(c, payment), 200);
  });
}

async function wire(c: Context<App>, payment: store.Payment) {
  const { config, db } = c.var;
  const [api] = config.PUBLIC_URLS;
  const waits = payment.kind === "compute" && isUnderWay(payment) && WAITING_STEPS.has(payment.step);
  const deliver = async () => {
    const [standing] = await statementsOf(db).cursor.all();
    return deliveryOfOrder(captureDeadline(payment), isCharged(payment), standing, Date.now());
  };
  return {
    ...wirePayment(payment),
    ...(waits ? { delivery: wireDelivery(await deliver()) } : {}),
    payer: getAddress(payment.payer),
    statusUrl: `${api}/x402/purchases/${payment.id}`,
    credentialsUrl: isDelivered(payment) ? `${api}/credentials/${payment.tokenId}` : null,
  };
}

/** Before there is a machine. */
const WAITING_STEPS: ReadonlySet<store.Payment["step"]> = new Set(["check", "buy", "provision"]);

const isDelivered = ({ kind, state, servedAt }: store.Payment): boolean =>
  kind === "compute" && state === "settled" && servedAt !== null;
/** Somebody is at it, and it may still be delivered. */
const isUnderWay = (payment: store.Payment): boolean =>
  paymentStates[payment.state].wanted === true && !isDelivered(payment);

/** Until when answers are held, by the order that they are about: unix milliseconds. */
const held = new Map<string, number[]>();

/** Whether one more answer about an order may be held: whoever sends the same payment again and again gets his at once. */
function mayHold(id: string, until: number): boolean {
  const others = (held.get(id) ?? []).filter((one) => one > Date.now());
  if (others.length >= MAX_HELD) return false;
  held.delete(id);
  makeRoom(held, MAX_HELD_ORDERS);
  held.set(id, [...others, until]);
  return true;
}

/** The order as it stands, held back for as long as its payer wants where there is nothing to tell yet. */
async function answer(c: Context<App>, order: store.Payment, waitSeconds: number | null) {
  let payment = order;
  const until = Date.now() + (waitSeconds ?? 0) * 1_000;
  const waits = waitSeconds !== null && (!isUnderWay(order) || mayHold(order.id, until));
  while (waits && isUnderWay(payment) && Date.now() < until) {
    await new Promise((resolve) => setTimeout(resolve, Math.min(LOOK_MS, until - Date.now())));
    payment = (await store.loadPayment(c.var.db, payment.id)) ?? payment;
  }
  if (waits) c.header("Preference-Applied", `wait=${waitSeconds}`);
  if (!isDelivered(payment)) {
    c.header("Retry-After", String(POLL_SECONDS));
    return c.json(await wire(c, payment), 202);
  }
  for (const [name, value] of Object.entries(
    receiptHeaders(c.var.config, getAddress(payment.payer), payment.settleTx ?? ""),
  ))
    c.header(name, value);
  return c.json(await wire(c, payment), 200);
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
  if (!/^0x(?:[0-9a-fA-F]{2}){64,2048}$/.test(header)) throw new AppError("body_signature_invalid", sentence);
  const hashed = hashMessage(message);
  const signature = header as Hex;
  const plain = plainSignatureOf(signature);
  const signer = plain === null ? null : await recoverAddress({ hash: hashed, signature: plain }).catch(() => null);
  if (signer === payer) return;
  await requireRoom(c.var, "looks");
  if (await isContractSignature(c.var.chain, payer, { hash: hashed, signature })) return;
  throw new AppError("body_signature_invalid", await whyNotSigned(c.var.chain, payer, signature, sentence));
}
