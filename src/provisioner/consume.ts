// Takes messages off the queue. Each is acknowledged or retried by itself; `retry` is for faults only, waiting is a new
// message (hard case 11), and so is a failure that passes by itself: it must not use up the tries of a message (hard case 46).
import { isFenced, wakeAt } from "../db/vms.ts";
import { isTransient } from "../errors.ts";
import { allClear, errorFields, levelOfFault, log } from "../log.ts";
import { isJob } from "../model/jobs.ts";
import type { Context } from "./context.ts";
import { refreshCatalog } from "./machines/catalog.ts";
import { reap } from "./machines/reap.ts";
import { followMachine } from "./machines/run.ts";
import { followPayment } from "./payments/run.ts";
import { followRefund } from "./refunds/run.ts";

const MAX_RETRY_SECONDS = 60;
/** Until a message is tried again that met a database or an object that does not answer; as much again at most. */
const PUT_OFF_SECONDS = 10;
const DEAD_LETTER_WAIT_MS = 60_000;

/** One message from the job queue. */
export async function consume(context: Context, message: Message<unknown>): Promise<void> {
  const { body } = message;
  const began = context.now();
  try {
    if (!isJob(body)) log("error", "job_not_understood", { id: message.id });
    else if (body.kind === "catalog") await refreshCatalog(context);
    else if (body.kind === "reap") await reap(context, body);
    else if (body.kind === "payment") await followPayment(context, body);
    else if (body.kind === "refund") await followRefund(context, { subject: body.incarnation, kind: body.of });
    else await followMachine(context, body);
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
