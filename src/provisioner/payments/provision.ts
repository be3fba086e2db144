// An order waits for its machine, which is made as for any purchase.
import * as store from "../../db/payments.ts";
import type { Vm } from "../../db/schema.ts";
import type { TimedVm } from "../../db/vms.ts";
import type { Context } from "../context.ts";
import { toClose } from "./deliver.ts";
import { giveUp } from "./give-up.ts";
import { isTheirs } from "./token.ts";
import { lookAgain, type Turn, WATCH_MS } from "./turn.ts";

export const isServing = (vm: Vm): boolean => vm.status === "running" && vm.sshHost !== null && vm.current;

/** Waits for the machine; whoever publishes it, or fails, sends a message. */
export async function provision(context: Context, row: store.LinkedOrder, vm: TimedVm | null): Promise<Turn> {
  const { db, now } = context;
  if (vm === null) return giveUp(context, row, "purchase_gone");
  if (isTheirs(row, vm)) return toClose(context, row);
  if (isServing(vm)) {
    const step = row.state === "settled" ? "deliver" : "capture";
    return store.movePayment(db, row, { step, wakeAt: now() + WATCH_MS });
  }
  if (vm.status !== "provisioning" || !vm.current) return giveUp(context, row, vm.failure ?? "machine_ended");
  if (row.state !== "settled" && vm.chainTime > row.validBefore) return giveUp(context, row, "no_machine_in_time");
  return lookAgain(context, row, WATCH_MS);
}
