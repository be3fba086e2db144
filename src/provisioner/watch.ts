// From an accepted order to a machine that answers, or to the proof that it is gone. A poll reads and sends the next
// message; it takes no lease and writes nothing (hard case 11).
import * as store from "../db/vms.ts";
import { errorFields, log } from "../log.ts";
import { readBanner } from "./banner.ts";
import { type Context, DONE, goOn, type Next, permit, sendAfter } from "./context.ts";
import { isTooLate, keepMachine } from "./create.ts";
import { type Machine, VendorError } from "./vendors/vendor.ts";

const BANNER_TIMEOUT_MS = 4_000;
const SNAPSHOT_AGE_MS = 2_000;
const STALL_MS = 180_000;
/** Vendors' clocks and ours. */
const CLOCK_SKEW_MS = 120_000;

/**
 * A create whose answer never came. Complete lists are read until the machine shows up under its label, or until they
 * stayed empty for as long as the request could still have worked plus the time a new machine may stay unlisted (9).
 */
export async function find(context: Context, vm: store.Vm): Promise<Next> {
  const { db, config, now } = context;
  const attempt = await currentAttempt(context, vm);
  if (attempt === null) return goOn(await store.moveVm(db, vm, { step: "create", wakeAt: now() + STALL_MS }));
  const answer = await context.gate(attempt.provider).machines(now(), now() - SNAPSHOT_AGE_MS);
  if (!answer.ok) return sendAfter(vm.generation, answer.retryAfterSeconds);
  for (const machine of answer.snapshot.machines.filter((one) => one.label === attempt.label)) {
    if (await store.isClaimed(db, attempt.provider, machine.instanceId)) continue;
    // A tenant can rename its own machine: the name alone adopts nothing (12).
    if (machine.mark === attempt.mark && machine.createdAt >= attempt.createSentAt - CLOCK_SKEW_MS) {
      log("info", "machine_found", { label: attempt.label });
      return goOn(await keepMachine(context, vm, attempt, machine));
    }
    await endGhost(context, attempt.provider, machine);
  }
  const quietUntil = attempt.createSentAt + config.VENDOR_TIMEOUT_MS + config.LISTING_LAG_MS;
  if (answer.snapshot.readAt <= quietUntil) return sendAfter(vm.generation, config.POLL_SECONDS);
  const end = { outcome: "lost", detail: "no answer, and no list showed a machine", now: now(), gone: true };
  return goOn(await store.closeAttempt(db, vm, attempt.number, end, { step: "create", wakeAt: now() + STALL_MS }));
}

/** Waits until the machine's own SSH banner carries the attempt's mark, then publishes it (10). */
export async function boot(context: Context, vm: store.Vm): Promise<Next> {
  const { config, now } = context;
  const attempt = await currentAttempt(context, vm);
  const { instanceId } = vm;
  if (attempt === null || instanceId === null) {
    return goOn(await store.moveVm(context.db, vm, { step: "create", wakeAt: now() + STALL_MS }));
  }
  if (now() > (attempt.bootDeadlineAt ?? 0) || (await isTooLate(context, vm))) {
    return abandon(context, vm, attempt, "boot_timeout", "the machine did not answer SSH in time");
  }
  const answer = await context.gate(attempt.provider).machines(now(), now() - SNAPSHOT_AGE_MS);
  if (!answer.ok) return sendAfter(vm.generation, answer.retryAfterSeconds);
  const listed = answer.snapshot.machines.find((one) => one.instanceId === instanceId);
  const machine = listed ?? (await lookUp(context, attempt, instanceId));
  if (machine === "vanished") return abandon(context, vm, attempt, "vanished", "the vendor knows it no more");
  if (machine?.state === "dead") return abandon(context, vm, attempt, "died", "the vendor says that it stopped");
  if (machine?.state === "up" && machine.host !== null && machine.port !== null) {
    const banner = await readBanner(machine.host, machine.port, BANNER_TIMEOUT_MS);
    if (banner?.includes(attempt.mark)) {
      await store.publish(context.db, vm, attempt, { host: machine.host, port: machine.port, now: now() });
      log("info", "vm_running", { label: attempt.label, attempt: attempt.number });
      return DONE;
    }
  }
  return sendAfter(vm.generation, config.POLL_SECONDS);
}

/** Ends the machines of failed attempts; the next one is ordered only when the vendor knows none of them. */
export async function clear(context: Context, vm: store.Vm): Promise<Next> {
  const { db, config, now } = context;
  if (!(await endMachines(context, vm))) return sendAfter(vm.generation, config.POLL_SECONDS);
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
export async function endMachines(context: Context, vm: store.Vm): Promise<boolean> {
  const open = (await store.loadAttempts(context.db, vm.incarnation)).filter(
    (attempt) => attempt.instanceId !== null && attempt.goneAt === null,
  );
  let allGone = true;
  for (const attempt of open) {
    const instanceId = attempt.instanceId;
    // Never by an empty id: that path would name every machine of the account.
    if (instanceId === null || instanceId === "") continue;
    const vendor = context.vendors[attempt.provider];
    try {
      await permit(context, attempt.provider);
      await vendor.delete(instanceId);
      await permit(context, attempt.provider);
      if ((await vendor.get(instanceId)) === null) await store.markGone(context.db, vm, attempt.number, context.now());
      else allGone = false;
    } catch (error) {
      if (!(error instanceof VendorError)) throw error;
      log("warn", "delete_put_off", { label: attempt.label, ...errorFields(error) });
      allGone = false;
    }
  }
  return allGone;
}

async function abandon(
  context: Context,
  vm: store.Vm,
  attempt: store.Attempt,
  outcome: string,
  detail: string,
): Promise<Next> {
  const at = context.now();
  log("warn", "attempt_abandoned", { label: attempt.label, outcome });
  const end = { outcome, detail, now: at, gone: false };
  const move = { step: "clear", wakeAt: at + STALL_MS } as const;
  return goOn(await store.closeAttempt(context.db, vm, attempt.number, end, move));
}

/** A machine that the list does not show (yet): asked for by its id. */
async function lookUp(
  context: Context,
  attempt: store.Attempt,
  instanceId: string,
): Promise<Machine | "vanished" | null> {
  try {
    await permit(context, attempt.provider);
    const machine = await context.vendors[attempt.provider].get(instanceId);
    const young = context.now() < attempt.createSentAt + context.config.LISTING_LAG_MS;
    return machine ?? (young ? null : "vanished");
  } catch (error) {
    if (error instanceof VendorError) return null;
    throw error;
  }
}

/**
 * Ends machines that turned up after their attempt was given up. Known by label and mark together, both stored with the
 * attempt, and never one that a row has claimed. Runs with every sweep, so that a ghost lives no longer than that.
 */
export async function reapGhosts(context: Context): Promise<void> {
  const { db, config, now } = context;
  for (const provider of ["vultr", "runpod"] as const) {
    const answer = await context.gate(provider).machines(now(), now() - SNAPSHOT_AGE_MS);
    if (!answer.ok) continue;
    const ours = answer.snapshot.machines.filter((one) => one.label.startsWith(`clawcloud-${config.DEPLOYMENT_ID}-`));
    const dead = await store.deadAttempts(
      db,
      provider,
      ours.map((machine) => machine.label),
    );
    for (const machine of ours) {
      const isGhost = dead.some((attempt) => attempt.label === machine.label && attempt.mark === machine.mark);
      if (isGhost && !(await store.isClaimed(db, provider, machine.instanceId)))
        await endGhost(context, provider, machine);
    }
  }
}

async function endGhost(context: Context, provider: store.Attempt["provider"], machine: Machine): Promise<void> {
  log("warn", "ghost_ended", { label: machine.label, instanceId: machine.instanceId });
  try {
    await permit(context, provider);
    await context.vendors[provider].delete(machine.instanceId);
  } catch (error) {
    if (!(error instanceof VendorError)) throw error;
    log("warn", "delete_put_off", { label: machine.label, ...errorFields(error) });
  }
}

const currentAttempt = async (context: Context, vm: store.Vm): Promise<store.Attempt | null> =>
  (await store.loadAttempts(context.db, vm.incarnation)).find((one) => one.number === vm.attempt) ?? null;
