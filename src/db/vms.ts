// Machines and their attempts, as the provisioner moves them. Every write names the lease or the generation that it acts under.
// A write under an old one changes nothing, and the caller drops its message.
import { and, asc, eq, getTableColumns, isNotNull, isNull, lt, or, sql } from "drizzle-orm";
import type { SQLiteUpdateSetSource } from "drizzle-orm/sqlite-core";
import { requireMachineMove, type Status, type Step, stageOf } from "../model/machine-life.ts";
import { type Database, once, runBatch } from "./client.ts";
import { forgetSealed, UNPUBLISHED } from "./delivery.ts";
import { bookRefund, type NewRefund } from "./refunds.ts";
import { attempts, cursors, failedProvisionings, purchases, type Vm, vms } from "./schema.ts";
import { type QueuedVm, WAKE_AFTER_MS } from "./wake.ts";

/** A machine's row with the scanned head's time (see `chainTime`), in one read: most steps need both. */
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

/** The hash of the block in which the scan last saw a purchase; null without the purchase's row. */
export const scannedIn = async (db: Database, incarnation: string): Promise<string | null> =>
  (
    await db
      .select({ blockHash: purchases.blockHash })
      .from(purchases)
      .where(eq(purchases.incarnation, incarnation))
      .get()
  )?.blockHash ?? null;

/** Whether a vendor's machine already belongs to a row. */
export async function isClaimed(db: Database, provider: "vultr" | "runpod", instanceId: string): Promise<boolean> {
  const vm = await db
    .select({ id: vms.incarnation })
    .from(vms)
    .where(and(eq(vms.provider, provider), eq(vms.instanceId, instanceId), isNotNull(vms.instanceId)))
    .get();
  return vm !== undefined;
}

/** Takes a row's lease by compare-and-set. False when another consumer has it, or the row has moved. */
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

/**
 * Moves a purchase whose machine is gone, or will be, back to provisioning, with a deadline of its own. Null when the row has
 * moved.
 */
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

/** Moves a row from the generation that it was read at. Returns the new generation; null when the row has moved already. */
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

/** Returns the move. Throws `ForbiddenMove` when a machine's life does not have it. */
function checkedMove<M extends Columns>(vm: Vm, move: M): M {
  requireMachineMove(stageOf(vm), stageOf({ ...vm, ...move }));
  return move;
}

/** The columns that end a step: a new generation, which makes older messages stale, and a free lease. */
const nextTurn = (vm: Vm) => ({ generation: vm.generation + 1, lease: "", leaseUntil: 0 });

// The first statement of a batch: it fails, and the whole batch with it, when another writer has the lease (see schema,
// `lease`).
const fenceByLease = (db: Database, vm: Vm, lease: string, move: Columns) =>
  db
    .update(vms)
    .set({
      ...checkedMove(vm, move),
      lease: sql`CASE WHEN ${vms.lease} = ${lease} AND ${vms.generation} = ${vm.generation} THEN ${vms.lease} END`,
    })
    .where(eq(vms.incarnation, vm.incarnation));

/** Like `fenceByLease`, for a writer without a lease. The move begins a new generation. */
export const fenceByGeneration = (db: Database, vm: Vm, move: Columns) =>
  db
    .update(vms)
    .set({
      ...checkedMove(vm, move),
      ...nextTurn(vm),
      lease: sql`CASE WHEN ${vms.generation} = ${vm.generation} THEN '' END`,
    })
    .where(eq(vms.incarnation, vm.incarnation));

/** Whether an error is the failure of a batch's fence: another writer has the lease, or the row has moved. */
export const isFenced = (error: unknown): boolean => {
  const text = error instanceof Error ? `${error.message} ${String((error.cause as Error | undefined)?.message)}` : "";
  return /NOT NULL constraint failed: (vms|cursors)\.lease/.test(text);
};

/**
 * Stores an attempt before its request to the vendor: from now on a machine may exist under the attempt's label. `ports`: the
 * ports that the machine's order asks for, as JSON.
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

/** Closes an attempt that the vendor refused, so that no machine exists. The attempt's key is erased; the lease is kept. */
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

/** Stores an attempt's machine, made or found at the vendor: the row waits for the boot. Returns the new generation. */
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
 * Stores new keys for a machine before the vendor is asked to install them. The keys are a new attempt on the same machine, and
 * end the earlier attempts there. If the request has failed before, the attempt keeps its login key, and its mark, host key and
 * time are replaced. The row stays at `rotate` until the vendor has accepted the request.
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

/**
 * Closes an attempt and moves the row, in one batch. `gone`: the vendor does not have the attempt's machine any more. Returns
 * the new generation.
 */
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

/** Records that the vendor does not have an attempt's machine any more. */
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

/** Records that the deletion of an attempt's machine failed. The time of the first failure is kept. */
export const markDeleteFailed = (db: Database, attempt: Attempt, now: number) =>
  db
    .update(attempts)
    .set({ deleteFailedAt: now })
    .where(and(isAttempt(attempt, attempt.number), isNull(attempts.deleteFailedAt)));

/** Closes an attempt whose create had no answer and made no machine. */
export const closeLost = (db: Database, attempt: Attempt, detail: string, now: number) =>
  db
    .update(attempts)
    .set({ outcome: "lost", detail, endedAt: now, goneAt: now, privateKey: null })
    .where(isAttempt(attempt, attempt.number));

/** Publishes a machine with the keys of its attempt; the attempt's copy is erased. Returns the new generation. */
export async function publish(
  db: Database,
  vm: Vm,
  attempt: Attempt,
  at: {
    host: string;
    port: number;
    ports: string | null;
    now: number;
    /** When the sweep checks the scrub (the removal of the vendor's copy of the host key); null without a scrub. */
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
      // A replaced machine does not change when the purchase first ran.
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

/** Fails a purchase and records the cause for operators. `step` is `clear` while a machine is still to be ended. */
export async function failVm(
  db: Database,
  vm: Vm,
  failure: {
    cause: string;
    detail: string;
    now: number;
    step: "clear" | "idle";
    wakeAt: number | null;
    /** The buyer's refund, if it is decided together with the failure. */
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

/** The row that holds a token now, or null. */
export const currentVm = async (db: Database, tokenId: number): Promise<Vm | null> =>
  (await db
    .select()
    .from(vms)
    .where(and(eq(vms.tokenId, tokenId), eq(vms.current, true)))
    .get()) ?? null;

/** Sets the time at which the sweep queues a row again. A row with nothing left to do is not woken. */
export const wakeAt = (db: Database, incarnation: string, at: number) =>
  db
    .update(vms)
    .set({ wakeAt: at })
    .where(and(eq(vms.incarnation, incarnation), isNotNull(vms.wakeAt)));

const isAttempt = ({ incarnation }: Pick<Attempt, "incarnation">, number: number) =>
  and(eq(attempts.incarnation, incarnation), eq(attempts.number, number));
