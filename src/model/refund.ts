// What the public API says of a refund.
import { formatUsdc } from "../chain/contract.ts";
import type { Refund } from "../db/refunds.ts";
import { refundLife } from "./refund-life.ts";

/** Why a refund is held that its token's owner, by selling, burning or renewing it, has to decide about. */
export const OWNERS_REASONS = ["owner_is_not_the_buyer", "owner_changed", "burned", "renewed"];

/** Nothing where none is owed. One whose transaction is out, and not final yet, is `sent`. */
export function wireRefund(refund: Refund | null) {
  const word = refund === null ? null : refundLife[refund.state].wire;
  if (refund === null || word === null) return {};
  const { amount, txHash } = refund;
  const state = refund.state === "paying" && txHash !== null ? "sent" : word;
  return { refund: { state, amount: formatUsdc(BigInt(amount)), txHash } } as const;
}
