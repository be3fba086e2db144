// Payments that were taken and not served go back.

import { type Address, getAddress } from "viem";
import { APPROVED } from "../../../durable-objects/wallet-ledger.ts";
import { isPaused } from "../../db/pauses.ts";
import * as store from "../../db/payments.ts";
import { allClear, log } from "../../log.ts";
import { signedPaymentOf } from "../../model/payment.ts";
import type { Context } from "../context.ts";
import { isNotOurs, levelOfWait, MAX_REVERTED_REFUNDS, REVERTED_WAIT_MS } from "../refunds/waits.ts";
import { walletOf } from "../wallet.ts";
import { endLeft } from "./token.ts";
import { hold, lookAgain, type Turn, useOf, WATCH_MS } from "./turn.ts";

/** Charged for nothing: it goes back to the payer, once final history has the charge. */
export async function beginRefund(context: Context, row: store.Payment): Promise<Turn> {
  const { db, config } = context;
  if (await isPaused(db, "payouts")) return lookAgain(context, row, WATCH_MS);
  const byHand = config.REFUNDS === "manual" && row.reason !== "approved";
  if (byHand || config.OPERATOR_PRIVATE_KEY === undefined) return hold(context, row, "manual");
  const use = await useOf(context, row, "finalized");
  if (use.state === "unclear") return lookAgain(context, row, WATCH_MS);
  // A reorg undid the charge: until the authorization's time is over anybody may make it again.
  if (use.state === "unused" && use.blockTimestamp < row.validBefore) return lookAgain(context, row, WATCH_MS);
  if (use.state !== "paid") {
    return store.movePayment(db, row, { state: "releasing", step: "release", settleTx: null, settledAt: null });
  }
  return store.settlePayment(db, row, use, { state: "refunding", refundTx: null });
}

/** Pays it back by the operator wallet, until final history has the transaction. */
export async function payBack(context: Context, row: store.Payment): Promise<Turn> {
  const { db, now } = context;
  const isApproved = row.reason === "approved";
  const id = isApproved ? `${APPROVED}${row.id}` : `refund/payment/${row.id}`;
  const to: Address = getAddress(row.payer);
  const owed = { payment: signedPaymentOf(row), ...(isApproved ? { approved: true as const } : {}) };
  // Without a transaction it is a new try.
  const again = row.refundTx === null;
  const paid = await walletOf(context).order({ kind: "pay", id, to, amount: row.amount, owed, again });
  if (paid.state === "waiting") {
    if (isNotOurs(paid.why)) return hold(context, row, paid.why);
    log(levelOfWait(paid.why), "refund_waits", { payment: row.id, why: paid.why });
    return lookAgain(context, row, WATCH_MS);
  }
  allClear("refund_waits");
  if (paid.state === "reverted") {
    if (paid.reverts >= MAX_REVERTED_REFUNDS) return hold(context, row, "refund_reverted");
    await store.movePayment(db, row, { state: "refund_due", refundTx: null, wakeAt: now() + REVERTED_WAIT_MS });
    return null;
  }
  if (paid.state === "sent") {
    await store.movePayment(db, row, { refundTx: paid.hash, wakeAt: now() + WATCH_MS });
    return null;
  }
  const held = await endLeft(context, row);
  log("info", "payment_refunded", { payment: row.id, txHash: paid.hash, amount: row.amount });
  return store.movePayment(db, row, {
    ...held,
    state: "refunded",
    step: "idle",
    refundTx: paid.hash,
    wakeAt: null,
    endedAt: now(),
  });
}
