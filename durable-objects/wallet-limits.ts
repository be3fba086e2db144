// What may leave the operator wallet, by what has left: for each payment and purchase, and within a day.
import { isRefundOfPayment, type OrderKind, type WalletOrder } from "../src/chain/orders.ts";
import type { ProvisionerConfig } from "../src/provisioner/config.ts";
import type { Evidence, NoEvidence } from "./wallet-evidence.ts";
import type { WalletLedger } from "./wallet-ledger.ts";

export type Refusal =
  /** An operator has stopped payouts. */
  | "paused"
  | "daily_limit"
  /** More than may leave in a day: an operator approves it, or raises the limit of what operators approve, or pays it by hand. */
  | "above_limit"
  /** Larger than a recipient's share of the day: the smaller refunds are heard first. */
  | "queued"
  /** The recipient has had its share of today's refunds. */
  | "recipient_limit"
  | "no_funds"
  | "no_gas"
  | "gas_too_dear"
  | "would_fail"
  | "other_order"
  | NoEvidence
  /** What came in for it has been paid back, or has its token. */
  | "served";

const DAY_MS = 86_400_000;
/** Of a day's refunds one recipient gets a quarter: whoever buys what is sold out must not make others wait. */
const RECIPIENT_SHARE = 4n;
/** Each refund that is due is asked for once a minute: after two, whatever waits has been heard. */
const HEARD_MS = 120_000;

type Limits = Pick<
  ProvisionerConfig,
  "PURCHASE_LIMIT_USDC_PER_DAY" | "REFUND_LIMIT_USDC_PER_DAY" | "APPROVAL_LIMIT_USDC_PER_DAY"
>;

/** The limit that an order goes beyond; null where it stays within all. `undone`: earlier orders that have done nothing. */
export function limitOf(
  ledger: WalletLedger,
  limits: Limits,
  order: WalletOrder,
  { amount, evidence, undone }: { amount: bigint; evidence: Evidence; undone: ReadonlySet<string> },
): Refusal | null {
  const { account, most, sold } = evidence;
  const now = Date.now();
  // All of it again in the turn: what was looked at before it may have been signed for by another order since.
  const hasLeft = (kind: OrderKind) => ledger.ordersFor(account, kind).some(({ id }) => !undone.has(id));
  if (order.kind === "purchase") {
    if (hasLeft("purchase") || ledger.paidFor(account) > 0n) return "served";
    const spent = ledger.spentSince("purchase", now - DAY_MS);
    return spent + amount > limits.PURCHASE_LIMIT_USDC_PER_DAY ? "daily_limit" : null;
  }
  if (order.kind === "transfer") return hasLeft("transfer") || ledger.paidFor(account) > 0n ? "served" : null;
  if (order.kind !== "pay") return null;
  if (isRefundOfPayment(order) && hasLeft("transfer")) return "served";
  // The row says which payment a token was sold for; whoever writes it must not be paid back what another has paid.
  const { payment } = order.owed;
  if (sold !== undefined && !ledger.wasHandedOver(sold, { account, payer: payment?.from ?? "" })) return "not_owed";
  if (ledger.paidFor(account) + amount > most) return "served";
  // What operators approve has a limit of its own, and takes nothing from the day's.
  if (order.owed.approved) {
    if (amount > limits.APPROVAL_LIMIT_USDC_PER_DAY) return "above_limit";
    const approved = ledger.approvedSince(now - DAY_MS);
    return approved + amount > limits.APPROVAL_LIMIT_USDC_PER_DAY ? "daily_limit" : null;
  }
  const recipient = order.to.toLowerCase();
  const limit = limits.REFUND_LIMIT_USDC_PER_DAY;
  if (amount > limit) return "above_limit";
  const had = ledger.refundedSince(now - DAY_MS, recipient);
  const isLarge = amount > limit / RECIPIENT_SHARE;
  // One that is larger than a share is paid by itself.
  if (had > 0n && had + amount > limit / RECIPIENT_SHARE) return "recipient_limit";
  const before = ledger.refundedSince(now - DAY_MS) + ledger.waitingBefore(order.id, amount, now);
  const hasRoom = before + amount <= limit;
  if (hasRoom && !(isLarge && ledger.waitsFor(order.id, now) < HEARD_MS)) return null;
  ledger.keepWaiting(order.id, recipient, amount, now);
  return hasRoom ? "queued" : "daily_limit";
}
