import type { Vm } from "../../db/schema.ts";
import * as store from "../../db/vms.ts";
import { labelFamily } from "../../model/purchase-key.ts";
import type { Context } from "../context.ts";
import type { Machine } from "../vendors/vendor.ts";
import { STALL_MS } from "./waits.ts";

/** Stores the machine of an attempt; the row waits for its boot. */
export async function keepMachine(
  context: Context,
  vm: Vm,
  attempt: store.Attempt,
  machine: Pick<Machine, "instanceId">,
): Promise<number | null> {
  const at = context.now();
  await context.gate(attempt.provider).placed(labelFamily(vm.incarnation), attempt.mark, machine.instanceId);
  return store.recordMachine(context.db, vm, attempt, machine.instanceId, {
    bootDeadlineAt: at + context.config.BOOT_TIMEOUT_SECONDS * 1_000,
    wakeAt: at + STALL_MS,
  });
}
