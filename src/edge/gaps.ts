// What the scan has passed and no log has shown: token ids that were skipped, and ranges that an operator names. They are
// read again from every node, a part at a time: where a request gives ten blocks, a day of them is 4,320 requests to each.

import { ChainUnavailable, type Head, type Node, readHead, readToken } from "../chain/client.ts";
import { type FoundEvents, fetchEvents } from "../chain/events.ts";
import { askFirst, readAgreedTokens, witnessesOf } from "../chain/witness.ts";
import { hasRoom } from "../db/client.ts";
import * as store from "../db/scan.ts";
import type { QueuedVm } from "../db/wake.ts";
import { errorFields, log } from "../log.ts";
import type { EdgeConfig } from "./config.ts";
import { type ScanContext, sourceOf } from "./scan.ts";

const GAPS_PER_SWEEP = 200;
/** Many gaps lie in one range. */
const RANGES_PER_SWEEP = 20;
const GAP_RETRY_MS = 4_000;
const GAP_MAX_TRIES = 10;
/** What reading again may take at a time, of all ranges together and but for a request that is under way. */
const READ_MS = 8_000;
/** Of which one piece: a node that answers nothing for that long is left out until the next time. */
const PIECE_MS = 2_000;
/** Each is a call of `fetchEvents` at every node. */
const MAX_PIECES = 20;

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

/**
 * Looks for the sales of missing token ids. An id that nobody owns needs no looking for; the ranges of the others are read
 * again as far as the time goes, and the next sweep goes on from there. Returns the machines to queue.
 */
export async function fillGaps(context: ScanContext): Promise<QueuedVm[]> {
  const { db, chain, config, now } = context;
  const due = await store.dueGaps(db, now, GAPS_PER_SWEEP);
  if (due.length === 0) return [];
  // Put off first: whatever fails below, the next sweep does not begin with the same range.
  await store.postponeGaps(db, tokensOf(due), now, GAP_RETRY_MS);
  const views = await readAgreedTokens(chain, tokensOf(due), "latest");
  const isNobodys = ({ toBlock }: store.Gap, i: number) => {
    const view = views[i];
    return view !== undefined && view.owner === null && view.blockNumber >= toBlock;
  };
  const wanted = due.filter((gap, i) => !isNobodys(gap, i));
  const ranges = distinctRanges(wanted.map((gap) => restOf(gap, config))).slice(0, RANGES_PER_SWEEP);
  const { queued, reached } = await reread(context, ranges, witnessesOf(chain));
  const known = await store.knownTokens(db, tokensOf(wanted));
  const over = [...tokensOf(due.filter(isNobodys)), ...known];
  const begun: { tokenId: number; readTo: number }[] = [];
  const unseen: number[] = [];
  for (const gap of wanted.filter(({ tokenId }) => !known.has(tokenId))) {
    const range = restOf(gap, config);
    const readTo = reached.get(rangeKey(range)) ?? gap.readTo;
    const isTried = reached.has(rangeKey(range));
    if (readTo < range.toBlock) {
      if (!isTried || readTo >= range.fromBlock) begun.push({ tokenId: gap.tokenId, readTo });
    } else if (isGivenUp(gap, config)) over.push(gap.tokenId);
    else unseen.push(gap.tokenId);
  }
  await store.closeGaps(db, over);
  await store.goOnWithGaps(db, begun, now + GAP_RETRY_MS);
  await store.beginGapsAgain(db, unseen);
  return queued;
}

/** Whether an id whose sale no node shows, though somebody owns it, needs no more looking for. */
function isGivenUp({ tokenId, fromBlock, tries }: store.Gap, { START_BLOCK }: EdgeConfig): boolean {
  // It was sold before all that we look at.
  if (fromBlock <= START_BLOCK) return true;
  if (tries < GAP_MAX_TRIES) return false;
  log("page", "token_id_never_seen", { tokenId });
  return true;
}

const restOf = ({ fromBlock, toBlock, readTo }: store.Gap, { START_BLOCK }: EdgeConfig): Range => ({
  fromBlock: Math.max(fromBlock, START_BLOCK, readTo + 1),
  toBlock,
});

/**
 * Reads a range that the scan has passed again, from every node, as far as the time goes: `toBlock` is the last block that
 * was read. Throws `ChainUnavailable` where no node gives any of it.
 */
export async function rescan(
  context: Omit<ScanContext, "fence">,
  range: Range,
): Promise<{ queued: QueuedVm[]; toBlock: number }> {
  const { queued, reached } = await reread(context, [range], 1);
  const toBlock = reached.get(rangeKey(range)) ?? -1;
  if (toBlock < range.fromBlock) throw new ChainUnavailable();
  return { queued, toBlock };
}

/**
 * Ranges in turn, a piece of each, until they are read, the time is over or fewer than `least` nodes answer. `reached`: to
 * which block each was read, by its key; one whose turn did not come is not there.
 */
async function reread(
  context: Omit<ScanContext, "fence">,
  ranges: readonly Range[],
  least: number,
): Promise<{ queued: QueuedVm[]; reached: Map<string, number> }> {
  const until = Date.now() + READ_MS;
  const queued: QueuedVm[] = [];
  const reached = new Map<string, number>();
  const failed = new Set<Node>();
  let open = [...ranges];
  for (let pieces = 0; open.length > 0; ) {
    for (const range of open) {
      if (pieces >= MAX_PIECES || Date.now() >= until || !hasRoom()) return { queued, reached };
      pieces += 1;
      const fromBlock = (reached.get(rangeKey(range)) ?? range.fromBlock - 1) + 1;
      const piece = await rereadPiece(context, { ...range, fromBlock }, failed, least);
      queued.push(...piece.queued);
      reached.set(rangeKey(range), piece.to);
      if (piece.to < fromBlock || piece.to >= range.toBlock) open = open.filter((one) => one !== range);
    }
  }
  return { queued, reached };
}

/** The beginning of a range, from all nodes at once: as far as two of them have got, or the only one that answers. */
async function rereadPiece(
  context: Omit<ScanContext, "fence">,
  range: Range,
  failed: Set<Node>,
  least: number,
): Promise<{ queued: QueuedVm[]; to: number }> {
  const { db, chain, config, now } = context;
  const until = Date.now() + PIECE_MS;
  const reads = await Promise.all(
    chain.nodes
      .filter((node) => !failed.has(node))
      .map((node) =>
        readOn(node, config, range, until).catch((error: unknown) => {
          log("warn", "gap_not_read", { node: node.name, ...errorFields(error) });
          failed.add(node);
          return null;
        }),
      ),
  );
  const queued: QueuedVm[] = [];
  const ends: number[] = [];
  for (const read of reads) {
    if (read === null) continue;
    queued.push(...(await store.applyEvents(db, config, read.events, read.head.timestamp, now)));
    // A node that is behind shows less than there is.
    if (read.head.number >= range.toBlock) ends.push(read.events.to);
  }
  const [last] = ends
    .sort((a, b) => b - a)
    .slice(0, witnessesOf(chain))
    .slice(-1);
  return { queued, to: last === undefined || ends.length < least ? range.fromBlock - 1 : last };
}

async function readOn(
  node: Node,
  config: EdgeConfig,
  { fromBlock, toBlock }: Range,
  until: number,
): Promise<{ events: FoundEvents; head: Head }> {
  const events = await fetchEvents(node, sourceOf(config), fromBlock, toBlock, until);
  return { events, head: await readHead(node) };
}

const tokensOf = (rows: readonly { tokenId: number }[]): number[] => rows.map(({ tokenId }) => tokenId);

type Range = { fromBlock: number; toBlock: number };
const rangeKey = ({ fromBlock, toBlock }: Range): string => `${fromBlock}-${toBlock}`;
const distinctRanges = (ranges: readonly Range[]) => [...new Map(ranges.map((one) => [rangeKey(one), one])).values()];
