// Which token and machine stand for an order: reorgs give its purchase another one, or the first one back.
import { orderEnd } from "../../db/operators.ts";
import { boughtVm, saveTerms } from "../../db/orders.ts";
import * as store from "../../db/payments.ts";
import { moveRefund } from "../../db/refunds.ts";
import type { Vm } from "../../db/schema.ts";
import { loadVm, type TimedVm } from "../../db/vms.ts";
import { captureDeadline } from "../../model/payment.ts";
import { paymentStates } from "../../model/payment-life.ts";
import { formatTerms, type OrderBehind, termsOf } from "../../model/terms.ts";
import { addressInRows, type Context, isNobodys, isOurs } from "../context.ts";
import { type Turn, WATCH_MS } from "./turn.ts";

/** Paid, and with the payer: what is owed for a machine that fails from here on is booked for the token's owner. */
export const isTheirs = (row: store.Payment, vm: Vm | null): boolean =>
  vm !== null && row.state === "settled" && vm.current && vm.owner === row.payer;

/** Whoever made a machine's last step tells the order that waits for it; a message that is lost the sweep sends again. */
export async function tellOrder(context: Context, vm: Vm): Promise<void> {
  if (!isOurs(context, vm)) return;
  const row = await store.paymentOfPurchase(context.db, vm.incarnation);
  if (row !== null) {
    await context.config.JOBS.send({ kind: "payment", payment: row.id, generation: row.generation });
  }
}

export const linkTo = ({ incarnation, tokenId, txHash }: Vm) => ({ incarnation, tokenId, purchaseTx: txHash });

/** What stands for an order's purchase: reorgs give it another token or transaction, and the first one back. */
export async function machineOf(context: Context, row: store.Payment): Promise<TimedVm | null> {
  const vm = row.incarnation === null ? null : await loadVm(context.db, row.incarnation);
  if (vm?.current || row.purchaseTx === null) return vm;
  return (await boughtVm(context.db, row, addressInRows(context))) ?? vm;
}

/** A step about an order's machine; where a reorg has put another one in its place, the order follows that first. */
export async function onMachine(
  context: Context,
  row: store.LinkedOrder,
  step: (context: Context, row: store.LinkedOrder, vm: TimedVm | null) => Promise<Turn>,
): Promise<Turn> {
  const vm = await machineOf(context, row);
  return vm !== null && vm.incarnation !== row.incarnation ? follow(context, row, vm) : step(context, row, vm);
}

/** From here on it is about this machine. Another token that was on its way to the payer was not this order's. */
export function follow({ db, now }: Context, row: store.Payment, vm: Vm): Promise<store.Payment | null> {
  const isOnItsWay = vm.tokenId === row.tokenId && (row.step === "deliver" || row.step === "close");
  const again = isTheirs(row, vm)
    ? ({ step: "close" } as const)
    : isOnItsWay
      ? {}
      : ({ step: "provision", transferTx: null } as const);
  return store.movePayment(db, row, { ...linkTo(vm), ...again, wakeAt: now() + WATCH_MS });
}

type Linked =
  /** The order that a purchase of ours is for, and that still wants it. */
  | { kind: "open"; row: store.Payment }
  | { kind: "unlinked" }
  /** Its order has come to nothing meanwhile, or has a token: this one stays ours. */
  | { kind: "over" };

/** The order behind a purchase by the operator wallet. The first look writes the link into the order (hard case 20). */
async function linkOrder(context: Context, vm: Vm): Promise<Linked> {
  const { db } = context;
  const row = (await store.paymentOfPurchase(db, vm.incarnation)) ?? (await store.linkedPayment(db, vm.txHash));
  if (row === null) return { kind: "unlinked" };
  const isOver = paymentStates[row.state].wanted !== true;
  // After a reorg, the token that its transaction has now.
  if (isOver && row.incarnation !== vm.incarnation) await store.movePayment(db, row, { ...linkTo(vm), held: true });
  if (isOver) return { kind: "over" };
  // Waiting for it, or paid: a machine that is lost while its token is on its way is replaced.
  if (row.incarnation === vm.incarnation) return { kind: "open", row };
  if (row.cost === null || row.step === "idle") return { kind: "unlinked" };
  const first = row.incarnation === null ? null : await loadVm(db, row.incarnation);
  // Bought twice, with a key that is used elsewhere too: one token is enough.
  if (first?.current && first.owner !== "" && first.txHash !== vm.txHash) return { kind: "over" };
  // First seen, or a reorg has given it another token.
  const linked = await follow(context, row, vm);
  return linked === null ? { kind: "unlinked" } : { kind: "open", row: linked };
}

/** What a machine of ours is made for, as its row has it from here on, and by when it has to run: chain time, null for no limit. */
export async function orderOf(context: Context, vm: Vm): Promise<OrderBehind> {
  const linked = await linkOrder(context, vm);
  if (linked.kind !== "open") return linked;
  const { row } = linked;
  const terms = termsOf(row);
  const text = formatTerms(terms);
  if (vm.terms !== text) await saveTerms(context.db, vm.incarnation, text);
  return { kind: "open", terms, deadline: row.state === "settled" ? null : captureDeadline(row) };
}

export async function endMachine({ db, config, now }: Context, vm: Vm): Promise<void> {
  const queued = await orderEnd(db, vm.tokenId, now());
  if (queued !== null) await config.JOBS.send({ kind: "advance", ...queued });
  for (const kind of ["late", "failed"] as const) {
    const owed = { subject: vm.incarnation, kind };
    await moveRefund(db, owed, ["recorded", "waiting", "due", "held"], { state: "cancelled", wakeAt: null });
  }
}

/** A purchase that was to be retired stands after all: its order may have been given up meanwhile, and could not end it. */
export async function endIfOver(context: Context, vm: Vm): Promise<void> {
  if (isNobodys(context, vm) && (await linkOrder(context, vm)).kind === "over") await endMachine(context, vm);
}

/**
 * Before the books of an order that came to nothing close: ends what a crash kept from ending, or a purchase that stands again.
 * Resolves with the token that is held from here on: a reorg may have given its purchase another one.
 */
export async function endLeft(context: Context, row: store.Payment): Promise<Partial<ReturnType<typeof linkTo>>> {
  const vm = row.held ? await machineOf(context, row) : null;
  if (vm === null) return {};
  if (vm.current && isNobodys(context, vm)) await endMachine(context, vm);
  return linkTo(vm);
}
