// A machine gets new keys, login and host, by its owner's order (hard case 15). Where the vendor can reinstall it, it stays
// the owner's: nobody loses a machine to a vendor that has sold out meanwhile. Otherwise it is ended and another ordered.
import { bytesToHex, randomBytes } from "@noble/hashes/utils.js";
import { dataKeyId, sealSecret } from "../../credentials/ecies.ts";
import { generateHostKey } from "../../credentials/ssh-keys.ts";
import { isPaused } from "../../db/pauses.ts";
import type { Vm } from "../../db/schema.ts";
import * as store from "../../db/vms.ts";
import { allClear, errorFields, log } from "../../log.ts";
import { portNumbers, readOpenPorts } from "../../model/ports.ts";
import { machineLabel } from "../../model/purchase-key.ts";
import { type Context, DONE, goOn, type Next, permit, sendAfter } from "../context.ts";
import { type MachineSpec, VendorError } from "../vendors/vendor.ts";
import { isTooLate } from "./give-up.ts";
import { keepMachine } from "./keep.ts";
import { makeKeys } from "./keys.ts";
import { machineNote } from "./machine-note.ts";
import { LEASE_MS, MAX_WAIT_SECONDS, PAGED_WAIT_SECONDS, PAUSED_WAIT_SECONDS, STALL_MS } from "./waits.ts";

/** The change of its data, the order, and a look where that is refused: one permit, so that no other turn takes the look's. */
const REINSTALL_CALLS = 3;

/** New keys, stored, and the order to the vendor. What follows is a boot like any other. */
export async function rotate(context: Context, vm: store.TimedVm): Promise<Next> {
  const { db, now } = context;
  const lease = crypto.randomUUID();
  try {
    if (!(await store.takeLease(db, vm, lease, now() + LEASE_MS, now()))) return DONE;
    return await takeTurn(context, vm, lease);
  } catch (error) {
    if (error instanceof VendorError) {
      log("warn", "rotation_put_off", { tokenId: vm.tokenId, ...errorFields(error) });
      return putOff(context, vm, error.retryAfterSeconds);
    }
    await store.releaseLease(db, vm, lease);
    throw error;
  }
}

async function takeTurn(context: Context, vm: store.TimedVm, lease: string): Promise<Next> {
  const { db, vendors, now } = context;
  // The machine serves on under its old key: nothing is touched that a pause might keep from coming back.
  if (await isPaused(db, "provisioning")) return putOff(context, vm, PAUSED_WAIT_SECONDS);
  const { instanceId, provider } = vm;
  const last = (await store.loadAttempts(db, vm.incarnation)).at(-1);
  const reinstall = provider === null ? null : vendors[provider].reinstall;
  // An imported machine, which has no region, has not our firewall and may have any image.
  const canStay = reinstall !== null && vm.region !== null && !(await isTooLate(context, vm));
  if (!canStay || instanceId === null || provider === null || last === undefined) {
    return goOn(await store.moveVm(db, vm, { step: "clear", wakeAt: now() + STALL_MS }));
  }
  const settle = await permit(context, provider, REINSTALL_CALLS);
  const hostKey = generateHostKey();
  // Nobody was given the login key of an order without an answer: it serves again. That order may have got through after
  // all, so mark and host key are new.
  const begun = last.endedAt === null ? last : await nextAttempt(context, vm, last, instanceId);
  const mark = bytesToHex(randomBytes(12));
  const attempt = { ...begun, mark, hostPublicKey: hostKey.publicKey, createSentAt: now() };
  await store.openRotation(db, vm, lease, attempt);
  const { label, region, plan, publicKey } = attempt;
  // Its firewall group stays with it; what is installed anew opens the same ports.
  const ports = portNumbers(readOpenPorts(vm.ports));
  const note = machineNote(context.config, vm, provider, ports);
  const spec: MachineSpec = { label, mark, region, plan, publicKey, hostKey, ports, note };
  try {
    await reinstall(instanceId, spec);
    await settle();
  } catch (error) {
    if (!(error instanceof VendorError)) throw error;
    await settle(error);
    return refused(context, vm, attempt, error);
  }
  log("info", "machine_reinstalled", { label });
  allClear("reinstall_refused", provider);
  return sendAfter(await keepMachine(context, vm, attempt, { instanceId }), context.config.POLL_SECONDS);
}

/** Under a number and a login key of its own, on the machine and place of the attempt before. */
async function nextAttempt(
  context: Context,
  vm: Vm,
  { region, plan, provider, number: before }: store.Attempt,
  instanceId: string,
): Promise<Omit<store.Attempt, "mark" | "hostPublicKey" | "createSentAt">> {
  const { DATA_PUBLIC_KEY } = context.config;
  const { incarnation } = vm;
  const pair = await makeKeys(context, vm);
  const number = before + 1;
  const secretContext = { kind: "ssh", subject: incarnation, attempt: number } as const;
  return {
    incarnation,
    number,
    provider,
    region,
    plan,
    label: machineLabel(incarnation, number),
    publicKey: pair.publicKey,
    broughtBy: null,
    privateKey: await sealSecret(DATA_PUBLIC_KEY, secretContext, pair.privateKey),
    keyId: dataKeyId(DATA_PUBLIC_KEY),
    startedAt: context.now(),
    instanceId,
    bootDeadlineAt: null,
    endedAt: null,
    outcome: null,
    detail: null,
    goneAt: null,
    deleteFailedAt: null,
  };
}

/** What may work later is ordered again; a machine that the vendor will not reinstall is replaced. */
async function refused(context: Context, vm: Vm, attempt: store.Attempt, error: VendorError): Promise<Next> {
  const { db, now } = context;
  const isForGood = error.action === "next_candidate";
  const refusal = { about: error.vendor, label: attempt.label, ...errorFields(error) };
  log(error.action === "page" ? "page" : "warn", "reinstall_refused", refusal);
  if (!isForGood) {
    return putOff(context, vm, error.action === "page" ? PAGED_WAIT_SECONDS : error.retryAfterSeconds);
  }
  // A machine that ran and is gone counts as one, whoever finds it (hard case 39). Where nobody says so now, it is asked again.
  const { provider, instanceId } = attempt;
  const isGone = instanceId !== null && (await context.vendors[provider].get(instanceId)) === null;
  const outcome = isGone ? "vanished" : "refused";
  const end = { outcome, detail: error.message, now: now(), gone: false };
  const move = { step: "clear", wakeAt: now() + STALL_MS } as const;
  return goOn(await store.closeAttempt(db, vm, attempt.number, end, move));
}

async function putOff({ db, now }: Context, vm: Vm, seconds: number): Promise<Next> {
  const wait = Math.min(MAX_WAIT_SECONDS, Math.max(1, seconds));
  const wakeAt = now() + wait * 1_000 + STALL_MS;
  return sendAfter(await store.moveVm(db, vm, { step: "rotate", wakeAt }), wait);
}
