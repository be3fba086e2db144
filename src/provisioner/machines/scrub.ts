import type { Vm } from "../../db/schema.ts";
import * as store from "../../db/vms.ts";
import { errorFields, log } from "../../log.ts";
import { ask, type Context, DONE, type Next, sendAfter } from "../context.ts";
import { VendorError } from "../vendors/vendor.ts";

const SCRUB_WAIT_SECONDS = 60;

/** The vendor has no more use for the host key of a machine that runs (hard case 15); it is asked until it lets it go. */
export async function scrub(context: Context, vm: Vm): Promise<Next> {
  const { provider, instanceId } = vm;
  try {
    if (provider !== null && instanceId !== null) {
      await ask(context, provider, async (vendor) => vendor.scrub?.(instanceId));
    }
  } catch (error) {
    if (!(error instanceof VendorError)) throw error;
    log("warn", "host_key_left", { tokenId: vm.tokenId, ...errorFields(error) });
    if (error.action !== "next_candidate") {
      return sendAfter(vm.generation, Math.max(SCRUB_WAIT_SECONDS, error.retryAfterSeconds));
    }
  }
  await store.moveVm(context.db, vm, { step: "idle", wakeAt: null });
  return DONE;
}
