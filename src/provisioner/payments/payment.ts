// Payments, brought to their end: what a request left half done, what was given up, what has to be paid back. A machine's
// order is in order.ts. The chain is the only witness (hard case 2); final history closes the books (hard case 16).
import { type Address, getAddress } from "viem";
import { APPROVED } from "../../../durable-objects/wallet-ledger.ts";
import type { Refusal } from "../../../durable-objects/wallet-limits.ts";
import { readAuthorizationUse } from "../../chain/authorization.ts";
import { readFinalToken } from "../../chain/witness.ts";
import { hasRoom } from "../../db/client.ts";
import { isPaused } from "../../db/pauses.ts";
import * as store from "../../db/payments.ts";
import { bookRefund, loadRefund } from "../../db/refunds.ts";
import type { Vm } from "../../db/schema.ts";
import { allClear, log } from "../../log.ts";
import { authorizationOf, signedPaymentOf } from "../../model/payment-life.ts";
import type { Context } from "../context.ts";
import { refundOf } from "../machines/create.ts";
import { readPurchase } from "../machines/verify.ts";
import { walletOf } from "../wallet.ts";
import { buy, capture, check, deliver, endLeft, isTheirs, onMachine, provision } from "./order.ts";

/** Of credentials that were paid for and not handed out: how long the payer has to ask again. */
const UNSERVED_MS = 600_000;
const WATCH_MS = 60_000;
const MAX_STEPS_PER_MESSAGE = 12;
/** A refund that reverted is tried again by itself so often in all, so long after each; then an operator decides. */
export const MAX_REVERTED_REFUNDS = 3;
export const REVERTED_WAIT_MS = 3_600_000;
/** Other failures are for a person to judge. */
const REFUNDED_FAILURES: ReadonlySet<string> = new Set([
  "no_machine_in_time",
  "token_not_valid",
  "replacements_used_up",
]);

/** How a step ended: the row as it is now, to go on with; seconds to wait; or null, nothing to do until the sweep. */
export type Turn = store.Payment | { waitSeconds: number } | null;

const STEPS: Record<store.Payment["step"], (context: Context, row: store.Payment) => Promise<Turn>> = {
  check,
  buy,
  provision: (context, row) => onMachine(context, row, provision),
  capture: (context, row) => onMachine(context, row, capture),
  deliver: (context, row) => onMachine(context, row, deliver),
  settle,
  close,
  release,
  refund,
  idle: async () => null,
};

/** Runs a payment's steps until it has to wait. A message of another generation than the row's is stale. */
export async function followPayment(context: Context, job: { payment: string; generation: number }): Promise<void> {
  let row = await store.loadPayment(context.db, job.payment);
  if (row === null || row.generation !== job.generation) return;
  for (let count = 0; count < MAX_STEPS_PER_MESSAGE && hasRoom(); count++) {
    const began = context.now();
    const turn: Turn = await STEPS[row.step](context, row);
    const waits = turn === null || "waitSeconds" in turn;
    log(waits ? "debug" : "info", "payment_step", {
      payment: row.id,
      step: row.step,
      state: row.state,
      next: turn === null ? "done" : "waitSeconds" in turn ? `in ${turn.waitSeconds} s` : turn.step,
      ms: context.now() - began,
    });
    if (turn === null) return;
    if ("waitSeconds" in turn) {
      const { id, generation } = row;
      await context.config.JOBS.send({ kind: "payment", payment: id, generation }, { delaySeconds: turn.waitSeconds });
      return;
    }
    row = turn;
  }
  await context.config.JOBS.send({ kind: "payment", payment: row.id, generation: row.generation });
}

/** What became of a payment's authorization, by two nodes. */
export const useOf = (
  { chain, config }: Context,
  row: store.Payment,
  blockTag: "latest" | "newest" | "finalized" = "latest",
) => readAuthorizationUse(chain, config.USDC_ADDRESS, authorizationOf(row), row.fromBlock, blockTag);

/** Leaves the row to the sweep, which looks again after so long. */
export async function lookAgain({ db, now }: Context, row: store.Payment, ms: number): Promise<null> {
  await store.movePayment(db, row, { wakeAt: now() + ms });
  return null;
}

/** Whatever a request of the payer's did not bring to its end. */
async function settle(context: Context, row: store.Payment): Promise<Turn> {
  const { db, now } = context;
  if (row.state === "settled") {
    // Charged, and no answer ever left: after some time it is given back.
    const unservedUntil = (row.settledAt ?? row.createdAt) + UNSERVED_MS;
    if (now() < unservedUntil) return lookAgain(context, row, unservedUntil - now());
    return store.movePayment(db, row, { state: "refund_due", step: "refund", reason: "not_served", wakeAt: now() });
  }
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

/** Given up, and anybody may still submit it. Released once final history is past its time without it. */
async function release(context: Context, row: store.Payment): Promise<Turn> {
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
  await endLeft(context, row);
  log("info", "payment_released", { payment: row.id, reason: row.reason });
  return store.movePayment(db, row, { state: "released", step: "idle", wakeAt: null, endedAt: now() });
}

/** Charged for nothing: it goes back to the payer, once final history has the charge. */
async function refund(context: Context, row: store.Payment): Promise<Turn> {
  const { db, config, now } = context;
  if (row.state === "refund_due") {
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
  await endLeft(context, row);
  log("info", "payment_refunded", { payment: row.id, txHash: paid.hash, amount: row.amount });
  return store.movePayment(db, row, {
    state: "refunded",
    step: "idle",
    refundTx: paid.hash,
    wakeAt: null,
    endedAt: now(),
  });
}

/** What waiting does not change: a person has to see why the row says so. */
export const isNotOurs = (why: Refusal): boolean =>
  why === "not_owed" || why === "served" || why === "other_order" || why === "above_limit";

/**
 * A person can help where the wallet is short or at a limit of ours. A pause was an operator's, a share is the recipient's
 * own, and what an order would do or can't show yet is its payer's. What hears the smaller ones first only waits its turn.
 */
export function levelOfWait(why: Refusal): "page" | "warn" | "info" {
  if (why === "queued") return "info";
  return ["no_funds", "no_gas", "gas_too_dear", "daily_limit"].includes(why) ? "page" : "warn";
}

async function hold({ db, now }: Context, row: store.Payment, reason: string): Promise<Turn> {
  // The sweep pages for what is held, until nothing is.
  log("error", "payment_held", { payment: row.id, reason });
  return store.movePayment(db, row, { state: "held", step: "idle", reason, wakeAt: null, endedAt: now() });
}

/** Delivered: the books close when final history has the payment, and the token's transfer. */
async function close(context: Context, row: store.Payment): Promise<Turn> {
  const use = await useOf(context, row, "finalized");
  if (use.state === "unclear") return lookAgain(context, row, WATCH_MS);
  if (use.state === "unused" && use.blockTimestamp < row.validBefore) return lookAgain(context, row, WATCH_MS);
  // A reorg took the charge back after what it was for had been handed out: our loss, and a person should hear of it.
  if (use.state !== "paid") return hold(context, row, "charge_undone");
  const closed = () =>
    store.settlePayment(context.db, row, use, { step: "idle", wakeAt: null, endedAt: context.now() });
  return row.kind === "credentials"
    ? closed()
    : onMachine(context, row, (_context, _row, vm) => closeOrder(context, row, vm, closed));
}

/** The payment is final; the order closes with the token's transfer. */
async function closeOrder(
  context: Context,
  row: store.Payment,
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
  const purchase = await readPurchase(chain, config, vm);
  return purchase !== null && purchase.blockNumber <= blockNumber;
}

/**
 * A machine may fail while its token moves: it was ours then, so that nothing was booked, and now it is the payer's. Whoever
 * has the token in final history is asked before anything is paid.
 */
async function oweForLost(context: Context, row: store.Payment, vm: Vm): Promise<void> {
  const { db, now } = context;
  if (vm.status !== "failed" || !REFUNDED_FAILURES.has(vm.failure ?? "")) return;
  if ((await loadRefund(db, { incarnation: vm.incarnation, kind: "failed" })) !== null) return;
  const owed = await refundOf(context, { ...vm, owner: row.payer }, now());
  if (owed?.refund === undefined) return;
  log("warn", "failed_on_its_way", { payment: row.id, tokenId: vm.tokenId });
  await bookRefund(db, owed.refund);
}

/** The token to the payer; another token of the same order, after a reorg, is another transfer. */
export const transferOf = (row: store.Payment) =>
  ({
    kind: "transfer",
    id: `transfer/${row.id}/${row.tokenId}`,
    to: getAddress(row.payer),
    tokenId: row.tokenId ?? -1,
    purchase: row.incarnation ?? "",
    paid: signedPaymentOf(row),
  }) as const;
