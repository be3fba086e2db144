// Writes of the scan. Rows and cursor are written in one batch, fenced by the lease: the first statement sets the lease to NULL
// when another invocation holds it, the NOT NULL constraint fails, and D1 rolls the whole batch back (hard case 9).
import { and, desc, eq, lt, lte, or, type SQL, sql } from "drizzle-orm";
import type { Checkpoint } from "../chain/checkpoints.ts";
import type { Head } from "../chain/client.ts";
import { SECONDS_PER_DAY } from "../chain/contract.ts";
import type { ChainEvents, Purchase, Transfer } from "../chain/events.ts";
import type { SpansByNode } from "../chain/log-ranges.ts";
import type { ChainConfig } from "../config.ts";
import { columnsOf, MACHINE_STAGES, provisioningDeadline } from "../model/machine-life.ts";
import { incarnationKey } from "../model/purchase-key.ts";
import { TIERS } from "../model/tiers.ts";
import { type Database, once, runBatch, type Statement } from "./client.ts";
import { cursors, gaps, purchases, vms } from "./schema.ts";
import { hasStatus, isAt, moveSteps } from "./stages.ts";
import { type QueuedVm, WAKE_AFTER_MS } from "./wake.ts";

const CURSOR_ID = 1;
const ROWS_PER_STATEMENT = 500;
const ZERO_ADDRESS = "0x0000000000000000000000000000000000000000";
/** The delay that each earlier row of a burst adds to a row's wake time: the queue handles the rows one after the other. */
const WAKE_LATER_MS = 25;

export type Cursor = typeof cursors.$inferSelect;
export type Fence = { holder: string; leaseUntil: number };

const cursorOf = once((db) => db.select().from(cursors).where(eq(cursors.id, CURSOR_ID)).prepare());

export const loadCursor = async (db: Database): Promise<Cursor | null> => (await cursorOf(db).get()) ?? null;

export async function createCursor(db: Database, head: Head, now: number): Promise<void> {
  await db
    .insert(cursors)
    .values({
      id: CURSOR_ID,
      blockNumber: head.number,
      blockHash: head.hash,
      blockTimestamp: head.timestamp,
      checkpoints: [[head.number, head.hash]],
      scannedAt: now,
    })
    .onConflictDoNothing();
}

/** Takes or renews the scan's lease; false while another invocation holds it. */
export async function takeScanLease(db: Database, fence: Fence, now: number): Promise<boolean> {
  const result = await db
    .update(cursors)
    .set({ lease: fence.holder, leaseUntil: fence.leaseUntil })
    .where(
      and(
        eq(cursors.id, CURSOR_ID),
        or(eq(cursors.lease, ""), eq(cursors.lease, fence.holder), lt(cursors.leaseUntil, now)),
      ),
    );
  return result.meta.changes === 1;
}

export const releaseScanLease = (db: Database, holder: string) =>
  db
    .update(cursors)
    .set({ lease: "", leaseUntil: 0 })
    .where(and(eq(cursors.id, CURSOR_ID), eq(cursors.lease, holder)));

export const saveSpans = (db: Database, spans: SpansByNode) =>
  db.update(cursors).set({ spans }).where(eq(cursors.id, CURSOR_ID));

/** Claims a sweep, a catalog request or a pruning. True for one caller per interval. */
export async function claimTurn(
  db: Database,
  turn: "sweptAt" | "catalogAskedAt" | "prunedAt",
  now: number,
  intervalMs: number,
): Promise<boolean> {
  const column = cursors[turn];
  const due = lte(column, now - intervalMs);
  const result = await db
    .update(cursors)
    .set({ [turn]: now })
    .where(and(eq(cursors.id, CURSOR_ID), due));
  return result.meta.changes === 1;
}

type CursorMove = { head: Head; checkpoints: Checkpoint[]; spans: SpansByNode; now: number };

const moveCursor = (db: Database, fence: Fence, to: CursorMove) =>
  db
    .update(cursors)
    .set({
      blockNumber: to.head.number,
      blockHash: to.head.hash,
      blockTimestamp: to.head.timestamp,
      checkpoints: to.checkpoints,
      spans: to.spans,
      scannedAt: to.now,
      lease: sql`CASE WHEN ${cursors.lease} = ${fence.holder} THEN ${cursors.lease} END`,
      leaseUntil: fence.leaseUntil,
    })
    .where(eq(cursors.id, CURSOR_ID));

type Settings = ChainConfig & { PROVISION_DEADLINE_SECONDS: number; START_BLOCK: number };

/** Stores a range's events and moves the cursor, all or nothing. Returns the rows of machines to queue. */
export async function applyEvents(
  db: Database,
  settings: Settings,
  events: ChainEvents,
  chainTime: number,
  now: number,
  cursor?: { fence: Fence; move: CursorMove },
): Promise<QueuedVm[]> {
  const missing = await missingTokens(db, settings, events.purchases, now);
  const rows = latestPerToken(events.purchases).map((p) => vmRow(settings, p, chainTime));
  const retired = rows.map((row) => ({ tokenId: row.tokenId, incarnation: row.incarnation }));
  const moved = lastOfBlock(events.transfers);
  const touched = [...new Set([...moved, ...events.purchases].map((event) => event.tokenId))];
  const inserts = chunks(rows).map((part, i) => upsertVms(part, now + i * ROWS_PER_STATEMENT * WAKE_LATER_MS));
  const retirements = chunks(retired).map((part) => retireOthers(part, now));
  const returns = chunks(retired).map((part) => takeBack(part, now));
  const statements: Statement[] = [
    ...(cursor === undefined ? [] : [moveCursor(db, cursor.fence, cursor.move)]),
    ...chunks(events.purchases.map((p) => purchaseRow(settings, p, now))).map((part) => upsertPurchases(part)),
    ...chunks(moved.map(transferRow)).flatMap((part) => [upsertTransfers(part), deleteEarlierOfBlock(part)]),
    ...retirements,
    ...returns,
    ...inserts,
    ...chunks(rows).map((part) => moveToBlock(part, settings.EXPIRY_GRACE_SECONDS)),
    ...chunks(touched).map((part) => refreshOwners(part)),
    ...chunks(events.renewals).map((part) => upsertRenewals(part)),
    ...chunks([...new Set(events.renewals.map((event) => event.tokenId))]).map((part) =>
      refreshExpiry(part, settings.EXPIRY_GRACE_SECONDS),
    ),
    ...chunks(missing).map((part) => insertGaps(part)),
    ...chunks(events.terminations).map((part) => checkNow(part)),
  ];
  if (statements.length === 0) return [];
  const results = await runBatch(db, statements);
  const returning = new Set<Statement>([...retirements, ...returns, ...inserts]);
  return statements.flatMap((statement, i) => (returning.has(statement) ? (results[i] as QueuedVm[]) : []));
}

/** Undoes all events above the ancestor and moves the cursor back to it, in one batch. */
export async function rollBack(db: Database, fence: Fence, ancestor: CursorMove, graceSeconds: number): Promise<void> {
  const above = ancestor.head.number;
  const [moved, renewed] = await runBatch(db, [
    sql`SELECT token_id FROM transfers WHERE block_number > ${above}`,
    sql`SELECT token_id FROM renewals WHERE block_number > ${above}`,
  ]);
  const ids = (rows: unknown[] | undefined) => [
    ...new Set((rows as { token_id: number }[]).map((row) => row.token_id)),
  ];
  await runBatch(db, [
    moveCursor(db, fence, ancestor),
    sql`DELETE FROM transfers WHERE block_number > ${above}`,
    sql`DELETE FROM renewals WHERE block_number > ${above}`,
    sql`UPDATE purchases SET orphaned = 1 WHERE block_number > ${above} AND orphaned = 0`,
    sql`UPDATE gaps SET read_to = ${above} WHERE read_to > ${above}`,
    refreshOwners(ids(moved)),
    refreshExpiry(ids(renewed), graceSeconds),
  ]);
}

const MAX_GAPS_PER_PASS = 100;
const GAP_FIRST_TRY_MS = 2_000;

/**
 * Gaps for token ids without a purchase. Ids rise by one, so an id between two known purchases was left out by a node. Ids
 * below the first known purchase may have been left out as well.
 */
async function missingTokens(
  db: Database,
  { START_BLOCK }: Settings,
  found: readonly Purchase[],
  now: number,
): Promise<GapRow[]> {
  const ordered = [...found].sort((a, b) => a.tokenId - b.tokenId);
  const [lowest] = ordered;
  if (lowest === undefined) return [];
  let below: { tokenId: number; blockNumber: number } | undefined = await db
    .select({ tokenId: purchases.tokenId, blockNumber: purchases.blockNumber })
    .from(purchases)
    .where(and(lt(purchases.tokenId, lowest.tokenId), eq(purchases.orphaned, false)))
    .orderBy(desc(purchases.tokenId))
    .limit(1)
    .get();
  // The ids below the first purchase are gaps only when that purchase is new. Otherwise the search for a gap, which sees the
  // purchase again, would record the closed gaps again, for ever.
  if (below === undefined && (await isKnown(db, lowest.tokenId))) below = lowest;
  const missing: GapRow[] = [];
  for (const purchase of ordered) {
    const first = below === undefined ? Math.max(0, purchase.tokenId - MAX_GAPS_PER_PASS) : below.tokenId + 1;
    for (let id = first; id < purchase.tokenId; id++) {
      if (missing.length >= MAX_GAPS_PER_PASS) break;
      const fromBlock = below?.blockNumber ?? START_BLOCK;
      missing.push({ tokenId: id, fromBlock, toBlock: purchase.blockNumber, nextTryAt: now + GAP_FIRST_TRY_MS });
    }
    below = purchase;
  }
  return missing;
}

const isKnown = async (db: Database, tokenId: number): Promise<boolean> =>
  (await db
    .select({ tokenId: purchases.tokenId })
    .from(purchases)
    .where(and(eq(purchases.tokenId, tokenId), eq(purchases.orphaned, false)))
    .limit(1)
    .get()) !== undefined;

type GapRow = { tokenId: number; fromBlock: number; toBlock: number; nextTryAt: number };

/** A gap that is already recorded gets the wider of the two ranges: a reorg may have moved its purchase to another block. */
const insertGaps = (rows: GapRow[]) =>
  sql`INSERT INTO gaps (token_id, from_block, to_block, next_try_at)
    SELECT value->>'tokenId', value->>'fromBlock', value->>'toBlock', value->>'nextTryAt' FROM json_each(${JSON.stringify(rows)})
    WHERE NOT EXISTS (SELECT 1 FROM purchases WHERE token_id = value->>'tokenId' AND orphaned = 0)
    ON CONFLICT (token_id) DO UPDATE SET from_block = MIN(from_block, excluded.from_block), to_block = MAX(to_block, excluded.to_block),
      read_to = CASE WHEN from_block > excluded.from_block THEN -1 ELSE read_to END
    WHERE from_block > excluded.from_block OR to_block < excluded.to_block`;

/** The purchase with the highest token id, and its block; null without one. */
export const newestPurchase = async (db: Database) =>
  (await db
    .select({ tokenId: purchases.tokenId, blockNumber: purchases.blockNumber })
    .from(purchases)
    .where(eq(purchases.orphaned, false))
    .orderBy(desc(purchases.tokenId))
    .limit(1)
    .get()) ?? null;

export const recordGap = (db: Database, gap: GapRow) => db.run(insertGaps([gap]));

/** Gaps that are due, newest tokens first: their buyers are waiting. */
export const dueGaps = (db: Database, now: number, limit: number) =>
  db.select().from(gaps).where(lte(gaps.nextTryAt, now)).orderBy(desc(gaps.tokenId)).limit(limit).all();

export type Gap = typeof gaps.$inferSelect;

/** Postpones gaps: each try doubles the delay, from `firstMs` on. */
export const postponeGaps = (db: Database, tokenIds: readonly number[], now: number, firstMs: number) =>
  db.run(sql`UPDATE gaps SET tries = tries + 1, next_try_at = ${now} + ${firstMs} * (1 << MIN(tries, 12))
    WHERE token_id IN (SELECT value FROM json_each(${JSON.stringify(tokenIds)}))`);

/** Stores how far gaps were read. An unfinished search does not count as a try: the next sweep continues it. */
export const goOnWithGaps = (db: Database, gaps: readonly Pick<Gap, "tokenId" | "readTo">[], nextTryAt: number) =>
  db.run(sql`UPDATE gaps SET read_to = begun.read_to, tries = MAX(0, tries - 1), next_try_at = ${nextTryAt}
    FROM (SELECT value->>'tokenId' AS token_id, value->>'readTo' AS read_to FROM json_each(${JSON.stringify(gaps)})) AS begun
    WHERE gaps.token_id = begun.token_id`);

/** Restarts the search of gaps that were read to the end without a purchase. */
export const beginGapsAgain = (db: Database, tokenIds: readonly number[]) =>
  db.run(
    sql`UPDATE gaps SET read_to = -1 WHERE token_id IN (SELECT value FROM json_each(${JSON.stringify(tokenIds)}))`,
  );

export const closeGaps = (db: Database, tokenIds: readonly number[]) =>
  db.run(sql`DELETE FROM gaps WHERE token_id IN (SELECT value FROM json_each(${JSON.stringify(tokenIds)}))`);

/** The token ids that have a current machine's row whose purchase is not orphaned. */
export async function knownTokens(db: Database, tokenIds: readonly number[]): Promise<Set<number>> {
  const rows = await db.all<{ token_id: number }>(
    sql`SELECT token_id FROM vms WHERE current = 1 AND token_id IN (SELECT value FROM json_each(${JSON.stringify(tokenIds)}))
      AND NOT EXISTS (SELECT 1 FROM purchases WHERE purchases.incarnation = vms.incarnation AND orphaned = 1)`,
  );
  return new Set(rows.map((row) => row.token_id));
}

function purchaseRow(settings: Settings, p: Purchase, now: number) {
  return {
    ...p,
    incarnation: keyOf(settings, p),
    buyer: p.buyer.toLowerCase(),
    totalCost: p.totalCost.toString(),
    seenAt: now,
  };
}

function vmRow(settings: Settings, p: Purchase, chainTime: number) {
  const expiresAt = p.purchaseDate + p.durationDays * SECONDS_PER_DAY;
  return {
    incarnation: keyOf(settings, p),
    tokenId: p.tokenId,
    owner: p.buyer.toLowerCase(),
    tier: p.tier,
    // The provisioner refuses an unknown tier and records the failure; the row needs a type until then.
    vmType: TIERS[p.tier]?.type ?? "vm",
    txHash: p.txHash,
    blockNumber: p.blockNumber,
    deadline: provisioningDeadline(chainTime, p.durationDays, settings.PROVISION_DEADLINE_SECONDS),
    createdAt: p.purchaseDate,
    expiresAt,
    checkAt: expiresAt + settings.EXPIRY_GRACE_SECONDS,
  };
}

const transferRow = (t: ChainEvents["transfers"][number]) => ({
  ...t,
  sender: t.sender.toLowerCase(),
  recipient: t.recipient === ZERO_ADDRESS ? "" : t.recipient.toLowerCase(),
});

/** The last transfer of each token in each block: only the owner at the end of a block counts. */
const lastOfBlock = (list: readonly Transfer[]): Transfer[] => [
  ...new Map(list.map((t) => [`${t.blockNumber}/${t.tokenId}`, t])).values(),
];

/** The log index of a transfer row that was read from the contract: negative, so that it sorts before the block's logs. */
export const logIndexOfOwner = (tokenId: number): number => -1 - tokenId;

const keyOf = (settings: Settings, p: Purchase): string =>
  incarnationKey({
    deploymentId: settings.DEPLOYMENT_ID,
    contract: settings.CONTRACT_ADDRESS,
    tokenId: p.tokenId,
    txHash: p.txHash,
    ordinal: p.ordinal,
  });

// If a range has two purchases of one id (a burn and a new sale), the later one holds the token.
const latestPerToken = (list: readonly Purchase[]): Purchase[] => [
  ...new Map(list.map((p) => [p.tokenId, p])).values(),
];

const upsertPurchases = (rows: object[]) =>
  sql`INSERT INTO purchases (incarnation, token_id, tx_hash, ordinal, block_number, block_hash, log_index, buyer, tier, duration_days, purchase_date, total_cost, seen_at)
    SELECT value->>'incarnation', value->>'tokenId', value->>'txHash', value->>'ordinal', value->>'blockNumber', value->>'blockHash', value->>'logIndex', value->>'buyer', value->>'tier', value->>'durationDays', value->>'purchaseDate', value->>'totalCost', value->>'seenAt'
    FROM json_each(${JSON.stringify(rows)}) WHERE true
    ON CONFLICT (incarnation) DO UPDATE SET block_number = excluded.block_number, block_hash = excluded.block_hash, log_index = excluded.log_index, purchase_date = excluded.purchase_date, orphaned = 0
    WHERE orphaned = 1 OR block_hash <> excluded.block_hash`;

const upsertTransfers = (rows: object[]) =>
  sql`INSERT INTO transfers (block_number, log_index, block_hash, token_id, sender, recipient)
    SELECT value->>'blockNumber', value->>'logIndex', value->>'blockHash', value->>'tokenId', value->>'sender', value->>'recipient'
    FROM json_each(${JSON.stringify(rows)}) WHERE true
    ON CONFLICT (block_number, log_index) DO UPDATE SET block_hash = excluded.block_hash, token_id = excluded.token_id, sender = excluded.sender, recipient = excluded.recipient
    WHERE block_hash <> excluded.block_hash`;

/** Keeps one transfer row per token and block, also when a node showed a block's transfers in several answers. */
const deleteEarlierOfBlock = (rows: object[]) =>
  sql`DELETE FROM transfers WHERE rowid IN (
      SELECT earlier.rowid FROM json_each(${JSON.stringify(rows)}) JOIN transfers AS earlier
        ON earlier.token_id = value->>'tokenId' AND earlier.block_number = value->>'blockNumber'
      WHERE EXISTS (SELECT 1 FROM transfers AS later WHERE later.token_id = earlier.token_id
        AND later.block_number = earlier.block_number AND later.log_index > earlier.log_index))`;

/**
 * Deletes transfers below a block that a later transfer below that block has replaced, so that no reorg can bring them back. A
 * token's last transfer stays, since it names the owner. Returns the number of deleted rows, at most `limit`.
 */
export async function pruneTransfers(db: Database, below: number, limit: number): Promise<number> {
  const { meta } = await db.run(sql`DELETE FROM transfers WHERE rowid IN (
    SELECT old.rowid FROM transfers AS old WHERE old.block_number < ${below} AND EXISTS (
      SELECT 1 FROM transfers AS later WHERE later.token_id = old.token_id AND later.block_number < ${below}
        AND (later.block_number, later.log_index) > (old.block_number, old.log_index))
    LIMIT ${limit})`);
  return meta.changes;
}

/** Tokens with a machine or waiting for one, with the owner in their row. */
export const servedTokens = (db: Database, limit: number) =>
  db
    .select({ tokenId: vms.tokenId, owner: vms.owner })
    .from(vms)
    .where(and(sql`current = 1`, hasStatus("provisioning", "running")))
    .orderBy(desc(vms.tokenId))
    .limit(limit);

const retirement = moveSteps(MACHINE_STAGES, "retire");
const made = columnsOf("provisioning/create");
/** Retires the rows of incarnations that lost their token to another one: the machine ends, the rows stay (hard case 5). */
const retireOthers = (rows: object[], now: number) =>
  sql`UPDATE vms SET current = 0, step = ${retirement.set.step}, generation = generation + 1, wake_at = ${now + WAKE_AFTER_MS}, check_at = NULL
    WHERE current = 1 AND token_id IN (SELECT value->>'tokenId' FROM json_each(${JSON.stringify(rows)}))
      AND incarnation NOT IN (SELECT value->>'incarnation' FROM json_each(${JSON.stringify(rows)}))
    RETURNING incarnation, generation`;

/** An incarnation whose token has gone to another one, and whose machine still runs. */
const isRetiring = sql`(vms.current = 0 AND ${isAt(["running/retire", "expired/retire"])})`;

/**
 * An incarnation that a reorg brings back before its machine has ended keeps the machine, once two nodes show the purchase: by the
 * word of one node, the present owner of the token would get the machine's key.
 */
const takeBack = (rows: object[], now: number) =>
  sql`UPDATE vms SET owner = ${ownerOf(sql`vms.token_id`)}, wake_at = ${now + WAKE_AFTER_MS}
    WHERE ${isRetiring} AND incarnation IN (SELECT value->>'incarnation' FROM json_each(${JSON.stringify(rows)}))
    RETURNING incarnation, generation`;

/** A new row starts at the first step. Any other incarnation that a reorg brings back starts over, with new keys. */
const upsertVms = (rows: object[], now: number) =>
  sql`INSERT INTO vms (incarnation, token_id, owner, tier, vm_type, tx_hash, block_number, status, step, wake_at, deadline, created_at, expires_at, check_at)
    SELECT value->>'incarnation', value->>'tokenId', value->>'owner', value->>'tier', value->>'vmType', value->>'txHash', value->>'blockNumber', ${made.status}, ${made.step}, ${now + WAKE_AFTER_MS} + key * ${WAKE_LATER_MS}, value->>'deadline', value->>'createdAt', value->>'expiresAt', value->>'checkAt'
    FROM json_each(${JSON.stringify(rows)}) WHERE true
    ON CONFLICT (incarnation) DO UPDATE SET current = 1, block_number = excluded.block_number, status = excluded.status, step = excluded.step, generation = generation + 1,
      wake_at = excluded.wake_at, deadline = excluded.deadline, put_off = 0, created_at = excluded.created_at, expires_at = excluded.expires_at, check_at = excluded.check_at,
      ssh_host = NULL, ssh_port = NULL, ssh_private_key = NULL, running_at = NULL,
      expired_at = NULL, late_seconds = NULL, delivered_at = NULL, delivered_to = NULL, known_to_former = 0, acknowledged_at = NULL, fresh_owner = NULL, failure = NULL
    WHERE current = 0 AND NOT ${isRetiring}
    RETURNING incarnation, generation`;

/** A transaction that a reorg moves to another block has another time: the row keeps its stage and takes the new times. */
const moveToBlock = (rows: object[], graceSeconds: number) =>
  sql`UPDATE vms SET block_number = moved.block_number, created_at = moved.created_at, expires_at = moved.expires_at,
      check_at = CASE WHEN check_at IS NULL THEN NULL ELSE moved.expires_at + ${graceSeconds} END
    FROM (SELECT value->>'incarnation' AS incarnation, value->>'blockNumber' AS block_number, value->>'createdAt' AS created_at, value->>'expiresAt' AS expires_at
      FROM json_each(${JSON.stringify(rows)})) AS moved
    WHERE vms.incarnation = moved.incarnation AND (vms.block_number <> moved.block_number OR vms.created_at <> moved.created_at)`;

/** The owner of a token by its last transfer, lower case. */
function ownerOf(tokenId: SQL): SQL {
  return sql`COALESCE((SELECT recipient FROM transfers WHERE token_id = ${tokenId} ORDER BY block_number DESC, log_index DESC LIMIT 1),
    (SELECT buyer FROM purchases WHERE token_id = ${tokenId} AND orphaned = 0 ORDER BY block_number DESC LIMIT 1), '')`;
}

/** A purchase that a reorg has taken has no owner: the token's present owner may have it by a sale that no log has shown yet. */
const ownerNow = sql`(CASE WHEN EXISTS (SELECT 1 FROM purchases WHERE purchases.incarnation = vms.incarnation AND orphaned = 1)
  THEN '' ELSE latest.recipient END)`;

export const refreshOwners = (tokenIds: number[]) =>
  sql`UPDATE vms SET owner = ${ownerNow} FROM (
      SELECT ids.value AS token_id, ${ownerOf(sql`ids.value`)} AS recipient
      FROM json_each(${JSON.stringify(tokenIds)}) AS ids) AS latest
    WHERE vms.current = 1 AND vms.token_id = latest.token_id AND vms.owner <> ${ownerNow}`;

const upsertRenewals = (rows: object[]) =>
  sql`INSERT INTO renewals (block_number, log_index, token_id, new_expiry)
    SELECT value->>'blockNumber', value->>'logIndex', value->>'tokenId', value->>'newExpiry' FROM json_each(${JSON.stringify(rows)}) WHERE true
    ON CONFLICT (block_number, log_index) DO UPDATE SET token_id = excluded.token_id, new_expiry = excluded.new_expiry
    WHERE token_id <> excluded.token_id OR new_expiry <> excluded.new_expiry`;

/** Sets the expiry of these tokens' rows from their purchase and renewals. */
const refreshExpiry = (tokenIds: number[], graceSeconds: number) =>
  sql`UPDATE vms SET expires_at = paid.expiry, check_at = CASE WHEN check_at IS NULL THEN NULL ELSE paid.expiry + ${graceSeconds} END
    FROM (SELECT p.incarnation, MAX(p.purchase_date + p.duration_days * ${SECONDS_PER_DAY},
        COALESCE((SELECT MAX(new_expiry) FROM renewals WHERE token_id = p.token_id), 0)) AS expiry
      FROM json_each(${JSON.stringify(tokenIds)}) AS ids JOIN purchases AS p ON p.token_id = ids.value) AS paid
    WHERE vms.current = 1 AND vms.incarnation = paid.incarnation AND vms.expires_at <> paid.expiry`;

/** VMTerminated: the token's row is due at once, and the machine ends after the proof on chain. */
const checkNow = (rows: object[]) =>
  sql`UPDATE vms SET check_at = 0 WHERE current = 1 AND check_at > 0 AND token_id IN (SELECT value->>'tokenId' FROM json_each(${JSON.stringify(rows)}))`;

function chunks<T>(rows: readonly T[]): T[][] {
  const parts: T[][] = [];
  for (let i = 0; i < rows.length; i += ROWS_PER_STATEMENT) parts.push(rows.slice(i, i + ROWS_PER_STATEMENT));
  return parts;
}
