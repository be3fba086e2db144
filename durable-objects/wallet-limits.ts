// The operator wallet's limits: per payment or purchase, per recipient and per day, against the amounts that its ledger has.
import { isRefundOfPayment, type OrderKind, type WalletOrder } from "../src/chain/orders.ts";
import type { ProvisionerConfig } from "../src/provisioner/config.ts";
import type { Evidence, NoEvidence } from "./wallet-evidence.ts";
import type { WalletLedger } from "./wallet-ledger.ts";

export type Refusal =
  /** An operator has paused payouts. */
  | "paused"
  | "daily_limit"
  /** The amount exceeds a day's limit: an operator approves it, raises the limit for approvals, or pays it by hand. */
  | "above_limit"
  /** The amount exceeds a recipient's share of the day: smaller refunds come first. */
  | "queued"
  /** The recipient has had its share of today's refunds. */
  | "recipient_limit"
  | "no_funds"
  | "no_gas"
  | "gas_too_dear"
  | "would_fail"
  | "other_order"
  | NoEvidence
  /** The payment or purchase was refunded already, or its payer has the token. */
  | "served";

const DAY_MS = 86_400_000;
/** A recipient gets a quarter of a day's refunds: a buyer of sold-out tiers must not delay the refunds of others. */
const RECIPIENT_SHARE = 4n;
/** Every due refund is requested once a minute: after two minutes the wallet knows all waiting refunds. */
const HEARD_MS = 120_000;

type Limits = Pick<
  ProvisionerConfig,
  "PURCHASE_LIMIT_USDC_PER_DAY" | "REFUND_LIMIT_USDC_PER_DAY" | "APPROVAL_LIMIT_USDC_PER_DAY"
>;

/**
 * The limit that an order exceeds; null when it exceeds none. `amount` in 10^-6 USDC. `undone`: ids of earlier orders without
 * effect.
 */
export function limitOf(
  ledger: WalletLedger,
  limits: Limits,
  order: WalletOrder,
  { amount, evidence, undone }: { amount: bigint; evidence: Evidence; undone: ReadonlySet<string> },
): Refusal | null {
  const { account, most, sold } = evidence;
  const now = Date.now();
  // Checked again within the turn: another order may have been signed for the same payment since `#undone` looked.
  const hasLeft = (kind: OrderKind) => ledger.ordersFor(account, kind).some(({ id }) => !undone.has(id));
  if (order.kind === "purchase") {
    if (hasLeft("purchase") || ledger.paidFor(account) > 0n) return "served";
    const spent = ledger.spentSince("purchase", now - DAY_MS);
    return spent + amount > limits.PURCHASE_LIMIT_USDC_PER_DAY ? "daily_limit" : null;
  }
  if (order.kind === "transfer") return hasLeft("transfer") || ledger.paidFor(account) > 0n ? "served" : null;
  if (order.kind !== "pay") return null;
  if (isRefundOfPayment(order) && hasLeft("transfer")) return "served";
  // The database names the payment that a token was sold for. Write access to it must not refund another payer's money.
  const { payment } = order.owed;
  if (sold !== undefined && !ledger.wasHandedOver(sold, { account, payer: payment?.from ?? "" })) return "not_owed";
  if (ledger.paidFor(account) + amount > most) return "served";
  // Approved refunds have a limit of their own, and do not count towards the day's.
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
  // A refund above the share is paid when it is the recipient's only one of the day.
  if (had > 0n && had + amount > limit / RECIPIENT_SHARE) return "recipient_limit";
  const before = ledger.refundedSince(now - DAY_MS) + ledger.waitingBefore(order.id, amount, now);
  const hasRoom = before + amount <= limit;
  if (hasRoom && !(isLarge && ledger.waitsFor(order.id, now) < HEARD_MS)) return null;
  ledger.keepWaiting(order.id, recipient, amount, now);
  return hasRoom ? "queued" : "daily_limit";
}
