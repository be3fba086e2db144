// From a purchase to a machine that the vendor has accepted. The intent is a row before the request leaves, and only
// one consumer at a time holds the row's lease.

import { machineLabel } from "../chain/incarnation.ts";
import { dataKeyId, sealSecret } from "../credentials/ecies.ts";
import { generateHostKey, generateSshKeyPair, type SshKeyPair } from "../credentials/ssh-keys.ts";
import { loadCatalog } from "../db/sweep.ts";
import * as store from "../db/vms.ts";
import { errorFields, log } from "../log.ts";
import { candidatesOf, nextCandidate } from "./candidates.ts";
import { type Context, DONE, goOn, type Next, permit, sendAfter } from "./context.ts";
import { type Candidate, type Machine, VendorError } from "./vendors/vendor.ts";
import { verifyPurchase } from "./verify.ts";

/** More than all timeouts of one turn together. */
const LEASE_MS = 180_000;
/** No further vendor call is begun in a turn that has lasted this long. */
const TURN_MS = 45_000;
const STALL_MS = 180_000;
const RECEIPT_WAIT_SECONDS = 3;
const PAGED_WAIT_SECONDS = 60;
const SNAPSHOT_AGE_MS = 30_000;

export async function verify(context: Context, vm: store.Vm): Promise<Next> {
  const { db, chain, config, now } = context;
  if (await isTooLate(context, vm)) return tooLate(context, vm);
  if (!(await verifyPurchase(chain, config, vm))) return sendAfter(vm.generation, RECEIPT_WAIT_SECONDS);
  return goOn(await store.moveVm(db, vm, { step: "create", wakeAt: now() + STALL_MS }));
}

export async function create(context: Context, vm: store.Vm): Promise<Next> {
  const { db, now } = context;
  const began = now();
  const lease = crypto.randomUUID();
  if (!(await store.takeLease(db, vm, lease, began + LEASE_MS, began))) return DONE;
  const tried = await store.loadAttempts(db, vm.incarnation);
  if (tried.some((attempt) => attempt.instanceId !== null && attempt.goneAt === null)) {
    return goOn(await store.moveVm(db, vm, { step: "clear", wakeAt: began + STALL_MS }));
  }
  if (await isTooLate(context, vm)) return tooLate(context, vm);
  const candidates = candidatesOf(vm.tier, (await loadCatalog(db))?.stock ?? {});
  let pair: SshKeyPair | undefined;
  for (;;) {
    const next = nextCandidate(candidates, tried, now());
    if ("waitMs" in next) return waitForTurn(context, vm, next.waitMs / 1_000);
    if (now() - began > TURN_MS) return waitForTurn(context, vm, 0);
    // Made before the lease's clock matters, and kept while vendors refuse: a refused attempt has used no key.
    pair ??= await generateSshKeyPair(context.config.SSH_KEY_ALGORITHM);
    const outcome = await tryCandidate(context, vm, lease, next.candidate, tried, pair);
    if (outcome !== "refused") return outcome;
  }
}

/** One attempt. "refused": the vendor made nothing, and another candidate may do. */
async function tryCandidate(
  context: Context,
  vm: store.Vm,
  lease: string,
  candidate: Candidate,
  tried: store.Attempt[],
  pair: SshKeyPair,
): Promise<Next | "refused"> {
  const { db, config, now } = context;
  const vendor = context.vendors[candidate.vendor];
  try {
    await permit(context, candidate.vendor);
  } catch (error) {
    if (error instanceof VendorError) return waitForTurn(context, vm, error.retryAfterSeconds);
    throw error;
  }
  const number = (tried.at(-1)?.number ?? 0) + 1;
  const label = machineLabel(vm.incarnation, number);
  const mark = [...crypto.getRandomValues(new Uint8Array(12))]
    .map((byte) => byte.toString(16).padStart(2, "0"))
    .join("");
  const hostKey = generateHostKey();
  const secretContext = { kind: "ssh", subject: vm.incarnation, attempt: number } as const;
  const attempt: store.Attempt = {
    incarnation: vm.incarnation,
    number,
    provider: candidate.vendor,
    region: candidate.region,
    plan: candidate.plan,
    label,
    mark,
    publicKey: pair.publicKey,
    privateKey: await sealSecret(config.DATA_PUBLIC_KEY, secretContext, pair.privateKey),
    keyId: dataKeyId(config.DATA_PUBLIC_KEY),
    hostPublicKey: hostKey.publicKey,
    createSentAt: now(),
    startedAt: now(),
    instanceId: null,
    bootDeadlineAt: null,
    endedAt: null,
    outcome: null,
    detail: null,
    goneAt: null,
  };
  await store.openAttempt(db, vm, lease, attempt);
  tried.push(attempt);
  try {
    await endNamesakes(context, candidate, label);
    const { region, plan } = candidate;
    const machine = await vendor.create({ label, mark, region, plan, publicKey: pair.publicKey, hostKey });
    log("info", "machine_ordered", { label, vendor: candidate.vendor, region, plan });
    return sendAfter(await keepMachine(context, vm, attempt, machine), config.POLL_SECONDS);
  } catch (error) {
    if (!(error instanceof VendorError)) throw error;
    return refused(context, vm, lease, attempt, error);
  }
}

/** Stores the machine of an attempt; the row waits for its boot. */
export async function keepMachine(
  context: Context,
  vm: store.Vm,
  attempt: store.Attempt,
  machine: Machine,
): Promise<number | null> {
  const at = context.now();
  return store.recordMachine(context.db, vm, attempt, machine.instanceId, {
    bootDeadlineAt: at + context.config.BOOT_TIMEOUT_SECONDS * 1_000,
    wakeAt: at + STALL_MS,
  });
}

/**
 * A label is new with each attempt, so nothing bears it, unless the database was restored to an earlier state: what
 * bears it then has keys that nobody holds any more and belongs to no row. It ends before its name is used again.
 */
async function endNamesakes(context: Context, candidate: Candidate, label: string): Promise<void> {
  const { db, now, gate, vendors } = context;
  const answer = await gate(candidate.vendor).machines(now(), now() - SNAPSHOT_AGE_MS);
  if (!answer.ok) {
    throw new VendorError(candidate.vendor, "wait", answer.message, { retryAfterSeconds: answer.retryAfterSeconds });
  }
  for (const machine of answer.snapshot.machines.filter((one) => one.label === label)) {
    if (await store.isClaimed(db, candidate.vendor, machine.instanceId)) continue;
    log("warn", "namesake_ended", { label, instanceId: machine.instanceId });
    await vendors[candidate.vendor].delete(machine.instanceId);
    throw new VendorError(candidate.vendor, "wait", "a machine of an earlier life bore the label");
  }
}

async function refused(
  context: Context,
  vm: store.Vm,
  lease: string,
  attempt: store.Attempt,
  error: VendorError,
): Promise<Next | "refused"> {
  const { db, now, gate } = context;
  log(error.action === "page" ? "page" : "warn", "create_refused", { label: attempt.label, ...errorFields(error) });
  if (error.action === "unknown") {
    // The row stands at `find` since before the request left; nothing is ordered again until that has an answer.
    const wakeAt = now() + STALL_MS;
    return sendAfter(await store.moveVm(db, vm, { step: "find", wakeAt }), context.config.POLL_SECONDS);
  }
  const outcome = error.action === "next_candidate" ? "sold_out" : error.action === "wait" ? "wait" : "refused";
  await store.closeRefused(db, vm, lease, attempt.number, outcome, error.message, now());
  attempt.outcome = outcome;
  attempt.endedAt = now();
  if (error.action === "next_candidate") return "refused";
  if (error.status === 429) await gate(error.vendor).close(now(), error.retryAfterSeconds);
  if (error.action === "wait") return waitForTurn(context, vm, error.retryAfterSeconds);
  // A key, the balance, or a request that the vendor will never take: other regions answer the same.
  return waitForTurn(context, vm, PAGED_WAIT_SECONDS);
}

async function waitForTurn(context: Context, vm: store.Vm, seconds: number): Promise<Next> {
  const wakeAt = context.now() + seconds * 1_000 + STALL_MS;
  return sendAfter(await store.moveVm(context.db, vm, { step: "create", wakeAt }), seconds);
}

/** By the chain's clock, not ours: a halted chain makes nothing late (hard case 26). */
export const isTooLate = async (context: Context, vm: store.Vm): Promise<boolean> =>
  (await store.chainTime(context.db)) > vm.deadline;

async function tooLate(context: Context, vm: store.Vm): Promise<Next> {
  await store.failVm(context.db, vm, {
    cause: "no_machine_in_time",
    detail: `no vendor had a machine ready by its deadline, after ${vm.attempt} attempts`,
    now: context.now(),
    step: "idle",
    wakeAt: null,
  });
  log("page", "provisioning_failed", { incarnation: vm.incarnation, attempts: vm.attempt });
  return DONE;
}
