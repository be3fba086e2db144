// Queries of the sweep over the vendors' machines.
import { and, asc, eq, gt, isNotNull, isNull, ne, or, sql } from "drizzle-orm";
import { stagesThat } from "../model/machine-life.ts";
import { type Database, runBatch } from "./client.ts";
import { forgetSealed, UNPUBLISHED } from "./delivery.ts";
import { attempts, vms } from "./schema.ts";
import { moveMachines } from "./stages.ts";
import { type QueuedVm, WAKE_AFTER_MS } from "./wake.ts";

type Provider = "vultr" | "runpod";

const replacement = moveMachines(stagesThat("serves"), "provisioning/create");
const isServing = replacement.of;

const isOneOf = (values: readonly string[]) => sql`IN (SELECT value FROM json_each(${JSON.stringify(values)}))`;

/** The instance ids, of those given, that a machine's row already has. */
export async function claimedInstances(
  db: Database,
  provider: Provider,
  instanceIds: readonly string[],
): Promise<Set<string>> {
  const rows = await db
    .select({ instanceId: vms.instanceId })
    .from(vms)
    .where(and(eq(vms.provider, provider), sql`${vms.instanceId} ${isOneOf(instanceIds)}`, isNotNull(vms.instanceId)));
  return new Set(rows.flatMap((row) => row.instanceId ?? []));
}

/** The attempts that machines with these labels may belong to. */
export const attemptsByLabel = (db: Database, provider: Provider, labels: readonly string[]) =>
  db
    .select({
      label: attempts.label,
      mark: attempts.mark,
      outcome: attempts.outcome,
      endedAt: attempts.endedAt,
      goneAt: attempts.goneAt,
    })
    .from(attempts)
    .where(and(sql`${attempts.label} ${isOneOf(labels)}`, eq(attempts.provider, provider)));

export type RunningRow = {
  incarnation: string;
  tokenId: number;
  owner: string;
  instanceId: string;
  sshHost: string | null;
  sshPort: number | null;
  ports: string | null;
};

/** Rows that serve their owners with a vendor's machine, in the order of instance ids, behind the id `after`. */
export async function runningPage(
  db: Database,
  provider: Provider,
  after: string,
  limit: number,
): Promise<RunningRow[]> {
  const { incarnation, tokenId, owner, instanceId, sshHost, sshPort, ports } = vms;
  const rows = await db
    .select({ incarnation, tokenId, owner, instanceId, sshHost, sshPort, ports })
    .from(vms)
    .where(and(eq(vms.provider, provider), gt(vms.instanceId, after), isNotNull(vms.instanceId), isServing))
    .orderBy(asc(vms.instanceId))
    .limit(limit);
  return rows.map((row) => ({ ...row, instanceId: row.instanceId ?? "" }));
}

/** Marks the attempts of machines that the vendor reports as stopped. Resolves with the rows that were not marked before. */
export async function markStopped(db: Database, rows: readonly RunningRow[]): Promise<RunningRow[]> {
  if (rows.length === 0) return [];
  const marked = await db
    .update(attempts)
    .set({ detail: "the vendor says that it stopped" })
    .where(
      and(
        sql`${attempts.incarnation} ${isOneOf(rows.map(({ incarnation }) => incarnation))}`,
        eq(attempts.outcome, "running"),
        isNull(attempts.goneAt),
        isNull(attempts.detail),
      ),
    )
    .returning({ incarnation: attempts.incarnation });
  return rows.filter(({ incarnation }) => marked.some((one) => one.incarnation === incarnation));
}

/** Stores a running machine's current address at its vendor. */
export const moveAddress = (
  db: Database,
  provider: Provider,
  instanceId: string,
  { host, port, ports }: { host: string; port: number; ports: string | null },
) =>
  db
    .update(vms)
    .set({ sshHost: host, sshPort: port, ports })
    .where(
      and(
        eq(vms.provider, provider),
        eq(vms.instanceId, instanceId),
        isNotNull(vms.instanceId),
        isServing,
        or(ne(vms.sshHost, host), ne(vms.sshPort, port), sql`ports IS NOT ${ports}`),
      ),
    );

/**
 * Moves the purchase of a vanished machine back to provisioning, with a new deadline. Null when the machine served no owner.
 */
export async function replaceVanished(
  db: Database,
  { incarnation, instanceId }: Pick<RunningRow, "incarnation" | "instanceId">,
  now: number,
  deadlineSeconds: number,
): Promise<QueuedVm | null> {
  const isThat = and(eq(vms.incarnation, incarnation), eq(vms.instanceId, instanceId), isServing);
  const itsAttempt = db.select({ attempt: vms.attempt }).from(vms).where(isThat);
  const [, , rows] = await runBatch(db, [
    forgetSealed(db, incarnation, itsAttempt),
    db
      .update(attempts)
      .set({ outcome: "vanished", goneAt: now })
      .where(and(eq(attempts.incarnation, incarnation), eq(attempts.number, itsAttempt))),
    db
      .update(vms)
      .set({
        ...replacement.set,
        generation: sql`${vms.generation} + 1`,
        wakeAt: now + WAKE_AFTER_MS,
        deadline: sql`(SELECT block_timestamp FROM cursors) + ${deadlineSeconds}`,
        instanceId: null,
        ...UNPUBLISHED,
      })
      .where(isThat)
      .returning({ incarnation: vms.incarnation, generation: vms.generation }),
  ]);
  return (rows?.[0] as QueuedVm | undefined) ?? null;
}
