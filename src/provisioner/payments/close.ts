// The books of a paid order close once final history has the payment, and the transfer of the token.

import { getAddress } from "viem";
import { readFinalToken } from "../../chain/witness.ts";
import * as store from "../../db/payments.ts";
import { bookRefund, loadRefund } from "../../db/refunds.ts";
import type { Vm } from "../../db/schema.ts";
import { log } from "../../log.ts";
import type { Context } from "../context.ts";
import { readFinalPurchase } from "../machines/verify.ts";
import { refundOf } from "../refunds/owe.ts";
import { walletOf } from "../wallet.ts";
import { transferOf } from "./deliver.ts";
import { isTheirs, onMachine } from "./token.ts";
import { hold, lookAgain, type Turn, useOf, WATCH_MS } from "./turn.ts";

/** Other failures are for a person to judge. */
const REFUNDED_FAILURES: ReadonlySet<string> = new Set([
  "no_machine_in_time",
  "token_not_valid",
  "replacements_used_up",
]);

/** A key was handed out: the books close when final history has the payment. */
export const closeAnswer = (context: Context, row: store.Payment): Promise<Turn> =>
  closePaid(context, row, (closed) => closed());

/** The token was handed over: the books close when final history has the payment, and the token's transfer. */
export const closeOrder = (context: Context, row: store.LinkedOrder): Promise<Turn> =>
  closePaid(context, row, (closed) =>
    onMachine(context, row, (_context, linked, vm) => closeDelivered(context, linked, vm, closed)),
  );

async function closePaid(
  context: Context,
  row: store.Payment,
  then: (closed: () => Promise<Turn>) => Promise<Turn>,
): Promise<Turn> {
  const use = await useOf(context, row, "finalized");
  if (use.state === "unclear") return lookAgain(context, row, WATCH_MS);
  if (use.state === "unused" && use.blockTimestamp < row.validBefore) return lookAgain(context, row, WATCH_MS);
  // A reorg took the charge back after what it was for had been handed out: our loss, and a person should hear of it.
  if (use.state !== "paid") return hold(context, row, "charge_undone");
  return then(() => store.settlePayment(context.db, row, use, { step: "idle", wakeAt: null, endedAt: context.now() }));
}

/** The payment is final; the order closes with the token's transfer. */
async function closeDelivered(
  context: Context,
  row: store.LinkedOrder,
  vm: Vm | null,
  closed: () => Promise<Turn>,
): Promise<Turn> {
  if (vm?.current) await oweForLost(context, row, vm);
  if (vm !== null && (await isFinallyTheirs(context, row, vm))) return closed();
  const moved = await walletOf(context).order(transferOf(row));
  if (moved.state === "reverted" && !isTheirs(row, vm)) return store.movePayment(context.db, row, { step: "deliver" });
  // What went to the payer was another's token, and ours is nowhere.
  if (moved.state === "final" && vm?.status === "terminated" && !vm.current) return hold(context, row, "purchase_gone");
  return moved.state === "final" && vm?.current ? closed() : lookAgain(context, row, WATCH_MS);
}

/** By final history the payer has the token, and its purchase stands there. */
async function isFinallyTheirs({ chain, config }: Context, row: store.Payment, vm: Vm): Promise<boolean> {
  if (!isTheirs(row, vm)) return false;
  const { owner, blockNumber } = await readFinalToken(chain, vm.tokenId);
  if (owner !== getAddress(row.payer)) return false;
  const purchase = await readFinalPurchase(chain, config, vm);
  return purchase !== null && purchase.blockNumber <= blockNumber;
}

/**
 * A machine may fail while its token moves: it was ours then, so that nothing was booked, and now it is the payer's. Whoever
 * has the token in final history is asked before anything is paid.
 */
async function oweForLost(context: Context, row: store.Payment, vm: Vm): Promise<void> {
  const { db, now } = context;
  if (vm.status !== "failed" || !REFUNDED_FAILURES.has(vm.failure ?? "")) return;
  if ((await loadRefund(db, { subject: vm.incarnation, kind: "failed" })) !== null) return;
  const owed = await refundOf(context, { ...vm, owner: row.payer }, now());
  if (owed?.refund === undefined) return;
  log("warn", "failed_on_its_way", { payment: row.id, tokenId: vm.tokenId });
  await bookRefund(db, owed.refund);
}
