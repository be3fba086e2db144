// What the sweep reads and writes, once per interval.
import { and, asc, eq, inArray, isNotNull, isNull, lt, lte, or, sql } from "drizzle-orm";
import { stagesThat } from "../model/machine-life.ts";
import { CANCELLED_BY_HAND } from "../model/payment-life.ts";
import type { Database } from "./client.ts";
import { catalogs, counters, nonces, OPEN, purchases, vms } from "./schema.ts";
import { hasStatus, moveMachines, moveSteps } from "./stages.ts";
import { WAKE_AFTER_MS } from "./wake.ts";

const CATALOG_ID = 1;
const DAY_MS = 86_400_000;

export type DueVm = Pick<typeof vms.$inferSelect, "incarnation" | "tokenId" | "blockNumber" | "expiresAt">;

const expiry = moveMachines(stagesThat("active"), "expired/prove");
const retirement = moveSteps(stagesThat("active"), "retire");

/** How many published machines there are, and which are past their time by the chain's clock, those of longest ago first. */
export async function loadDue(db: Database, chainTime: number, limit: number) {
  const { incarnation, tokenId, blockNumber, expiresAt } = vms;
  const [published, due] = await db.batch([
    db.select({ value: counters.value }).from(counters).where(eq(counters.name, "published")),
    db
      .select({ incarnation, tokenId, blockNumber, expiresAt })
      .from(vms)
      .where(isDue(chainTime))
      .orderBy(asc(vms.checkAt))
      .limit(limit),
  ]);
  return { published: published[0]?.value ?? 0, due };
}

/** Marks these machines as expired, where they are still due; the provisioner proves it on chain before it ends them. */
export const expireDue = (db: Database, due: readonly DueVm[], chainTime: number, now: number) =>
  db
    .update(vms)
    .set({
      ...expiry.set,
      checkAt: null,
      expiredAt: chainTime,
      generation: sql`${vms.generation} + 1`,
      wakeAt: now + WAKE_AFTER_MS,
    })
    .where(
      and(
        sql`${vms.incarnation} IN (SELECT value FROM json_each(${JSON.stringify(due.map((one) => one.incarnation))}))`,
        isDue(chainTime),
      ),
    )
    .returning({ incarnation: vms.incarnation, generation: vms.generation });

/** Purchases that a reorg took and no block brought back: their machines go, once the provisioner has proved it. */
export const retireVanished = (db: Database, belowBlock: number, now: number) =>
  db
    .update(vms)
    .set({ ...retirement.set, generation: sql`${vms.generation} + 1`, wakeAt: now + WAKE_AFTER_MS, checkAt: null })
    .where(
      and(
        eq(vms.current, true),
        retirement.of,
        inArray(
          vms.incarnation,
          db
            .select({ id: purchases.incarnation })
            .from(purchases)
            .where(and(sql`orphaned = 1`, lt(purchases.blockNumber, belowBlock))),
        ),
      ),
    )
    .returning({ incarnation: vms.incarnation, generation: vms.generation });

/** Erases keys whose grace has ended. One that was only sold sealed its owner still has, sealed. */
export const eraseDeliveredKeys = (db: Database, givenBefore: number) =>
  db.batch([
    db
      .update(vms)
      .set({ sshPrivateKey: null })
      .where(and(isNotNull(vms.sshPrivateKey), isNotNull(vms.deliveredAt), lte(vms.deliveredAt, givenBefore))),
    db
      .update(vms)
      .set({ sshPrivateKey: null })
      .where(
        and(
          isNotNull(vms.sshPrivateKey),
          isNotNull(vms.sealedAt),
          lte(vms.sealedAt, givenBefore),
          isNull(vms.deliveredAt),
        ),
      ),
  ]);

export const deleteOldNonces = (db: Database, now: number) => db.delete(nonces).where(lt(nonces.expiresAt, now));

export type StoredTiers = NonNullable<(typeof catalogs.$inferSelect)["tiers"]>;

export const saveTiers = (db: Database, tiers: StoredTiers, now: number) =>
  db
    .insert(catalogs)
    .values({ id: CATALOG_ID, tiers, tiersAt: now })
    .onConflictDoUpdate({ target: catalogs.id, set: { tiers, tiersAt: now } });

export const loadCatalog = (db: Database) => db.select().from(catalogs).where(eq(catalogs.id, CATALOG_ID)).get();

/**
 * Refunds and payments that wait for a person, by event and reason, without those of which their owners decide; and machines
 * whose end has failed since before `deleteSince`, by vendor. Of a failed purchase whose refund is manual a page of its own
 * tells; of a payment's none does.
 */
export const countHeld = (db: Database, ownersReasons: readonly string[], deleteSince: number) =>
  db.all<{
    event: "refund_held" | "payment_held" | "machine_not_ended";
    reason: string | null;
    count: number;
    label: string | null;
  }>(
    sql`SELECT 'refund_held' AS event, reason, COUNT(*) AS count, NULL AS label FROM refunds
        WHERE (state = 'held' AND reason NOT IN (SELECT value FROM json_each(${JSON.stringify(ownersReasons)})))
          OR (state = 'waiting' AND kind = 'payment') GROUP BY reason
      UNION ALL SELECT 'payment_held', reason, COUNT(*), NULL FROM payments
        WHERE state = 'held' AND reason IS NOT ${CANCELLED_BY_HAND} GROUP BY reason
      UNION ALL SELECT 'machine_not_ended', attempts.provider, COUNT(*), MIN(label)
        FROM attempts JOIN vms ON vms.incarnation = attempts.incarnation
        WHERE delete_failed_at IS NOT NULL AND gone_at IS NULL AND delete_failed_at <= ${deleteSince}
          AND step IN ('clear', 'prove', 'retire', 'end') GROUP BY attempts.provider`,
  );

/** Orders over x402 whose token the wallet does not buy, or whose payment it does not take, since before `since`: of a day. */
export const countWaiting = (db: Database, since: number) =>
  db.all<{ event: "purchase_waits" | "capture_waits"; count: number }>(
    sql`SELECT 'purchase_waits' AS event, COUNT(*) AS count FROM payments
        WHERE bought_at IS NOT NULL AND bought_at BETWEEN ${since - DAY_MS} AND ${since}
          AND step = 'buy' AND cost IS NOT NULL AND purchase_tx IS NULL AND wake_at IS NOT NULL
      UNION ALL SELECT 'capture_waits', COUNT(*) FROM payments LEFT JOIN vms ON vms.incarnation = payments.incarnation
        WHERE ${sql.raw(OPEN)} AND payments.step = 'capture' AND settle_tx IS NULL
          AND COALESCE(vms.running_at, payments.created_at) <= ${since}`,
  );

/** Replaces one vendor's offers, leaving the other's as they were last read. */
export const saveStock = (db: Database, vendor: "vultr" | "runpod", read: object) =>
  db.run(sql`INSERT INTO catalogs (id, stock) VALUES (${CATALOG_ID}, json_object(${vendor}, json(${JSON.stringify(read)})))
    ON CONFLICT (id) DO UPDATE SET stock = json_set(COALESCE(stock, '{}'), ${`$.${vendor}`}, json(${JSON.stringify(read)}))`);

/** What a vendor has just refused to sell, until its catalog says otherwise. */
export const saveSoldOut = (db: Database, vendor: "vultr" | "runpod", place: { region: string; plan: string }) =>
  db.run(sql`UPDATE catalogs SET stock = json_set(stock, ${`$.${vendor}.offers`}, (
      SELECT json_group_array(json(CASE WHEN value->>'region' = ${place.region} AND value->>'plan' = ${place.plan}
        THEN json_set(value, '$.stock', 'none') ELSE value END))
      FROM json_each(catalogs.stock, ${`$.${vendor}.offers`})))
    WHERE id = ${CATALOG_ID} AND json_type(stock, ${`$.${vendor}.offers`}) = 'array'`);

// Running, or between two machines.
const isDue = (chainTime: number) =>
  and(
    lte(vms.checkAt, chainTime),
    isNotNull(vms.checkAt),
    eq(vms.current, true),
    expiry.of,
    or(hasStatus("running"), isNotNull(vms.runningAt)),
  );
