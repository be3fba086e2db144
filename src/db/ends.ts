// The end of a machine's row: the machine is gone, and its key is erased. Also the return of a row whose purchase stands after
// all.
import { and, eq, ne, type SQL, sql } from "drizzle-orm";
import { SECONDS_PER_DAY } from "../chain/contract.ts";
import type { Purchase } from "../chain/events.ts";
import { columnsOf, type Status, type Step, stagesOf } from "../model/machine-life.ts";
import { type Database, runBatch } from "./client.ts";
import { purchases, type Vm, vms } from "./schema.ts";
import { hasStatus, moveMachines, moveSteps } from "./stages.ts";
import { fenceByGeneration } from "./vms.ts";

export const terminate = (db: Database, vm: Vm): Promise<unknown> => end(db, vm, {}, []);

/**
 * Ends a row whose purchase the chain does not know, or has replaced by another one of the token. The row gives the token up.
 * If no other row holds the token, one node may have hidden the true purchase behind an invented one: a gap is recorded for it.
 */
export const terminateReplaced = (db: Database, vm: Vm, now: number): Promise<unknown> =>
  end(db, vm, { failure: "reorged", current: false }, [
    sql`UPDATE purchases SET orphaned = 1 WHERE incarnation = ${vm.incarnation}`,
    sql`INSERT INTO gaps (token_id, from_block, to_block, next_try_at)
      SELECT ${vm.tokenId}, COALESCE((SELECT MAX(block_number) FROM purchases WHERE token_id < ${vm.tokenId} AND orphaned = 0), 0), block_number, ${now}
      FROM cursors WHERE NOT EXISTS (SELECT 1 FROM vms WHERE token_id = ${vm.tokenId} AND current = 1)
      ON CONFLICT (token_id) DO NOTHING`,
  ]);

function end(
  db: Database,
  vm: Vm,
  more: Partial<Pick<Vm, "failure" | "current">>,
  then: readonly SQL[],
): Promise<unknown> {
  return runBatch(db, [
    fenceByGeneration(db, vm, {
      ...columnsOf("terminated/idle"),
      wakeAt: null,
      checkAt: null,
      sshPrivateKey: null,
      ...more,
    }),
    ...then,
  ]);
}

/** The step at which a row resumes when its purchase turns out to stand. */
const STEP_BACK: Record<Status, Step> = {
  provisioning: "create",
  running: "idle",
  expired: "prove",
  failed: "clear",
  terminated: "idle",
};

/** A published machine of the invented purchase ends by its own proof on chain (hard case 13). */
const published = moveSteps(stagesOf("running", "expired"), "retire");
const unpublished = moveMachines(stagesOf("provisioning", "failed"), "failed/clear");

/**
 * Returns a token to its true incarnation, after an event from a single node had taken it. The purchase's row gets the block
 * and time that two nodes show, and is no longer orphaned; otherwise the sweep would retire the machine again (hard case 61).
 */
export const reinstate = (
  db: Database,
  vm: Vm,
  { blockNumber, blockHash, logIndex, purchaseDate, durationDays }: Purchase,
  { now, graceSeconds, rivalIsInvented }: { now: number; graceSeconds: number; rivalIsInvented: boolean },
) => {
  const step = STEP_BACK[vm.status];
  // The row's own end is later after a renewal.
  const expiresAt = Math.max(vm.expiresAt, purchaseDate + durationDays * SECONDS_PER_DAY);
  const isRival = and(
    eq(purchases.tokenId, vm.tokenId),
    ne(purchases.incarnation, vm.incarnation),
    rivalIsInvented ? undefined : sql`false`,
  );
  const holdsToken = and(eq(vms.tokenId, vm.tokenId), eq(vms.current, true), ne(vms.incarnation, vm.incarnation));
  const givenUp = { current: false, generation: sql`${vms.generation} + 1`, wakeAt: now, checkAt: null };
  return db.batch([
    fenceByGeneration(db, vm, {
      step,
      wakeAt: step === "idle" ? null : now,
      blockNumber,
      createdAt: purchaseDate,
      expiresAt,
      checkAt: vm.status === "running" || vm.status === "provisioning" ? expiresAt + graceSeconds : null,
    }),
    db
      .update(purchases)
      .set({ orphaned: false, blockNumber, blockHash, logIndex, purchaseDate })
      .where(eq(purchases.incarnation, vm.incarnation)),
    db.update(purchases).set({ orphaned: true }).where(isRival),
    db
      .update(vms)
      .set({ ...givenUp, ...published.set })
      .where(and(holdsToken, published.of)),
    db
      .update(vms)
      .set({ ...givenUp, ...unpublished.set, failure: "purchase_invented" })
      .where(and(holdsToken, unpublished.of)),
    db
      .update(vms)
      .set({ current: false })
      .where(and(holdsToken, hasStatus("terminated"))),
    // Last, since a unique index allows one current row per token.
    db.update(vms).set({ current: true }).where(eq(vms.incarnation, vm.incarnation)),
  ]);
};
