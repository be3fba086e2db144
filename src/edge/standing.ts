// What pages for as long as our rows or the wallet's balance show it, and is over once they don't: looked at with the
// catalog, so that no request and no customer's order is what calls a person (hard case 40).

import { hasGas, readOffer } from "../chain/offers.ts";
import { isPaused } from "../db/pauses.ts";
import { countHeld, countWaiting, type StoredTiers } from "../db/sweep.ts";
import { allClear, log } from "../log.ts";
import { OWNERS_REASONS } from "../model/refund.ts";
import type { ScanContext } from "./scan.ts";

/** The wallet is asked every ten seconds: what it has not done after so many looks does not pass by itself. */
const WAITING_MS = 120_000;
/** An end that has failed for so long, whatever for, does not pass by itself: its machine costs money. */
const DELETE_MS = 7_200_000;

export async function checkStanding(context: ScanContext, tiers: StoredTiers): Promise<void> {
  const held = await countHeld(context.db, OWNERS_REASONS, context.now - DELETE_MS);
  for (const event of ["refund_held", "payment_held"] as const) {
    const reasons = held.filter((one) => one.event === event).map(({ reason, count }) => [reason ?? "none", count]);
    if (reasons.length > 0) log("page", event, { reasons: Object.fromEntries(reasons) });
    else allClear(event);
  }
  for (const vendor of ["vultr", "runpod"] as const) {
    const left = held.find(({ event, reason }) => event === "machine_not_ended" && reason === vendor);
    if (left === undefined) allClear("machine_not_ended", vendor);
    else log("page", "machine_not_ended", { about: vendor, count: left.count, label: left.label });
  }
  // Why each of them waits, its warnings of the same name say. A pause was an operator's.
  const waiting = (await isPaused(context.db, "payouts"))
    ? []
    : await countWaiting(context.db, context.now - WAITING_MS);
  for (const event of ["purchase_waits", "capture_waits"] as const) {
    const count = waiting.find((one) => one.event === event)?.count ?? 0;
    if (count > 0) log("page", event, { count });
    else allClear(event);
  }
  await checkFunds(context, tiers);
}

/** A wallet that can't buy a day of the cheapest tier sells nothing over x402. */
async function checkFunds({ chain, config }: ScanContext, tiers: StoredTiers): Promise<void> {
  const [cheapest] = tiers
    .filter(({ active }) => active)
    .sort((a, b) => Number(BigInt(a.pricePerDayUsdc6) - BigInt(b.pricePerDayUsdc6)));
  if (config.X402_PAY_TO === undefined || cheapest === undefined) return;
  const offer = await readOffer(chain, cheapest.tier, config.USDC_ADDRESS, config.X402_PAY_TO);
  const { usdc6, wei, pricePerDay } = offer;
  if (hasGas(offer) && usdc6 >= pricePerDay) allClear("operator_short");
  else log("page", "operator_short", { usdc6: String(usdc6), wei: String(wei) });
}
