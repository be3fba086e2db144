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
import { askTwo, type Chain, ChainUnavailable, type Head, type Node, nodeIsDown, readHead } from "./client.ts";
import { type ChainEvents, fetchEvents } from "./events.ts";
import { growRange, rangeIsTooLarge, shrinkRange } from "./log-ranges.ts";

const OVERLAP_BLOCKS = 10;
const MAX_GAPS_PER_PASS = 100;
const GAP_FIRST_TRY_MS = 2_000;
const GAP_MAX_TRIES = 10;

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
  const head = await askTwo(
    chain,
    (node) => readHead(node, before),
    (block) => block.hash,
  );
  await store.createCursor(db, head, config.SCAN_MAX_RANGE, now);
  const created = await store.loadCursor(db);
  if (created === null) throw new Error("the cursor row vanished");
  return created;
}

/** One pass: read what is new (and the last blocks again), store it, move the cursor. Throws `ChainUnavailable`. */
export async function scanPass(context: ScanContext): Promise<PassResult> {
  const { chain } = context;
  const cursor = await startCursor(context);
  let unavailable: unknown;
  for (const node of chain.nodes) {
    try {
      const head = await readHead(node);
      if (head.number < cursor.blockNumber) {
        log("warn", "rpc_behind", { node: node.name, head: head.number, scanned: cursor.blockNumber });
        continue;
      }
      return await readOn(context, cursor, node, head);
    } catch (error) {
      if (rangeIsTooLarge(error) && cursor.range > 1) {
        const range = shrinkRange(cursor.range, error);
        log("info", "scan_range_shrunk", { from: cursor.range, to: range });
        await store.setScanRange(context.db, range);
        return { queued: [], caughtUp: false, outcome: "range_shrunk" };
      }
      // What is not the node's failure (ours, or the database's) is not mended by asking another node.
      if (!(error instanceof BaseError) && !(error instanceof AppError)) throw error;
      log("warn", "scan_node_failed", { node: node.name, ...errorFields(error) });
      unavailable = error;
    }
  }
  throw new ChainUnavailable({ cause: unavailable });
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
  const source = { contract: config.CONTRACT_ADDRESS, purchaseEvent: config.PURCHASE_EVENT };
  const events = await fetchEvents(node, source, from, target);
  const [endAfter, standing] = await Promise.all([readHead(node, target), readHead(node, cursor.blockNumber)]);
  if (standing.hash !== cursor.blockHash) return settleReorg(context, cursor);
  if (endAfter.hash !== end.hash) return { queued: [], caughtUp: false, outcome: "unsettled" };

  const caughtUp = target >= head.number - config.CONFIRMATIONS;
  const move = {
    head: end,
    checkpoints: addCheckpoint(cursor.checkpoints, [end.number, end.hash]),
    range: growRange(cursor.range, config.SCAN_MAX_RANGE),
    now,
  };
  const queued = await store.applyEvents(db, config, events, head.timestamp, now, { fence, move });
  if (queued.length > 0) await noteGaps(context, events);
  return { queued, caughtUp, outcome: "advanced" };
}

/**
 * The cursor's block is not where we left it. Cases: two nodes say so (a reorg: roll back to the newest checkpoint that
 * still stands, and the next pass reads the new chain); two nodes still know our block (the one that said otherwise is
 * on a fork: nothing happens); no two agree (nothing happens, the next pass asks again).
 */
async function settleReorg(context: ScanContext, cursor: store.Cursor): Promise<PassResult> {
  const { db, chain, fence, now } = context;
  const hashAt = (number: number) =>
    askTwo(
      chain,
      (node) => readHead(node, number),
      (block) => block.hash,
    );
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
    await store.rollBack(db, fence, {
      head: block,
      checkpoints: [[block.number, block.hash], ...checkpoints],
      range: cursor.range,
      now,
    });
    break;
  }
  return { queued: [], caughtUp: false, outcome: "rolled_back" };
}

/** Token ids rise by one: an id between two known ones that no log showed was hidden from us. */
async function noteGaps({ db, now }: ScanContext, events: ChainEvents): Promise<void> {
  const ordered = [...events.purchases].sort((a, b) => a.tokenId - b.tokenId);
  const [lowest] = ordered;
  if (lowest === undefined) return;
  let below = await store.purchaseBelow(db, lowest.tokenId);
  const missing = [];
  for (const purchase of ordered) {
    for (let id = (below?.tokenId ?? purchase.tokenId - 1) + 1; id < purchase.tokenId; id++) {
      if (missing.length >= MAX_GAPS_PER_PASS) break;
      const fromBlock = below?.blockNumber ?? purchase.blockNumber;
      missing.push({ tokenId: id, fromBlock, toBlock: purchase.blockNumber, nextTryAt: now + GAP_FIRST_TRY_MS });
    }
    below = purchase;
  }
  if (missing.length === 0) return;
  log("warn", "token_ids_missing", { count: missing.length, first: missing[0]?.tokenId });
  await store.recordGaps(db, missing);
}

/** Reads the ranges of missing token ids again, from every node. Returns the machines to queue. */
export async function fillGaps(context: ScanContext): Promise<store.QueuedVm[]> {
  const { db, chain, config, now } = context;
  const due = await store.dueGaps(db, now, MAX_GAPS_PER_PASS);
  const queued: store.QueuedVm[] = [];
  const source = { contract: config.CONTRACT_ADDRESS, purchaseEvent: config.PURCHASE_EVENT };
  for (const { fromBlock, toBlock } of distinctRanges(due)) {
    for (const node of chain.nodes) {
      try {
        const events = await fetchEvents(node, source, fromBlock, toBlock);
        const head = await readHead(node);
        queued.push(...(await store.applyEvents(db, config, events, head.timestamp, now)));
      } catch (error) {
        if (!nodeIsDown(error)) throw error;
      }
    }
  }
  const known = await store.knownTokens(
    db,
    due.map((gap) => gap.tokenId),
  );
  await store.closeGaps(db, [...known]);
  for (const gap of due.filter((row) => !known.has(row.tokenId))) {
    if (gap.tries < GAP_MAX_TRIES) {
      await store.postponeGap(db, gap.tokenId, now + GAP_FIRST_TRY_MS * 2 ** gap.tries);
    } else {
      log("page", "token_id_never_seen", { tokenId: gap.tokenId });
      await store.closeGaps(db, [gap.tokenId]);
    }
  }
  return queued;
}

const distinctRanges = (rows: readonly { fromBlock: number; toBlock: number }[]) => [
  ...new Map(rows.map((row) => [`${row.fromBlock}-${row.toBlock}`, row])).values(),
];
