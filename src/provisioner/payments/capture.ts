// The payment of an order is taken, once its machine answers; or before there is one, where the order says so.
import { signatureForCoin } from "../../chain/authorization.ts";
import { coinOf } from "../../chain/coin.ts";
import type { WalletOrder } from "../../chain/orders.ts";
import * as store from "../../db/payments.ts";
import type { Vm } from "../../db/schema.ts";
import { log } from "../../log.ts";
import { authorizationOf } from "../../model/payment-life.ts";
import { type Context, operatorOf } from "../context.ts";
import { walletOf } from "../wallet.ts";
import { transferOf } from "./deliver.ts";
import { giveUp } from "./give-up.ts";
import { isServing } from "./provision.ts";
import { BLOCK_SECONDS, isConfirmed, type Turn, tellOfWait, useOf, WALLET_WAIT_SECONDS, WATCH_MS } from "./turn.ts";

/** A capture that would fail for so long is refused: its machine runs for nothing meanwhile (hard case 36). */
const REFUSED_MS = 60_000;

/** Takes the payment: by our own transaction, so that no facilitator has to be up for it. */
export async function capture(context: Context, row: store.Payment, vm: Vm | null): Promise<Turn> {
  const { db, now } = context;
  // Without a machine only where the payment comes first.
  const isReady = vm === null ? row.cost === null : isServing(vm);
  const use = await useOf(context, row);
  if (use.state === "paid") {
    if (!(await isConfirmed(context, use.blockNumber))) return { waitSeconds: BLOCK_SECONDS };
    log("info", "payment_settled", { payment: row.id, kind: row.kind, amount: row.amount, txHash: use.txHash });
    const step = vm === null ? "buy" : "deliver";
    const settled = { state: "settled", step, settledAt: now(), failingSince: null, wakeAt: now() + WATCH_MS } as const;
    return store.settlePayment(db, row, use, settled);
  }
  if (use.state === "unclear") return { waitSeconds: BLOCK_SECONDS };
  if (use.state === "cancelled") return giveUp(context, row, "capture_refused");
  if (use.blockTimestamp >= row.validBefore) return giveUp(context, row, "too_late");
  if (!isReady && row.state === "authorized") return giveUp(context, row, vm?.failure ?? "machine_ended");
  const wallet = walletOf(context);
  if (vm !== null && row.state === "authorized") {
    const refusal = await wallet.simulate(transferOf(row));
    if (refusal === "would_fail") return giveUp(context, row, "cannot_receive");
    if (refusal !== null) return { waitSeconds: WALLET_WAIT_SECONDS };
  }
  const taken = await wallet.order(await captureOf(context, row));
  if (taken.state !== "waiting") {
    if (taken.state === "reverted") return refuseCapture(context, row, 0);
    const mined = taken.state === "sent" ? taken.mined : null;
    if (mined?.status === "reverted") return refuseCapture(context, row, mined.blockNumber);
    if (row.state === "authorized") {
      return store.movePayment(db, row, { state: "settling", settleTx: taken.hash, wakeAt: now() + WATCH_MS });
    }
    return { waitSeconds: BLOCK_SECONDS / 2 };
  }
  if (taken.why !== "would_fail") {
    tellOfWait("capture_waits", row, taken.why);
    return { waitSeconds: WALLET_WAIT_SECONDS };
  }
  if (await isCoinShut(context)) {
    tellOfWait("capture_waits", row, "coin_shut");
    return { waitSeconds: WALLET_WAIT_SECONDS };
  }
  return refuseCapture(context, row, null);
}

/**
 * Held against the payer, unless a stranger's transaction with it has come between our two looks: that has paid us as well,
 * and may be seen before its logs are. `failedAt`: the block in which ours has failed; null where it would fail.
 */
async function refuseCapture(context: Context, row: store.Payment, failedAt: number | null): Promise<Turn> {
  const { db, now } = context;
  const use = await useOf(context, row, "newest");
  if (use.state === "paid" || use.state === "unclear") return { waitSeconds: BLOCK_SECONDS };
  // Two nodes don't have yet what came before ours.
  if (use.blockNumber < (failedAt ?? 0)) return { waitSeconds: BLOCK_SECONDS };
  // The payer has moved its money; or its contract says no, or burns gas: a minute of that is enough (hard cases 35 and 36).
  const isShort = use.state === "unused" && use.balance < BigInt(row.amount);
  const isRefused = row.failingSince !== null && now() - row.failingSince >= REFUSED_MS;
  if (failedAt !== null || use.state === "cancelled" || isShort || isRefused)
    return giveUp(context, row, (await isCoinShut(context)) ? "coin_shut" : "capture_refused");
  if (row.failingSince === null) return store.movePayment(db, row, { failingSince: now() });
  return { waitSeconds: WALLET_WAIT_SECONDS };
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
