// Tokens whose owner differs between the chain and our rows. The owner in final history, by two nodes, replaces the owner that
// the logs gave.
import { and, asc, eq, lte, sql } from "drizzle-orm";
import { type Database, runBatch } from "./client.ts";
import { logIndexOfOwner, refreshOwners } from "./scan.ts";
import { cursors, disputes, vms } from "./schema.ts";

/** Records that the chain and our rows disagree about a token's owner. */
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

/** The next tokens whose owners the sweep compares with the chain. After the last token it starts again at the first. */
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

/** Sets a token's owner to the final one: one row replaces all transfers up to that block, and the dispute is closed. */
export const settleOwner = (db: Database, tokenId: number, owner: string, at: { blockNumber: number }) =>
  runBatch(db, [
    sql`DELETE FROM transfers WHERE token_id = ${tokenId} AND block_number <= ${at.blockNumber}`,
    sql`INSERT INTO transfers (block_number, log_index, block_hash, token_id, sender, recipient)
      VALUES (${at.blockNumber}, ${logIndexOfOwner(tokenId)}, 'final', ${tokenId}, '', ${owner})`,
    refreshOwners([tokenId]),
    sql`DELETE FROM disputes WHERE token_id = ${tokenId}`,
  ]);
