// Machines end, until the vendor knows none of them any more.
import type { Vm } from "../../db/schema.ts";
import * as store from "../../db/vms.ts";
import { allClear, errorFields, log } from "../../log.ts";
import { labelFamily } from "../../model/purchase-key.ts";
import { ask, type Context, DONE, goOn, type Next, sendAfter } from "../context.ts";
import { type Machine, type Vendor, VendorError } from "../vendors/vendor.ts";
import { resolveOrder } from "./find.ts";
import { isTooLate, tooLate } from "./give-up.ts";
import { STALL_MS } from "./waits.ts";

/** Ends the machines of failed attempts; the next one is ordered only when the vendor knows none of them. */
export async function clear(context: Context, vm: store.TimedVm): Promise<Next> {
  const { db, config, now } = context;
  if (!(await endMachines(context, vm))) {
    // The buyer doesn't wait for a vendor that does not answer: the purchase ends here, the machine's end goes on.
    if (vm.status === "provisioning" && (await isTooLate(context, vm))) return tooLate(context, vm, "clear");
    return sendAfter(vm.generation, config.POLL_SECONDS);
  }
  if (vm.status === "failed") {
    await store.moveVm(db, vm, { step: "idle", wakeAt: null });
    return DONE;
  }
  return goOn(await store.moveVm(db, vm, { step: "create", wakeAt: now() + STALL_MS }));
}

/**
 * Deletes every machine that attempts of this row have had, by stored instance id. True once the vendor answers 404 to
 * all of them; false while one is still there (locked, or the delete not through).
 */
export async function endMachines(context: Context, vm: Vm): Promise<boolean> {
  const attempts = await store.loadAttempts(context.db, vm.incarnation);
  let allGone = true;
  for (const attempt of attempts.filter((one) => one.goneAt === null)) {
    const instanceId = attempt.instanceId ?? (await resolveOrder(context, attempt));
    if (instanceId === "none") continue;
    if (instanceId === null || instanceId === "") {
      // Never by an empty id: that path would name every machine of the account.
      allGone = false;
      continue;
    }
    try {
      const left = await ask(context, attempt.provider, (vendor) => deleteAndLook(vendor, instanceId), DELETE_CALLS);
      if (left === null) {
        allClear("delete_refused", attempt.provider);
        await store.markGone(context.db, attempt, context.now());
        await context.gate(attempt.provider).released(labelFamily(vm.incarnation), instanceId, context.now());
        continue;
      }
      // A machine that goes takes seconds: it is left for good where the sweep is due for its row.
      if (vm.wakeAt !== null && context.now() > vm.wakeAt) await markFailed(context, attempt);
    } catch (error) {
      if (!(error instanceof VendorError)) throw error;
      tellDeleteRefused(attempt.label, error);
      await markFailed(context, attempt);
    }
    allGone = false;
  }
  return allGone;
}

/** For the sweep, which calls a person where it goes on. */
async function markFailed({ db, now }: Context, attempt: store.Attempt): Promise<void> {
  if (attempt.deleteFailedAt === null) await store.markDeleteFailed(db, attempt, now());
}

/** What passes by itself is a warning. A key that may not delete lets machines run that nobody pays for. */
export function tellDeleteRefused(label: string, error: VendorError): void {
  if (error.action === "page") log("page", "delete_refused", { about: error.vendor, label, ...errorFields(error) });
  else log("warn", "delete_put_off", { label, ...errorFields(error) });
}

/**
 * One permit for both calls: with one for each, machines that end at the same time take the permits for their deletes from each
 * other's looks, and none is ever seen gone.
 */
const DELETE_CALLS = 2;

async function deleteAndLook(vendor: Vendor, instanceId: string): Promise<Machine | null> {
  await vendor.delete(instanceId);
  return vendor.get(instanceId);
}
