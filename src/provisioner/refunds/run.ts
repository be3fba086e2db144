// A refund's steps, one after the other, until it has to wait: the sweep goes on by the time that the row has.
import { loadRefund, type Refund, type RefundKey } from "../../db/refunds.ts";
import type { RefundState } from "../../model/refund-life.ts";
import { type Context, DONE, type Next } from "../context.ts";
import { runSteps } from "../run-steps.ts";
import { begin, GENERATION, namesOf, pay } from "./pay.ts";

const rest = async () => DONE;

const STEPS: Record<RefundState, (context: Context, row: Refund) => Promise<Next<Refund>>> = {
  recorded: rest,
  waiting: rest,
  due: begin,
  held: rest,
  paying: pay,
  paid: rest,
  cancelled: rest,
};

export const followRefund = (context: Context, key: RefundKey): Promise<void> =>
  runSteps<Refund>(
    context,
    {
      load: () => loadRefund(context.db, key),
      step: (row) => STEPS[row.state](context, row),
      send: (_generation, delaySeconds) =>
        context.config.JOBS.send({ kind: "refund", incarnation: key.subject, of: key.kind }, { delaySeconds }),
      tell: (row) => {
        const { kind, ...names } = namesOf(row);
        return { event: "refund_step", shared: { ...names, refund: kind }, fields: { state: row.state } };
      },
    },
    { generation: GENERATION },
  );
