// The payment of an order is taken, once its machine answers; or before there is one, where the order says so.
import type { OrderState } from "../../../durable-objects/operator-wallet.ts";
import { readBalanceAt, signatureForCoin } from "../../chain/authorization.ts";
import { coinOf } from "../../chain/coin.ts";
import { readCoinTransfers } from "../../chain/coin-transfers.ts";
import type { WalletOrder } from "../../chain/orders.ts";
import { readReceipt } from "../../chain/witness.ts";
import * as store from "../../db/payments.ts";
import type { Vm } from "../../db/schema.ts";
import { errorFields, log } from "../../log.ts";
import { authorizationOf } from "../../model/payment.ts";
import { type Context, operatorOf } from "../context.ts";
import { walletOf } from "../wallet.ts";
import { transferOf } from "./deliver.ts";
import { giveUp } from "./give-up.ts";
import { isServing } from "./provision.ts";
import {
  BLOCK_SECONDS,
  isConfirmed,
  MAX_REVERTS,
  type Turn,
  tellOfWait,
  useOf,
  WALLET_WAIT_SECONDS,
  WATCH_MS,
} from "./turn.ts";

/** A capture that would fail for so long is refused: its machine runs for nothing meanwhile (hard case 36). */
const REFUSED_MS = 60_000;

/** The payment is taken before anything is bought. */
export const captureFirst = (context: Context, row: store.Order): Promise<Turn> => capture(context, row, "buy", null);

/** The payment is taken once the machine answers. */
export const captureLast = (context: Context, row: store.LinkedOrder, vm: Vm | null): Promise<Turn> =>
  capture(context, row, "deliver", { row, vm });

/** Takes the payment by our own transaction, so that no facilitator has to be up for it. `next`: the step of what is paid. */
async function capture(
  context: Context,
  row: store.Order,
  next: "buy" | "deliver",
  linked: { row: store.LinkedOrder; vm: Vm | null } | null,
): Promise<Turn> {
  const { db, now } = context;
  const use = await useOf(context, row);
  if (use.state === "paid") {
    if (!(await isConfirmed(context, use.blockNumber))) return { waitSeconds: BLOCK_SECONDS };
    log("info", "payment_settled", { payment: row.id, kind: row.kind, amount: row.amount, txHash: use.txHash });
    const settled = {
      state: "settled",
      step: next,
      settledAt: now(),
      failingSince: null,
      wakeAt: now() + WATCH_MS,
    } as const;
    return store.settlePayment(db, row, use, settled);
  }
  if (use.state === "unclear") return { waitSeconds: BLOCK_SECONDS };
  if (use.state === "cancelled") return giveUp(context, row, "capture_refused");
  if (use.blockTimestamp >= row.validBefore) return giveUp(context, row, "too_late");
  const wallet = walletOf(context);
  if (linked !== null && row.state === "authorized") {
    const { vm } = linked;
    if (vm === null || !isServing(vm)) return giveUp(context, row, vm?.failure ?? "machine_ended");
    const refusal = await wallet.simulate(transferOf(linked.row));
    if (refusal === "would_fail") return giveUp(context, row, "cannot_receive");
    if (refusal !== null) return { waitSeconds: WALLET_WAIT_SECONDS };
  }
  const given = await captureOf(context, row);
  for (let reverts = 0; reverts < MAX_REVERTS; reverts++) {
    const taken = await wallet.order(reverts === 0 ? given : { ...given, id: `${given.id}/${reverts}` });
    const failedAt = await failedIn(context, taken);
    if (failedAt === null) return followCapture(context, row, taken);
    const turn = await refuseCapture(context, row, failedAt);
    if (turn !== "again") return turn;
  }
  return giveUp(context, row, "funds_undone");
}

/** The block in which an order has failed; null where it has not. */
async function failedIn({ chain }: Context, taken: OrderState): Promise<number | null> {
  if (taken.state === "sent") return taken.mined?.status === "reverted" ? taken.mined.blockNumber : null;
  if (taken.state !== "reverted") return null;
  return (await readReceipt(chain, taken.hash))?.blockNumber ?? 0;
}

async function followCapture(context: Context, row: store.Payment, taken: OrderState): Promise<Turn> {
  const { db, now } = context;
  if (taken.state !== "waiting") {
    if (row.state !== "authorized") return { waitSeconds: BLOCK_SECONDS / 2 };
    const settling = { state: "settling", settleTx: taken.hash, failingSince: null, wakeAt: now() + WATCH_MS } as const;
    return store.movePayment(db, row, settling);
  }
  const isShut = taken.why === "would_fail" && (await isCoinShut(context));
  if (taken.why !== "would_fail" || isShut) {
    tellOfWait("capture_waits", row, isShut ? "coin_shut" : taken.why);
    return { waitSeconds: WALLET_WAIT_SECONDS };
  }
  const turn = await refuseCapture(context, row, null);
  return turn === "again" ? { waitSeconds: WALLET_WAIT_SECONDS } : turn;
}

/**
 * Held against the payer, unless a stranger's transaction with it has come between our two looks: that has paid us as well,
 * and may be seen before its logs are. `failedAt`: the block in which ours has failed; null where it would fail. "again":
 * it has failed by a reorg, and would not now.
 */
async function refuseCapture(context: Context, row: store.Payment, failedAt: number | null): Promise<Turn | "again"> {
  const { db, now } = context;
  const use = await useOf(context, row, "newest");
  if (use.state === "paid" || use.state === "unclear") return { waitSeconds: BLOCK_SECONDS };
  // Two nodes don't have yet what came before ours.
  if (use.blockNumber < (failedAt ?? 0)) return { waitSeconds: BLOCK_SECONDS };
  const refuse = async () => giveUp(context, row, (await isCoinShut(context)) ? "coin_shut" : "capture_refused");
  if (use.state === "cancelled") return refuse();
  // Ours came too late, and so would any other.
  if (use.blockTimestamp >= row.validBefore) return giveUp(context, row, "too_late");
  // The payer has moved its money; or its contract says no, or burns gas: a minute of that is enough (hard cases 35 and 36).
  const isShort = use.balance < BigInt(row.amount);
  const isOver = row.failingSince !== null && now() - row.failingSince >= REFUSED_MS;
  if (failedAt !== null || isShort) {
    const isUndone = await areFundsUndone(context, row, isShort || failedAt === null ? use.blockNumber : failedAt - 1);
    if (isUndone === false) return refuse();
    if (isUndone && !isShort) return "again";
    if (isOver) return giveUp(context, row, isUndone ? "funds_undone" : "funds_unclear");
  } else if (isOver) return refuse();
  if (row.failingSince === null) return store.movePayment(db, row, { failingSince: now() });
  return { waitSeconds: WALLET_WAIT_SECONDS };
}

/**
 * Whether the payer had not the money at a block, nor would have without what has gone elsewhere since its quote: a reorg has
 * taken it back, or put it behind our capture. Null where no two nodes tell.
 */
async function areFundsUndone({ chain, config }: Context, row: store.Payment, at: number): Promise<boolean | null> {
  const { from, to, value } = authorizationOf(row);
  const coin = config.USDC_ADDRESS;
  try {
    const has = await readBalanceAt(chain, coin, from, at);
    if (has >= value) return false;
    const moved = await readCoinTransfers(chain, coin, from, row.quotedBlock ?? row.fromBlock, at);
    // Anybody may move nothing in its name.
    const spent = moved.filter((one) => one.from === from && one.to !== from && one.to !== to);
    return spent.reduce((sum, { amount }) => sum + amount, has) < value;
  } catch (error) {
    log("warn", "funds_unclear", { payment: row.id, ...errorFields(error) });
    return null;
  }
}

/** The coin is paused, or has blocked us: it takes nothing for us from anybody, and that is no payer's doing. */
async function isCoinShut(context: Context): Promise<boolean> {
  const to = operatorOf(context);
  if (to === null) return false;
  return (await walletOf(context).simulate({ kind: "pay", id: "", to, amount: "0", owed: {} })) === "would_fail";
}

export async function captureOf({ config }: Context, row: store.Payment): Promise<WalletOrder> {
  const { value, ...authorization } = authorizationOf(row);
  const signature = await signatureForCoin(coinOf(config), { ...authorization, value });
  return { kind: "capture", id: `capture/${row.id}`, ...authorization, value: String(value), signature };
}
