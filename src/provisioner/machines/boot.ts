// From an accepted order to a machine that answers, or to the proof that it is gone. A poll reads and sends the next
// message; it takes no lease and writes nothing (hard case 11).
import { SECONDS_PER_DAY } from "../../chain/contract.ts";
import { HELD_TOKEN_COST } from "../../db/orders.ts";
import { paymentOfPurchase } from "../../db/payments.ts";
import { type NewRefund, oweRefund } from "../../db/refunds.ts";
import type { Vm } from "../../db/schema.ts";
import * as store from "../../db/vms.ts";
import { allClear, errorFields, log } from "../../log.ts";
import { formatPorts, portNumbers, readOpenPorts } from "../../model/ports.ts";
import { familyOfLabel, labelFamily } from "../../model/purchase-key.ts";
import { ask, type Context, DONE, goOn, type Next, sendAfter } from "../context.ts";
import { isOurs, tellOrder } from "../payments/order.ts";
import { type Machine, reachPorts, type Vendor, VendorError } from "../vendors/vendor.ts";
import { readBanner } from "./banner.ts";
import { placeOf } from "./candidates.ts";
import { isTooLate, keepMachine, STALL_MS, tooLate } from "./create.ts";

const BANNER_TIMEOUT_MS = 4_000;
const SNAPSHOT_AGE_MS = 2_000;
const SCRUB_WAIT_SECONDS = 60;
const NOT_SHOWN = "not_shown";
const BOOT_TIMEOUT = "boot_timeout";
/** Less than this is not worth a transaction. */
const SHORT_SECONDS = 60;
const MAX_LOG_CHARS = 1_500;
const LOST = "no answer, and no list showed a machine";
/** Vendors' clocks and ours. */
const CLOCK_SKEW_MS = 120_000;

/**
 * A create whose answer never came. Complete lists are read until the machine shows up under its label, or until they
 * stayed empty for as long as the request could still have worked plus the time a new machine may stay unlisted (9).
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
  const answer = await context.gate(attempt.provider).machinesOf(now(), now() - SNAPSHOT_AGE_MS, { family });
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

/** An attempt's machine in a list: by label, mark and age together, since a tenant can rename its own machine (12). */
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

/**
 * Waits until the machine's own SSH banner carries the attempt's mark, then publishes it (10). `wasSeen`: an earlier poll was
 * shown the machine.
 */
export async function boot(context: Context, vm: store.TimedVm, wasSeen: boolean): Promise<Next> {
  const { config, now } = context;
  const attempts = await store.loadAttempts(context.db, vm.incarnation);
  const attempt = attempts.find((one) => one.number === vm.attempt);
  const { instanceId } = vm;
  if (attempt === undefined || instanceId === null) {
    return goOn(await store.moveVm(context.db, vm, { step: "create", wakeAt: now() + STALL_MS }));
  }
  const isOver = now() > (attempt.bootDeadlineAt ?? 0) || (await isTooLate(context, vm));
  const answer = await context.gate(attempt.provider).machinesOf(now(), now() - SNAPSHOT_AGE_MS, { instanceId });
  const listed = answer.ok ? answer.snapshot.machines[0] : undefined;
  const machine = listed ?? (await lookUp(context, attempt, instanceId, wasSeen));
  const shown = machine === "vanished" ? null : machine;
  if (shown !== null && !wasSeen) allClear("machines_not_shown", attempt.provider);
  // Of a list that failed nothing is concluded from one answer alone.
  const isGone = machine === "vanished" && answer.ok;
  const end = endOfWait(shown, { isGone, isOver, wasSeen, addressSeconds: config.ADDRESS_TIMEOUT_SECONDS });
  // Past its deadline it is looked at once more: what answers just then is not thrown away.
  if (
    (end === null || end.outcome === BOOT_TIMEOUT) &&
    shown?.state === "up" &&
    shown.host !== null &&
    shown.port !== null
  ) {
    const { host, port } = shown;
    const banner = await readBanner(host, port, BANNER_TIMEOUT_MS);
    if (banner?.includes(attempt.mark)) {
      // The buyer has paid for the ports as well: RunPod maps them one by one.
      const asked = portNumbers(readOpenPorts(vm.ports));
      const ports = reachPorts(shown, asked);
      if (ports !== null) return publish(context, vm, attempt, { host, port, ports: formatPorts(ports) });
    }
  }
  if (end?.outcome === NOT_SHOWN) tellHidden(attempts, attempt);
  if (end !== null) return abandon(context, vm, attempt, end.outcome, end.detail);
  log("debug", "machine_not_ready", { label: attempt.label, why: whyNotReady(shown) });
  const afterSeconds = answer.ok || shown !== null ? config.POLL_SECONDS : Math.ceil(answer.retryAfterSeconds);
  const poll = { kind: "send", generation: vm.generation, afterSeconds } as const;
  return wasSeen || shown !== null ? { ...poll, seen: true } : poll;
}

async function publish(
  context: Context,
  vm: store.TimedVm,
  attempt: store.Attempt,
  at: { host: string; port: number; ports: string | null },
): Promise<Next> {
  const late = await lateness(context, vm);
  const scrubAt = context.vendors[attempt.provider].scrub === null ? null : context.now() + STALL_MS;
  const generation = await store.publish(context.db, vm, attempt, { ...at, now: context.now(), scrubAt, ...late });
  log("info", "vm_running", { label: attempt.label, attempt: attempt.number });
  allClear("provisioning_failed", vm.tier);
  await tellOrder(context, vm);
  return scrubAt === null ? DONE : goOn(generation);
}

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

/**
 * How late by the chain's clock a machine comes that was never there before, and what is owed for it (hard case 14). An order
 * that a held token serves is short of what that token has lost before, which goes back in any case (hard case 33).
 */
async function lateness(context: Context, vm: Vm): Promise<{ lateSeconds: number | null; refund?: NewRefund }> {
  const { db, config, now } = context;
  if (vm.runningAt !== null) return { lateSeconds: null };
  const chainTime = await store.chainTime(db);
  const order = isOurs(context, vm) ? await paymentOfPurchase(db, vm.incarnation) : null;
  const isHeldToken = order?.cost === HELD_TOKEN_COST;
  const ordered = isHeldToken ? (order?.durationDays ?? 0) * SECONDS_PER_DAY : vm.expiresAt - vm.createdAt;
  const lost = ordered - (vm.expiresAt - chainTime);
  if (lost <= (isHeldToken ? SHORT_SECONDS : config.LATE_AFTER_SECONDS)) return { lateSeconds: null };
  const isRecorded = config.LATE_REFUNDS === "record" && !isHeldToken;
  const state = isRecorded ? "recorded" : config.REFUNDS === "manual" ? "waiting" : "due";
  const reason = state === "waiting" ? "manual" : null;
  const owed = { kind: "late", state, reason, owedSeconds: lost, now: now() } as const;
  const refund = await oweRefund(db, vm, owed, order);
  // The token goes to the payer: so does what the machine came too late for.
  return { lateSeconds: lost, refund: order === null ? refund : { ...refund, payTo: order.payer } };
}

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

/** The machine of an order whose answer never came: its id once a list shows it, "none" once it is sure there is none. */
async function resolveOrder(context: Context, attempt: store.Attempt): Promise<string | null | "none"> {
  const { db, now } = context;
  const family = familyOfLabel(attempt.label);
  const answer = await context.gate(attempt.provider).machinesOf(now(), now() - SNAPSHOT_AGE_MS, { family });
  if (!answer.ok) return null;
  const machine = await findMachine(context, attempt, answer.snapshot.machines);
  if (machine !== null) return machine.instanceId;
  if (!isQuietOver(context, attempt, answer.snapshot.readAt)) return null;
  await store.closeLost(db, attempt, LOST, now());
  return "none";
}

async function abandon(
  context: Context,
  vm: Vm,
  attempt: store.Attempt,
  outcome: string,
  detail: string,
): Promise<Next> {
  const at = context.now();
  log("warn", "attempt_abandoned", { label: attempt.label, outcome });
  await context.gate(attempt.provider).remember(at, placeOf(attempt), "no_boot");
  const end = { outcome, detail: `${detail}${await lastWords(context, attempt)}`, now: at, gone: false };
  const move = { step: "clear", wakeAt: at + STALL_MS } as const;
  return goOn(await store.closeAttempt(context.db, vm, attempt.number, end, move));
}

/** One machine that its vendor never shows may be a fault of its own. Two in a row of a purchase are the vendor's, or our key's. */
function tellHidden(attempts: readonly store.Attempt[], { number, provider, label }: store.Attempt): void {
  const before = attempts.find((one) => one.number === number - 1);
  const isSecond = before?.provider === provider && before.outcome === NOT_SHOWN;
  log(isSecond ? "page" : "warn", "machines_not_shown", { about: provider, label });
}

/** Why a machine is not waited for any longer; null while it is. */
function endOfWait(
  machine: Machine | null,
  seen: { isGone: boolean; isOver: boolean; wasSeen: boolean; addressSeconds: number },
): { outcome: string; detail: string } | null {
  if (seen.isGone && !seen.isOver) return { outcome: "died", detail: "the vendor knows it no more" };
  if (machine?.state === "dead") return { outcome: "died", detail: "the vendor says that it stopped" };
  if (seen.isOver && machine === null && !seen.wasSeen) {
    return { outcome: NOT_SHOWN, detail: "the vendor did not show the machine in time" };
  }
  const why = whyNotReady(machine);
  if (seen.isOver) return { outcome: BOOT_TIMEOUT, detail: `the machine did not answer SSH in time: ${why}` };
  return isWithoutAddress(machine, seen.addressSeconds) ? { outcome: "no_address", detail: why } : null;
}

/** What a machine still lacks, for operators. */
function whyNotReady(machine: Machine | null): string {
  if (machine === null) return "its vendor did not tell of it";
  if (machine.state !== "up" || (machine.host === null && machine.upSeconds === null)) {
    return `its vendor had it at ${machine.phase}`;
  }
  if (machine.host === null) return "it runs without a public address";
  return `at ${machine.phase}, SSH did not answer with its mark, or a port of its order was not mapped`;
}

/** At RunPod's community cloud some never get one. While the image is being pulled nothing runs yet, and that counts not. */
const isWithoutAddress = (machine: Machine | null, seconds: number): boolean =>
  machine?.state === "up" && machine.host === null && (machine.upSeconds ?? 0) >= seconds;

/** The end of the machine's log, where its vendor keeps one. */
async function lastWords(context: Context, { provider, instanceId }: store.Attempt): Promise<string> {
  try {
    if (instanceId === null || context.vendors[provider].readLog === null) return "";
    const lines = await ask(context, provider, async (vendor) => vendor.readLog?.(instanceId) ?? []);
    return lines.length === 0 ? "" : `; its log ends: ${lines.join(" | ").slice(-MAX_LOG_CHARS)}`;
  } catch (error) {
    if (error instanceof VendorError) return "";
    throw error;
  }
}

/**
 * A machine that the list does not show is asked for by its id. A vendor may hide a new machine for a minute, so that only one
 * that was seen can vanish (hard case 49).
 */
async function lookUp(
  context: Context,
  attempt: store.Attempt,
  instanceId: string,
  wasSeen: boolean,
): Promise<Machine | "vanished" | null> {
  try {
    const machine = await ask(context, attempt.provider, (vendor) => vendor.get(instanceId));
    const young = context.now() < attempt.createSentAt + context.config.LISTING_LAG_MS;
    return machine ?? (young || !wasSeen ? null : "vanished");
  } catch (error) {
    if (error instanceof VendorError) return null;
    throw error;
  }
}

const currentAttempt = async (context: Context, vm: Vm): Promise<store.Attempt | null> =>
  (await store.loadAttempts(context.db, vm.incarnation)).find((one) => one.number === vm.attempt) ?? null;
