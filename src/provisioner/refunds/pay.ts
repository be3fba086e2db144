// Money back. What is owed was decided when the purchase failed, came late, or when the payment had bought nothing; here it is
// held against final history, to the one whom the chain names, and paid once by the operator wallet (hard cases 16 and 17).
import { type Address, getAddress, type Hex } from "viem";
import type { OrderState } from "../../../durable-objects/operator-wallet.ts";
import { APPROVED } from "../../../durable-objects/wallet-ledger.ts";
import { isPaused } from "../../db/pauses.ts";
import { loadPayment, type Move, type Payment, paymentOfPurchase } from "../../db/payments.ts";
import * as store from "../../db/refunds.ts";
import { loadVm } from "../../db/vms.ts";
import { allClear, log } from "../../log.ts";
import { signedPaymentOf } from "../../model/payment.ts";
import { paymentStageOf } from "../../model/payment-life.ts";
import { type Context, DONE, type Next, WAIT } from "../context.ts";
import { endLeft } from "../payments/token.ts";
import { walletOf } from "../wallet.ts";
import { findCharge, findPayee } from "./payee.ts";
import { isNotOurs, levelOfWait, MAX_REVERTED_REFUNDS, REVERTED_WAIT_MS } from "./waits.ts";

/** Refunds have no generation: each move is a compare-and-set on the state that it leaves. */
export const GENERATION = 0;
const GO_ON = { kind: "continue", generation: GENERATION } as const;

/** What logs call it. */
export const namesOf = ({ subject, kind, tokenId }: store.Refund) =>
  kind === "payment" ? { kind, payment: subject, tokenId } : { kind, tokenId };

/** A refund that is due: whom it goes to, and how much, by final history. */
export async function begin(context: Context, row: store.Refund): Promise<Next<store.Refund>> {
  if (await isPaused(context.db, "payouts")) return WAIT;
  if (context.config.OPERATOR_PRIVATE_KEY === undefined) return hold(context, row, "no_wallet");
  return row.kind === "payment" ? beginForPayment(context, row) : beginForPurchase(context, row);
}

async function beginForPurchase(context: Context, row: store.Refund): Promise<Next<store.Refund>> {
  const { db } = context;
  const vm = await loadVm(db, row.subject);
  const payee = vm === null ? "wait" : await findPayee(context, vm, row);
  if (payee === "wait") return WAIT;
  if (typeof payee === "string") return hold(context, row, payee);
  if (!(await store.beginPaying(db, row, payee.to, payee.amount))) return DONE;
  // Any stranger may renew a token: that calls nobody (hard case 40).
  if (payee.renewed) log("error", "renewal_not_served", { tokenId: row.tokenId, incarnation: row.subject });
  return GO_ON;
}

async function beginForPayment(context: Context, row: store.Refund): Promise<Next<store.Refund>> {
  const { db, now } = context;
  const payment = await loadRefundable(db, row);
  if (payment === null) return hold(context, row, "payment_not_due");
  const charge = await findCharge(context, payment);
  if (charge === "wait") return WAIT;
  if (charge !== "undone") {
    return (await store.beginPayingBack(db, row, payment, charge, getAddress(payment.payer))) ? GO_ON : DONE;
  }
  const undone = { state: "cancelled", reason: "charge_undone", txHash: null, wakeAt: null } as const;
  const given = { state: "releasing", step: "release", settleTx: null, settledAt: null, wakeAt: now() } as const;
  await move(context, row, payment, undone, given);
  return DONE;
}

/** The payment that a refund is of, while the ledger works on it; null where it is anything else: somebody has written rows. */
async function loadRefundable(db: Context["db"], { subject }: store.Refund): Promise<Payment | null> {
  const payment = await loadPayment(db, subject);
  return payment !== null && paymentStageOf(payment) === "refund_due/idle" ? payment : null;
}

/** Not for us to decide: the sweep pages for what is held, until nothing is. */
async function hold(context: Context, row: store.Refund, reason: string): Promise<Next<store.Refund>> {
  log("warn", "refund_held", { ...namesOf(row), reason });
  await store.moveRefund(context.db, row, [row.state], { state: "held", reason, wakeAt: null });
  return DONE;
}

/** A refund whose payment has begun is carried to its end, whatever is paused. */
export async function pay(context: Context, row: store.Refund): Promise<Next<store.Refund>> {
  const payment = row.kind === "payment" ? await loadRefundable(context.db, row) : null;
  if (row.kind === "payment" && payment === null) return hold(context, row, "payment_not_due");
  const order = await orderOf(context, row, payment);
  const paid: OrderState = await walletOf(context).order(order);
  const reasonOf = (reason: string | null) => (order.owed.approved ? row.reason : reason);
  if (paid.state === "waiting") {
    const { why } = paid;
    log(levelOfWait(why), "refund_waits", { ...namesOf(row), why });
    const held = { state: "held", reason: why, wakeAt: null } as const;
    await store.moveRefund(context.db, row, ["paying"], isNotOurs(why) ? held : { reason: reasonOf(why) });
    return WAIT;
  }
  allClear("refund_waits");
  const { hash } = paid;
  if (paid.state === "sent") {
    // A replacement has another one.
    if (row.txHash !== hash) await move(context, row, payment, { txHash: hash, reason: reasonOf(null) }, {});
    return WAIT;
  }
  if (paid.state === "final") return close(context, row, payment, hash);
  // What made it revert may pass: the wallet has said so on its page.
  const isLast = paid.reverts >= MAX_REVERTED_REFUNDS;
  const again = { txHash: null, wakeAt: context.now() + REVERTED_WAIT_MS };
  const next = isLast
    ? ({ state: "held", reason: "reverted", txHash: hash, wakeAt: null } as const)
    : ({ state: "due", reason: reasonOf("reverted"), ...again } as const);
  await move(context, row, payment, next, {});
  return isLast ? DONE : WAIT;
}

/** The order to pay it. The wallet remembers its id and what else is signed, as they stand here in order: an id is paid once. */
async function orderOf({ db }: Context, row: store.Refund, payment: Payment | null) {
  const { subject, kind, recipient, amount, txHash } = row;
  if (recipient === null) throw new Error(`the refund of ${subject} has no recipient`);
  const isApproved = row.reason === "approved";
  const name = isApproved && kind === "payment" ? subject : `${kind}/${subject}`;
  const id = `${isApproved ? APPROVED : "refund/"}${name}`;
  // Sold over x402, a purchase was paid for by that payment.
  const paidBy = payment ?? (await paymentOfPurchase(db, subject));
  const owed = {
    ...(payment === null ? { purchase: subject } : {}),
    ...(paidBy === null ? {} : { payment: signedPaymentOf(paidBy) }),
    ...(isApproved ? { approved: true as const } : {}),
  };
  // Without a transaction it is a new try.
  return { kind: "pay", id, to: recipient as Address, amount, owed, again: txHash === null } as const;
}

/** Final history has it. */
async function close(
  context: Context,
  row: store.Refund,
  payment: Payment | null,
  txHash: Hex,
): Promise<Next<store.Refund>> {
  const now = context.now();
  const held = payment === null ? {} : await endLeft(context, payment);
  const paid = { state: "paid", reason: null, txHash, wakeAt: null, settledAt: now } as const;
  await move(context, row, payment, paid, { ...held, state: "refunded", step: "idle", endedAt: now });
  log("info", "refund_paid", { ...namesOf(row), txHash, amount: row.amount });
  return DONE;
}

/** Moves it, and the payment that it is of, which knows its transaction as well. */
async function move(
  { db }: Context,
  row: store.Refund,
  payment: Payment | null,
  to: store.RefundChange,
  paymentTo: Move,
): Promise<void> {
  if (payment === null) await store.moveRefund(db, row, [row.state], to);
  else {
    const tx = to.txHash === undefined ? {} : { refundTx: to.txHash };
    await store.moveWithPayment(db, row, [[row.state], to], payment, { ...paymentTo, ...tx });
  }
}
