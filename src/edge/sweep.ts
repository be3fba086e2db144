// Once per interval: whatever stopped moving is sent again, whatever ended is ended. Everything here may run twice.

import { type Chain, readOwners, readTier, SECONDS_PER_BLOCK, type TokenView } from "../chain/client.ts";
import { askFirst, readAgreedTokens, readFinalNumber, readFinalToken } from "../chain/witness.ts";
import { deleteOldBans } from "../db/bans.ts";
import { type Database, hasRoom } from "../db/client.ts";
import * as disputes from "../db/disputes.ts";
import { forgetPayments } from "../db/payments.ts";
import { claimTurn, loadCursor, pruneTransfers } from "../db/scan.ts";
import * as store from "../db/sweep.ts";
import { type QueuedVm, wakeMachines, wakePayments, wakeRefunds } from "../db/wake.ts";
import { allClear, errorFields, levelOfFault, log } from "../log.ts";
import type { Job } from "../model/jobs.ts";
import { TIER_COUNT } from "../model/tiers.ts";
import { fillGaps, probeNewest } from "./gaps.ts";
import type { ScanContext } from "./scan.ts";
import { checkStanding } from "./standing.ts";

const SHARE_THAT_MAY_END = 0.05;
const ROWS_PER_SWEEP = 500;
/** Of which the chain is asked in one call: two inner calls each. */
const TOKENS_PER_CALL = 100;
/** How long a payer may still read of a payment of which nothing came. */
const FORGET_AFTER_MS = 24 * 3_600_000;
const VANISHED_AFTER_BLOCKS = 10;
const MESSAGES_PER_BATCH = 100;
const PRUNE_EVERY_MS = 3_600_000;
const TRANSFERS_KEPT_BLOCKS = (7 * 86_400) / SECONDS_PER_BLOCK;
const ROWS_PER_PRUNING = 5_000;
const DISPUTES_PER_SWEEP = 20;
const OWNERS_PER_SWEEP = 50;
/** An ordinary transfer is scanned long before. */
const DISPUTE_AFTER_MS = 60_000;

/** Queues the next step of each machine. */
export const enqueue = (jobs: Queue<Job>, rows: readonly QueuedVm[]): Promise<void> =>
  sendAll(
    jobs,
    rows.map(({ incarnation, generation }) => ({ kind: "advance", incarnation, generation })),
  );

async function sendAll(jobs: Queue<Job>, bodies: readonly Job[]): Promise<void> {
  for (let i = 0; i < bodies.length; i += MESSAGES_PER_BATCH) {
    await jobs.sendBatch(bodies.slice(i, i + MESSAGES_PER_BATCH).map((body) => ({ body })));
  }
}

/** Each part by itself: one that fails is logged and takes none of the others with it. */
export async function sweep(context: ScanContext): Promise<void> {
  const { db, config, now, chain } = context;
  const jobs = config.JOBS;
  const cursor = await loadCursor(db);
  const parts: Record<string, () => Promise<unknown>> = {
    wake: async () => enqueue(jobs, await wakeMachines(db, now, ROWS_PER_SWEEP)),
    expire: async () => cursor !== null && enqueue(jobs, await expire(context, cursor.blockTimestamp)),
    vanished: async () =>
      cursor !== null && enqueue(jobs, await store.retireVanished(db, cursor.blockNumber - VANISHED_AFTER_BLOCKS, now)),
    refunds: async () => {
      const due = await wakeRefunds(db, now, ROWS_PER_SWEEP);
      await sendAll(
        jobs,
        due.map(({ subject, kind }) => ({ kind: "refund", incarnation: subject, of: kind })),
      );
    },
    payments: async () => {
      const due = await wakePayments(db, now, ROWS_PER_SWEEP);
      await sendAll(
        jobs,
        due.map((one) => ({ kind: "payment", ...one })),
      );
    },
    forget: () => forgetPayments(db, now - FORGET_AFTER_MS, ROWS_PER_SWEEP),
    reap: () => jobs.send({ kind: "reap" }),
    erase: () => store.eraseDeliveredKeys(db, now - config.KEY_GRACE_SECONDS * 1_000),
    nonces: () => store.deleteOldNonces(db, now),
    bans: () => deleteOldBans(db, now),
    transfers: async () => cursor !== null && pruneOldTransfers(context, cursor.prunedAt),
    compare: () => compareOwners(context),
    owners: () => settleDisputes(context),
    newest: () => probeNewest(context),
    catalog: async () => {
      if (!(await claimTurn(db, "catalogAskedAt", now, config.CATALOG_SECONDS * 1_000))) return;
      await jobs.send({ kind: "catalog" });
      await checkStanding(context, await refreshTiers(db, chain, now));
    },
    // Last: many gaps use up what an invocation may ask of D1.
    gaps: async () => enqueue(jobs, await fillGaps(context)),
  };
  const began = Date.now();
  const failed: string[] = [];
  for (const [part, run] of Object.entries(parts)) {
    try {
      await run();
    } catch (error) {
      failed.push(part);
      log(levelOfFault(error), "sweep_part_failed", { part, ...errorFields(error) });
    }
  }
  if (failed.length === 0) allClear("sweep_part_failed");
  log("info", "sweep", { outcome: failed.length === 0 ? "done" : "failed", failed, ms: Date.now() - began });
}

/**
 * Ends what is past its time by the chain's clock. The chain's final word is asked first: what it confirms ends, however
 * many those are. What it does not confirm may wait for final history, or be bad data of ours: so many in a sweep, or 5 %,
 * are passed on to be proved one by one, and a person is paged where more are valid by final history (hard cases 13 and 39).
 */
async function expire({ db, chain, config, now }: ScanContext, chainTime: number): Promise<QueuedVm[]> {
  const { published, due } = await store.loadDue(db, chainTime, ROWS_PER_SWEEP);
  const views = await readFinalWords(chain, due);
  const limit = Math.max(config.SWEEP_MAX_ENDS, Math.floor(published * SHARE_THAT_MAY_END));
  const words = due.map((vm, i) => wordOn(vm, views[i], config.EXPIRY_GRACE_SECONDS));
  const disputed = words.filter((word) => word === "valid").length;
  if (disputed > limit) log("page", "ends_disputed", { disputed, due: due.length, limit, published });
  else if (!words.includes("unknown")) allClear("ends_disputed");
  if (due.length === 0) return [];
  const over = due.filter((_, i) => words[i] === "over");
  const others = due.filter((_, i) => words[i] === "valid" || words[i] === "not_yet").slice(0, limit);
  return store.expireDue(db, [...over, ...others], chainTime, now);
}

/** Null for those that the nodes can't be asked about, or don't agree on: the others end all the same. */
async function readFinalWords(chain: Chain, due: readonly store.DueVm[]): Promise<(TokenView | null)[]> {
  const parts: (readonly store.DueVm[])[] = [];
  for (let i = 0; i < due.length; i += TOKENS_PER_CALL) parts.push(due.slice(i, i + TOKENS_PER_CALL));
  const answers = await Promise.allSettled(
    parts.map((part) =>
      readAgreedTokens(
        chain,
        part.map(({ tokenId }) => tokenId),
        "finalized",
      ),
    ),
  );
  const failures = answers.flatMap((answer) => (answer.status === "rejected" ? [answer.reason as unknown] : []));
  if (failures.length > 0 && failures.length === answers.length) throw failures[0];
  for (const failure of failures) log("warn", "ends_not_confirmed", errorFields(failure));
  return answers.flatMap((answer, i) =>
    answer.status === "fulfilled" ? answer.value : (parts[i] ?? []).map(() => null),
  );
}

/** What final history says of a machine whose time is over by our rows; `valid` where it is past that time as well. */
function wordOn(
  { blockNumber, expiresAt }: store.DueVm,
  view: TokenView | null | undefined,
  graceSeconds: number,
): "over" | "valid" | "not_yet" | "unknown" {
  if (view === undefined || view === null) return "unknown";
  if (view.blockNumber < blockNumber) return "not_yet";
  const isPast = view.blockTimestamp >= expiresAt + graceSeconds;
  if (view.valid) return isPast ? "valid" : "not_yet";
  // Its owner may have given it up before its time; after it the grace runs.
  return isPast || view.owner === null || view.blockTimestamp < expiresAt ? "over" : "not_yet";
}

/** Of transfers older than final history and a week, the last of each token is enough. */
async function pruneOldTransfers({ db, chain, now }: ScanContext, prunedAt: number): Promise<void> {
  if (now - prunedAt < PRUNE_EVERY_MS || !(await claimTurn(db, "prunedAt", now, PRUNE_EVERY_MS))) return;
  const below = (await readFinalNumber(chain)) - TRANSFERS_KEPT_BLOCKS;
  // What this invocation has no room for waits for the next hour's.
  while (hasRoom() && (await pruneTransfers(db, below, ROWS_PER_PRUNING)) === ROWS_PER_PRUNING);
}

/** A few tokens in each sweep, in turn: a transfer that no log showed is found here, whether its owner asks or not. */
async function compareOwners({ db, chain, now }: ScanContext): Promise<void> {
  const rows = await disputes.nextToCompare(db, OWNERS_PER_SWEEP);
  if (rows.length === 0) return;
  const owners = await askFirst(chain, (node) =>
    readOwners(
      chain,
      node,
      rows.map(({ tokenId }) => tokenId),
    ),
  );
  for (const [i, { tokenId, owner }] of rows.entries()) {
    if ((owners[i]?.toLowerCase() ?? "") !== owner) await disputes.openDispute(db, tokenId, now);
  }
}

/** Whatever the logs told us of an owner in dispute, what two nodes call final is the truth. */
async function settleDisputes({ db, chain, now }: ScanContext): Promise<void> {
  for (const { tokenId, owner } of await disputes.openDisputes(db, now - DISPUTE_AFTER_MS, DISPUTES_PER_SWEEP)) {
    const view = await readFinalToken(chain, tokenId);
    const finalOwner = view.owner?.toLowerCase() ?? "";
    if (finalOwner === owner) await disputes.closeDispute(db, tokenId);
    else {
      log("warn", "owner_corrected", { tokenId, from: owner, to: finalOwner });
      await disputes.settleOwner(db, tokenId, finalOwner, view);
    }
  }
}

/** Reads prices, activity and names of all tiers from the contract and keeps them for `/tiers`. */
export async function refreshTiers(db: Database, chain: Chain, now: number): Promise<store.StoredTiers> {
  const tiers = await askFirst(chain, (node) =>
    Promise.all(
      Array.from({ length: TIER_COUNT }, async (_, tier) => {
        const { pricePerDay, active, name } = await readTier(chain, node, tier);
        return { tier, pricePerDayUsdc6: pricePerDay.toString(), active, name };
      }),
    ),
  );
  await store.saveTiers(db, tiers, now);
  return tiers;
}
