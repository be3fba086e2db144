import { createRoute, z } from "@hono/zod-openapi";
import type { Context } from "hono";
import { formatUsdc } from "../../../chain/contract.ts";
import type { Database } from "../../../db/client.ts";
import { loadPayment, type Move } from "../../../db/payments.ts";
import {
  listRefunds,
  loadRefund,
  moveRefund,
  moveWithPayment,
  type Refund,
  type RefundChange,
  refundOfToken,
} from "../../../db/refunds.ts";
import { AppError } from "../../../errors.ts";
import { note } from "../../../log.ts";
import { CANCELLED_BY_HAND, paymentStageOf } from "../../../model/payment-life.ts";
import { REFUND_KINDS, REFUND_STATES, type RefundState, refundStatesThat } from "../../../model/refund-life.ts";
import type { App, Router } from "../../http.ts";
import { addressSchema, isoOf, isoTime, txHashSchema } from "../schemas.ts";
import { adminErrors, bodyOf, FOR_OPERATORS, jsonOf, limitQuery, reasonSchema } from "./shared.ts";

const MAX_PAGE = 500;
/** Longer than any token id. */
const PAYMENT_ID_CHARS = 32;
/** Nobody has the order to pay yet. */
const UNDECIDED = refundStatesThat("undecided");

const kindSchema = z.enum(REFUND_KINDS).openapi({
  description: "failed: no machine, or none to the end; late: it came late; payment: one by x402 that bought nothing",
});
const stateSchema = z.enum(REFUND_STATES).openapi({
  description:
    "recorded: for the books alone; waiting: refunds are manual; held: see reason; due; paying: the wallet has the order",
});

const refundSchema = z
  .object({
    tokenId: z.number().nullable().openapi({ description: "null: the payment stood for no token" }),
    paymentId: z.string().nullable().openapi({ description: "Of kind payment" }),
    kind: kindSchema,
    state: stateSchema,
    reason: z.string().nullable(),
    amount: z.string().openapi({ description: "USDC", example: "0.50" }),
    owedSeconds: z.number().nullable().openapi({ description: "Of the paid time; null: all of it" }),
    payTo: z.string().nullable().openapi({ description: "Who claimed it; null: the buyer, or the payer" }),
    recipient: z.string().nullable(),
    txHash: z.string().nullable(),
    createdAt: isoTime,
    settledAt: isoTime.nullable(),
  })
  .openapi("OperatorsRefund");

const readRefunds = createRoute({
  method: "get",
  path: "/admin/refunds",
  summary: "Refunds by state, newest token first",
  ...FOR_OPERATORS,
  request: {
    query: z.object({
      state: stateSchema.optional(),
      limit: limitQuery(MAX_PAGE, 100),
      cursor: z
        .string()
        .regex(/^\d{0,16}\.\d{1,16}$/, "must be the nextCursor of a page")
        .optional()
        .openapi({ description: "`nextCursor` of the page before" }),
    }),
  },
  responses: {
    200: jsonOf("The refunds", z.object({ refunds: z.array(refundSchema), nextCursor: z.string().optional() })),
    ...adminErrors(),
  },
});

const params = z.object({
  subject: z
    .string()
    .regex(/^(0|[1-9]\d{0,15}|[0-9a-f]{32})$/, "must be a token id, or, of kind payment, a payment's id")
    .openapi({
      param: { name: "subject", in: "path" },
      example: "42",
      description: "What it is for: a token id, or, of kind payment, a payment's id",
    }),
  kind: kindSchema,
});
const responses = { 200: jsonOf("How it stands now", refundSchema), ...adminErrors(404, 409) };

const payRefund = createRoute({
  method: "post",
  path: "/admin/refunds/{subject}/{kind}/pay",
  summary: "Pay a refund that is recorded, waiting or held",
  description:
    "On final history the buyer is paid if the token is still his, or `payTo` if the token is that address's; else it is held again. A payment goes back to its payer, once its charge is final. One that is held as `above_limit`, and any of a payment, is approved by this, within APPROVAL_LIMIT_USDC_PER_DAY. Retrying the purchase takes it back until the payment has begun.",
  ...FOR_OPERATORS,
  request: { params, body: bodyOf(z.strictObject({ reason: reasonSchema, payTo: addressSchema.optional() })) },
  responses,
});

const settleRefund = createRoute({
  method: "post",
  path: "/admin/refunds/{subject}/{kind}/settle",
  summary: "Note that a refund was paid by hand",
  description: "Nothing is sent. Not once the operator wallet has the order.",
  ...FOR_OPERATORS,
  request: {
    params,
    body: bodyOf(
      z.strictObject({
        reason: reasonSchema,
        txHash: txHashSchema,
      }),
    ),
  },
  responses,
});

const cancelRefund = createRoute({
  method: "post",
  path: "/admin/refunds/{subject}/{kind}/cancel",
  summary: "Owe nothing after all",
  description: "Not once the operator wallet has the order. A payment is held from then on, and calls nobody.",
  ...FOR_OPERATORS,
  request: { params, body: bodyOf(z.strictObject({ reason: reasonSchema })) },
  responses,
});

export function mountAdminRefunds(app: Router): void {
  app.openapi(readRefunds, async (c) => {
    const { state, limit, cursor } = c.req.valid("query");
    const [token = "", rowid] = cursor?.split(".") ?? [];
    const after = { tokenId: token === "" ? null : Number(token), rowid: Number(rowid) };
    const rows = await listRefunds(c.var.db, state, cursor === undefined ? undefined : after, limit);
    const last = rows.length === limit ? rows.at(-1) : undefined;
    const next = last === undefined ? {} : { nextCursor: `${last.tokenId ?? ""}.${last.rowid}` };
    return c.json({ refunds: rows.map(bodyOfRefund), ...next }, 200);
  });

  app.openapi(payRefund, async (c) => {
    const { reason, payTo } = c.req.valid("json");
    const param = c.req.valid("param");
    if (payTo !== undefined && param.kind === "payment") {
      throw new AppError("invalid_request", "A payment goes back to its payer: it takes no payTo.");
    }
    note({ reason, ...(payTo === undefined ? {} : { payTo }) });
    return c.json(await decide(c, param, payWord(payTo)), 200);
  });

  app.openapi(settleRefund, async (c) => {
    const { reason, txHash } = c.req.valid("json");
    note({ reason, txHash });
    return c.json(await decide(c, c.req.valid("param"), settleWord(txHash)), 200);
  });

  app.openapi(cancelRefund, async (c) => {
    note({ reason: c.req.valid("json").reason });
    return c.json(await decide(c, c.req.valid("param"), cancelWord()), 200);
  });
}

/** What an operator says of a refund: at which states, what becomes of it, and of the payment that it is of. */
export type Word = { from: readonly RefundState[]; to: (row: Refund) => RefundChange; paymentTo?: Move };

export const payWord = (payTo?: string): Word => ({
  from: UNDECIDED,
  to: (row) => ({
    state: "due",
    reason: needsApproval(row) ? "approved" : null,
    payTo: payTo?.toLowerCase() ?? null,
    wakeAt: Date.now(),
  }),
});

export function settleWord(hash: string): Word {
  const [txHash, now] = [hash.toLowerCase(), Date.now()];
  return {
    from: [...UNDECIDED, "due"],
    to: () => ({ state: "paid", reason: "by_hand", txHash, wakeAt: null, settledAt: now }),
    paymentTo: { state: "refunded", step: "idle", refundTx: txHash, endedAt: now },
  };
}

const cancelWord = (): Word => ({
  from: [...UNDECIDED, "due"],
  to: () => ({ state: "cancelled", reason: "by_hand", wakeAt: null }),
  paymentTo: { state: "held", step: "idle", reason: CANCELLED_BY_HAND, endedAt: Date.now() },
});

/**
 * More than leaves in a day by itself; the word of an operator has been held against it as well, perhaps. Of a payment an
 * operator may pay back what was delivered.
 */
const needsApproval = ({ kind, state, reason }: Refund): boolean =>
  kind === "payment" || (state === "held" && reason === "above_limit");

/** As it stands from here on; null where it is at another state by now. */
export async function moveByWord(db: Database, row: Refund, { from, to, paymentTo }: Word): Promise<Refund | null> {
  const change = to(row);
  const payment = row.kind === "payment" && paymentTo !== undefined ? await loadPayment(db, row.subject) : null;
  // One of a payment that is not to be paid back was written by somebody else: nothing becomes of that payment.
  const moved =
    payment !== null && paymentTo !== undefined && paymentStageOf(payment) === "refund_due/idle"
      ? (await moveWithPayment(db, row, [from, change], payment, paymentTo)) !== null
      : await moveRefund(db, row, from, change);
  if (!moved) return null;
  note({ incarnation: row.subject, was: row.state });
  return { ...row, ...change };
}

/** Moves the refund of a payment, or of a token's purchase as it stands now, by an operator's word. */
async function decide(
  c: Context<App>,
  { subject, kind }: { subject: string; kind: Refund["kind"] },
  word: Word,
): Promise<z.infer<typeof refundSchema>> {
  const { db } = c.var;
  const isPayments = subject.length === PAYMENT_ID_CHARS;
  const ofToken = () => (isPayments ? null : refundOfToken(db, Number(subject), kind));
  const row = kind === "payment" ? await loadRefund(db, { subject, kind }) : await ofToken();
  const name = `${isPayments ? "Payment" : "Token"} ${subject}`;
  if (row === null) throw new AppError("refund_not_found", `${name} has no refund of kind "${kind}".`);
  const moved = await moveByWord(db, row, word);
  if (moved !== null) return bodyOfRefund(moved);
  const now = await loadRefund(db, row);
  throw new AppError("not_payable", `${name}: its refund is ${now?.state ?? row.state} by now.`);
}

const bodyOfRefund = (row: Refund): z.infer<typeof refundSchema> => {
  const { tokenId, kind, state, reason, amount, owedSeconds, payTo, recipient, txHash, createdAt, settledAt } = row;
  return {
    tokenId,
    paymentId: kind === "payment" ? row.subject : null,
    kind,
    state,
    reason,
    amount: formatUsdc(BigInt(amount)),
    owedSeconds,
    payTo,
    recipient,
    txHash,
    createdAt: isoOf(createdAt) ?? "",
    settledAt: isoOf(settledAt),
  };
};
