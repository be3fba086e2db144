// Machines and their attempts, as the provisioner moves them. Every write names the lease or the generation it acts
// under; a write that finds neither changes nothing, and the caller drops its message.
import { and, asc, eq, getTableColumns, isNotNull, isNull, lt, or, sql } from "drizzle-orm";
import type { SQLiteUpdateSetSource } from "drizzle-orm/sqlite-core";
import { requireMachineMove, type Status, type Step, stageOf } from "../model/machine-life.ts";
import { type Database, once, runBatch } from "./client.ts";
import { forgetSealed, UNPUBLISHED } from "./delivery.ts";
import { bookRefund, type NewRefund } from "./refunds.ts";
import { attempts, cursors, failedProvisionings, purchases, type Vm, vms } from "./schema.ts";
import { type QueuedVm, WAKE_AFTER_MS } from "./wake.ts";

/** With the scanned head's time, as `chainTime` has it: read together, since most steps need both. */
export type TimedVm = Vm & { chainTime: number };
export type Attempt = typeof attempts.$inferSelect;

const given = sql.placeholder;
export const timedVm = {
  ...getTableColumns(vms),
  chainTime: sql<number>`COALESCE((SELECT block_timestamp FROM cursors), 0)`,
};
const vmOf = once((db) =>
  db
    .select(timedVm)
    .from(vms)
    .where(eq(vms.incarnation, given("incarnation")))
    .prepare(),
);
const attemptsOf = once((db) =>
  db
    .select()
    .from(attempts)
    .where(eq(attempts.incarnation, given("incarnation")))
    .orderBy(asc(attempts.number))
    .prepare(),
);
const scannedTime = once((db) => db.select({ at: cursors.blockTimestamp }).from(cursors).prepare());

export const loadVm = async (db: Database, incarnation: string): Promise<TimedVm | null> =>
  (await vmOf(db).get({ incarnation })) ?? null;

export const loadAttempts = (db: Database, incarnation: string): Promise<Attempt[]> =>
  attemptsOf(db).all({ incarnation });

/** The scanned head's time: unix seconds of the chain, 0 before the first scan. */
export const chainTime = async (db: Database): Promise<number> => (await scannedTime(db).get())?.at ?? 0;

/** Hash of the block in which the scan last saw a purchase. */
export const scannedIn = async (db: Database, incarnation: string): Promise<string | null> =>
  (
    await db
      .select({ blockHash: purchases.blockHash })
      .from(purchases)
      .where(eq(purchases.incarnation, incarnation))
      .get()
  )?.blockHash ?? null;

/** Whether a machine at a vendor already belongs to some attempt. */
export async function isClaimed(db: Database, provider: "vultr" | "runpod", instanceId: string): Promise<boolean> {
  const vm = await db
    .select({ id: vms.incarnation })
    .from(vms)
    .where(and(eq(vms.provider, provider), eq(vms.instanceId, instanceId), isNotNull(vms.instanceId)))
    .get();
  return vm !== undefined;
}

/** Compare-and-set of the lease; false when another consumer works on the row or it has moved on. */
export async function takeLease(db: Database, vm: Vm, lease: string, until: number, now: number): Promise<boolean> {
  const result = await db
    .update(vms)
    .set({ lease, leaseUntil: until, wakeAt: until })
    .where(
      and(
        eq(vms.incarnation, vm.incarnation),
        eq(vms.generation, vm.generation),
        or(eq(vms.lease, ""), lt(vms.leaseUntil, now)),
      ),
    );
  return result.meta.changes > 0;
}

export const releaseLease = (db: Database, vm: Vm, lease: string) =>
  db
    .update(vms)
    .set({ lease: "", leaseUntil: 0 })
    .where(and(eq(vms.incarnation, vm.incarnation), eq(vms.lease, lease)));

/** A purchase whose machine is gone, or about to be, goes back to work, with a deadline of its own. */
export async function startOver(
  db: Database,
  vm: Vm,
  { now, checkAt, deadlineSeconds }: { now: number; checkAt: number; deadlineSeconds: number },
): Promise<QueuedVm | null> {
  return (
    (await db
      .update(vms)
      .set({
        ...checkedMove(vm, { status: "provisioning", step: "create" }),
        wakeAt: now + WAKE_AFTER_MS,
        checkAt,
        deadline: sql`(SELECT block_timestamp FROM cursors) + ${deadlineSeconds}`,
        ...UNPUBLISHED,
        ...nextTurn(vm),
      })
      .where(and(eq(vms.incarnation, vm.incarnation), eq(vms.generation, vm.generation)))
      .returning({ incarnation: vms.incarnation, generation: vms.generation })
      .get()) ?? null
  );
}

type VmMove = { status?: Status; step: Step; wakeAt: number | null } & Partial<Pick<Vm, "attempt" | "checkAt">>;

/** Moves a row on from the generation it was read at; the new generation, or null where it had moved already. */
export async function moveVm(db: Database, vm: Vm, move: VmMove): Promise<number | null> {
  const row = await db
    .update(vms)
    .set({ ...checkedMove(vm, move), ...nextTurn(vm) })
    .where(and(eq(vms.incarnation, vm.incarnation), eq(vms.generation, vm.generation)))
    .returning({ generation: vms.generation })
    .get();
  return row?.generation ?? null;
}

type Columns = Omit<SQLiteUpdateSetSource<typeof vms>, "status" | "step"> & { status?: Status; step?: Step };

/** What a move writes, if a machine's life has it. Throws `ForbiddenMove` where it has not. */
function checkedMove<M extends Columns>(vm: Vm, move: M): M {
  requireMachineMove(stageOf(vm), stageOf({ ...vm, ...move }));
  return move;
}

/** What ends a turn: messages of the one before are stale from here on, and the row is free. */
const nextTurn = (vm: Vm) => ({ generation: vm.generation + 1, lease: "", leaseUntil: 0 });

// First in a batch: fails, and with it the whole batch, when the lease is not the writer's (see schema, `lease`).
const fenceByLease = (db: Database, vm: Vm, lease: string, move: Columns) =>
  db
    .update(vms)
    .set({
      ...checkedMove(vm, move),
      lease: sql`CASE WHEN ${vms.lease} = ${lease} AND ${vms.generation} = ${vm.generation} THEN ${vms.lease} END`,
    })
    .where(eq(vms.incarnation, vm.incarnation));

/** The same for a writer without a lease. The move begins a new generation. */
export const fenceByGeneration = (db: Database, vm: Vm, move: Columns) =>
  db
    .update(vms)
    .set({
      ...checkedMove(vm, move),
      ...nextTurn(vm),
      lease: sql`CASE WHEN ${vms.generation} = ${vm.generation} THEN '' END`,
    })
    .where(eq(vms.incarnation, vm.incarnation));

/** True for the failure of a batch whose fence did not hold. */
export const isFenced = (error: unknown): boolean => {
  const text = error instanceof Error ? `${error.message} ${String((error.cause as Error | undefined)?.message)}` : "";
  return /NOT NULL constraint failed: (vms|cursors)\.lease/.test(text);
};

/**
 * Writes the intent before the request leaves: from here on a machine may exist under this attempt's label. `ports`: what its
 * order asks for.
 */
export const openAttempt = (
  db: Database,
  vm: Vm,
  lease: string,
  attempt: typeof attempts.$inferInsert,
  ports: string | null,
) =>
  db.batch([
    fenceByLease(db, vm, lease, { step: "find", attempt: attempt.number, ports }),
    db.insert(attempts).values(attempt),
  ]);

/** The vendor refused: nothing was made. The attempt is closed and its key forgotten; the lease is kept. */
export const closeRefused = (
  db: Database,
  vm: Vm,
  lease: string,
  number: number,
  outcome: string,
  detail: string,
  now: number,
) =>
  db.batch([
    fenceByLease(db, vm, lease, { step: "create" }),
    db
      .update(attempts)
      .set({ outcome, detail, endedAt: now, goneAt: now, privateKey: null })
      .where(isAttempt(vm, number)),
  ]);

/** The vendor made it (or it was found): the row waits for the boot under a new generation. */
export async function recordMachine(
  db: Database,
  vm: Vm,
  attempt: Pick<Attempt, "number" | "provider" | "region" | "plan">,
  instanceId: string,
  times: { bootDeadlineAt: number; wakeAt: number },
): Promise<number | null> {
  const { provider, region, plan } = attempt;
  await db.batch([
    fenceByGeneration(db, vm, { step: "boot", provider, region, plan, instanceId, wakeAt: times.wakeAt }),
    db.update(attempts).set({ instanceId, bootDeadlineAt: times.bootDeadlineAt }).where(isAttempt(vm, attempt.number)),
  ]);
  return vm.generation + 1;
}

/**
 * A machine is about to get other keys: they are an attempt of their own, on the same machine, and what was there before
 * is over. Of an order that did not get through, the login key is used again and the rest replaced. The row stays at
 * `rotate` until the vendor has taken the order.
 */
export const openRotation = (db: Database, vm: Vm, lease: string, attempt: Attempt) => {
  const { mark, hostPublicKey, createSentAt } = attempt;
  return db.batch([
    fenceByLease(db, vm, lease, { attempt: attempt.number }),
    db
      .update(attempts)
      .set({ goneAt: createSentAt, privateKey: null })
      .where(
        and(
          eq(attempts.incarnation, vm.incarnation),
          lt(attempts.number, attempt.number),
          eq(attempts.instanceId, attempt.instanceId ?? ""),
          isNull(attempts.goneAt),
        ),
      ),
    db
      .insert(attempts)
      .values(attempt)
      .onConflictDoUpdate({
        target: [attempts.incarnation, attempts.number],
        set: { mark, hostPublicKey, createSentAt },
      }),
    forgetSealed(db, vm.incarnation, attempt.number - 1),
  ]);
};

/** Closes an attempt and moves the row, in one batch. `gone` says that the vendor no longer knows a machine of it. */
export async function closeAttempt(
  db: Database,
  vm: Vm,
  number: number,
  end: { outcome: string; detail: string; now: number; gone: boolean },
  move: VmMove,
): Promise<number | null> {
  const { outcome, detail, now, gone } = end;
  await db.batch([
    fenceByGeneration(db, vm, move),
    db
      .update(attempts)
      .set({ outcome, detail, endedAt: now, privateKey: null, ...(gone ? { goneAt: now } : {}) })
      .where(and(isAttempt(vm, number), isNull(attempts.endedAt))),
  ]);
  return vm.generation + 1;
}

/** The vendor knows the machine no more. */
export const markGone = (db: Database, attempt: Attempt, now: number) =>
  db.batch([
    db
      .update(attempts)
      .set({ goneAt: now, privateKey: null, endedAt: sql`COALESCE(${attempts.endedAt}, ${now})` })
      .where(isAttempt(attempt, attempt.number)),
    db
      .update(vms)
      .set({ instanceId: null })
      .where(and(eq(vms.incarnation, attempt.incarnation), eq(vms.attempt, attempt.number))),
    forgetSealed(db, attempt.incarnation, attempt.number),
  ]);

/** The first time that the end of its machine failed is kept. */
export const markDeleteFailed = (db: Database, attempt: Attempt, now: number) =>
  db
    .update(attempts)
    .set({ deleteFailedAt: now })
    .where(and(isAttempt(attempt, attempt.number), isNull(attempts.deleteFailedAt)));

/** An order without an answer made no machine. */
export const closeLost = (db: Database, attempt: Attempt, detail: string, now: number) =>
  db
    .update(attempts)
    .set({ outcome: "lost", detail, endedAt: now, goneAt: now, privateKey: null })
    .where(isAttempt(attempt, attempt.number));

/** Publishes the machine with the keys stored for its attempt; the attempt keeps no copy. */
export async function publish(
  db: Database,
  vm: Vm,
  attempt: Attempt,
  at: {
    host: string;
    port: number;
    ports: string | null;
    now: number;
    /** When the sweep looks after the scrub; null where there is none to do. */
    scrubAt: number | null;
    lateSeconds: number | null;
    refund?: NewRefund;
  },
): Promise<number> {
  await runBatch(db, [
    fenceByGeneration(db, vm, {
      status: "running",
      step: at.scrubAt === null ? "idle" : "scrub",
      wakeAt: at.scrubAt,
      sshHost: at.host,
      sshPort: at.port,
      ports: at.ports,
      sshPrivateKey: attempt.privateKey,
      keyId: attempt.keyId,
      // A machine that was replaced does not make the purchase run later.
      runningAt: sql`COALESCE(${vms.runningAt}, ${at.now})`,
      lateSeconds: sql`COALESCE(${vms.lateSeconds}, ${at.lateSeconds})`,
    }),
    db
      .update(attempts)
      .set({ outcome: "running", endedAt: at.now, privateKey: null })
      .where(isAttempt(vm, attempt.number)),
    ...(at.refund === undefined ? [] : [bookRefund(db, at.refund)]),
  ]);
  return vm.generation + 1;
}

/** Ends a purchase without a machine, with a row that says why. `step` is clear while one is still to be ended. */
export async function failVm(
  db: Database,
  vm: Vm,
  failure: {
    cause: string;
    detail: string;
    now: number;
    step: "clear" | "idle";
    wakeAt: number | null;
    /** What the buyer gets back, if that is decided with it. */
    refund?: NewRefund | undefined;
  },
): Promise<void> {
  const { cause, detail, now, step, wakeAt, refund } = failure;
  await runBatch(db, [
    fenceByGeneration(db, vm, { status: "failed", step, failure: cause, wakeAt, checkAt: null }),
    db.insert(failedProvisionings).values({
      incarnation: vm.incarnation,
      tokenId: vm.tokenId,
      tier: vm.tier,
      cause,
      detail,
      attempts: vm.attempt,
      createdAt: now,
    }),
    ...(refund === undefined ? [] : [bookRefund(db, refund)]),
  ]);
}

/** The row that holds a token now. */
export const currentVm = async (db: Database, tokenId: number): Promise<Vm | null> =>
  (await db
    .select()
    .from(vms)
    .where(and(eq(vms.tokenId, tokenId), eq(vms.current, true)))
    .get()) ?? null;

/** Brings a row's next turn forward, for the sweep to send. */
export const wakeAt = (db: Database, incarnation: string, at: number) =>
  db
    .update(vms)
    .set({ wakeAt: at })
    .where(and(eq(vms.incarnation, incarnation), isNotNull(vms.wakeAt)));

const isAttempt = ({ incarnation }: Pick<Attempt, "incarnation">, number: number) =>
  and(eq(attempts.incarnation, incarnation), eq(attempts.number, number));
