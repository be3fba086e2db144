// Payments that a request of the payer's left half done.
import * as store from "../../db/payments.ts";
import { log } from "../../log.ts";
import type { Context } from "../context.ts";
import { lookAgain, type Turn, useOf, WATCH_MS } from "./turn.ts";

/** Of credentials that were paid for and not handed out: how long the payer has to ask again. */
const UNSERVED_MS = 600_000;

/** Charged, and no answer ever left: after some time it is given back. */
export async function giveBackUnserved(context: Context, row: store.Payment): Promise<Turn> {
  const { db, now } = context;
  const unservedUntil = (row.settledAt ?? row.createdAt) + UNSERVED_MS;
  if (now() < unservedUntil) return lookAgain(context, row, unservedUntil - now());
  return store.movePayment(db, row, { state: "refund_due", step: "refund", reason: "not_served", wakeAt: now() });
}

/** Whatever a request of the payer's did not bring to its end. */
export async function settle(context: Context, row: store.Payment): Promise<Turn> {
  const { db, now } = context;
  const use = await useOf(context, row);
  if (use.state === "paid") {
    log("warn", "payment_settled_late", { payment: row.id, txHash: use.txHash });
    return store.settlePayment(db, row, use, { state: "settled", settledAt: now(), wakeAt: now() + WATCH_MS });
  }
  if (use.state === "unclear") return lookAgain(context, row, WATCH_MS);
  const isOver = use.state === "cancelled" || use.blockTimestamp >= row.validBefore;
  if (row.state === "settling" && !isOver) return lookAgain(context, row, WATCH_MS);
  const reason = row.state === "claimed" ? "never_moved" : "not_settled";
  return store.movePayment(db, row, { state: "releasing", step: "release", reason, wakeAt: now() });
}
