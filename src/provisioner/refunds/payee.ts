// Who gets a refund, and that it is still owed: final history decides, for a purchase by the token's owner, for a payment by its
// charge.
import { type Address, getAddress } from "viem";
import type { Settlement } from "../../chain/authorization.ts";
import { SECONDS_PER_DAY } from "../../chain/contract.ts";
import { readAgreedToken, readFinalToken } from "../../chain/witness.ts";
import { type Payment, paymentOfPurchase } from "../../db/payments.ts";
import * as store from "../../db/refunds.ts";
import type { Vm } from "../../db/schema.ts";
import { GiveUp } from "../../errors.ts";
import { type Context, operatorOf } from "../context.ts";
import { isGone, readFinalPurchase } from "../machines/verify.ts";
import { useOf } from "../payments/turn.ts";

/** `renewed`: somebody has paid for more time of a token that nobody is served with. */
type Payee = { to: Address; amount: bigint; renewed: boolean };

/** Whom the chain's final history names, and how much; "wait", or why it is not for us to decide. */
export async function findPayee(context: Context, vm: Vm, row: store.Refund): Promise<Payee | string> {
  const { chain, config } = context;
  const view = await readFinalToken(chain, vm.tokenId);
  let purchase: Awaited<ReturnType<typeof readFinalPurchase>>;
  try {
    purchase = await readFinalPurchase(chain, config, vm);
  } catch (error) {
    if (error instanceof GiveUp) return error.code;
    throw error;
  }
  if (purchase === null) return (await isGone(chain, config, vm, null)) ? "purchase_gone" : "wait";
  if (purchase.blockNumber > view.blockNumber) return "wait";
  if (view.owner === null) return "burned";
  // A renewal was another payment, and not by the buyer perhaps: it does not change what the purchase is owed.
  const paidUntil = purchase.purchaseDate + purchase.durationDays * SECONDS_PER_DAY;
  const renewed = row.kind === "failed" && vm.expiresAt > paidUntil;
  const sold = row.payTo === null ? null : await paymentOfPurchase(context.db, vm.incarnation);
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

/** The transfer that final history has for a payment: it goes back to the payer. "undone": a reorg has taken the charge back. */
export async function findCharge(context: Context, payment: Payment): Promise<Settlement | "wait" | "undone"> {
  const use = await useOf(context, payment, "finalized");
  if (use.state === "paid") return use;
  if (use.state === "unclear") return "wait";
  // Until the authorization's time is over anybody may make it again.
  return use.state === "unused" && use.blockTimestamp < payment.validBefore ? "wait" : "undone";
}
