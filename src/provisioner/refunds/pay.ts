// Money back. What is owed was decided when the purchase failed (or came late); here it is held against final history,
// to the one whom the chain names, and paid once by the operator wallet (hard cases 16 and 17).
import { type Address, getAddress, type Hex } from "viem";
import type { OrderState } from "../../../durable-objects/operator-wallet.ts";
import { APPROVED } from "../../../durable-objects/wallet-ledger.ts";
import { SECONDS_PER_DAY } from "../../chain/contract.ts";
import { readAgreedToken, readFinalToken } from "../../chain/witness.ts";
import { isPaused } from "../../db/pauses.ts";
import { paymentOfPurchase } from "../../db/payments.ts";
import * as store from "../../db/refunds.ts";
import type { Vm } from "../../db/schema.ts";
import { loadVm } from "../../db/vms.ts";
import { GiveUp } from "../../errors.ts";
import { allClear, log } from "../../log.ts";
import { signedPaymentOf } from "../../model/payment.ts";
import { type Context, DONE, type Next, operatorOf, WAIT } from "../context.ts";
import { readPurchase } from "../machines/verify.ts";
import { walletOf } from "../wallet.ts";
import { isNotOurs, levelOfWait, MAX_REVERTED_REFUNDS, REVERTED_WAIT_MS } from "./waits.ts";

/** `renewed`: somebody has paid for more time of a token that nobody is served with. */
type Payee = { to: Address; amount: bigint; renewed: boolean };

/** Refunds have no generation: each move is a compare-and-set on the state that it leaves. */
export const GO_ON = { kind: "continue", generation: 0, seen: false } as const;

/** A refund that is due: whom it goes to, and how much, by final history. */
export async function begin(context: Context, row: store.Refund): Promise<Next<store.Refund>> {
  const { db, config } = context;
  if (await isPaused(db, "payouts")) return WAIT;
  const vm = await loadVm(db, row.incarnation);
  if (vm === null) return WAIT;
  const payee = config.OPERATOR_PRIVATE_KEY === undefined ? "no_wallet" : await findPayee(context, vm, row);
  if (payee === "wait") return WAIT;
  if (typeof payee === "string") {
    // The sweep pages for what is held, until nothing is.
    log("warn", "refund_held", { tokenId: row.tokenId, kind: row.kind, reason: payee });
    await store.moveRefund(db, row, ["due"], { state: "held", reason: payee, wakeAt: null });
    return DONE;
  }
  if (!(await store.beginPaying(db, row, payee.to, payee.amount))) return DONE;
  // Any stranger may renew a token: that calls nobody (hard case 40).
  if (payee.renewed) log("error", "renewal_not_served", { tokenId: row.tokenId, incarnation: row.incarnation });
  return GO_ON;
}

/** Whom the chain's final history names, and how much; "wait", or why it is not for us to decide. */
async function findPayee(context: Context, vm: Vm, row: store.Refund): Promise<Payee | string> {
  const { chain, config } = context;
  const view = await readFinalToken(chain, vm.tokenId);
  let purchase: Awaited<ReturnType<typeof readPurchase>>;
  try {
    purchase = await readPurchase(chain, config, vm);
  } catch (error) {
    if (error instanceof GiveUp) return error.code;
    throw error;
  }
  if (purchase === null) return view.blockNumber > vm.blockNumber ? "purchase_gone" : "wait";
  if (purchase.blockNumber > view.blockNumber) return "wait";
  if (view.owner === null) return "burned";
  // A renewal was another payment, and not by the buyer perhaps: it does not change what the purchase is owed.
  const paidUntil = purchase.purchaseDate + purchase.durationDays * SECONDS_PER_DAY;
  const renewed = row.kind === "failed" && vm.expiresAt > paidUntil;
  const sold = row.payTo === null ? null : await paymentOfPurchase(context.db, row.incarnation);
  const paid = sold === null ? purchase : store.paidByOrder(sold);
  const amount = store.shareOf(paid.totalCost, paid.durationDays, row.owedSeconds);
  if (amount === 0n) return renewed ? "renewed" : "nothing_owed";
  if (row.payTo !== null) {
    // Sold over x402: it is on its way to whom it was sold to.
    if (view.owner === operatorOf(context)) return "wait";
    if (view.owner === getAddress(row.payTo)) return { to: view.owner, amount, renewed };
    // Claimed before the transfer is final?
    const { owner } = await readAgreedToken(chain, vm.tokenId);
    return owner === getAddress(row.payTo) ? "wait" : "owner_changed";
  }
  return view.owner === purchase.buyer ? { to: purchase.buyer, amount, renewed } : "owner_is_not_the_buyer";
}

/** A refund whose payment has begun is carried to its end, whatever is paused. */
export async function pay(context: Context, row: store.Refund): Promise<Next<store.Refund>> {
  const { db, now } = context;
  if (row.recipient === null) throw new Error(`the refund of ${row.incarnation} has no recipient`);
  const isApproved = row.reason === "approved";
  const reasonOf = (reason: string | null) => (isApproved ? row.reason : reason);
  const id = `${isApproved ? APPROVED : "refund/"}${row.kind}/${row.incarnation}`;
  // Sold over x402, it was paid for by that payment.
  const sold = await paymentOfPurchase(db, row.incarnation);
  const owed = {
    purchase: row.incarnation,
    ...(sold === null ? {} : { payment: signedPaymentOf(sold) }),
    ...(isApproved ? { approved: true as const } : {}),
  };
  // Without a transaction it is a new try.
  const again = row.txHash === null;
  const order = { kind: "pay", id, to: row.recipient as Address, amount: row.amount, owed, again } as const;
  const payment: OrderState = await walletOf(context).order(order);
  if (payment.state === "waiting") {
    const { why } = payment;
    log(levelOfWait(why), "refund_waits", { tokenId: row.tokenId, why });
    const held = { state: "held", reason: why, wakeAt: null } as const;
    await store.moveRefund(db, row, ["paying"], isNotOurs(why) ? held : { reason: reasonOf(why) });
    return WAIT;
  }
  allClear("refund_waits");
  const { hash } = payment;
  if (payment.state === "sent") {
    await note(db, row, hash, reasonOf(null));
    return WAIT;
  }
  if (payment.state === "final") {
    await store.moveRefund(db, row, ["paying"], {
      state: "paid",
      reason: null,
      txHash: hash,
      wakeAt: null,
      settledAt: now(),
    });
    log("info", "refund_paid", { tokenId: row.tokenId, kind: row.kind, txHash: hash, amount: row.amount });
    return DONE;
  }
  // What made it revert may pass: the wallet has said so on its page.
  const isLast = payment.reverts >= MAX_REVERTED_REFUNDS;
  const next = isLast
    ? ({ state: "held", reason: "reverted", txHash: hash, wakeAt: null } as const)
    : ({ state: "due", reason: reasonOf("reverted"), txHash: null, wakeAt: now() + REVERTED_WAIT_MS } as const);
  await store.moveRefund(db, row, ["paying"], next);
  return isLast ? DONE : WAIT;
}

/** The hash of the transaction that is on its way: a replacement has another one. */
async function note(db: Context["db"], row: store.Refund, txHash: Hex, reason: string | null): Promise<void> {
  if (row.txHash !== txHash) await store.moveRefund(db, row, ["paying"], { txHash, reason });
}
