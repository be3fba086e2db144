// Pauses that operators have set.
import { eq, sql } from "drizzle-orm";
import { type Database, once, runBatch } from "./client.ts";
import { pauses } from "./schema.ts";

export type Pause = typeof pauses.$inferSelect;
export type Pausable = Pause["what"];

export const listPauses = (db: Database): Promise<Pause[]> => db.select().from(pauses).all();

const pauseOf = once((db) =>
  db
    .select({ since: pauses.since })
    .from(pauses)
    .where(eq(pauses.what, sql.placeholder("what")))
    .prepare(),
);

export const isPaused = async (db: Database, what: Pausable): Promise<boolean> =>
  (await pauseOf(db).get({ what })) !== undefined;

/** Sets a pause. A pause that is already set keeps its `since`. */
export const pause = (db: Database, { what, since, reason, by }: Pause) =>
  db
    .insert(pauses)
    .values({ what, since, reason, by })
    .onConflictDoUpdate({ target: pauses.what, set: { reason, by } });

/**
 * Ends a pause. The deadlines of purchases without a machine move by their time in the pause, counted from the pause or, if
 * later, from the purchase. The total is limited as in `pausedDeadline`.
 */
export async function resume(db: Database, what: Pausable, now: number): Promise<void> {
  const extend = sql`UPDATE vms SET deadline = deadline + more, put_off = put_off + more
    FROM (SELECT incarnation AS waiting, MAX(0, MIN((expires_at - created_at) / 10 - put_off, CAST((${now} - MAX(
        (SELECT since FROM pauses WHERE what = 'provisioning'),
        COALESCE((SELECT seen_at FROM purchases WHERE purchases.incarnation = vms.incarnation), 0)
      )) / 1000 AS INTEGER))) AS more
      FROM vms WHERE current = 1 AND status = 'provisioning' AND EXISTS (SELECT 1 FROM pauses WHERE what = 'provisioning'))
    WHERE incarnation = waiting`;
  await runBatch(db, [...(what === "provisioning" ? [extend] : []), sql`DELETE FROM pauses WHERE what = ${what}`]);
}
