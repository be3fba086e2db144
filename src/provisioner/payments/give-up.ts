// An order comes to nothing.
import * as store from "../../db/payments.ts";
import { log } from "../../log.ts";
import { type Context, isNobodys } from "../context.ts";
import { endMachine, linkTo, machineOf } from "./token.ts";
import type { Turn } from "./turn.ts";

/**
 * Nothing is delivered. The machine ends and the token stays ours, for the next order of its tier; what was not taken is
 * released, what was goes back.
 */
export async function giveUp(context: Context, row: store.Payment, reason: string): Promise<Turn> {
  const { db, now } = context;
  log("warn", "order_abandoned", { payment: row.id, reason, state: row.state });
  const vm = await machineOf(context, row);
  // Nobody's while a reorg has its purchase: whoever gets it back must not find a machine running for nobody.
  if (vm?.current && isNobodys(context, vm)) await endMachine(context, vm);
  const money =
    row.state === "settled"
      ? ({ state: "refund_due", step: "refund" } as const)
      : ({ state: "releasing", step: "release" } as const);
  const token = vm === null ? {} : linkTo(vm);
  return store.movePayment(db, row, { ...money, ...token, reason, held: vm !== null, wakeAt: now() });
}
