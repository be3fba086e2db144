// Queries on the path of a request. Each has a limit of rows read and an index; test/worker/db/costs.test.ts checks both.
import { and, asc, desc, eq, fillPlaceholders, lt, sql } from "drizzle-orm";
import { type Database, once } from "./client.ts";
import { attempts, catalogs, counters, cursors, keyHolders, nonces, ownerCounts, pauses, vms } from "./schema.ts";

const given = sql.placeholder;

/** Prepared statements. The comment of each shows its parameters. */
export const statementsOf = once((db) => ({
  /** `{ tokenId }` */
  vmOfToken: db
    .select()
    .from(vms)
    .where(and(eq(vms.tokenId, given("tokenId")), sql`current = 1`))
    .prepare(),
  /**
   * A token's machine with the public keys of its attempt, the owner's sealed copy of the login key, and whether another
   * address holds the key. `{ tokenId }`
   */
  doorOfToken: db
    .select({
      vm: vms,
      publicKey: attempts.publicKey,
      hostPublicKey: attempts.hostPublicKey,
      broughtBy: attempts.broughtBy,
      sealed: keyHolders.sealed,
      // A name of its own: for two columns of one name D1 returns a single value in a batch, and the later columns shift.
      sealedAt: sql<number | null>`${keyHolders.sealedAt}`.as("held_sealed_at"),
      isHeldElsewhere:
        sql<number>`EXISTS (SELECT 1 FROM key_holders AS other WHERE other.incarnation = ${vms.incarnation}
        AND other.attempt = ${vms.attempt} AND other.address <> ${vms.owner})`.as("held_elsewhere"),
    })
    .from(vms)
    .leftJoin(attempts, and(eq(attempts.incarnation, vms.incarnation), eq(attempts.number, vms.attempt)))
    .leftJoin(
      keyHolders,
      and(
        eq(keyHolders.incarnation, vms.incarnation),
        eq(keyHolders.attempt, vms.attempt),
        eq(keyHolders.address, vms.owner),
      ),
    )
    .where(and(eq(vms.tokenId, given("tokenId")), sql`current = 1`))
    .prepare(),
  /** The scan's position, and the time since which provisioning is paused (null: not paused). */
  cursor: db
    .select({
      blockNumber: cursors.blockNumber,
      blockTimestamp: cursors.blockTimestamp,
      scannedAt: cursors.scannedAt,
      pausedSince: sql<number | null>`${pauses.since}`.as("paused_since"),
    })
    .from(cursors)
    .leftJoin(pauses, eq(pauses.what, "provisioning"))
    .where(eq(cursors.id, 1))
    .prepare(),
  /** With `count` as the limit, the read ends at the last attempt and not at the row behind it. `{ incarnation, count }` */
  attemptsOf: db
    .select({
      provider: attempts.provider,
      region: attempts.region,
      startedAt: attempts.startedAt,
      endedAt: attempts.endedAt,
      outcome: attempts.outcome,
    })
    .from(attempts)
    .where(eq(attempts.incarnation, given("incarnation")))
    .orderBy(asc(attempts.number))
    .limit(given("count"))
    .prepare(),
  /** Token ids below `before`, newest first. `{ owner, before, limit }` */
  vmsOfOwner: db
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
    .where(and(eq(vms.owner, given("owner")), sql`current = 1`, lt(vms.tokenId, given("before"))))
    .orderBy(desc(vms.tokenId))
    .limit(given("limit"))
    .prepare(),
  /** `{ owner }` */
  countOfOwner: db
    .select({ count: ownerCounts.count })
    .from(ownerCounts)
    .where(eq(ownerCounts.owner, given("owner")))
    .prepare(),
  pending: db.select({ value: counters.value }).from(counters).where(eq(counters.name, "pending")).prepare(),
  oldestPending: db
    .select({ createdAt: vms.createdAt })
    .from(vms)
    .where(sql`current = 1 AND status = 'provisioning' AND running_at IS NULL`)
    .orderBy(asc(vms.createdAt))
    .limit(1)
    .prepare(),
  catalog: db.select().from(catalogs).where(eq(catalogs.id, 1)).prepare(),
  /** `{ address, nonce }` */
  usedNonce: db
    .select({ nonce: nonces.nonce })
    .from(nonces)
    .where(and(eq(nonces.address, given("address")), eq(nonces.nonce, given("nonce"))))
    .prepare(),
  /** The only write. `{ address, nonce, expiresAt }` */
  insertNonce: db
    .insert(nonces)
    .values({ address: given("address"), nonce: given("nonce"), expiresAt: given("expiresAt") })
    .onConflictDoNothing()
    .prepare(),
}));

type Read = {
  getQuery(): { sql: string; params: unknown[] };
  all(values?: Record<string, unknown>): Promise<unknown[]>;
  mapResult(result: unknown, isFromBatch?: boolean): unknown;
};
type RowsOf<List extends readonly Read[]> = { [I in keyof List]: Awaited<ReturnType<List[I]["all"]>> };

/** Several reads in one round trip; `values` fills the placeholders of all of them. */
export async function readTogether<const List extends readonly Read[]>(
  db: Database,
  reads: List,
  values: Record<string, unknown> = {},
): Promise<RowsOf<List>> {
  const results = await db.$client.batch(
    reads.map((read) => {
      const { sql: text, params } = read.getQuery();
      return db.$client.prepare(text).bind(...fillPlaceholders(params, values));
    }),
  );
  return reads.map((read, i) => read.mapResult(results[i], true)) as RowsOf<List>;
}

export const isNonceUsed = async (db: Database, address: string, nonce: string): Promise<boolean> =>
  (await statementsOf(db).usedNonce.all({ address: address.toLowerCase(), nonce })).length > 0;

/** Marks a signed nonce as used. False when it was used before. */
export async function useNonce(db: Database, address: string, nonce: string, expiresAt: number): Promise<boolean> {
  const result = await statementsOf(db).insertNonce.run({ address: address.toLowerCase(), nonce, expiresAt });
  return result.meta.changes === 1;
}
