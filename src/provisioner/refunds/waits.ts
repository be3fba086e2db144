// What a refund waits for, and when a person is called.
import type { Refusal } from "../../../durable-objects/wallet-limits.ts";

/** A refund that reverted is tried again by itself so often in all, so long after each; then an operator decides. */
export const MAX_REVERTED_REFUNDS = 3;

export const REVERTED_WAIT_MS = 3_600_000;

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
