import { createRoute, z } from "@hono/zod-openapi";
import type { Context } from "hono";
import { getAddress } from "viem";
import type { CoinTransfer } from "../../../chain/coin-transfers.ts";
import { formatUsdc } from "../../../chain/contract.ts";
import { readFinalNumber } from "../../../chain/witness.ts";
import { heldTokens } from "../../../db/orders.ts";
import { listPayments, loadPayment, movePayment, type Payment } from "../../../db/payments.ts";
import { loadRefund, notePaidByHand } from "../../../db/refunds.ts";
import { chainTime } from "../../../db/vms.ts";
import { AppError } from "../../../errors.ts";
import { note } from "../../../log.ts";
import { PAYMENT_STATES } from "../../../model/payment-life.ts";
import type { App, Router } from "../../http.ts";
import { reconcile, type Side } from "../../reconcile.ts";
import { isoOf, isoOfChain, isoTime, paymentIdSchema, txHashSchema } from "../schemas.ts";
import { moveByWord, payWord, settleWord, type Word } from "./refunds.ts";
import { adminErrors, bodyOf, FOR_OPERATORS, jsonOf, limitQuery, reasonSchema } from "./shared.ts";

const MAX_PAGE = 500;
const MAX_RECONCILED_BLOCKS = 10_000;

const paymentSchema = z
  .object({
    id: z.string(),
    kind: z.enum(["credentials", "compute"]),
    state: z.enum(PAYMENT_STATES),
    step: z.string(),
    reason: z.string().nullable(),
    payer: z.string(),
    amount: z.string().openapi({ description: "USDC", example: "0.50" }),
    cost: z.string().nullable().openapi({ description: "What the token cost us, USDC" }),
    tier: z.number().nullable(),
    durationDays: z.number().nullable(),
    tokenId: z.number().nullable(),
    held: z.boolean().openapi({ description: "The token is ours, for the next order of its tier" }),
    settleTx: z.string().nullable(),
    purchaseTx: z.string().nullable(),
    transferTx: z.string().nullable(),
    refundTx: z.string().nullable(),
    createdAt: isoTime,
    endedAt: isoTime.nullable(),
  })
  .openapi("OperatorsPayment");

const block = z
  .string()
  .regex(/^\d{1,12}$/, "must be a block number")
  .transform(Number)
  .optional()
  .openapi({ type: "integer" });

const listRoute = createRoute({
  method: "get",
  path: "/admin/payments",
  summary: "Payments by x402, newest first",
  ...FOR_OPERATORS,
  request: {
    query: z.object({
      state: z.enum(PAYMENT_STATES).optional(),
      limit: limitQuery(MAX_PAGE, 100),
      cursor: z
        .string()
        .regex(/^\d{1,16}\.[0-9a-f]{32}$/, "must be the nextCursor of a page")
        .optional()
        .openapi({ description: "`nextCursor` of the page before" }),
    }),
  },
  responses: {
    200: jsonOf("The payments", z.object({ payments: z.array(paymentSchema), nextCursor: z.string().optional() })),
    ...adminErrors(),
  },
});

const transferSchema = z.object({ txHash: z.string(), from: z.string(), to: z.string(), amount: z.string() });
const sideSchema = z.object({
  transfers: z.number(),
  sum: z.string(),
  explained: z.string(),
  unexplained: z.array(transferSchema),
});
const reconcileRoute = createRoute({
  method: "get",
  path: "/admin/payments/reconcile",
  summary: "Hold the books of payments against the chain",
  description: `Every transfer of USDC to or from the operator wallet in a range of at most ${MAX_RECONCILED_BLOCKS} final blocks, by default the last ones, and where nodes give few blocks a request the last of them (\`fromBlock\` of the answer): what rows explain, and what they don't (a top-up, for instance); and rows that say settled where the chain does not.`,
  ...FOR_OPERATORS,
  request: { query: z.object({ fromBlock: block, toBlock: block }) },
  responses: {
    200: jsonOf(
      "The books",
      z.object({
        fromBlock: z.number(),
        toBlock: z.number(),
        incoming: sideSchema,
        outgoing: sideSchema,
        missing: z.array(paymentSchema),
      }),
    ),
    ...adminErrors(502),
  },
});

const heldRoute = createRoute({
  method: "get",
  path: "/admin/payments/held",
  summary: "Tokens in stock: bought for orders that came to nothing",
  description:
    "Each serves an order whose time differs from what is left of it by at most two hours or 5 %, whichever is more. Soonest to end first.",
  ...FOR_OPERATORS,
  request: { query: z.object({ limit: limitQuery(MAX_PAGE, 100) }) },
  responses: {
    200: jsonOf(
      "The stock",
      z.object({
        tokens: z.array(
          z.object({
            tokenId: z.number(),
            tier: z.number(),
            paymentId: z.string().openapi({ description: "The order that it was bought for" }),
            heldSince: isoTime.nullable(),
            expiresAt: isoTime,
            cost: z.string().openapi({ description: "USDC" }),
            value: z.string().openapi({ description: "Of its cost, what its time left is worth; USDC" }),
          }),
        ),
        value: z.string().openapi({ description: "Of all of them, USDC" }),
      }),
    ),
    ...adminErrors(),
  },
});

const decided = { 200: jsonOf("How it stands now", paymentSchema), ...adminErrors(404, 409) };
const refundRoute = createRoute({
  method: "post",
  path: "/admin/payments/{id}/refund",
  summary: "Pay a payment back to its payer",
  description:
    "One that is held, or whose refund is. It is approved by this, within APPROVAL_LIMIT_USDC_PER_DAY: the same as `/admin/refunds/{id}/payment/pay`, which does not take a payment that has no refund yet.",
  ...FOR_OPERATORS,
  request: { params: z.object({ id: paymentIdSchema }), body: bodyOf(z.strictObject({ reason: reasonSchema })) },
  responses: decided,
});
const settleRoute = createRoute({
  method: "post",
  path: "/admin/payments/{id}/settle",
  summary: "Note that a payment was paid back by hand",
  description: "One that is held, or whose refund the operator wallet does not have yet. Nothing is sent.",
  ...FOR_OPERATORS,
  request: {
    params: z.object({ id: paymentIdSchema }),
    body: bodyOf(
      z.strictObject({
        reason: reasonSchema,
        txHash: txHashSchema,
      }),
    ),
  },
  responses: decided,
});
const forgiveRoute = createRoute({
  method: "post",
  path: "/admin/payments/{id}/forgive",
  summary: "Let a payer order again whose money was gone when its machine was ready",
  ...FOR_OPERATORS,
  request: { params: z.object({ id: paymentIdSchema }), body: bodyOf(z.strictObject({ reason: reasonSchema })) },
  responses: decided,
});

export function mountAdminPayments(app: Router): void {
  app.openapi(listRoute, async (c) => {
    const { state, limit, cursor } = c.req.valid("query");
    const [createdAt = "", before = ""] = cursor?.split(".") ?? [];
    const from = cursor === undefined ? undefined : { createdAt: Number(createdAt), id: before };
    const rows = await listPayments(c.var.db, state, from, limit);
    const last = rows.length === limit ? rows.at(-1) : undefined;
    const next = last === undefined ? {} : { nextCursor: `${last.createdAt}.${last.id}` };
    return c.json({ payments: rows.map(bodyOfPayment), ...next }, 200);
  });

  app.openapi(reconcileRoute, async (c) => {
    const query = c.req.valid("query");
    const { db, chain, config } = c.var;
    const { X402_PAY_TO: operator, USDC_ADDRESS: coin } = config;
    if (operator === undefined)
      throw new AppError("payments_off", "X402_PAY_TO is not set: nothing is sold over x402.");
    const final = await readFinalNumber(chain);
    const toBlock = Math.min(query.toBlock ?? final, final);
    const firstBlock = query.fromBlock ?? Math.max(0, toBlock - MAX_RECONCILED_BLOCKS + 1);
    if (firstBlock > toBlock || toBlock - firstBlock >= MAX_RECONCILED_BLOCKS) {
      throw new AppError(
        "invalid_request",
        `A range has 1 to ${MAX_RECONCILED_BLOCKS} blocks and ends at the last final one, ${final}, at the latest.`,
      );
    }
    const books = await reconcile({ db, chain, coin, operator }, firstBlock, toBlock);
    const { fromBlock, incoming, outgoing, missing } = books;
    note({ fromBlock, toBlock, unexplained: incoming.unexplained.length + outgoing.unexplained.length });
    const body = {
      incoming: bodyOfSide(incoming),
      outgoing: bodyOfSide(outgoing),
      missing: missing.map(bodyOfPayment),
    };
    return c.json({ fromBlock, toBlock, ...body }, 200);
  });

  app.openapi(heldRoute, async (c) => {
    const { db } = c.var;
    const now = await chainTime(db);
    const rows = await heldTokens(db, now, c.req.valid("query").limit);
    const valued = rows.map((row) => {
      const [left, whole] = [row.expiresAt - now, row.expiresAt - row.createdAt];
      return { ...row, value: (BigInt(row.cost) * BigInt(left)) / BigInt(whole) };
    });
    const tokens = valued.map(({ payment, tokenId, tier, heldSince, expiresAt, cost, value }) => ({
      tokenId,
      tier,
      paymentId: payment,
      heldSince: isoOf(heldSince),
      expiresAt: isoOfChain(expiresAt),
      cost: formatUsdc(BigInt(cost)),
      value: formatUsdc(value),
    }));
    return c.json({ tokens, value: formatUsdc(valued.reduce((sum, { value }) => sum + value, 0n)) }, 200);
  });

  app.openapi(refundRoute, async (c) => {
    const to = { state: "refund_due", step: "refund", reason: "approved", wakeAt: Date.now(), endedAt: null } as const;
    const held = (row: Payment) => movePayment(c.var.db, row, to);
    return c.json(await decideRefund(c, c.req.valid("param").id, c.req.valid("json").reason, held, payWord()), 200);
  });

  app.openapi(settleRoute, async (c) => {
    const { reason, txHash } = c.req.valid("json");
    const held = (row: Payment) => notePaidByHand(c.var.db, row, txHash.toLowerCase(), Date.now());
    return c.json(await decideRefund(c, c.req.valid("param").id, reason, held, settleWord(txHash)), 200);
  });

  app.openapi(forgiveRoute, async (c) => {
    const forgive = async (row: Payment) =>
      row.reason === "capture_refused" ? movePayment(c.var.db, row, { reason: "capture_refused_forgiven" }) : null;
    return c.json(await decide(c, c.req.valid("param").id, c.req.valid("json").reason, forgive), 200);
  });
}

/** What is held has no refund yet; of the others the ledger's refund is decided. */
const decideRefund = (
  c: Context<App>,
  paymentId: string,
  reason: string,
  held: (row: Payment) => Promise<Payment | null>,
  word: Word,
) =>
  decide(c, paymentId, reason, async (row) => {
    const { db } = c.var;
    if (row.state === "held") return held(row);
    const refund = await loadRefund(db, { subject: row.id, kind: "payment" });
    return refund !== null && (await moveByWord(db, refund, word)) !== null ? loadPayment(db, row.id) : null;
  });

async function decide(
  c: Context<App>,
  paymentId: string,
  reason: string,
  move: (row: Payment) => Promise<Payment | null>,
) {
  const row = await loadPayment(c.var.db, paymentId);
  if (row === null) throw new AppError("payment_not_found", "There is no payment of that id.");
  note({ payment: paymentId, reason });
  const moved = await move(row);
  if (moved === null)
    throw new AppError(
      "not_payable",
      `The payment is ${row.state} (${row.reason ?? "no reason"}): that is not for an operator to decide.`,
    );
  return bodyOfPayment(moved);
}

const usdcOf = (amount: string | null): string | null => (amount === null ? null : formatUsdc(BigInt(amount)));

const bodyOfPayment = (row: Payment): z.infer<typeof paymentSchema> => ({
  id: row.id,
  kind: row.kind,
  state: row.state,
  step: row.step,
  reason: row.reason,
  payer: getAddress(row.payer),
  amount: formatUsdc(BigInt(row.amount)),
  cost: usdcOf(row.cost),
  tier: row.tier,
  durationDays: row.durationDays,
  tokenId: row.tokenId,
  held: row.held,
  settleTx: row.settleTx,
  purchaseTx: row.purchaseTx,
  transferTx: row.transferTx,
  refundTx: row.refundTx,
  createdAt: isoOf(row.createdAt) ?? "",
  endedAt: isoOf(row.endedAt),
});

const bodyOfSide = ({ transfers, sum, explained, unexplained }: Side) => ({
  transfers,
  sum: formatUsdc(sum),
  explained: formatUsdc(explained),
  unexplained: unexplained.map(({ txHash, from, to, amount }: CoinTransfer) => ({
    txHash,
    from,
    to,
    amount: formatUsdc(amount),
  })),
});
