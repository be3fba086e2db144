// A purchase that gets no machine, or no other one.
import { isPaused } from "../../db/pauses.ts";
import type { Vm } from "../../db/schema.ts";
import { loadCatalog } from "../../db/sweep.ts";
import * as store from "../../db/vms.ts";
import { log } from "../../log.ts";
import { pausedDeadline } from "../../model/machine-life.ts";
import { recentStock, stockOf } from "../../model/stock.ts";
import { type Context, DONE, goOn, isOurs, type Next } from "../context.ts";
import { tellOrder } from "../payments/token.ts";
import { refundOf } from "../refunds/owe.ts";
import { STALL_MS } from "./waits.ts";

/** For machines that ran and went: their tenants can end them as often as they like (hard case 39). */
export const MAX_REPLACEMENTS = 3;

/** By the chain's clock, not ours: a halted chain makes nothing late (hard case 26). A pause gives it some time more. */
export async function isTooLate({ db }: Context, vm: store.TimedVm): Promise<boolean> {
  if (vm.chainTime <= vm.deadline) return false;
  return vm.chainTime > pausedDeadline(vm) || !(await isPaused(db, "provisioning"));
}

/** No machine by the deadline. `step` is `clear` where an attempt is not known to have left nothing behind. */
export async function tooLate(context: Context, vm: Vm, step: "clear" | "idle" = "idle"): Promise<Next> {
  const last = (await store.loadAttempts(context.db, vm.incarnation)).at(-1);
  const why = last === undefined ? "" : `; the last one: ${last.outcome ?? "not ended"}, ${last.detail ?? "no answer"}`;
  const detail = `no vendor had a machine ready by its deadline, after ${vm.attempt} attempts${why}`;
  if (!(await giveBack(context, vm, { cause: "no_machine_in_time", detail }, step))) return endServed(context, vm);
  // What was ordered over x402 is not paid for yet; and whoever buys what the catalog calls sold out calls nobody (hard case 40).
  const stock = recentStock((await loadCatalog(context.db))?.stock ?? {}, context.now());
  const level = isOurs(context, vm) || stockOf(vm.tier, stock) === "none" ? "warn" : "page";
  log(level, "provisioning_failed", { about: vm.tier, incarnation: vm.incarnation, attempts: vm.attempt });
  return DONE;
}

/** Its machines went again and again after they ran: no other one is ordered. */
export async function usedUp(context: Context, vm: Vm): Promise<Next> {
  const detail = `its machine was gone at its vendor ${MAX_REPLACEMENTS + 1} times after it ran`;
  const isOver = !(await giveBack(context, vm, { cause: "replacements_used_up", detail }, "idle"));
  if (isOver) return endServed(context, vm);
  log("warn", "replacements_used_up", { tokenId: vm.tokenId });
  return DONE;
}

/** The purchase ends, and what was not served of its time is owed. False where all of it was. */
async function giveBack(
  context: Context,
  vm: Vm,
  failure: { cause: string; detail: string },
  step: "clear" | "idle",
): Promise<boolean> {
  const now = context.now();
  const owed = await refundOf(context, vm, now);
  if (owed === null) return false;
  await store.failVm(context.db, vm, { ...failure, now, step, wakeAt: step === "idle" ? null : now, ...owed });
  await tellOrder(context, vm);
  return true;
}

/** Its time ran out while its machine was being reinstalled or replaced: it was served, and ends like any other. */
export const endServed = async ({ db, now }: Context, vm: Vm): Promise<Next> =>
  goOn(await store.moveVm(db, vm, { status: "expired", step: "prove", wakeAt: now() + STALL_MS, checkAt: null }));

/** Bought for an order that came to nothing meanwhile, or has a token already: no machine is made, and it stays ours. */
export async function keepToken({ db, now }: Context, vm: Vm): Promise<Next> {
  log("warn", "token_kept", { tokenId: vm.tokenId });
  const failure = {
    cause: "order_over",
    detail: "its order came to nothing before it was bought, or has a token already; it stays ours",
  };
  await store.failVm(db, vm, { ...failure, now: now(), step: "idle", wakeAt: null });
  return DONE;
}
