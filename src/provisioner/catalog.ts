import { saveStock } from "../db/sweep.ts";
import { errorFields, log } from "../log.ts";
import { ask, type Context } from "./context.ts";
import { VendorError, type VendorName } from "./vendors/vendor.ts";

const VENDORS: readonly VendorName[] = ["vultr", "runpod"];

/** Reads what both vendors have right now into the catalog row. A vendor that does not answer keeps its last word. */
export async function refreshCatalog(context: Context): Promise<void> {
  for (const name of VENDORS) {
    try {
      const { catalogCalls } = context.vendors[name];
      const offers = await ask(context, name, (vendor) => vendor.catalog(), catalogCalls);
      await saveStock(context.db, name, {
        readAt: context.now(),
        offers,
        maxCostShare: context.config.MAX_COST_SHARE,
      });
    } catch (error) {
      if (!(error instanceof VendorError)) throw error;
      log("warn", "catalog_not_read", { vendor: name, ...errorFields(error) });
    }
  }
}
