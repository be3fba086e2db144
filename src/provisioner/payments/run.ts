// A payment's steps, one after the other, until it has to wait. The chain is the only witness (hard case 2); final history closes
// the books (hard case 16).
import * as store from "../../db/payments.ts";
import { type PaymentStage, paymentStageOf } from "../../model/payment-life.ts";
import { type Context, DONE, type Next } from "../context.ts";
import { owePayment } from "../refunds/owe.ts";
import { runSteps } from "../run-steps.ts";
import { buy, chooseToken } from "./buy.ts";
import { captureFirst, captureLast } from "./capture.ts";
import { check } from "./check.ts";
import { closeAnswer, closeOrder } from "./close.ts";
import { deliver } from "./deliver.ts";
import { provision } from "./provision.ts";
import { release } from "./release.ts";
import { giveBackUnserved, settle } from "./settle.ts";
import { onMachine } from "./token.ts";
import { hold, type Turn } from "./turn.ts";

type Step<Row> = (context: Context, row: Row) => Promise<Turn>;

const provisionLinked: Step<store.LinkedOrder> = (context, row) => onMachine(context, row, provision);
const captureLinked: Step<store.LinkedOrder> = (context, row) => onMachine(context, row, captureLast);
const deliverLinked: Step<store.LinkedOrder> = (context, row) => onMachine(context, row, deliver);
const rest = async () => null;

const STEPS: { [Stage in PaymentStage]: Step<store.PaymentAt<Stage>> } = {
  "claimed/settle": settle,
  "settling/settle": settle,
  "settled/settle": giveBackUnserved,
  "settled/close/answer": closeAnswer,

  "authorized/check": check,
  "settled/check": check,
  "authorized/buy/choose": chooseToken,
  "settled/buy/choose": chooseToken,
  "authorized/buy/order": buy,
  "settled/buy/order": buy,
  "authorized/buy/await": buy,
  "settled/buy/await": buy,
  "authorized/provision": provisionLinked,
  "settling/provision": provisionLinked,
  "settled/provision": provisionLinked,
  "authorized/capture/first": captureFirst,
  "settling/capture/first": captureFirst,
  "authorized/capture/last": captureLinked,
  "settling/capture/last": captureLinked,
  "settled/deliver/send": deliverLinked,
  "settled/deliver/watch": deliverLinked,
  "settled/close/order": closeOrder,
  "settled/idle": rest,

  "releasing/release": release,
  "released/idle": rest,
  "refund_due/refund": owePayment,
  "refunding/refund": owePayment,
  "refund_due/idle": rest,
  "refunded/idle": rest,
  "held/idle": rest,
};

/** Runs a payment's steps until it has to wait. A message of another generation than the row's is stale: nothing happens. */
export const followPayment = (context: Context, job: { payment: string; generation: number }): Promise<void> =>
  runSteps<store.Payment>(
    context,
    {
      load: async (generation) => {
        const row = await store.loadPayment(context.db, job.payment);
        return row?.generation === generation ? row : null;
      },
      step: async (row) => nextOf(row, await takeStep(context, row)),
      send: (generation, delaySeconds) =>
        context.config.JOBS.send({ kind: "payment", payment: job.payment, generation }, { delaySeconds }),
      tell: ({ id, step, state }) => ({ event: "payment_step", shared: { payment: id, step }, fields: { state } }),
    },
    job,
  );

/** A row that its stage's columns contradict was written by somebody else: nothing is bought, taken or paid by it. */
export async function takeStep(context: Context, row: store.Payment): Promise<Turn> {
  const stage = paymentStageOf(row);
  return stage === null ? hold(context, row, "row_incomplete") : (STEPS[stage] as Step<store.Payment>)(context, row);
}

function nextOf({ generation }: store.Payment, turn: Turn): Next<store.Payment> {
  if (turn === null) return { kind: "wait" };
  if ("waitSeconds" in turn) return { kind: "send", generation, afterSeconds: turn.waitSeconds };
  return turn.step === "idle" ? DONE : { kind: "continue", generation: turn.generation, row: turn };
}
