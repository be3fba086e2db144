// An order whose answer never came: whether it made a machine, by complete lists.
import type { Vm } from "../../db/schema.ts";
import * as store from "../../db/vms.ts";
import { log } from "../../log.ts";
import { familyOfLabel } from "../../model/purchase-key.ts";
import { type Context, goOn, type Next, sendAfter } from "../context.ts";
import type { Machine } from "../vendors/vendor.ts";
import { isTooLate, tooLate } from "./give-up.ts";
import { keepMachine } from "./keep.ts";
import { LOOK_AGE_MS, STALL_MS } from "./waits.ts";

const LOST = "no answer, and no list showed a machine";

/** Vendors' clocks and ours. */
const CLOCK_SKEW_MS = 120_000;

/**
 * A create whose answer never came. Complete lists are read until the machine shows up under its label, or until they
 * stayed empty for as long as the request could still have worked plus the time a new machine may stay unlisted
 * (hard case 9).
 */
export async function find(context: Context, vm: store.TimedVm): Promise<Next> {
  const { db, config, now } = context;
  // The order may still be on its way: whoever holds the lease will say how it ended.
  if (vm.lease !== "" && vm.leaseUntil > now()) return sendAfter(vm.generation, config.POLL_SECONDS);
  const attempt = await currentAttempt(context, vm);
  if (attempt === null || attempt.endedAt !== null) {
    return goOn(await store.moveVm(db, vm, { step: "create", wakeAt: now() + STALL_MS }));
  }
  if (await isTooLate(context, vm)) return tooLate(context, vm, "clear");
  const family = familyOfLabel(attempt.label);
  const answer = await context.gate(attempt.provider).machinesOf(now(), now() - LOOK_AGE_MS, { family });
  if (!answer.ok) return sendAfter(vm.generation, answer.retryAfterSeconds);
  const machine = await findMachine(context, attempt, answer.snapshot.machines);
  if (machine !== null) {
    log("info", "machine_found", { label: attempt.label });
    return goOn(await keepMachine(context, vm, attempt, machine));
  }
  if (!isQuietOver(context, attempt, answer.snapshot.readAt)) return sendAfter(vm.generation, config.POLL_SECONDS);
  const end = { outcome: "lost", detail: LOST, now: now(), gone: true };
  return goOn(await store.closeAttempt(db, vm, attempt.number, end, { step: "create", wakeAt: now() + STALL_MS }));
}

/** An attempt's machine in a list: by label, mark and age together, since a tenant can rename its own machine (hard case 12). */
async function findMachine(
  context: Context,
  attempt: store.Attempt,
  machines: readonly Machine[],
): Promise<Machine | null> {
  const oldest = attempt.createSentAt - CLOCK_SKEW_MS;
  for (const machine of machines) {
    if (machine.label !== attempt.label || machine.mark !== attempt.mark || machine.createdAt < oldest) continue;
    if (!(await store.isClaimed(context.db, attempt.provider, machine.instanceId))) return machine;
  }
  return null;
}

/** Whether a list read at that time would show a machine if the order had made one. */
const isQuietOver = ({ config }: Context, attempt: store.Attempt, readAt: number): boolean =>
  readAt > attempt.createSentAt + config.VENDOR_TIMEOUT_MS + config.LISTING_LAG_MS;

/** The machine of an order whose answer never came: its id once a list shows it, "none" once it is sure there is none. */
export async function resolveOrder(context: Context, attempt: store.Attempt): Promise<string | null | "none"> {
  const { db, now } = context;
  const family = familyOfLabel(attempt.label);
  const answer = await context.gate(attempt.provider).machinesOf(now(), now() - LOOK_AGE_MS, { family });
  if (!answer.ok) return null;
  const machine = await findMachine(context, attempt, answer.snapshot.machines);
  if (machine !== null) return machine.instanceId;
  if (!isQuietOver(context, attempt, answer.snapshot.readAt)) return null;
  await store.closeLost(db, attempt, LOST, now());
  return "none";
}

const currentAttempt = async (context: Context, vm: Vm): Promise<store.Attempt | null> =>
  (await store.loadAttempts(context.db, vm.incarnation)).find((one) => one.number === vm.attempt) ?? null;
