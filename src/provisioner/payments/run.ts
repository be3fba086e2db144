// A payment's steps, one after the other, until it has to wait. The chain is the only witness (hard case 2); final history closes
// the books (hard case 16).
import { hasRoom } from "../../db/client.ts";
import * as store from "../../db/payments.ts";
import { log } from "../../log.ts";
import type { Context } from "../context.ts";
import { buy } from "./buy.ts";
import { capture } from "./capture.ts";
import { check } from "./check.ts";
import { close } from "./close.ts";
import { deliver } from "./deliver.ts";
import { provision } from "./provision.ts";
import { refund } from "./refund.ts";
import { release } from "./release.ts";
import { settle } from "./settle.ts";
import { onMachine } from "./token.ts";
import type { Turn } from "./turn.ts";

const MAX_STEPS_PER_MESSAGE = 12;

const STEPS: Record<store.Payment["step"], (context: Context, row: store.Payment) => Promise<Turn>> = {
  check,
  buy,
  provision: (context, row) => onMachine(context, row, provision),
  capture: (context, row) => onMachine(context, row, capture),
  deliver: (context, row) => onMachine(context, row, deliver),
  settle,
  close,
  release,
  refund,
  idle: async () => null,
};

/** Runs a payment's steps until it has to wait. A message of another generation than the row's is stale. */
export async function followPayment(context: Context, job: { payment: string; generation: number }): Promise<void> {
  let row = await store.loadPayment(context.db, job.payment);
  if (row === null || row.generation !== job.generation) return;
  for (let count = 0; count < MAX_STEPS_PER_MESSAGE && hasRoom(); count++) {
    const began = context.now();
    const turn: Turn = await STEPS[row.step](context, row);
    const waits = turn === null || "waitSeconds" in turn;
    log(waits ? "debug" : "info", "payment_step", {
      payment: row.id,
      step: row.step,
      state: row.state,
      next: turn === null ? "done" : "waitSeconds" in turn ? `in ${turn.waitSeconds} s` : turn.step,
      ms: context.now() - began,
    });
    if (turn === null) return;
    if ("waitSeconds" in turn) {
      const { id, generation } = row;
      await context.config.JOBS.send({ kind: "payment", payment: id, generation }, { delaySeconds: turn.waitSeconds });
      return;
    }
    row = turn;
  }
  await context.config.JOBS.send({ kind: "payment", payment: row.id, generation: row.generation });
}
