// What the public API says of a refund.
import { formatUsdc } from "../chain/contract.ts";
import type { Refund } from "../db/refunds.ts";

export const WIRE_REFUND_STATES = ["recorded", "due", "held", "sent", "paid"] as const;

/** Why a refund is held that its token's owner, by selling, burning or renewing it, has to decide about. */
export const OWNERS_REASONS = ["owner_is_not_the_buyer", "owner_changed", "burned", "renewed"];

const WIRE_STATES = {
  recorded: "recorded",
  waiting: "held",
  due: "due",
  held: "held",
  paying: "due",
  paid: "paid",
} as const;

/** Nothing where none is owed. One whose transaction is out, and not final yet, is `sent`. */
export function wireRefund(refund: Refund | null) {
  if (refund === null || refund.state === "cancelled") return {};
  const { amount, txHash } = refund;
  const state = refund.state === "paying" && txHash !== null ? "sent" : WIRE_STATES[refund.state];
  return { refund: { state, amount: formatUsdc(BigInt(amount)), txHash } } as const;
}
