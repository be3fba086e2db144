// From an accepted order to a machine that answers. A poll reads and sends the next message; it takes no lease and writes nothing
// (hard case 11).
import type { Vm } from "../../db/schema.ts";
import * as store from "../../db/vms.ts";
import { allClear, log } from "../../log.ts";
import { formatPorts, portNumbers, readOpenPorts } from "../../model/ports.ts";
import { ask, type Context, DONE, goOn, type Next } from "../context.ts";
import { tellOrder } from "../payments/token.ts";
import { lateness } from "../refunds/owe.ts";
import { type Machine, reachPorts, VendorError } from "../vendors/vendor.ts";
import { readBanner } from "./banner.ts";
import { placeOf } from "./candidates.ts";
import { isTooLate } from "./give-up.ts";
import { LOOK_AGE_MS, STALL_MS } from "./waits.ts";

const BANNER_TIMEOUT_MS = 4_000;

const NOT_SHOWN = "not_shown";

const BOOT_TIMEOUT = "boot_timeout";

const MAX_LOG_CHARS = 1_500;

/**
 * Waits until the machine's own SSH banner carries the attempt's mark, then publishes it (hard case 10). `wasSeen`: an earlier
 * poll was shown the machine.
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
  const answer = await context.gate(attempt.provider).machinesOf(now(), now() - LOOK_AGE_MS, { instanceId });
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
  if (end !== null) return endAttempt(context, vm, attempt, end.outcome, end.detail);
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

async function endAttempt(
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
