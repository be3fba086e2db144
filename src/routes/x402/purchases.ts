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
import { type Demand, paymentRequired, readPayment, type Till, tillOf } from "../../access/payment-wire.ts";
import type { App, Router } from "../../app.ts";
import { readBalance } from "../../chain/authorization.ts";
import { isContractSignature } from "../../chain/client.ts";
import { type Offer, readOffer } from "../../chain/offers.ts";
import { parsePublicKey } from "../../credentials/ssh-keys.ts";
import * as store from "../../db/payments.ts";
import { statementsOf } from "../../db/reads.ts";
import { AppError } from "../../errors.ts";
import { log } from "../../log.ts";
import { stockOf } from "../../provisioner/candidates.ts";
import { orderSeconds, wirePayment } from "../../vms/payments.ts";
import { REGION_NAMES, TIER_COUNT, TIERS } from "../../vms/tiers.ts";
import { errorsOf } from "../schemas.ts";
import { discoveryOf, PAYMENT_HEADERS, paidRoute, purchaseSchema } from "./shared.ts";

const OFFER_CACHE_MS = 3_000;
const STOCK_MAX_AGE_MS = 900_000;
const WAKE_MS = 60_000;
const RETRY_SECONDS = 30;
const POLL_SECONDS = 5;
const MAX_DAYS = 365;
/** What approving, buying, taking a payment and handing the token over use together, with room to spare. */
const GAS_PER_ORDER = 600_000n;

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
      .max(2_000)
      .transform((text, context) => {
        const key = parsePublicKey(text);
        if (key !== null) return key;
        context.addIssue("must be one SSH public key, `type base64`");
        return z.NEVER;
      })
      .optional()
      .openapi({
        type: "string",
        description:
          "Your own login key: no private key is made. Needs X-Body-Signature, since a payment alone does not say who wrote the body.",
        example: "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIOMqqnkVzrm0SdG6UOoqKLsabgH5C9okWi0dh2l9GKJl",
      }),
    region: z.enum(REGION_NAMES).optional().openapi({ description: "Tiers 0-3 alone" }),
  })
  .refine(({ tier, region }) => region === undefined || TIERS[tier]?.type === "vm", {
    path: ["region"],
    error: "is for tiers 0 to 3: GPUs are where there are any",
  });
type Body = z.infer<typeof bodySchema>;

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
      id: z
        .string()
        .regex(/^[0-9a-f]{32}$/, "must be 32 hex digits")
        .openapi({ param: { name: "id", in: "path" }, example: "0123456789abcdef0123456789abcdef" }),
    }),
  },
  responses: { 200: { description: "The payment", content }, ...errorsOf(400, 404) },
});

const hash = (what: string) =>
  z
    .string()
    .regex(/^0x[0-9a-fA-F]{64}$/, "must be 0x and 64 hex digits")
    .transform((value) => value.toLowerCase())
    .optional()
    .openapi({ type: "string", description: what });
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
          .transform((value) => value.toLowerCase())
          .optional()
          .openapi({ type: "string", description: "With identifier" }),
        identifier: z
          .string()
          .regex(/^[A-Za-z0-9_-]{16,128}$/, "must be a payment identifier")
          .optional(),
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
    const taken = known === null ? null : await takeUp(c.var, known, now);
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
      if (other === null) throw new Error("a claim that could not be written is there");
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

// Per isolate and tier: quotes in a burst are one read of the chain, and one row.
const offers = new WeakMap<object, Map<number, { offer: Promise<Offer>; at: number }>>();

async function currentOffer(
  { chain, config, db }: App["Variables"],
  till: Till,
  tier: number,
  now: number,
): Promise<Offer> {
  const known = offers.get(config) ?? new Map<number, { offer: Promise<Offer>; at: number }>();
  offers.set(config, known);
  const cached = known.get(tier);
  if (cached !== undefined && now - cached.at < OFFER_CACHE_MS) return cached.offer;
  const read = async () => {
    const offer = await readOffer(chain, tier, till.coin.address, till.payTo);
    await store.saveQuote(db, {
      tier,
      pricePerDay: String(offer.pricePerDay),
      blockNumber: offer.blockNumber,
      quotedAt: now,
    });
    return offer;
  };
  const offer = read();
  known.set(tier, { offer, at: now });
  offer.catch(() => known.delete(tier));
  return offer;
}

/** What can't be sold is refused before anybody signs for it. */
async function requireSaleable(
  { config, db }: App["Variables"],
  offer: Offer,
  { tier, durationDays }: Body,
  now: number,
): Promise<void> {
  const refuse = (code: ConstructorParameters<typeof AppError>[0], sentence: string) =>
    new AppError(code, sentence, { retryAfterSeconds: RETRY_SECONDS });
  if (!offer.active) throw refuse("tier_inactive", `Tier ${tier} is not sold at the moment; /tiers lists what is.`);
  if (offer.baseFee > config.MAX_BASE_FEE_GWEI) {
    throw refuse("gas_too_dear", "Transactions are too dear on the chain right now; try again later.");
  }
  const gas = GAS_PER_ORDER * 2n * offer.baseFee;
  if (offer.usdc6 < offer.pricePerDay * BigInt(durationDays) || offer.wei < gas) {
    log("page", "operator_short", { usdc6: String(offer.usdc6), tier, durationDays });
    throw refuse(
      "operator_short",
      "We can't buy the token for you at the moment; buy on the contract, as /llms.txt says, or try later.",
    );
  }
  const [row] = await statementsOf(db).catalog.all();
  const recent = Object.fromEntries(
    Object.entries(row?.stock ?? {}).filter(([, read]) => now - read.readAt < STOCK_MAX_AGE_MS),
  );
  if (stockOf(tier, recent) === "none") {
    throw refuse(
      "sold_out",
      `No vendor has a machine of tier ${tier} right now; /tiers shows the stock of the others.`,
    );
  }
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
  const invalid = (cause?: unknown) =>
    new AppError(
      "body_signature_invalid",
      `X-Body-Signature has to be the payer's EIP-191 signature of "${message}".`,
      { cause },
    );
  if (!/^0x(?:[0-9a-fA-F]{2}){65,2048}$/.test(header)) throw invalid();
  const hashed = hashMessage(message);
  const signature = header as Hex;
  const signer = signature.length === 132 ? await recoverAddress({ hash: hashed, signature }).catch(() => null) : null;
  if (signer === payer) return;
  if (!(await isContractSignature(c.var.chain, payer, { hash: hashed, signature, plain: true }))) throw invalid();
}
