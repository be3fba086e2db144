// Tokens and machines of orders: what stands for a purchase of ours, and a held token that serves another order.
import { and, asc, eq, gt, inArray, sql } from "drizzle-orm";
import { type Database, runBatch } from "./client.ts";
import { loadPayment, type Payment } from "./payments.ts";
import { payments, purchases, vms } from "./schema.ts";
import { moveMachines } from "./stages.ts";
import { type TimedVm, timedVm } from "./vms.ts";
import { type QueuedVm, WAKE_AFTER_MS } from "./wake.ts";

/** What stands for the purchase of a payment, by whichever of its transactions was mined: ours still, or its payer's. */
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

/** What an order's row says its token cost where a held one serves it: it was paid for by another order. */
export const HELD_TOKEN_COST = "0";

/** The machine of a token that nobody is served with. */
const again = moveMachines(["failed/idle", "terminated/idle"], "provisioning/create");

/**
 * Gives a held token to an order, and its machine's row back to work, all or nothing. Null where another order has it, or
 * this one has moved on.
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

/** The machine has to run while its payment can still be taken. */
export const shortenDeadline = (db: Database, incarnation: string, deadline: number) =>
  db.run(sql`UPDATE vms SET deadline = MIN(deadline, ${deadline}) WHERE incarnation = ${incarnation}`);

/** What the order behind a machine asks of it. */
export const saveTerms = (db: Database, incarnation: string, terms: string) =>
  db.update(vms).set({ terms }).where(eq(vms.incarnation, incarnation));

/** A token that is ours with nobody to give it to, whose time ends between those two of the chain. `owner`: we, lower case. */
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

/** Tokens that are ours with nobody to give them to, soonest to end first. */
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
