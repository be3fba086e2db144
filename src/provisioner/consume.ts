// Takes messages off the queue. Each is acknowledged or retried by itself; `retry` is for faults only, waiting is a new
// message (hard case 11), and so is a failure that passes by itself: it must not use up the tries of a message (hard case 46).
import { hasRoom } from "../db/client.ts";
import { failVm, isFenced, loadVm, type TimedVm, wakeAt } from "../db/vms.ts";
import { GiveUp, isTransient } from "../errors.ts";
import { allClear, errorFields, levelOfFault, log, withLogScope } from "../log.ts";
import { isJob, type Job } from "../model/jobs.ts";
import type { Step } from "../model/machine-life.ts";
import { type Context, DONE, type Next } from "./context.ts";
import { boot } from "./machines/boot.ts";
import { refreshCatalog } from "./machines/catalog.ts";
import { clear } from "./machines/clear.ts";
import { create } from "./machines/create.ts";
import { end, prove, retire } from "./machines/end.ts";
import { find } from "./machines/find.ts";
import { endServed } from "./machines/give-up.ts";
import { reap } from "./machines/reap.ts";
import { rotate } from "./machines/rotate.ts";
import { scrub } from "./machines/scrub.ts";
import { followPayment } from "./payments/run.ts";
import { tellOrder } from "./payments/token.ts";
import { refundOf } from "./refunds/owe.ts";
import { refund } from "./refunds/pay.ts";

const MAX_STEPS_PER_MESSAGE = 8;
const MAX_RETRY_SECONDS = 60;
/** Until a message is tried again that met a database or an object that does not answer; as much again at most. */
const PUT_OFF_SECONDS = 10;
const DEAD_LETTER_WAIT_MS = 60_000;

const STEPS: Record<Step, (context: Context, vm: TimedVm, wasSeen: boolean) => Promise<Next>> = {
  create,
  find,
  boot,
  clear,
  rotate,
  scrub,
  prove,
  retire,
  end,
  idle: async () => DONE,
};

/** Runs a row's steps until it has to wait. A message of another generation than the row's is stale: nothing happens. */
export async function advance(context: Context, job: Job & { kind: "advance" }): Promise<void> {
  let generation = job.generation;
  for (let count = 0; ; count++) {
    const vm = await loadVm(context.db, job.incarnation);
    if (vm === null || vm.generation !== generation) return;
    const next =
      count < MAX_STEPS_PER_MESSAGE && hasRoom()
        ? await runStep(context, vm, job.seen === true)
        : // What an earlier poll has seen holds for the row that this message found, and for no later one.
          sendAgain(generation, count === 0 && job.seen === true);
    if (next.kind === "done") return;
    if (next.kind === "send") {
      const { kind, incarnation } = job;
      const body: Job = { kind, incarnation, generation: next.generation, ...(next.seen ? { seen: next.seen } : {}) };
      await context.config.JOBS.send(body, { delaySeconds: next.afterSeconds });
      return;
    }
    generation = next.generation;
  }
}

const sendAgain = (generation: number, wasSeen: boolean): Next => ({
  kind: "send",
  generation,
  afterSeconds: 0,
  ...(wasSeen ? { seen: true } : {}),
});

/** Runs one step, with its one wide event: what only waits is for debugging. */
const runStep = (context: Context, vm: TimedVm, wasSeen: boolean): Promise<Next> =>
  withLogScope({ tokenId: vm.tokenId, step: vm.step }, async () => {
    const began = context.now();
    const next = await takeStep(context, vm, wasSeen);
    const waits = next.kind === "send" && next.generation === vm.generation;
    log(waits ? "debug" : "info", "step", {
      status: vm.status,
      generation: vm.generation,
      attempt: vm.attempt,
      next: next.kind,
      ...(next.kind === "send" ? { afterSeconds: next.afterSeconds } : {}),
      ms: context.now() - began,
    });
    return next;
  });

async function takeStep(context: Context, vm: TimedVm, wasSeen: boolean): Promise<Next> {
  try {
    return await STEPS[vm.step](context, vm, wasSeen);
  } catch (error) {
    if (!(error instanceof GiveUp)) throw error;
    if (error.code === "token_not_valid" && vm.runningAt !== null) return endServed(context, vm);
    // A token that its buyer gave up is no trouble of ours.
    const level = error.code === "token_not_valid" ? "warn" : "page";
    log(level, "purchase_held", { about: error.code, incarnation: vm.incarnation, ...errorFields(error) });
    await failVm(context.db, vm, {
      cause: error.code,
      detail: error.message,
      now: context.now(),
      step: vm.instanceId === null ? "idle" : "clear",
      wakeAt: vm.instanceId === null ? null : context.now(),
      // Whoever paid and whose time ran out without a machine gets it back; a mismatch is for a person to judge.
      ...(error.code === "token_not_valid" ? await refundOf(context, vm, context.now()) : {}),
    });
    await tellOrder(context, vm);
    return DONE;
  }
}

/** One message from the job queue. */
export async function consume(context: Context, message: Message<unknown>): Promise<void> {
  const { body } = message;
  const began = context.now();
  try {
    if (!isJob(body)) log("error", "job_not_understood", { id: message.id });
    else if (body.kind === "catalog") await refreshCatalog(context);
    else if (body.kind === "reap") await reap(context, body);
    else if (body.kind === "payment") await followPayment(context, body);
    else if (body.kind === "refund") await refund(context, { incarnation: body.incarnation, kind: body.of });
    else await advance(context, body);
    // Steps have their own wide events; every other job has this one.
    if (isJob(body) && body.kind !== "advance" && body.kind !== "payment")
      log("info", "job", { ...body, outcome: "done", ms: context.now() - began });
    if (isJob(body)) allClear("job_failed", body.kind);
    message.ack();
  } catch (error) {
    if (isFenced(error)) {
      // Another consumer has the row: its work counts, this message's does not.
      message.ack();
      return;
    }
    const job = isJob(body) ? body : {};
    const times = { attempts: message.attempts, ms: context.now() - began };
    if (isJob(body) && isTransient(error)) {
      log("warn", "job_put_off", { ...job, id: message.id, outcome: "put_off", ...times, ...errorFields(error) });
      await putOff(context, message);
      return;
    }
    const about = isJob(body) ? body.kind : "unknown";
    const fields = { about, ...job, id: message.id, outcome: "failed", ...times, ...errorFields(error) };
    log(levelOfFault(error), "job_failed", fields);
    const delay = Math.min(MAX_RETRY_SECONDS, 2 ** message.attempts) * (0.5 + Math.random() / 2);
    message.retry({ delaySeconds: Math.ceil(delay) });
  }
}

/** A new message for the same job. What is no job, and what the queue does not take, comes back by itself. */
export async function putOff({ config }: Pick<Context, "config">, message: Message<unknown>): Promise<void> {
  const { id, body } = message;
  const delaySeconds = Math.ceil(PUT_OFF_SECONDS * (1 + Math.random()));
  try {
    if (!isJob(body)) return message.retry({ delaySeconds });
    await config.JOBS.send(body, { delaySeconds });
    message.ack();
  } catch (error) {
    log("error", "job_not_put_off", { id, ...errorFields(error) });
    message.retry({ delaySeconds });
  }
}

/** One message that failed too often: the row is woken later by the sweep, so nothing is lost. */
export async function consumeDead(context: Context, message: Message<unknown>): Promise<void> {
  const { body } = message;
  const job = isJob(body) ? body : null;
  try {
    if (job?.kind === "advance") await wakeAt(context.db, job.incarnation, context.now() + DEAD_LETTER_WAIT_MS);
  } catch (error) {
    if (!isTransient(error)) throw error;
    // Should its last try fail as well, the sweep finds the row by the time that it has.
    log("warn", "dead_job_put_off", { id: message.id, ...errorFields(error) });
    message.retry({ delaySeconds: MAX_RETRY_SECONDS });
    return;
  }
  log("page", "job_dead", { about: job?.kind ?? "unknown", id: message.id, job });
  message.ack();
}
