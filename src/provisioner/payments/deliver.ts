// The token of a paid order goes to its payer.

import { getAddress } from "viem";
import * as store from "../../db/payments.ts";
import type { Vm } from "../../db/schema.ts";
import { allClear, log } from "../../log.ts";
import { signedPaymentOf } from "../../model/payment.ts";
import type { Context } from "../context.ts";
import { isNotOurs } from "../refunds/waits.ts";
import { walletOf } from "../wallet.ts";
import { giveUp } from "./give-up.ts";
import { isTheirs } from "./token.ts";
import { BLOCK_SECONDS, DELIVER_MS, type Turn, WALLET_WAIT_SECONDS, WATCH_MS } from "./turn.ts";

const WAITING = { state: "waiting", why: "unproven" } as const;

/** The payment is ours: the token goes to the payer, without waiting for final history (hard case 16). */
export async function deliver(context: Context, row: store.LinkedOrder, vm: Vm | null): Promise<Turn> {
  const { db, now } = context;
  if (vm === null) return giveUp(context, row, "purchase_gone");
  const isLost = vm.status === "failed" || vm.status === "terminated";
  const isWithPayer = isTheirs(row, vm);
  if (row.transferTx === null && isLost && !isWithPayer) return giveUp(context, row, vm.failure ?? "machine_ended");
  // While a reorg has its purchase, that token may be somebody else's.
  const mustWait = row.transferTx === null && !vm.current;
  const moved = mustWait ? WAITING : await walletOf(context).order(transferOf(row));
  if (isWithPayer && (moved.state === "waiting" || moved.state === "reverted")) return toClose(context, row);
  const isOverdue = now() > (row.failingSince ?? now()) + DELIVER_MS;
  if (moved.state === "waiting" && (moved.why === "paused" || !(isNotOurs(moved.why) || isOverdue))) {
    // From the first no: it may have been charged long before there was a machine. A pause is none, and the count is over.
    const failingSince = moved.why === "paused" ? null : (row.failingSince ?? now());
    if (failingSince === row.failingSince) return { waitSeconds: WALLET_WAIT_SECONDS };
    return store.movePayment(db, row, { failingSince });
  }
  if (moved.state === "waiting" || moved.state === "reverted") {
    log("page", "token_not_delivered", { payment: row.id, tokenId: row.tokenId });
    return giveUp(context, row, "not_delivered");
  }
  if (row.transferTx === null) {
    return store.movePayment(db, row, { transferTx: moved.hash, failingSince: null, wakeAt: now() + WATCH_MS });
  }
  if (moved.state === "sent" && moved.mined?.status !== "success") return { waitSeconds: BLOCK_SECONDS / 2 };
  allClear("token_not_delivered");
  log("info", "token_delivered", { payment: row.id, tokenId: row.tokenId, txHash: moved.hash });
  const delivered = { transferTx: moved.hash, servedAt: row.servedAt ?? now() };
  return store.movePayment(db, row, { ...delivered, step: "close", wakeAt: now() + WATCH_MS });
}

export const toClose = ({ db, now }: Context, row: store.Payment): Promise<store.Payment | null> =>
  store.movePayment(db, row, { step: "close", servedAt: row.servedAt ?? now(), wakeAt: now() + WATCH_MS });

/** The token to the payer; another token of the same order, after a reorg, is another transfer. */
export const transferOf = (row: store.LinkedOrder) =>
  ({
    kind: "transfer",
    id: `transfer/${row.id}/${row.tokenId}`,
    to: getAddress(row.payer),
    tokenId: row.tokenId,
    purchase: row.incarnation,
    paid: signedPaymentOf(row),
  }) as const;
