// Follows the contract's events into the database. A node is believed about nothing that can be checked:
//
//   lagging replica      answers an empty list, not an error -> the last blocks are read again on every pass
//   node behind us       its head is below the cursor        -> the next node is asked
//   reorg while reading  the range's end or the cursor's block changed hash meanwhile -> nothing is stored, next pass
//   reorg                the cursor's block has another hash at two nodes -> roll back to the common ancestor, re-read
//   missing event        a token id was skipped              -> recorded as a gap, read again from every node
import { BaseError } from "viem";
import type { EdgeConfig } from "../config.ts";
import type { Database } from "../db/client.ts";
import * as store from "../db/scan.ts";
import { AppError } from "../errors.ts";
import { errorFields, log } from "../log.ts";
import { addCheckpoint } from "./checkpoints.ts";
import {
  type Chain,
  ChainUnavailable,
  type Head,
  type Node,
  nodeIsDown,
  readHead,
  readOwners,
  readToken,
} from "./client.ts";
import { type ChainEvents, fetchEvents } from "./events.ts";
import { growRange, shrinkRange } from "./log-ranges.ts";
import { askFirst, askTwo } from "./witness.ts";

const OVERLAP_BLOCKS = 10;
const GAPS_PER_SWEEP = 200;
/** Many gaps lie in one range. */
const RANGES_PER_SWEEP = 20;
const GAP_RETRY_MS = 4_000;
const GAP_MAX_TRIES = 10;
/** So many nodes have to show nothing before a token id is given up. */
const WITNESSES = 2;

export type ScanContext = {
  db: Database;
  chain: Chain;
  config: EdgeConfig;
  fence: store.Fence;
  /** Unix milliseconds. */
  now: number;
};

export type PassResult = {
  /** Machines to queue now. */
  queued: store.QueuedVm[];
  /** False while blocks are left to read: don't wait before the next pass. */
  caughtUp: boolean;
  outcome: "idle" | "advanced" | "rolled_back" | "unsettled" | "range_shrunk";
};

/** The cursor of a first scan stands just before `START_BLOCK`. */
export async function startCursor({ db, chain, config, now }: Omit<ScanContext, "fence">): Promise<store.Cursor> {
  const known = await store.loadCursor(db);
  if (known !== null) return known;
  const before = Math.max(0, config.START_BLOCK - 1);
  const head = await askTwo(chain, (node) => readHead(node, before));
  await store.createCursor(db, head, config.SCAN_MAX_RANGE, now);
  const created = await store.loadCursor(db);
  if (created === null) throw new Error("the cursor row vanished");
  return created;
}

/**
 * One pass: read what is new (and the last blocks again), store it, move the cursor. Nodes are asked in turn; one that is
 * behind, stands still, is on a fork or refuses the range is passed over. Throws `ChainUnavailable` when none is left.
 */
export async function scanPass(context: ScanContext): Promise<PassResult> {
  const { db, chain, config, now } = context;
  const cursor = await startCursor(context);
  let cause: unknown;
  let fallback: PassResult | undefined;
  let range = cursor.range;
  for (const node of chain.nodes) {
    try {
      const head = await readHead(node);
      if (head.number < cursor.blockNumber) {
        log("warn", "rpc_behind", { node: node.name, head: head.number, scanned: cursor.blockNumber });
        continue;
      }
      const result = await readOn(context, cursor, node, head);
      // A node that stands still agrees with everything we know and shows nothing new: another may know more.
      const stale = now / 1_000 - head.timestamp > config.CHAIN_MAX_AGE_SECONDS;
      if (result.outcome !== "unsettled" && !(stale && result.outcome === "idle")) return result;
      fallback = result;
    } catch (error) {
      // What is not the node's failure (ours, or the database's) is not mended by asking another node.
      if (!(error instanceof BaseError) && !(error instanceof AppError) && !(error instanceof RangeRefused))
        throw error;
      if (error instanceof RangeRefused) range = Math.min(range, shrinkRange(cursor.range, error.cause));
      log("warn", "scan_node_failed", { node: node.name, ...errorFields(error) });
      cause = error;
    }
  }
  if (range < cursor.range) {
    log("info", "scan_range_shrunk", { from: cursor.range, to: range });
    await store.setScanRange(db, range);
    return { queued: [], caughtUp: false, outcome: "range_shrunk" };
  }
  if (fallback !== undefined) return fallback;
  throw new ChainUnavailable({ cause });
}

/** A node answered eth_getLogs with an error: whatever its prose, a smaller range is worth a try. */
class RangeRefused extends Error {
  override readonly name = "RangeRefused";
}

async function readEvents(node: Node, config: EdgeConfig, from: number, to: number): Promise<ChainEvents> {
  const source = { contract: config.CONTRACT_ADDRESS, purchaseEvent: config.PURCHASE_EVENT };
  try {
    return await fetchEvents(node, source, from, to);
  } catch (cause) {
    if (cause instanceof BaseError && !nodeIsDown(cause)) throw new RangeRefused("eth_getLogs was refused", { cause });
    throw cause;
  }
}

async function readOn(context: ScanContext, cursor: store.Cursor, node: Node, head: Head): Promise<PassResult> {
  const { db, config, fence, now } = context;
  const target = Math.min(head.number - config.CONFIRMATIONS, cursor.blockNumber + cursor.range);
  if (target <= cursor.blockNumber) {
    const standing = await readHead(node, cursor.blockNumber);
    if (standing.hash !== cursor.blockHash) return settleReorg(context, cursor);
    return { queued: [], caughtUp: true, outcome: "idle" };
  }
  const from = Math.max(config.START_BLOCK, cursor.blockNumber - OVERLAP_BLOCKS + 1);
  const end = target === head.number ? head : await readHead(node, target);
  const events = await readEvents(node, config, from, target);
  const [endAfter, standing] = await Promise.all([readHead(node, target), readHead(node, cursor.blockNumber)]);
  if (standing.hash !== cursor.blockHash) return settleReorg(context, cursor);
  if (endAfter.hash !== end.hash) return { queued: [], caughtUp: false, outcome: "unsettled" };
  // Expiry and deadlines go by it: a block is never older than the one that it comes after (hard case 29).
  if (end.timestamp < cursor.blockTimestamp) {
    throw new AppError("chain_answered_nonsense", "An RPC node shows a block whose time is behind an earlier one's.");
  }

  const move = {
    head: end,
    checkpoints: addCheckpoint(cursor.checkpoints, [end.number, end.hash]),
    range: growRange(cursor.range, config.SCAN_MAX_RANGE),
    now,
  };
  const queued = await store.applyEvents(db, config, events, head.timestamp, now, { fence, move });
  return { queued, caughtUp: target >= head.number - config.CONFIRMATIONS, outcome: "advanced" };
}

/**
 * The cursor's block is not where we left it. Cases: two nodes say so (a reorg: roll back to the newest checkpoint that
 * still stands, and the next pass reads the new chain); two nodes still know our block (the one that said otherwise is
 * on a fork: nothing happens); no two agree (nothing happens, the next pass asks again).
 */
async function settleReorg(context: ScanContext, cursor: store.Cursor): Promise<PassResult> {
  const { db, chain, config, fence, now } = context;
  const hashAt = (number: number) => askTwo(chain, (node) => readHead(node, number));
  if ((await hashAt(cursor.blockNumber)).hash === cursor.blockHash) {
    return { queued: [], caughtUp: true, outcome: "unsettled" };
  }
  for (const [index, [number, hash]] of cursor.checkpoints.entries()) {
    const last = index === cursor.checkpoints.length - 1;
    const block = await hashAt(number);
    if (block.hash !== hash && !last) continue;
    // Deeper than everything we remember: the whole history is read again, which costs time and loses nothing.
    if (block.hash !== hash) log("page", "reorg_beyond_checkpoints", { from: cursor.blockNumber });
    log("warn", "reorg", { from: cursor.blockNumber, ancestor: number });
    const checkpoints = cursor.checkpoints.slice(index + 1);
    await store.rollBack(
      db,
      fence,
      {
        head: block,
        checkpoints: [[block.number, block.hash], ...checkpoints],
        range: cursor.range,
        now,
      },
      config.EXPIRY_GRACE_SECONDS,
    );
    break;
  }
  return { queued: [], caughtUp: false, outcome: "rolled_back" };
}

/**
 * A gap shows only when a later id appears; the newest sale has none behind it. So the contract is asked whether the next
 * id exists: if it does although the scan has passed the block that says so, its log was hidden from us.
 */
export async function probeNewest({ db, chain, config, now }: ScanContext): Promise<void> {
  const newest = await store.newestPurchase(db);
  const cursor = await store.loadCursor(db);
  if (cursor === null) return;
  const fromBlock = newest?.blockNumber ?? config.START_BLOCK;
  // Before the first sale nobody knows where the ids begin: at 0 or at 1.
  for (const tokenId of newest === null ? [0, 1] : [newest.tokenId + 1]) {
    const view = await askFirst(chain, (node) => readToken(chain, node, BigInt(tokenId)));
    if (view.owner === null) continue;
    await store.recordGap(db, { tokenId, fromBlock, toBlock: Math.max(fromBlock, cursor.blockNumber), nextTryAt: now });
  }
}

/** Reads the ranges of missing token ids again, from every node. Returns the machines to queue. */
export async function fillGaps(context: ScanContext): Promise<store.QueuedVm[]> {
  const { db, chain, config, now } = context;
  const all = await store.dueGaps(db, now, GAPS_PER_SWEEP);
  if (all.length === 0) return [];
  const ranges = distinctRanges(all).slice(0, RANGES_PER_SWEEP);
  const due = all.filter((gap) => ranges.some((range) => rangeKey(range) === rangeKey(gap)));
  // Put off first: whatever fails below, the next sweep does not begin with the same range.
  await store.postponeGaps(db, tokensOf(due), now, GAP_RETRY_MS);
  const queued: store.QueuedVm[] = [];
  const readWell = new Set<string>();
  for (const range of ranges) {
    const from = Math.max(range.fromBlock, config.START_BLOCK);
    const reads = await rereadEverywhere(context, from, range.toBlock);
    queued.push(...reads.flatMap((read) => read.queued));
    const complete = reads.filter((read) => read.complete).length;
    if (complete >= Math.min(WITNESSES, chain.nodes.length)) readWell.add(rangeKey(range));
  }
  const known = await store.knownTokens(db, tokensOf(due));
  const unseen = due.filter((gap) => !known.has(gap.tokenId) && readWell.has(rangeKey(gap)));
  await store.closeGaps(db, [...known, ...(await givenUp(context, unseen))]);
  return queued;
}

/** Which of the token ids that nobody shows a sale of need no more looking for. */
async function givenUp({ chain, config }: ScanContext, unseen: readonly store.Gap[]): Promise<number[]> {
  if (unseen.length === 0) return [];
  const owners = await askTwo(chain, (node) => readOwners(chain, node, tokensOf(unseen)));
  return unseen.flatMap(({ tokenId, fromBlock, tries }, i) => {
    // There is no such token, or it was sold before all that we look at.
    if (owners[i] === null || fromBlock <= config.START_BLOCK) return [tokenId];
    if (tries < GAP_MAX_TRIES) return [];
    log("page", "token_id_never_seen", { tokenId });
    return [tokenId];
  });
}

/** Reads a range that the scan has passed again, from every node. Throws `ChainUnavailable` when none could be read to its end. */
export async function rescan(
  context: Omit<ScanContext, "fence">,
  fromBlock: number,
  toBlock: number,
): Promise<store.QueuedVm[]> {
  const reads = await rereadEverywhere(context, fromBlock, toBlock);
  if (!reads.some(({ complete }) => complete)) throw new ChainUnavailable();
  return reads.flatMap(({ queued }) => queued);
}

type Reread = { queued: store.QueuedVm[]; complete: boolean };

async function rereadEverywhere(context: Omit<ScanContext, "fence">, from: number, to: number): Promise<Reread[]> {
  const reads: Reread[] = [];
  for (const node of context.chain.nodes) reads.push(await rereadRange(context, node, from, to));
  return reads;
}

/** A range in pieces that the node takes; what it refuses is left to the next node and the next try. */
async function rereadRange(context: Omit<ScanContext, "fence">, node: Node, from: number, to: number): Promise<Reread> {
  const { db, config, now } = context;
  const queued: store.QueuedVm[] = [];
  let range = config.SCAN_MAX_RANGE;
  for (let at = from; at <= to; ) {
    try {
      const events = await readEvents(node, config, at, Math.min(to, at + range - 1));
      const head = await readHead(node);
      queued.push(...(await store.applyEvents(db, config, events, head.timestamp, now)));
      // A node that is behind shows less than there is.
      if (head.number < to) return { queued, complete: false };
      at += range;
    } catch (error) {
      if (!(error instanceof RangeRefused) || range === 1) {
        log("warn", "gap_not_read", { node: node.name, ...errorFields(error) });
        return { queued, complete: false };
      }
      range = shrinkRange(range, error.cause);
    }
  }
  return { queued, complete: true };
}

const tokensOf = (gaps: readonly store.Gap[]): number[] => gaps.map(({ tokenId }) => tokenId);

type Range = { fromBlock: number; toBlock: number };
const rangeKey = ({ fromBlock, toBlock }: Range): string => `${fromBlock}-${toBlock}`;
const distinctRanges = (rows: readonly Range[]) => [...new Map(rows.map((row) => [rangeKey(row), row])).values()];
