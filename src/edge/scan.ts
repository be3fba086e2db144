// Follows the contract's events into the database. A node is believed about nothing that can be checked:
//
//   lagging replica      answers an empty list, not an error -> blocks that were read when they were new are read again
//   node behind us       its head is below the cursor        -> the next node is asked
//   reorg while reading  the range's end or the cursor's block changed hash meanwhile -> nothing is stored, next pass
//   reorg                the cursor's block has another hash at two nodes -> roll back to the common ancestor, re-read
//   missing event        a token id was skipped              -> recorded as a gap, read again from every node (gaps.ts)
//   no logs              its head answers, eth_getLogs won't -> fewer blocks, down to one, then the next node
//   nonsense             what is no list of logs, or a block whose time is behind the cursor's -> the next node
//   fork                 two others show another block where the range ends -> the next node is asked
//   chain set back       two heads below the cursor, on a chain that does not lead to it -> as a reorg, at once
import { zeroAddress } from "viem";
import { addCheckpoint, type Checkpoint } from "../chain/checkpoints.ts";
import {
  type Chain,
  ChainUnavailable,
  type Head,
  type Node,
  readHead,
  readOwners,
  SECONDS_PER_BLOCK,
} from "../chain/client.ts";
import { type ChainEvents, type FoundEvents, fetchEvents, MAX_REQUESTS, type Transfer } from "../chain/events.ts";
import { hasGivenNothing } from "../chain/log-ranges.ts";
import { LogsRefused, rangeOf, recallSpans, spansOf } from "../chain/logs.ts";
import { askTwo, isOnFork, witnessesOf } from "../chain/witness.ts";
import type { Database } from "../db/client.ts";
import * as store from "../db/scan.ts";
import type { QueuedVm } from "../db/wake.ts";
import { AppError } from "../errors.ts";
import { inTime } from "../in-time.ts";
import { errorFields, log } from "../log.ts";
import type { EdgeConfig } from "./config.ts";

/** Read again where they may have been read too early, in requests of their own. */
const OVERLAP_BLOCKS = 10;
/** A block that was older when it was read had reached all replicas of a node. */
const NEAR_HEAD_SECONDS = 100;
/** What a pass may take with all nodes, whatever they do. The scan's lease lasts longer. */
export const PASS_MS = 24_000;
/** What of it one node may take for logs, of the overlap as well and but for a request that is under way. */
const READ_MS = 8_000;
/** Of a range, as checkpoints. */
const MAX_SALES_BLOCKS = 64;
/** Tokens whose owners are asked for, by calls of this size, where logs of transfers can't be had. */
const MAX_OWNERS = 5_000;
const OWNERS_PER_CALL = 500;

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
  queued: QueuedVm[];
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
  await store.createCursor(db, head, now);
  const created = await store.loadCursor(db);
  if (created === null) throw new Error("the cursor row vanished");
  return created;
}

/** What a look at one node comes to. */
type Seen =
  | { outcome: "idle" }
  | { outcome: "unsettled"; caughtUp: boolean }
  | { outcome: "behind"; head: Head }
  | { outcome: "advanced"; head: Head; end: Head; events: FoundEvents; caughtUp: boolean }
  | { outcome: "rolled_back"; ancestor: Head; checkpoints: Checkpoint[] };

/**
 * One pass: read what is new (and the last blocks again), store it, move the cursor. Nodes are asked in turn; one that is
 * behind, stands still, is on a fork, gives no logs or answers nonsense is passed over. Throws `ChainUnavailable` when none
 * is left.
 */
export async function scanPass(context: ScanContext): Promise<PassResult> {
  const { db, chain, config, now } = context;
  const cursor = await startCursor(context);
  recallSpans(chain, cursor.spans);
  let cause: unknown;
  let fallback: PassResult | undefined;
  let mayGiveFewer = false;
  const heads: Head[] = [];
  const until = Date.now() + PASS_MS;
  const nodes = widestFirst(chain.nodes, cursor, now);
  const attempt = (node: Node, looking: Promise<Seen>): Promise<Seen | null> =>
    inTime(looking, until - Date.now(), () => new ChainUnavailable()).catch((error: unknown) => {
      log("warn", "scan_node_failed", { node: node.name, ...errorFields(error) });
      mayGiveFewer ||= error instanceof LogsRefused && error.blocks > 1;
      cause = error;
      return null;
    });
  for (const [i, node] of nodes.entries()) {
    if (Date.now() >= until) break;
    // Requests that hang leave the others their part.
    const share = Math.min(READ_MS, (until - Date.now()) / (nodes.length - i)) - chain.timeoutMs;
    let seen = await attempt(node, look(context, cursor, node, Date.now() + share));
    if (seen?.outcome === "behind") {
      log("warn", "rpc_behind", { node: node.name, head: seen.head.number, scanned: cursor.blockNumber });
      heads.push(seen.head);
      seen = heads.length === witnessesOf(chain) ? await attempt(node, lookBelow(chain, cursor, heads)) : null;
    }
    if (seen === null || seen.outcome === "behind") continue;
    // What is thrown from here on is ours or the database's: another node would not mend it.
    const result = await conclude(context, cursor, node, seen, until);
    // A node that stands still agrees with everything we know and shows nothing new, whatever time it gives its head:
    // another may know more.
    const youngest = cursor.blockTimestamp + config.CONFIRMATIONS * SECONDS_PER_BLOCK;
    const isStale = seen.outcome === "idle" && now / 1_000 - youngest > config.CHAIN_MAX_AGE_SECONDS;
    if (seen.outcome !== "unsettled" && !isStale) return result;
    fallback = result;
  }
  const spans = spansOf(chain);
  if (JSON.stringify(spans) !== JSON.stringify(cursor.spans)) await store.saveSpans(db, spans);
  if (mayGiveFewer) return { queued: [], caughtUp: false, outcome: "range_shrunk" };
  if (fallback !== undefined) return fallback;
  throw new ChainUnavailable({ cause });
}

/**
 * Far behind, those come first that give the most in one request; between equals the configured order decides. Last is what
 * lately gave nothing, or hung.
 */
function widestFirst(nodes: readonly Node[], { blockTimestamp }: store.Cursor, now: number): Node[] {
  const left = Math.max(1, Math.ceil((now / 1_000 - blockTimestamp) / SECONDS_PER_BLOCK));
  const worth = (node: Node) =>
    hasGivenNothing(node.spans.sales, now) ? 0 : Math.min(left, rangeOf(node, "transfers"));
  return [...nodes].sort((a, b) => worth(b) - worth(a));
}

/** `until`: when the last request for logs may begin, but for the first. */
async function look({ chain, config }: ScanContext, cursor: store.Cursor, node: Node, until: number): Promise<Seen> {
  const head = await readHead(node);
  if (head.number < cursor.blockNumber) return { outcome: "behind", head };
  const newest = head.number - config.CONFIRMATIONS;
  if (newest <= cursor.blockNumber) {
    const standing = await readHead(node, cursor.blockNumber);
    if (standing.hash !== cursor.blockHash) return findAncestor(chain, cursor);
    requireLater(cursor, head);
    return { outcome: "idle" };
  }
  const target = Math.min(newest, cursor.blockNumber + MAX_REQUESTS * rangeOf(node, "transfers"));
  const last = target === head.number ? head : await readHead(node, target);
  const source = sourceOf(config);
  const from = Math.max(config.START_BLOCK, cursor.blockNumber + 1);
  const found = await fetchEvents(node, source, from, target, until);
  const again = await readAgain(node, config, cursor, until);
  const reached = Math.min(target, found.to);
  const reading = reached === target ? Promise.resolve(last) : readHead(node, reached);
  const [end, isForked, lastAfter, standing] = await Promise.all([
    reading,
    reading.then((block) => isOnFork(chain, node, block)),
    readHead(node, target),
    readHead(node, cursor.blockNumber),
  ]);
  if (isForked) {
    log("warn", "rpc_on_fork", { node: node.name, block: end.number });
    return { outcome: "unsettled", caughtUp: true };
  }
  if (standing.hash !== cursor.blockHash) return findAncestor(chain, cursor);
  if (lastAfter.hash !== last.hash) return { outcome: "unsettled", caughtUp: false };
  requireLater(cursor, end);
  requireLater(cursor, head);
  const events = again === null ? found : { ...found, ...together(again, found) };
  return { outcome: "advanced", head, end, events, caughtUp: reached >= newest };
}

/** Expiry and deadlines go by it: a block is never older than the one that it comes after (hard case 29). */
function requireLater({ blockTimestamp }: store.Cursor, { timestamp }: Head): void {
  if (timestamp >= blockTimestamp) return;
  throw new AppError("chain_answered_nonsense", "An RPC node shows a block whose time is behind an earlier one's.");
}

export const sourceOf = (config: EdgeConfig) => ({
  contract: config.CONTRACT_ADDRESS,
  purchaseEvent: config.PURCHASE_EVENT,
});

/** The last blocks before the cursor, while a replica may have had none of their logs yet: what can't be had is left. */
async function readAgain(
  node: Node,
  config: EdgeConfig,
  { blockNumber, blockTimestamp, scannedAt }: store.Cursor,
  until: number,
): Promise<ChainEvents | null> {
  const from = Math.max(config.START_BLOCK, blockNumber - OVERLAP_BLOCKS + 1);
  // By how old the cursor's block was when it was read: how far it is from the head now says nothing of that.
  if (from > blockNumber || scannedAt / 1_000 - blockTimestamp > NEAR_HEAD_SECONDS) return null;
  try {
    return await fetchEvents(node, sourceOf(config), from, blockNumber, until);
  } catch (error) {
    log("warn", "overlap_not_read", { node: node.name, ...errorFields(error) });
    return null;
  }
}

const together = (older: ChainEvents, newer: ChainEvents): ChainEvents => ({
  purchases: [...older.purchases, ...newer.purchases],
  transfers: [...older.transfers, ...newer.transfers],
  renewals: [...older.renewals, ...newer.renewals],
  terminations: [...older.terminations, ...newer.terminations],
});

async function conclude(
  context: ScanContext,
  cursor: store.Cursor,
  node: Node,
  seen: Exclude<Seen, { outcome: "behind" }>,
  until: number,
): Promise<PassResult> {
  const { db, chain, config, fence, now } = context;
  const { outcome } = seen;
  if (outcome === "idle") return { queued: [], caughtUp: true, outcome };
  if (outcome === "unsettled") return { queued: [], caughtUp: seen.caughtUp, outcome };
  const spans = spansOf(chain);
  if (outcome === "rolled_back") {
    const { ancestor, checkpoints } = seen;
    log("warn", "reorg", { from: cursor.blockNumber, ancestor: ancestor.number });
    await store.rollBack(db, fence, { head: ancestor, checkpoints, spans, now }, config.EXPIRY_GRACE_SECONDS);
    return { queued: [], caughtUp: false, outcome };
  }
  const { head, end, caughtUp } = seen;
  const moved = seen.events.transfersMissing ? await readMoved(context, node, seen.events, end, until) : [];
  const events = { ...seen.events, transfers: [...seen.events.transfers, ...moved] };
  const passed = [...salesBlocks(seen.events, cursor, end), [end.number, end.hash] satisfies Checkpoint];
  const checkpoints = passed.reduce(addCheckpoint, cursor.checkpoints);
  const move = { head: end, checkpoints, spans, now };
  const queued = await store.applyEvents(db, config, events, head.timestamp, now, { fence, move });
  return { queued, caughtUp, outcome };
}

/**
 * The blocks of a range that have sales, the newest of them: a chain that is set back to within a range that was read at once
 * has other ones there (hard case 32).
 */
function salesBlocks({ purchases }: ChainEvents, cursor: store.Cursor, end: Head): Checkpoint[] {
  const blocks = new Map(purchases.map(({ blockNumber, blockHash }) => [blockNumber, blockHash]));
  const within = [...blocks].filter(([number]) => number > cursor.blockNumber && number < end.number);
  return within.sort(([a], [b]) => a - b).slice(-MAX_SALES_BLOCKS);
}

/**
 * Where logs of transfers can't be had, the contract says who owns the tokens with machines. What it does not say either
 * is left to the sweep, which compares all owners in turn: chain time goes on.
 */
async function readMoved(
  { db, chain }: ScanContext,
  node: Node,
  { purchases }: ChainEvents,
  end: Head,
  until: number,
): Promise<Transfer[]> {
  const bought = purchases.map(({ tokenId, buyer }) => ({ tokenId, owner: buyer.toLowerCase() }));
  const tokens = [...(await store.servedTokens(db, MAX_OWNERS)), ...bought];
  const moved: Transfer[] = [];
  try {
    for (let i = 0; i < tokens.length && Date.now() < until; i += OWNERS_PER_CALL) {
      const some = tokens.slice(i, i + OWNERS_PER_CALL);
      const owners = await readOwners(
        chain,
        node,
        some.map(({ tokenId }) => tokenId),
        end.number,
      );
      for (const [k, { tokenId, owner }] of some.entries()) {
        const recipient = owners[k] ?? zeroAddress;
        if ((recipient === zeroAddress ? "" : recipient.toLowerCase()) === owner) continue;
        const at = { blockNumber: end.number, blockHash: end.hash, logIndex: store.logIndexOfOwner(tokenId) };
        moved.push({ ...at, tokenId, sender: zeroAddress, recipient });
      }
    }
  } catch (error) {
    log("warn", "owners_not_read", { node: node.name, ...errorFields(error) });
  }
  return moved;
}

/**
 * The cursor's block is not where we left it. Cases: two nodes say so (a reorg: back to the newest checkpoint that still
 * stands, and the next pass reads the new chain); two nodes still know our block (the one that said otherwise is on a
 * fork: nothing happens); no two agree (this throws, and nothing happens: the next pass asks again).
 */
async function findAncestor(chain: Chain, cursor: store.Cursor): Promise<Seen> {
  const standing = await askTwo(chain, (node) => readHead(node, cursor.blockNumber));
  if (standing.hash === cursor.blockHash) return { outcome: "unsettled", caughtUp: true };
  return newestStanding(chain, cursor, cursor.checkpoints);
}

/**
 * Two nodes are below the cursor. Either they lag, or the chain was set back to before it, and it may take many blocks to
 * outgrow it: then a checkpoint that both have passed has another hash, or both have a head that is lower than the
 * cursor's block and later (hard case 32).
 */
async function lookBelow(chain: Chain, cursor: store.Cursor, heads: readonly Head[]): Promise<Seen> {
  const top = Math.min(...heads.map(({ number }) => number));
  const [lowest] = heads.filter(({ number }) => number === top);
  const below = cursor.checkpoints.filter(([number]) => number <= top);
  const [newest] = below;
  if (newest === undefined || lowest === undefined) return { outcome: "unsettled", caughtUp: true };
  const isLater = heads.every(({ timestamp }) => timestamp > cursor.blockTimestamp);
  const [number, hash] = newest;
  const isOther = isLater || (await askTwo(chain, (node) => readHead(node, number))).hash !== hash;
  return isOther ? newestStanding(chain, cursor, below) : { outcome: "behind", head: lowest };
}

/** Back to the newest of these checkpoints that two nodes still have. */
async function newestStanding(chain: Chain, cursor: store.Cursor, below: readonly Checkpoint[]): Promise<Seen> {
  for (const [index, [number, hash]] of below.entries()) {
    const ancestor = await askTwo(chain, (node) => readHead(node, number));
    if (ancestor.hash !== hash && index < below.length - 1) continue;
    // Deeper than everything we remember: the whole history is read again, which costs time and loses nothing.
    if (ancestor.hash !== hash) log("page", "reorg_beyond_checkpoints", { from: cursor.blockNumber });
    return { outcome: "rolled_back", ancestor, checkpoints: [[number, ancestor.hash], ...below.slice(index + 1)] };
  }
  throw new Error("the cursor has no checkpoints");
}
