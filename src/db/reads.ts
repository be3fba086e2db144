// Queries on the path of a request. Each has its bill (ARCHITECTURE.md's costs) and its index; tests hold them to both.
import { and, asc, desc, eq, lt, sql } from "drizzle-orm";
import type { Database } from "./client.ts";
import { attempts, catalogs, counters, cursors, nonces, ownerCounts, vms } from "./schema.ts";

export const queries = {
  vmOfToken: (db: Database, tokenId: number) =>
    db
      .select()
      .from(vms)
      .where(and(eq(vms.tokenId, tokenId), sql`current = 1`)),
  /** A token's machine with the public keys of its attempt. */
  doorOfToken: (db: Database, tokenId: number) =>
    db
      .select({ vm: vms, publicKey: attempts.publicKey, hostPublicKey: attempts.hostPublicKey })
      .from(vms)
      .leftJoin(attempts, and(eq(attempts.incarnation, vms.incarnation), eq(attempts.number, vms.attempt)))
      .where(and(eq(vms.tokenId, tokenId), sql`current = 1`)),
  cursor: (db: Database) =>
    db
      .select({
        blockNumber: cursors.blockNumber,
        blockTimestamp: cursors.blockTimestamp,
        scannedAt: cursors.scannedAt,
      })
      .from(cursors)
      .where(eq(cursors.id, 1)),
  /** At most `count`, so that the read stops with the last one and not at the next row behind it. */
  attemptsOf: (db: Database, incarnation: string, count: number) =>
    db
      .select({
        provider: attempts.provider,
        region: attempts.region,
        startedAt: attempts.startedAt,
        endedAt: attempts.endedAt,
        outcome: attempts.outcome,
      })
      .from(attempts)
      .where(eq(attempts.incarnation, incarnation))
      .orderBy(asc(attempts.number))
      .limit(count),
  vmsOfOwner: (db: Database, owner: string, limit: number, before?: number) =>
    db
      .select({
        tokenId: vms.tokenId,
        tier: vms.tier,
        vmType: vms.vmType,
        sshHost: vms.sshHost,
        status: vms.status,
        createdAt: vms.createdAt,
        expiresAt: vms.expiresAt,
      })
      .from(vms)
      .where(and(eq(vms.owner, owner), sql`current = 1`, before === undefined ? undefined : lt(vms.tokenId, before)))
      .orderBy(desc(vms.tokenId))
      .limit(limit),
  countOfOwner: (db: Database, owner: string) =>
    db.select({ count: ownerCounts.count }).from(ownerCounts).where(eq(ownerCounts.owner, owner)),
  pending: (db: Database) => db.select({ value: counters.value }).from(counters).where(eq(counters.name, "pending")),
  oldestPending: (db: Database) =>
    db
      .select({ createdAt: vms.createdAt })
      .from(vms)
      .where(sql`current = 1 AND status = 'provisioning'`)
      .orderBy(asc(vms.createdAt))
      .limit(1),
  catalog: (db: Database) => db.select().from(catalogs).where(eq(catalogs.id, 1)),
};

/** Uses a signed nonce up. False when it was used before. */
export async function useNonce(db: Database, address: string, nonce: string, expiresAt: number): Promise<boolean> {
  const result = await db
    .insert(nonces)
    .values({ address: address.toLowerCase(), nonce, expiresAt })
    .onConflictDoNothing();
  return result.meta.changes === 1;
}
