import { saveStock } from "../../db/sweep.ts";
import { allClear, errorFields, log } from "../../log.ts";
import type { Offer, VendorName } from "../../model/stock.ts";
import { ask, type Context, permit } from "../context.ts";
import { VendorError } from "../vendors/vendor.ts";

const BALANCE_CALLS = 2;
const VENDORS: readonly VendorName[] = ["vultr", "runpod"];

/**
 * Reads what both vendors have right now, and what our accounts there can still spend, into the catalog row. A vendor that
 * does not answer keeps its last word; a balance that can't be read is not known, and stops nothing.
 */
export async function refreshCatalog(context: Context): Promise<void> {
  for (const name of VENDORS) {
    const offers = await tried("catalog_not_read", name, () => readOffers(context, name));
    const balanceUsd = await tried("balance_not_read", name, () => checkBalance(context, name));
    if (offers === null) continue;
    const { MAX_COST_SHARE: maxCostShare } = context.config;
    await saveStock(context.db, name, { readAt: context.now(), offers, maxCostShare, balanceUsd });
  }
}

async function tried<T>(event: string, vendor: VendorName, read: () => Promise<T>): Promise<T | null> {
  try {
    return await read();
  } catch (error) {
    if (!(error instanceof VendorError)) throw error;
    log("warn", event, { vendor, ...errorFields(error) });
    return null;
  }
}

const readOffers = (context: Context, name: VendorName): Promise<Offer[]> =>
  ask(context, name, (vendor) => vendor.catalog(), context.vendors[name].catalogCalls);

/** Pages while it is low. The gate hears nothing of a call that fails: machines are ordered all the same. */
async function checkBalance(context: Context, name: VendorName): Promise<number | null> {
  const { LOW_VULTR_USD, LOW_RUNPOD_USD } = context.config;
  const low = name === "vultr" ? LOW_VULTR_USD : LOW_RUNPOD_USD;
  if (low === 0) return null;
  await permit(context, name, BALANCE_CALLS);
  const usd = await context.vendors[name].balance();
  if (usd !== null && usd < low) log("page", "vendor_balance_low", { about: name, usd, low });
  else allClear("vendor_balance_low", name);
  return usd;
}
