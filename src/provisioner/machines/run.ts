// A machine's steps, one after the other, until it has to wait.
import { failVm, loadVm, type TimedVm } from "../../db/vms.ts";
import { GiveUp } from "../../errors.ts";
import { errorFields, log } from "../../log.ts";
import type { Job } from "../../model/jobs.ts";
import type { Step } from "../../model/machine-life.ts";
import { type Context, DONE, type Next } from "../context.ts";
import { orderOf, tellOrder } from "../payments/token.ts";
import { refundOf } from "../refunds/owe.ts";
import { runSteps } from "../run-steps.ts";
import { boot } from "./boot.ts";
import { clear } from "./clear.ts";
import { create } from "./create.ts";
import { end, prove, retire } from "./end.ts";
import { find } from "./find.ts";
import { endServed } from "./give-up.ts";
import { rotate } from "./rotate.ts";
import { scrub } from "./scrub.ts";

const STEPS: Record<Step, (context: Context, vm: TimedVm, wasSeen: boolean) => Promise<Next>> = {
  create: (context, vm) => create(context, vm, (ours) => orderOf(context, ours)),
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

/** Runs a machine's steps until it has to wait. A message of another generation than the row's is stale: nothing happens. */
export const followMachine = (context: Context, { incarnation, generation, seen }: Job & { kind: "advance" }) =>
  runSteps<TimedVm>(
    context,
    {
      load: async (at) => {
        const vm = await loadVm(context.db, incarnation);
        return vm?.generation === at ? vm : null;
      },
      step: (vm, isFirst) => takeStep(context, vm, isFirst && seen === true),
      send: (at, delaySeconds, wasSeen) => {
        const body: Job = { kind: "advance", incarnation, generation: at, ...(wasSeen ? { seen: true } : {}) };
        return context.config.JOBS.send(body, { delaySeconds });
      },
      tell: ({ tokenId, step, status, attempt }) => ({
        event: "step",
        shared: { tokenId, step },
        fields: { status, attempt },
      }),
    },
    { generation, seen },
  );

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
