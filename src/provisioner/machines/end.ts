// The end of machines. What is published ends only on proof from the chain's final history, read from two nodes
// (hard case 13); as does a purchase that a reorg took, or whose token it gave to another one (hard case 5).
import { readAgreedToken, readFinalToken } from "../../chain/witness.ts";
import { reinstate, terminate, terminateReplaced } from "../../db/ends.ts";
import type { Vm } from "../../db/schema.ts";
import * as store from "../../db/vms.ts";
import { allClear, log } from "../../log.ts";
import { type Context, DONE, goOn, type Next, sendAfter } from "../context.ts";
import { endIfOver } from "../payments/token.ts";
import { endMachines } from "./clear.ts";
import { isGone, readPurchase } from "./verify.ts";

const PROOF_WAIT_SECONDS = 20;
/** A delete takes seconds; one that a vendor refuses must not eat the rate that all share. */
const DELETE_WAIT_SECONDS = 5;
const RECHECK_SECONDS = 3_600;
/** Final history lags the head by minutes; a node whose final block is older than this is no witness. */
const FINAL_MAX_AGE_SECONDS = 7_200;

/** The paid time of a published machine is over by the scanned head. Ends it, or finds that it is not over after all. */
export async function prove(context: Context, vm: Vm): Promise<Next> {
  const { db, chain, config, now } = context;
  const view = await readFinalToken(chain, vm.tokenId);
  const headTime = await store.chainTime(db);
  if (view.blockTimestamp < headTime - FINAL_MAX_AGE_SECONDS) {
    log("page", "finality_is_old", { tokenId: vm.tokenId, ageSeconds: headTime - view.blockTimestamp });
    return sendAfter(vm.generation, PROOF_WAIT_SECONDS);
  }
  allClear("finality_is_old");
  // Before the purchase's own block the token is missing from final history: that proves nothing.
  if (view.blockNumber < vm.blockNumber) return sendAfter(vm.generation, PROOF_WAIT_SECONDS);
  if (view.valid) {
    // Until final history reaches the moment at which the sweep called it expired, it can't know better.
    if (view.blockTimestamp < (vm.expiredAt ?? vm.expiresAt)) return sendAfter(vm.generation, PROOF_WAIT_SECONDS);
    log("warn", "expiry_disproved", { tokenId: vm.tokenId });
    // Given up, and a reorg undid it? Looked at again within the hour, and at its own end at the latest.
    const recheckAt = view.blockTimestamp + RECHECK_SECONDS;
    const endsAt = vm.expiresAt + config.EXPIRY_GRACE_SECONDS;
    const checkAt = endsAt > view.blockTimestamp ? Math.min(endsAt, recheckAt) : recheckAt;
    // Between two machines, or renewed when the end had begun: there is none that it could run on.
    if (vm.sshHost === null || vm.instanceId === null) {
      const deadlineSeconds = config.REPLACE_DEADLINE_SECONDS;
      const queued = await store.startOver(db, vm, { now: now(), checkAt, deadlineSeconds });
      return goOn(queued?.generation ?? null);
    }
    await store.moveVm(db, vm, { status: "running", step: "idle", wakeAt: null, checkAt });
    return DONE;
  }
  if (view.owner !== null && view.blockTimestamp < vm.expiresAt + config.EXPIRY_GRACE_SECONDS) {
    // After its time the grace still runs. Before it the owner gave it up, unless a renewal made it valid since.
    if (view.blockTimestamp >= vm.expiresAt) return sendAfter(vm.generation, PROOF_WAIT_SECONDS);
    const latest = await readAgreedToken(chain, vm.tokenId);
    if (latest.valid) return sendAfter(vm.generation, PROOF_WAIT_SECONDS);
  }
  if (!(await endMachines(context, vm))) return sendAfter(vm.generation, DELETE_WAIT_SECONDS);
  await terminate(db, vm);
  log("info", "vm_terminated", { tokenId: vm.tokenId });
  return DONE;
}

/**
 * A purchase that another incarnation of its token replaced, or that a reorg took for good. One node may have invented
 * the event behind this, and the next reorg may bring it back: final history has to show it before anything ends.
 */
export async function retire(context: Context, vm: Vm): Promise<Next> {
  const { db, chain, config, now } = context;
  const own = await readPurchase(chain, config, vm);
  const holder = vm.current ? null : await store.currentVm(db, vm.tokenId);
  const successor = holder === null ? null : await readPurchase(chain, config, holder);
  const replaced = successor !== null && (own === null || own.blockNumber < successor.blockNumber);
  if (own !== null && !replaced) {
    log("security", "purchase_reinstated", { incarnation: vm.incarnation });
    const rivalIsInvented = holder !== null && successor === null;
    await reinstate(db, vm, own, { now: now(), graceSeconds: config.EXPIRY_GRACE_SECONDS, rivalIsInvented });
    await endIfOver(context, vm);
    return DONE;
  }
  if (!(await isGone(chain, config, vm, holder))) return sendAfter(vm.generation, PROOF_WAIT_SECONDS);
  if (!(await endMachines(context, vm))) return sendAfter(vm.generation, DELETE_WAIT_SECONDS);
  await terminateReplaced(db, vm, now());
  log("warn", "vm_retired", { incarnation: vm.incarnation });
  return DONE;
}

/**
 * An operator's order: the state of the row is the order, and machines go by their stored ids (hard case 13). A purchase
 * that one node invented gives its token up as well: else the true one would be looked for by nobody (hard case 61).
 */
export async function end(context: Context, vm: Vm): Promise<Next> {
  const { db, chain, config, now } = context;
  if (!(await endMachines(context, vm))) return sendAfter(vm.generation, DELETE_WAIT_SECONDS);
  const isKnown = !vm.current || (await readPurchase(chain, config, vm)) !== null;
  if (!isKnown && !(await isGone(chain, config, vm, null))) return sendAfter(vm.generation, PROOF_WAIT_SECONDS);
  await (isKnown ? terminate(db, vm) : terminateReplaced(db, vm, now()));
  log("warn", "vm_ended_by_order", { tokenId: vm.tokenId });
  return DONE;
}
