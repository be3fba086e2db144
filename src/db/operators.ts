// Queries and orders of operators.
import { and, asc, desc, eq, gt, isNull, lt, sql } from "drizzle-orm";
import { type Status, stagesOf } from "../model/machine-life.ts";
import { refundStatesThat, requireRefundMove } from "../model/refund-life.ts";
import { type Database, runBatch } from "./client.ts";
import { failedProvisionings, vms } from "./schema.ts";
import { hasStatus, listOf, moveMachines, moveSteps } from "./stages.ts";
import { type QueuedVm, WAKE_AFTER_MS } from "./wake.ts";

/** Machines by status, newest token first, below the token id `before`. */
export const listVms = (db: Database, status: Status | undefined, before: number, limit: number) =>
  db
    .select({
      tokenId: vms.tokenId,
      status: vms.status,
      step: vms.step,
      tier: vms.tier,
      owner: vms.owner,
      provider: vms.provider,
      region: vms.region,
      plan: vms.plan,
      instanceId: vms.instanceId,
      sshHost: vms.sshHost,
      attempt: vms.attempt,
      failure: vms.failure,
      txHash: vms.txHash,
      createdAt: vms.createdAt,
      expiresAt: vms.expiresAt,
    })
    .from(vms)
    .where(
      and(
        sql`current = 1`,
        lt(vms.tokenId, before),
        status === undefined ? undefined : eq(vms.status, status),
        // The partial index's own condition, so that SQLite uses it (vms_by_status).
        status === undefined || status === "provisioning" ? undefined : sql`status <> 'provisioning'`,
      ),
    )
    .orderBy(desc(vms.tokenId))
    .limit(limit)
    .all();

export type Failure = typeof failedProvisionings.$inferSelect;

/** Failed provisionings, oldest first, behind the id `after`. `settled` includes those that were resolved. */
export const listFailures = (db: Database, settled: boolean, after: number, limit: number): Promise<Failure[]> =>
  db
    .select()
    .from(failedProvisionings)
    .where(and(gt(failedProvisionings.id, after), settled ? undefined : isNull(failedProvisionings.resolvedAt)))
    .orderBy(asc(failedProvisionings.id))
    .limit(limit)
    .all();

export const loadFailure = async (db: Database, id: number): Promise<Failure | null> =>
  (await db.select().from(failedProvisionings).where(eq(failedProvisionings.id, id)).get()) ?? null;

const another = moveMachines(["failed/idle"], "provisioning/create");
/** States of refunds that another try cancels. */
const takenBack = ["waiting", "due"] as const;
requireRefundMove(takenBack, "cancelled");

/**
 * Moves a failed purchase back to provisioning, with a deadline of its own. Null when the purchase is not failed any more, its
 * token has another incarnation, one of its machines is still being ended, or its refund has begun.
 */
export async function retryFailed(
  db: Database,
  incarnation: string,
  now: number,
  configured: { deadlineSeconds: number; graceSeconds: number },
): Promise<QueuedVm | null> {
  const isBack = sql`EXISTS (SELECT 1 FROM vms WHERE vms.incarnation = ${incarnation} AND ${hasStatus("provisioning")})`;
  const [rows] = await runBatch(db, [
    sql`UPDATE vms SET status = ${another.set.status}, step = ${another.set.step}, failure = NULL, lease = '', lease_until = 0,
      generation = generation + 1, wake_at = ${now + WAKE_AFTER_MS}, check_at = expires_at + ${configured.graceSeconds},
      deadline = (SELECT block_timestamp FROM cursors) + MIN(${configured.deadlineSeconds},
        COALESCE((SELECT duration_days FROM purchases WHERE purchases.incarnation = vms.incarnation), 1) * 8640)
      WHERE incarnation = ${incarnation} AND current = 1 AND ${another.of}
        AND NOT EXISTS (SELECT 1 FROM refunds WHERE refunds.incarnation = vms.incarnation AND kind = 'failed'
          AND state NOT IN ${listOf(refundStatesThat("unpaid"))})
      RETURNING incarnation, generation`,
    sql`UPDATE refunds SET state = 'cancelled', reason = 'retried', wake_at = NULL
      WHERE incarnation = ${incarnation} AND kind = 'failed' AND state IN ${listOf(takenBack)}
        AND ${isBack}`,
    // Earlier vanished machines do not count towards the limit of replacements any more.
    sql`UPDATE attempts SET outcome = 'died' WHERE incarnation = ${incarnation} AND outcome = 'vanished'
      AND ${isBack}`,
    sql`UPDATE failed_provisionings SET resolved_at = ${now} WHERE incarnation = ${incarnation} AND resolved_at IS NULL
      AND ${isBack}`,
  ]);
  return (rows?.[0] as QueuedVm | undefined) ?? null;
}

const ending = moveSteps(
  stagesOf("provisioning", "running", "expired").filter((stage) => !stage.endsWith("/retire")),
  "end",
);

/** Orders the end of a token's machine, regardless of its paid time. Null when the token has no machine to end. */
export const orderEnd = async (db: Database, tokenId: number, now: number): Promise<QueuedVm | null> =>
  (await db
    .update(vms)
    .set({
      ...ending.set,
      checkAt: null,
      lease: "",
      leaseUntil: 0,
      generation: sql`${vms.generation} + 1`,
      wakeAt: now + WAKE_AFTER_MS,
    })
    .where(and(eq(vms.tokenId, tokenId), sql`current = 1`, ending.of))
    .returning({ incarnation: vms.incarnation, generation: vms.generation })
    .get()) ?? null;
