// Payments by x402. Every move is a compare-and-set on the generation it was read at.
import type { Database } from "./client.ts";
import { paymentLinks } from "./schema.ts";

/** Before a transaction that buys a token leaves: whose purchase it will be (hard case 20). */
export async function linkTransaction(db: Database, txHash: string, payment: string, now: number): Promise<void> {
  await db.insert(paymentLinks).values({ txHash, payment, createdAt: now }).onConflictDoNothing();
}
