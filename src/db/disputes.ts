// Ownership that does not settle by itself: what two nodes call final replaces what the logs told us.
import { and, asc, eq, lte, sql } from "drizzle-orm";
import { type Database, runBatch } from "./client.ts";
import { logIndexOfOwner, refreshOwners } from "./scan.ts";
import { cursors, disputes, vms } from "./schema.ts";

/** Remembers that chain and index disagree about a token's owner. */
export const openDispute = (db: Database, tokenId: number, now: number) =>
  db.insert(disputes).values({ tokenId, since: now }).onConflictDoNothing();

export const openDisputes = (db: Database, before: number, limit: number) =>
  db
    .select({ tokenId: disputes.tokenId, owner: vms.owner })
    .from(disputes)
    .innerJoin(vms, sql`${vms.tokenId} = ${disputes.tokenId} AND current = 1`)
    .where(lte(disputes.since, before))
    .orderBy(asc(disputes.since))
    .limit(limit);

export const closeDispute = (db: Database, tokenId: number) => db.delete(disputes).where(eq(disputes.tokenId, tokenId));

/** The next tokens whose owners the sweep holds against the chain; from the first again behind the last. */
export async function nextToCompare(db: Database, limit: number): Promise<{ tokenId: number; owner: string }[]> {
  const from = sql`(SELECT compared_to FROM cursors)`;
  const rows = await db
    .select({ tokenId: vms.tokenId, owner: vms.owner })
    .from(vms)
    .where(and(sql`current = 1`, sql`${vms.tokenId} > ${from}`))
    .orderBy(asc(vms.tokenId))
    .limit(limit);
  await db.update(cursors).set({ comparedTo: rows.length < limit ? -1 : (rows.at(-1)?.tokenId ?? -1) });
  return rows;
}

/** Takes the final owner over: transfers up to that block that say otherwise are gone, and one stands for what was missed. */
export const settleOwner = (db: Database, tokenId: number, owner: string, at: { blockNumber: number }) =>
  runBatch(db, [
    sql`DELETE FROM transfers WHERE token_id = ${tokenId} AND block_number <= ${at.blockNumber}`,
    sql`INSERT INTO transfers (block_number, log_index, block_hash, token_id, sender, recipient)
      VALUES (${at.blockNumber}, ${logIndexOfOwner(tokenId)}, 'final', ${tokenId}, '', ${owner})`,
    refreshOwners([tokenId]),
    sql`DELETE FROM disputes WHERE token_id = ${tokenId}`,
  ]);
