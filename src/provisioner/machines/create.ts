// From a purchase to a machine that the vendor has accepted. The intent is a row before the request leaves, and only
// one consumer at a time holds the row's lease.
import { bytesToHex, randomBytes } from "@noble/hashes/utils.js";
import { dataKeyId, sealSecret } from "../../credentials/ecies.ts";
import { generateHostKey } from "../../credentials/ssh-keys.ts";
import { hasRoom } from "../../db/client.ts";
import { shortenDeadline } from "../../db/orders.ts";
import { isPaused } from "../../db/pauses.ts";
import type { Vm } from "../../db/schema.ts";
import { loadCatalog } from "../../db/sweep.ts";
import * as store from "../../db/vms.ts";
import { allClear, errorFields, log } from "../../log.ts";
import { formatPorts, readPorts, unreached } from "../../model/ports.ts";
import { labelFamily, machineLabel } from "../../model/purchase-key.ts";
import { type Candidate, isWithinShare, offerOf, type VendorName, vendorsOf } from "../../model/stock.ts";
import { type OrderBehind, readTerms, type Terms } from "../../model/terms.ts";
import { REGIONS, type Region } from "../../model/tiers.ts";
import { inTurn } from "../../outbound.ts";
import { type Context, DONE, goOn, isOurs, type Next, permit, sendAfter } from "../context.ts";
import { type Supplies, VendorError } from "../vendors/vendor.ts";
import { candidatesOf, nextCandidate, placeOf } from "./candidates.ts";
import { isTooLate, keepToken, MAX_REPLACEMENTS, tooLate, usedUp } from "./give-up.ts";
import { keepMachine } from "./keep.ts";
import { type LoginKey, makeKeys, ownKeyOf } from "./keys.ts";
import { machineNote } from "./machine-note.ts";
import { pageIfRefusedEverywhere, type Refused, refused } from "./refused.ts";
import { isGone, verifyPurchase } from "./verify.ts";
import { LEASE_MS, MAX_WAIT_SECONDS, PAGED_WAIT_SECONDS, PAUSED_WAIT_SECONDS, STALL_MS } from "./waits.ts";

/** No further vendor call is begun in a turn that has lasted this long. */
const TURN_MS = 45_000;

const RECEIPT_WAIT_SECONDS = 3;

const LIST_AGE_MS = 15_000;

/**
 * Checks the purchase, then tries candidates until one has a machine or all are used up for this turn. The check is part
 * of every turn, under the lease: a row that somebody wrote, or that a reorg has overtaken, orders nothing.
 */
export async function create(
  context: Context,
  vm: store.TimedVm,
  orderOf: (vm: Vm) => Promise<OrderBehind>,
): Promise<Next> {
  const began = context.now();
  const lease = crypto.randomUUID();
  try {
    if (!(await store.takeLease(context.db, vm, lease, began + LEASE_MS, began))) return DONE;
    return await takeTurn(context, vm, lease, began, orderOf);
  } catch (error) {
    // The message comes back within seconds: it must find the row free, were it only the lease's answer that was lost.
    await store.releaseLease(context.db, vm, lease);
    throw error;
  }
}

async function takeTurn(
  context: Context,
  vm: store.TimedVm,
  lease: string,
  began: number,
  orderOf: (vm: Vm) => Promise<OrderBehind>,
): Promise<Next> {
  const { db, chain, config, now } = context;
  // After a pause that was too long the purchase is looked at once more, to be paid back.
  const isHeldUp = (await isPaused(db, "provisioning")) && !(await isTooLate(context, vm));
  if (isHeldUp) return waitForTurn(context, vm, PAUSED_WAIT_SECONDS);
  const tried = await store.loadAttempts(db, vm.incarnation);
  // An attempt without an end may have a machine that we don't know of, or one that is not gone.
  const unresolved = tried.find((attempt) => attempt.endedAt === null);
  if (unresolved !== undefined) return resolveFirst(context, vm, unresolved);
  if (tried.some(hasMachine)) return goOn(await store.moveVm(db, vm, { step: "clear", wakeAt: began + STALL_MS }));
  const seen = await verifyPurchase(context, vm);
  if (seen === "missing") {
    // One node told of it and two don't know it: it never was, once final history has passed its block. It is never late:
    // a refund would be owed for what nobody bought, and the token would stay with it (hard case 61).
    if (!(await isGone(chain, config, vm, null))) return waitForTurn(context, vm, RECEIPT_WAIT_SECONDS);
    return goOn(await store.moveVm(db, vm, { step: "retire", wakeAt: began + STALL_MS }));
  }
  if (await isTooLate(context, vm)) return tooLate(context, vm);
  if (tried.filter(({ outcome }) => outcome === "vanished").length > MAX_REPLACEMENTS) return usedUp(context, vm);
  if (seen === "moved") return waitForTurn(context, vm, RECEIPT_WAIT_SECONDS);
  const order = isOurs(context, vm) ? await orderOf(vm) : null;
  if (order?.kind === "unlinked") return waitForTurn(context, vm, RECEIPT_WAIT_SECONDS);
  if (order?.kind === "over") return keepToken(context, vm);
  if (order !== null && order.deadline !== null && order.deadline < vm.deadline)
    await shortenDeadline(db, vm.incarnation, order.deadline);
  const terms = order?.terms ?? readTerms(vm);
  const ports = readPorts(terms?.ports ?? null);
  let candidates = await rankCandidates(context, vm.tier, terms);
  let pair: LoginKey | undefined;
  const renewed = new Set<VendorName>();
  // Vendors that take no order in this turn, and the soonest that one of them wants to be asked again.
  let waitSeconds = Number.POSITIVE_INFINITY;
  for (;;) {
    if (candidates.length === 0) return waitForTurn(context, vm, Math.max(1, waitSeconds));
    const next = nextCandidate(candidates, tried, now(), Math.random());
    if ("waitMs" in next) return waitForTurn(context, vm, Math.min(waitSeconds, next.waitMs / 1_000));
    if (now() - began > TURN_MS || !hasRoom()) return waitForTurn(context, vm, 0);
    const { candidate } = next;
    try {
      const { supplies, taken, settle } = await prepare(context, vm, candidate, ports);
      // Kept while vendors refuse: a refused attempt has used no key.
      pair ??= ownKeyOf(context, vm, terms) ?? (await makeKeys(context, vm));
      const number = Math.max(taken, tried.at(-1)?.number ?? 0) + 1;
      const order = { candidate, supplies, ports, number, pair, settle };
      // The turn comes before the intent: an order that waited behind it would reach the vendor after the quiet time.
      const outcome = await inTurn(() => tryCandidate(context, vm, lease, order, tried));
      if (outcome.kind !== "refused") return outcome;
      if (outcome.action === "skip_candidate" && !renewed.has(candidate.vendor)) {
        // What the order named may be gone: an image, or a firewall that was removed by hand.
        renewed.add(candidate.vendor);
        await context.gate(candidate.vendor).forgetSupplies();
      }
      const isRefusedEverywhere = pageIfRefusedEverywhere(context, vm.tier, candidate.vendor, tried);
      if (outcome.waitSeconds === 0 && !isRefusedEverywhere) continue;
      waitSeconds = Math.min(waitSeconds, isRefusedEverywhere ? PAGED_WAIT_SECONDS : outcome.waitSeconds);
    } catch (error) {
      if (!(error instanceof VendorError)) throw error;
      log("warn", "create_put_off", { vendor: candidate.vendor, ...errorFields(error) });
      waitSeconds = Math.min(waitSeconds, error.retryAfterSeconds);
    }
    candidates = candidates.filter((one) => one.vendor !== candidate.vendor);
  }
}

/** For an order by x402, only where it was asked for, and where the vendor takes no more than its share. */
async function rankCandidates(
  { db, config, gate, now }: Context,
  tier: number,
  terms: Terms | null,
): Promise<Candidate[]> {
  const stock = (await loadCatalog(db))?.stock ?? {};
  const troubled = new Map<VendorName, string[]>();
  for (const vendor of vendorsOf(tier, config)) troubled.set(vendor, await gate(vendor).troubled(now()));
  const isTroubled = (candidate: Candidate) => troubled.get(candidate.vendor)?.includes(placeOf(candidate)) === true;
  const ranked = candidatesOf(tier, { places: placesOf(config, terms), stock, isTroubled });
  if (terms === null) return ranked;
  const { pricePerDay } = terms;
  return ranked.filter((candidate) => isWithinShare(offerOf(stock, candidate), pricePerDay, config.MAX_COST_SHARE));
}

function placesOf(config: Context["config"], terms: Terms | null) {
  const regions: readonly string[] | undefined = REGIONS[terms?.region as Region];
  if (regions === undefined) return config;
  return { ...config, VULTR_REGIONS: config.VULTR_REGIONS.filter((region) => regions.includes(region)) };
}

const hasMachine = (attempt: store.Attempt): boolean => attempt.instanceId !== null && attempt.goneAt === null;

async function resolveFirst(context: Context, vm: Vm, attempt: store.Attempt): Promise<Next> {
  const step = attempt.instanceId === null ? "find" : "boot";
  const wakeAt = context.now() + STALL_MS;
  return goOn(await store.moveVm(context.db, vm, { step, attempt: attempt.number, wakeAt }));
}

type Settle = Awaited<ReturnType<typeof permit>>;

type Preparation = { supplies: Supplies; taken: number; settle: Settle };

type Order = Omit<Preparation, "taken"> & {
  candidate: Candidate;
  ports: readonly number[];
  number: number;
  pair: LoginKey;
};

/**
 * What has to be known before the intent is written, none of it making a machine: a permit, what the vendor needs for an
 * order, and the highest attempt number that a machine of this incarnation bears at the vendor. That is above our own
 * only if the database was restored to an earlier state; such a machine may be a customer's, so its name is left to it.
 */
async function prepare(
  context: Context,
  vm: Vm,
  { vendor }: Candidate,
  ports: readonly number[],
): Promise<Preparation> {
  const { now, gate } = context;
  const family = labelFamily(vm.incarnation);
  const answer = await gate(vendor).machinesOf(now(), now() - LIST_AGE_MS, { family });
  if (!answer.ok) throw putOff(vendor, answer);
  const prepared = await gate(vendor).supplies(now(), ports);
  if (!prepared.ok) throw putOff(vendor, prepared);
  const numbers = answer.snapshot.machines
    .map((machine) => Number(machine.label.slice(family.length)))
    .filter(Number.isSafeInteger);
  return { supplies: prepared.supplies, taken: Math.max(0, ...numbers), settle: await permit(context, vendor) };
}

const putOff = (vendor: VendorName, { message, retryAfterSeconds }: { message: string; retryAfterSeconds: number }) =>
  new VendorError(vendor, "wait", message, { retryAfterSeconds });

/** One attempt. */
async function tryCandidate(
  context: Context,
  vm: Vm,
  lease: string,
  { candidate, supplies, ports, number, pair, settle }: Order,
  tried: store.Attempt[],
): Promise<Next | Refused> {
  const { db, config, now } = context;
  const label = machineLabel(vm.incarnation, number);
  const mark = bytesToHex(randomBytes(12));
  if (!(await mayOrder(context, vm, candidate, mark))) {
    log("page", "too_many_machines", { about: candidate.vendor, label });
    return { kind: "refused", waitSeconds: PAGED_WAIT_SECONDS };
  }
  allClear("too_many_machines", candidate.vendor);
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
    broughtBy: "broughtBy" in pair ? pair.broughtBy : null,
    privateKey:
      pair.privateKey === null ? null : await sealSecret(config.DATA_PUBLIC_KEY, secretContext, pair.privateKey),
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
    deleteFailedAt: null,
  };
  await store.openAttempt(db, vm, lease, attempt, formatPorts(unreached(ports)));
  tried.push(attempt);
  try {
    const { region, plan } = candidate;
    const note = machineNote(config, vm, candidate.vendor, ports);
    const spec = { label, mark, region, plan, publicKey: pair.publicKey, hostKey, ports, note };
    const machine = await context.vendors[candidate.vendor].create(spec, supplies);
    await settle();
    log("info", "machine_ordered", { label, vendor: candidate.vendor, region, plan });
    allClear("create_refused", candidate.vendor);
    return sendAfter(await keepMachine(context, vm, attempt, machine), config.POLL_SECONDS);
  } catch (error) {
    if (!(error instanceof VendorError)) throw error;
    await settle(error);
    return refused(context, vm, lease, attempt, error);
  }
}

/** Whoever writes rows must not have machines made without end: the vendors' gates know of what was ordered (hard case 34). */
async function mayOrder(
  { config, gate, now }: Context,
  { incarnation, tier }: Vm,
  { vendor }: Candidate,
  mark: string,
): Promise<boolean> {
  const family = labelFamily(incarnation);
  let elsewhere = 0;
  for (const other of vendorsOf(tier, config)) {
    if (other !== vendor) elsewhere += await gate(other).countOrdered(now(), family);
  }
  return gate(vendor).mayOrder(now(), family, mark, elsewhere);
}

async function waitForTurn(context: Context, vm: Vm, seconds: number): Promise<Next> {
  const wait = Math.min(MAX_WAIT_SECONDS, seconds);
  const wakeAt = context.now() + wait * 1_000 + STALL_MS;
  return sendAfter(await store.moveVm(context.db, vm, { step: "create", wakeAt }), wait);
}
