// What follows from a vendor's refusal of an order: another candidate, a wait, a look for what it may have made, or a person.

import type { Vm } from "../../db/schema.ts";
import { saveSoldOut } from "../../db/sweep.ts";
import * as store from "../../db/vms.ts";
import { errorFields, log } from "../../log.ts";
import { labelFamily } from "../../model/purchase-key.ts";
import type { VendorName } from "../../model/stock.ts";
import { type Context, type Next, sendAfter } from "../context.ts";
import type { VendorAction, VendorError } from "../vendors/vendor.ts";
import { placeOf, placesOfTier } from "./candidates.ts";
import { PAGED_WAIT_SECONDS, STALL_MS } from "./waits.ts";

/** While the vendor still counts a machine that has ended. */
const LIMIT_WAIT_SECONDS = 10;

/** The vendor made nothing: another candidate may do at once, or the vendor again after a while. */
export type Refused = { kind: "refused"; waitSeconds: number; action?: VendorAction };

export async function refused(
  context: Context,
  vm: Vm,
  lease: string,
  attempt: store.Attempt,
  error: VendorError,
): Promise<Next | Refused> {
  const { db, now, gate } = context;
  // Of the account's limit nobody is called while it may still count a machine that we have just ended.
  const isCounting = error.action === "at_limit" && (await gate(error.vendor).metLimit(now()));
  const action = error.action === "at_limit" ? (isCounting ? "wait" : "page") : error.action;
  const refusal = { about: error.vendor, label: attempt.label, ...errorFields(error) };
  log(action === "page" ? "page" : "warn", "create_refused", refusal);
  if (action === "unknown") {
    // The row stands at `find` since before the request left; nothing is ordered again until that has an answer.
    const wakeAt = now() + STALL_MS;
    return sendAfter(await store.moveVm(db, vm, { step: "find", wakeAt }), context.config.POLL_SECONDS);
  }
  const outcome = action === "next_candidate" ? "sold_out" : action === "wait" ? "wait" : "refused";
  await store.closeRefused(db, vm, lease, attempt.number, outcome, error.message, now());
  await gate(error.vendor).released(labelFamily(vm.incarnation), attempt.mark);
  attempt.outcome = outcome;
  attempt.detail = error.message;
  attempt.endedAt = now();
  if (action === "next_candidate" || action === "skip_candidate") {
    const isSoldOut = action === "next_candidate";
    await gate(error.vendor).remember(now(), placeOf(attempt), isSoldOut ? "no_stock" : "refused");
    if (isSoldOut) await saveSoldOut(db, error.vendor, attempt);
    return { kind: "refused", waitSeconds: 0, action };
  }
  if (action === "wait") {
    return { kind: "refused", waitSeconds: Math.max(isCounting ? LIMIT_WAIT_SECONDS : 1, error.retryAfterSeconds) };
  }
  // The key, the money or the account.
  return { kind: "refused", waitSeconds: PAGED_WAIT_SECONDS };
}

/**
 * No place where a vendor has the tier takes our orders, for another reason than its stock: that is the order, or the account
 * (hard case 51). Of an order that is narrowed to some places it is not known.
 */
export function pageIfRefusedEverywhere(
  { config }: Context,
  tier: number,
  vendor: VendorName,
  tried: store.Attempt[],
): boolean {
  const places = placesOfTier(tier, config)
    .filter((one) => one.vendor === vendor)
    .map(placeOf);
  const last = new Map(tried.filter((one) => one.provider === vendor).map((one) => [placeOf(one), one]));
  if (places.some((place) => last.get(place)?.outcome !== "refused")) return false;
  const { label, detail } = tried.at(-1) ?? {};
  log("page", "create_refused", { about: vendor, label, places: places.length, message: detail });
  return true;
}
