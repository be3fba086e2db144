// What is owed for a purchase or a payment, to whom, and why.
import { getAddress } from "viem";
import { SECONDS_PER_DAY } from "../../chain/contract.ts";
import { HELD_TOKEN_COST } from "../../db/orders.ts";
import { loadPayment, type Payment, paymentOfPurchase } from "../../db/payments.ts";
import { bookForPayment, boughtUntil, type NewRefund, oweRefund } from "../../db/refunds.ts";
import type { Vm } from "../../db/schema.ts";
import * as store from "../../db/vms.ts";
import { HELD_DEADLINE_SECONDS } from "../../model/payment.ts";
import { type Context, isOurs } from "../context.ts";
import { hold, type Turn } from "../payments/turn.ts";

/** Less than this is not worth a transaction. */
const SHORT_SECONDS = 60;

/** How a refund begins that is owed and was not approved yet. */
const owedBy = ({ REFUNDS }: Context["config"]) =>
  REFUNDS === "manual" ? ({ state: "waiting", reason: "manual" } as const) : ({ state: "due", reason: null } as const);

/**
 * The whole price back; after a machine ran, what is left of its time by the chain's clock. Null where it was served. Of a
 * token that is ours nothing: the payment that it was bought for is another matter. One that we have handed over is owed
 * to whom it was handed.
 */
export async function refundOf(context: Context, vm: Vm, now: number): Promise<{ refund?: NewRefund } | null> {
  const { db, config } = context;
  if (isOurs(context, vm)) return {};
  const chainTime = await store.chainTime(db);
  if (vm.runningAt !== null && vm.expiresAt <= chainTime) return null;
  const order = await paymentOfPurchase(db, vm.incarnation);
  // A held token may last longer than what was ordered: it is of the order's own time that the rest goes back (hard case 33).
  // A renewal was paid for apart from the purchase.
  const bought = await boughtUntil(db, vm);
  const paidUntil = order?.cost === HELD_TOKEN_COST ? Math.min(bought, orderedUntil(order)) : bought;
  const owedSeconds = vm.runningAt === null ? null : Math.max(0, paidUntil - chainTime);
  const owed = { kind: "failed", ...owedBy(config), owedSeconds, now } as const;
  const refund = await oweRefund(db, vm, owed, order);
  return { refund: order === null ? refund : { ...refund, payTo: order.payer } };
}

/** By when what a held token was sold for is over at the latest (see `buy`): unix seconds of the chain. */
const orderedUntil = ({ validBefore, durationDays }: Payment): number =>
  validBefore + HELD_DEADLINE_SECONDS + (durationDays ?? 0) * SECONDS_PER_DAY;

/**
 * How late by the chain's clock a machine comes that was never there before, and what is owed for it (hard case 14). An order
 * that a held token serves is short of what that token has lost before, which goes back in any case (hard case 33).
 */
export async function lateness(context: Context, vm: Vm): Promise<{ lateSeconds: number | null; refund?: NewRefund }> {
  const { db, config, now } = context;
  if (vm.runningAt !== null) return { lateSeconds: null };
  const chainTime = await store.chainTime(db);
  const order = isOurs(context, vm) ? await paymentOfPurchase(db, vm.incarnation) : null;
  const isHeldToken = order?.cost === HELD_TOKEN_COST;
  const ordered = isHeldToken ? (order?.durationDays ?? 0) * SECONDS_PER_DAY : vm.expiresAt - vm.createdAt;
  const lost = ordered - (vm.expiresAt - chainTime);
  if (lost <= (isHeldToken ? SHORT_SECONDS : config.LATE_AFTER_SECONDS)) return { lateSeconds: null };
  const isRecorded = config.LATE_REFUNDS === "record" && !isHeldToken;
  const owing = isRecorded ? ({ state: "recorded", reason: null } as const) : owedBy(config);
  const owed = { kind: "late", ...owing, owedSeconds: lost, now: now() } as const;
  const refund = await oweRefund(db, vm, owed, order);
  // The token goes to the payer: so does what the machine came too late for.
  return { lateSeconds: lost, refund: order === null ? refund : { ...refund, payTo: order.payer } };
}

/**
 * A payment that was taken and bought nothing: all of it, for its payer. From here on the ledger's refund is worked on, and the
 * payment rests.
 */
export async function owePayment(context: Context, row: Payment): Promise<Turn> {
  const { db, config, now } = context;
  const approved = row.reason === "approved" ? "approved" : null;
  const byState = approved === null ? owedBy(config) : ({ state: "due", reason: approved } as const);
  // The wallet may have signed for it already.
  const begun = { state: "paying", reason: approved, recipient: getAddress(row.payer), txHash: row.refundTx } as const;
  const owing = row.state === "refunding" ? begun : byState;
  const refund: NewRefund = {
    subject: row.id,
    kind: "payment",
    tokenId: row.tokenId,
    amount: row.amount,
    ...owing,
    wakeAt: owing.state === "waiting" ? null : now(),
    createdAt: now(),
  };
  const booked = await bookForPayment(db, row, { state: "refund_due", step: "idle", wakeAt: null }, refund);
  if (booked !== null || (await loadPayment(db, row.id))?.generation !== row.generation) return booked;
  return hold(context, row, "refunded_before");
}
