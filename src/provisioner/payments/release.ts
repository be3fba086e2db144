// Payments that were given up, until nobody can submit them any more.
import * as store from "../../db/payments.ts";
import { log } from "../../log.ts";
import type { Context } from "../context.ts";
import { endLeft } from "./token.ts";
import { lookAgain, type Turn, useOf, WATCH_MS } from "./turn.ts";

/** Given up, and anybody may still submit it. Released once final history is past its time without it. */
export async function release(context: Context, row: store.Payment): Promise<Turn> {
  const { db, now } = context;
  const use = await useOf(context, row, "finalized");
  if (use.state === "paid") {
    log("warn", "released_payment_used", { payment: row.id, txHash: use.txHash });
    const seen = { settledAt: now(), wakeAt: now() };
    return store.settlePayment(db, row, use, { state: "refund_due", step: "refund", ...seen });
  }
  if (use.state === "unclear") return lookAgain(context, row, WATCH_MS);
  if (use.state === "unused" && use.blockTimestamp < row.validBefore) {
    return lookAgain(context, row, Math.max(WATCH_MS, (row.validBefore - use.blockTimestamp) * 1_000));
  }
  const held = await endLeft(context, row);
  log("info", "payment_released", { payment: row.id, reason: row.reason });
  return store.movePayment(db, row, { ...held, state: "released", step: "idle", wakeAt: null, endedAt: now() });
}
