// Tokens and machines of orders over x402: the row of an order's purchase, and held tokens that serve another order.
import { and, asc, eq, gt, inArray, sql } from "drizzle-orm";
import { type Database, runBatch } from "./client.ts";
import { loadPayment, type Payment } from "./payments.ts";
import { payments, purchases, vms } from "./schema.ts";
import { moveMachines } from "./stages.ts";
import { type TimedVm, timedVm } from "./vms.ts";
import { type QueuedVm, WAKE_AFTER_MS } from "./wake.ts";

/**
 * The machine's row of an order's purchase, by any of the order's purchase transactions. The token is still the operator
 * wallet's, or already the payer's.
 */
export const boughtVm = async (
  db: Database,
  { id, payer, purchaseTx }: Pick<Payment, "id" | "payer" | "purchaseTx">,
  operator: string,
): Promise<TimedVm | null> =>
  (await db
    .select(timedVm)
    .from(vms)
    .where(
      and(
        inArray(vms.owner, [operator, payer]),
        eq(vms.current, true),
        sql`(tx_hash = ${purchaseTx} OR tx_hash IN (SELECT tx_hash FROM payment_links WHERE payment = ${id}))`,
      ),
    )
    .get()) ?? null;

/** The cost in an order's row when a held token serves it: the token's cost is in the row of the order that bought it. */
export const HELD_TOKEN_COST = "0";

/** The move of a held token's row, whose machine is gone, back to provisioning. */
const again = moveMachines(["failed/idle", "terminated/idle"], "provisioning/create");

/**
 * Assigns a held token to an order and moves the token's row back to provisioning, all or nothing. Null when another order has
 * the token, or this order has moved since it was read.
 */
export async function serveHeldToken(
  db: Database,
  { id, generation }: Pick<Payment, "id" | "generation">,
  held: Payment,
  at: { now: number; deadline: number; graceSeconds: number },
): Promise<{ row: Payment; queued: QueuedVm } | null> {
  const isOrders = sql`EXISTS (SELECT 1 FROM payments AS mine WHERE mine.id = ${id} AND mine.generation = ${generation + 1}
    AND mine.incarnation = ${held.incarnation} AND mine.step = 'provision')`;
  const isHeld = sql`EXISTS (SELECT 1 FROM payments AS other WHERE other.id = ${held.id} AND other.held = 1)`;
  const [, , rows] = await runBatch(db, [
    sql`UPDATE payments SET step = 'provision', incarnation = ${held.incarnation}, token_id = ${held.tokenId},
        purchase_tx = ${held.purchaseTx}, bought_at = ${at.now}, cost = ${HELD_TOKEN_COST}, wake_at = ${at.now + WAKE_AFTER_MS},
        generation = generation + 1
      WHERE id = ${id} AND generation = ${generation} AND ${isHeld}
        AND EXISTS (SELECT 1 FROM vms WHERE vms.incarnation = ${held.incarnation} AND ${again.of})`,
    sql`UPDATE payments SET held = 0, incarnation = NULL, generation = generation + 1 WHERE id = ${held.id} AND held = 1 AND ${isOrders}`,
    sql`UPDATE vms SET status = ${again.set.status}, step = ${again.set.step}, failure = NULL, lease = '', lease_until = 0,
        generation = generation + 1, wake_at = ${at.now + WAKE_AFTER_MS}, deadline = ${at.deadline}, put_off = 0,
        check_at = expires_at + ${at.graceSeconds}, ports = NULL, ssh_host = NULL, ssh_port = NULL, ssh_private_key = NULL,
        running_at = NULL, delivered_at = NULL, delivered_to = NULL, known_to_former = 0, acknowledged_at = NULL, sealed_at = NULL
      WHERE incarnation = ${held.incarnation} AND ${again.of} AND ${isOrders}
      RETURNING incarnation, generation`,
    sql`UPDATE failed_provisionings SET resolved_at = ${at.now} WHERE incarnation = ${held.incarnation} AND resolved_at IS NULL AND ${isOrders}`,
  ]);
  const queued = (rows as QueuedVm[])[0];
  const row = await loadPayment(db, id);
  return queued === undefined || row === null ? null : { row, queued };
}

/** Lowers a machine's deadline to chain time `deadline`, so that it runs while its payment can still be captured. */
export const shortenDeadline = (db: Database, incarnation: string, deadline: number) =>
  db.run(sql`UPDATE vms SET deadline = MIN(deadline, ${deadline}) WHERE incarnation = ${incarnation}`);

/** Stores the terms that an order sets for its machine, as JSON (see model/terms.ts). */
export const saveTerms = (db: Database, incarnation: string, terms: string) =>
  db.update(vms).set({ terms }).where(eq(vms.incarnation, incarnation));

/**
 * The payment of the oldest held token of a tier that expires between the chain times `until`; null without one. `owner`: the
 * operator wallet's address in lower case.
 */
export const heldToken = async (
  db: Database,
  tier: number,
  owner: string,
  until: { least: number; most: number },
): Promise<Payment | null> =>
  (
    await db
      .select({ payment: payments })
      .from(payments)
      .where(
        and(
          eq(payments.held, true),
          eq(payments.tier, tier),
          sql`EXISTS (SELECT 1 FROM vms WHERE vms.incarnation = ${payments.incarnation} AND owner = ${owner} AND current = 1 AND instance_id IS NULL
            AND ${again.of} AND expires_at BETWEEN ${until.least} AND ${until.most})`,
        ),
      )
      .orderBy(asc(payments.createdAt))
      .get()
  )?.payment ?? null;

/** Held tokens that have not expired, in order of their expiry. */
export const heldTokens = (db: Database, chainTime: number, limit: number) =>
  db
    .select({
      payment: payments.id,
      tokenId: vms.tokenId,
      tier: vms.tier,
      heldSince: payments.endedAt,
      createdAt: vms.createdAt,
      expiresAt: vms.expiresAt,
      cost: purchases.totalCost,
    })
    .from(payments)
    .innerJoin(vms, eq(vms.incarnation, payments.incarnation))
    .innerJoin(purchases, eq(purchases.incarnation, payments.incarnation))
    .where(and(eq(payments.held, true), eq(vms.current, true), gt(vms.expiresAt, chainTime)))
    .orderBy(asc(vms.expiresAt))
    .limit(limit)
    .all();
