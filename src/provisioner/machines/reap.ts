// Machines at the vendors held against our rows, with every sweep: ghosts and orphans end, addresses that moved are
// followed, and a purchase whose machine is gone goes back to work. Each turn does a bounded part of it.

import { readFinalToken } from "../../chain/witness.ts";
import { hasRoom } from "../../db/client.ts";
import * as store from "../../db/reap.ts";
import { currentVm } from "../../db/vms.ts";
import { allClear, errorFields, log } from "../../log.ts";
import type { Job } from "../../model/jobs.ts";
import { formatPorts, portNumbers, readOpenPorts, unreached } from "../../model/ports.ts";
import { familyOfLabel, labelFamily, tokenOfLabel } from "../../model/purchase-key.ts";
import type { VendorName } from "../../model/stock.ts";
import { ask, type Context } from "../context.ts";
import { type Machine, reachPorts, VendorError } from "../vendors/vendor.ts";
import { tellDeleteRefused } from "./clear.ts";
import { readFinalPurchase } from "./verify.ts";

const SNAPSHOT_AGE_MS = 2_000;
const MACHINES_PER_TURN = 1_000;
const GHOSTS_PER_TURN = 50;
const ROWS_PER_TURN = 500;
const TURN_SPAN_MS = 30_000;
/** Machines that no list shows are asked for by their ids, so many in a turn. */
const LOOKUPS_PER_TURN = 20;
/** Beyond this many, or 5 %, something is wrong with us and not with them. */
const MAX_ENDS = 3;
const SHARE_THAT_MAY_END = 0.05;

type Reap = Job & { kind: "reap" };

/** One turn: without a vendor all of them from the start; with one, the rows behind `after`. */
export async function reap(context: Context, job: Reap = { kind: "reap" }): Promise<void> {
  const { now, gate } = context;
  const vendors = job.vendor === undefined ? (["vultr", "runpod"] as const) : [job.vendor];
  for (const vendor of vendors) {
    // A later page may go by an older list: whatever it misses is asked for by its id.
    const age = job.after === undefined ? SNAPSHOT_AGE_MS : TURN_SPAN_MS;
    const answer = await gate(vendor).machines(now(), now() - age);
    if (!answer.ok) continue;
    const { machines } = answer.snapshot;
    if (job.after === undefined) await endStrays(context, vendor, machines);
    await followRows(context, vendor, machines, job.after ?? "");
  }
}

/**
 * Ghosts (of attempts that were given up) end at once: they are known by label and mark together, both stored with the
 * attempt, and no row claims them. Orphans (of no attempt) end only on the chain's proof. What a row claims is neither,
 * whatever its name: it may be under rotation, or renamed by its tenant (hard case 12).
 */
async function endStrays(context: Context, vendor: VendorName, machines: readonly Machine[]): Promise<void> {
  const { db, config } = context;
  const ours = machines.filter((one) => tokenOfLabel(config.DEPLOYMENT_ID, one.label) !== null);
  // A part of them in each turn, so that all have theirs whatever happened to the turns before.
  const part = turnOf(ours, MACHINES_PER_TURN);
  const namesOf = (field: "label" | "instanceId") => part.map((machine) => machine[field]);
  const known = await store.attemptsByLabel(db, vendor, namesOf("label"));
  const claimed = await store.claimedInstances(db, vendor, namesOf("instanceId"));
  const ghosts: Machine[] = [];
  const orphans: Machine[] = [];
  for (const machine of part.filter((one) => !claimed.has(one.instanceId))) {
    const attempt = known.find((one) => one.label === machine.label && one.mark === machine.mark);
    if (attempt === undefined) orphans.push(machine);
    else if (attempt.goneAt !== null || (attempt.endedAt !== null && attempt.outcome !== "running"))
      ghosts.push(machine);
  }
  for (const machine of ghosts.slice(0, GHOSTS_PER_TURN)) await endStray(context, vendor, machine, "ghost");
  await endOrphans(context, vendor, orphans, part.length);
}

/** A part of them by chance: by the time, one part would never be met by turns that come in step with it. */
export function turnOf<T>(all: readonly T[], perTurn: number): T[] {
  if (all.length <= perTurn) return [...all];
  const first = Math.floor(Math.random() * Math.ceil(all.length / perTurn)) * perTurn;
  return all.slice(first, first + perTurn);
}

async function endOrphans(
  context: Context,
  vendor: VendorName,
  orphans: readonly Machine[],
  count: number,
): Promise<void> {
  const youngest = context.now() - context.config.ORPHAN_GRACE_SECONDS * 1_000;
  const old = orphans.filter((one) => one.createdAt < youngest);
  if (old.length > limitOf(count)) {
    log("page", "reap_stopped", { about: vendor, orphans: old.length, machines: count });
    return;
  }
  allClear("reap_stopped", vendor);
  let unexplained = 0;
  for (const machine of old) {
    if (await isOverOnChain(context, machine)) await endStray(context, vendor, machine, "orphan");
    else unexplained += 1;
  }
  // A token that is paid for has a machine that no row knows: the database lost something, and the machine may be in use.
  if (unexplained > 0) log("page", "machines_without_attempt", { about: vendor, count: unexplained });
  else allClear("machines_without_attempt", vendor);
}

const limitOf = (count: number): number => Math.max(MAX_ENDS, Math.floor(count * SHARE_THAT_MAY_END));

/** Whether nobody is owed this machine by final history. A chain that can't be asked proves nothing. */
async function isOverOnChain(context: Context, machine: Machine): Promise<boolean> {
  try {
    return await isNobodys(context, machine);
  } catch (error) {
    log("warn", "orphan_not_judged", { label: machine.label, ...errorFields(error) });
    return false;
  }
}

/** No such token, its time over, or the token of another purchase (hard case 13). */
async function isNobodys({ chain, config, db }: Context, { label, createdAt }: Machine): Promise<boolean> {
  const tokenId = tokenOfLabel(config.DEPLOYMENT_ID, label);
  if (tokenId === null) return false;
  const view = await readFinalToken(chain, tokenId);
  // Final history must be past the machine's order and the grace: before that, a missing token proves nothing.
  if (view.blockTimestamp < createdAt / 1_000 + config.ORPHAN_GRACE_SECONDS) return false;
  if (view.owner === null) return true;
  const holder = await currentVm(db, tokenId);
  if (!view.valid) {
    const grace = config.EXPIRY_GRACE_SECONDS;
    return grace === 0 || (holder !== null && view.blockTimestamp >= holder.expiresAt + grace);
  }
  if (holder === null || label.startsWith(labelFamily(holder.incarnation))) return false;
  const purchase = await readFinalPurchase(chain, config, holder);
  return purchase !== null && purchase.blockNumber <= view.blockNumber;
}

async function endStray(
  context: Context,
  vendor: VendorName,
  { label, instanceId }: Machine,
  what: "ghost" | "orphan",
): Promise<void> {
  log("warn", `${what}_ended`, { label, instanceId });
  try {
    await ask(context, vendor, (at) => at.delete(instanceId));
    await context.gate(vendor).released(familyOfLabel(label), instanceId, context.now());
  } catch (error) {
    if (!(error instanceof VendorError)) throw error;
    tellDeleteRefused(label, error);
  }
}

/** Rows that run, a page at a time, in the order of instance ids: where their machines are now, and whether they are. */
async function followRows(
  context: Context,
  vendor: VendorName,
  machines: readonly Machine[],
  after: string,
): Promise<void> {
  const { db, config } = context;
  const rows = await store.runningPage(db, vendor, after, ROWS_PER_TURN);
  const byId = new Map(machines.map((machine) => [machine.instanceId, machine]));
  const missing: store.RunningRow[] = [];
  const dead: store.RunningRow[] = [];
  let last: store.RunningRow | undefined;
  for (const row of rows) {
    if (!hasRoom()) break;
    const machine = byId.get(row.instanceId);
    if (machine === undefined) missing.push(row);
    else if (machine.state === "dead") dead.push(row);
    else await followMachine(context, vendor, row, machine);
    last = row;
  }
  const gone = await replaceMissing(context, vendor, missing, rows.length);
  tellOfLost(vendor, { running_machine_died: dead, running_machine_vanished: gone }, await store.markStopped(db, dead));
  if (rows.length < ROWS_PER_TURN && last === rows.at(-1)) return;
  await config.JOBS.send({ kind: "reap", vendor, after: last?.instanceId ?? after }, { delaySeconds: 1 });
}

/** RunPod's host and ports move with a restart. */
async function followMachine(
  { db }: Context,
  vendor: VendorName,
  row: store.RunningRow,
  { state, host, port, instanceId, mapped }: Machine,
): Promise<void> {
  if (state !== "up" || host === null || port === null) return;
  const known = portNumbers(readOpenPorts(row.ports));
  const reached = reachPorts({ host, mapped }, known);
  // Where it was before, another customer of the vendor's may be by now.
  const hasMoved = row.sshHost !== host || row.sshPort !== port;
  const told = hasMoved ? formatPorts(unreached(known)) : row.ports;
  const ports = reached === null ? told : formatPorts(reached);
  if (hasMoved || row.ports !== ports) await store.moveAddress(db, vendor, instanceId, { host, port, ports });
}

/**
 * A tenant may stop and delete its own machine; a person is called where several of them lose theirs at once. What goes on
 * being stopped is nothing new.
 */
function tellOfLost(
  vendor: VendorName,
  lost: { running_machine_died: readonly store.RunningRow[]; running_machine_vanished: readonly store.RunningRow[] },
  stopped: readonly store.RunningRow[],
): void {
  for (const [event, rows] of Object.entries(lost)) {
    for (const { tokenId, instanceId } of rows) log("warn", event, { vendor, tokenId, instanceId });
  }
  const owners = new Set([...stopped, ...lost.running_machine_vanished].map(({ owner }) => owner));
  if (owners.size > MAX_ENDS) log("page", "machines_missing", { about: vendor, owners: owners.size });
  else allClear("machines_missing", vendor);
}

/**
 * A machine that ran and that its vendor, asked for it by its id, knows no more: the purchase gets another one, so many in
 * a turn (hard case 39). An account that shows none of many is not the one that they were rented in: none is replaced.
 */
async function replaceMissing(
  context: Context,
  vendor: VendorName,
  missing: readonly store.RunningRow[],
  count: number,
): Promise<store.RunningRow[]> {
  const { db, config, now } = context;
  if (missing.length === count && count > LOOKUPS_PER_TURN) {
    log("page", "account_without_machines", { about: vendor, missing: missing.length });
    return [];
  }
  allClear("account_without_machines", vendor);
  const gone: store.RunningRow[] = [];
  for (const row of turnOf(missing, LOOKUPS_PER_TURN)) {
    try {
      if ((await ask(context, vendor, (at) => at.get(row.instanceId))) !== null) continue;
      await context.gate(vendor).released(labelFamily(row.incarnation), row.instanceId);
      gone.push(row);
    } catch (error) {
      if (!(error instanceof VendorError)) throw error;
      log("warn", "machine_not_looked_up", { vendor, instanceId: row.instanceId, ...errorFields(error) });
    }
  }
  for (const row of gone.slice(0, limitOf(count))) {
    const queued = await store.replaceVanished(db, row, now(), config.REPLACE_DEADLINE_SECONDS);
    if (queued !== null) await config.JOBS.send({ kind: "advance", ...queued });
  }
  return gone;
}
