import { createRoute, z } from "@hono/zod-openapi";
import type { Context } from "hono";
import { formatUsdc } from "../../../chain/contract.ts";
import { listRefunds, loadRefund, moveRefund, type Refund, refundOfToken } from "../../../db/refunds.ts";
import { AppError } from "../../../errors.ts";
import { note } from "../../../log.ts";
import { REFUND_STATES, type RefundState, refundStatesThat } from "../../../model/refund-life.ts";
import type { App, Router } from "../../http.ts";
import { addressSchema, isoOf, isoTime, tokenIdSchema, txHashSchema } from "../schemas.ts";
import { adminErrors, bodyOf, FOR_OPERATORS, jsonOf, limitQuery, reasonSchema } from "./shared.ts";

const MAX_PAGE = 500;
/** Nobody has the order to pay yet. */
const UNDECIDED = refundStatesThat("undecided");

const kindSchema = z
  .enum(["failed", "late"])
  .openapi({ description: "failed: no machine, or none to the end; late: it came late" });
const stateSchema = z.enum(REFUND_STATES).openapi({
  description:
    "recorded: for the books alone; waiting: refunds are manual; held: see reason; due; paying: the wallet has the order",
});

const refundSchema = z
  .object({
    tokenId: z.number(),
    kind: kindSchema,
    state: stateSchema,
    reason: z.string().nullable(),
    amount: z.string().openapi({ description: "USDC", example: "0.50" }),
    owedSeconds: z.number().nullable().openapi({ description: "Of the paid time; null: all of it" }),
    payTo: z.string().nullable().openapi({ description: "Who claimed it; null: the buyer" }),
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
        .regex(/^\d{1,16}\.\d{1,16}$/, "must be the nextCursor of a page")
        .optional()
        .openapi({ description: "`nextCursor` of the page before" }),
    }),
  },
  responses: {
    200: jsonOf("The refunds", z.object({ refunds: z.array(refundSchema), nextCursor: z.string().optional() })),
    ...adminErrors(),
  },
});

const params = z.object({ tokenId: tokenIdSchema, kind: kindSchema });
const responses = { 200: jsonOf("How it stands now", refundSchema), ...adminErrors(404, 409) };

const payRefund = createRoute({
  method: "post",
  path: "/admin/refunds/{tokenId}/{kind}/pay",
  summary: "Pay a refund that is recorded, waiting or held",
  description:
    "On final history the buyer is paid if the token is still his, or `payTo` if the token is that address's; else it is held again. One that is held as `above_limit` is approved by this, within APPROVAL_LIMIT_USDC_PER_DAY. Retrying the purchase takes it back until the payment has begun.",
  ...FOR_OPERATORS,
  request: { params, body: bodyOf(z.strictObject({ reason: reasonSchema, payTo: addressSchema.optional() })) },
  responses,
});

const settleRefund = createRoute({
  method: "post",
  path: "/admin/refunds/{tokenId}/{kind}/settle",
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
  path: "/admin/refunds/{tokenId}/{kind}/cancel",
  summary: "Owe nothing after all",
  description: "Not once the operator wallet has the order.",
  ...FOR_OPERATORS,
  request: { params, body: bodyOf(z.strictObject({ reason: reasonSchema })) },
  responses,
});

export function mountAdminRefunds(app: Router): void {
  app.openapi(readRefunds, async (c) => {
    const { state, limit, cursor } = c.req.valid("query");
    const [tokenId = 0, rowid = 0] = cursor?.split(".").map(Number) ?? [];
    const rows = await listRefunds(c.var.db, state, cursor === undefined ? undefined : { tokenId, rowid }, limit);
    const last = rows.length === limit ? rows.at(-1) : undefined;
    const next = last === undefined ? {} : { nextCursor: `${last.tokenId}.${last.rowid}` };
    return c.json({ refunds: rows.map(bodyOfRefund), ...next }, 200);
  });

  app.openapi(payRefund, async (c) => {
    const { reason, payTo } = c.req.valid("json");
    const to = { state: "due", payTo: payTo?.toLowerCase() ?? null, wakeAt: Date.now() } as const;
    note({ reason, ...(payTo === undefined ? {} : { payTo }) });
    const paid = (row: Refund) => ({ ...to, reason: isLarge(row) ? "approved" : null });
    return c.json(await decide(c, c.req.valid("param"), UNDECIDED, paid), 200);
  });

  app.openapi(settleRefund, async (c) => {
    const { reason, txHash } = c.req.valid("json");
    const to = { state: "paid", reason: "by_hand", txHash, wakeAt: null, settledAt: Date.now() } as const;
    note({ reason, txHash });
    return c.json(await decide(c, c.req.valid("param"), [...UNDECIDED, "due"], () => to), 200);
  });

  app.openapi(cancelRefund, async (c) => {
    const { reason } = c.req.valid("json");
    note({ reason });
    const to = { state: "cancelled", reason: "by_hand", wakeAt: null } as const;
    return c.json(await decide(c, c.req.valid("param"), [...UNDECIDED, "due"], () => to), 200);
  });
}

/** More than leaves in a day by itself; the word of an operator has been held against it as well, perhaps. */
const isLarge = ({ state, reason }: Refund): boolean => state === "held" && reason === "above_limit";

/** Moves the refund of a token's purchase as it stands now, if it is in one of these states. */
async function decide(
  c: Context<App>,
  { tokenId, kind }: { tokenId: string; kind: Refund["kind"] },
  from: readonly RefundState[],
  toOf: (row: Refund) => Parameters<typeof moveRefund>[3],
) {
  const { db } = c.var;
  const row = await refundOfToken(db, Number(tokenId), kind);
  if (row === null) throw new AppError("refund_not_found", `Token ${tokenId} has no refund of kind "${kind}".`);
  const to = toOf(row);
  if (!(await moveRefund(db, row, from, to))) {
    const now = await loadRefund(db, row);
    throw new AppError("not_payable", `The refund of token ${tokenId} is ${now?.state ?? row.state} by now.`);
  }
  note({ incarnation: row.incarnation, was: row.state });
  return bodyOfRefund({ ...row, ...to });
}

const bodyOfRefund = (row: Refund) => {
  const { tokenId, kind, state, reason, amount, owedSeconds, payTo, recipient, txHash, createdAt, settledAt } = row;
  return {
    tokenId,
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
