// Once per interval: whatever stopped moving is sent again, whatever ended is ended. Everything here may run twice.

import { type Chain, readOwners, readTier } from "../chain/client.ts";
import { fillGaps, probeNewest, type ScanContext } from "../chain/scan.ts";
import { askFirst, readFinalToken } from "../chain/witness.ts";
import type { EdgeConfig } from "../config.ts";
import { deleteOldBans } from "../db/bans.ts";
import type { Database } from "../db/client.ts";
import * as disputes from "../db/disputes.ts";
import { forgetPayments, wakePayments } from "../db/payments.ts";
import { wakeRefunds } from "../db/refunds.ts";
import { claimTurn, loadCursor, type QueuedVm, wakeStalled } from "../db/scan.ts";
import * as store from "../db/sweep.ts";
import { isDatabaseRefusal } from "../errors.ts";
import { errorFields, log } from "../log.ts";
import type { Job } from "../provisioner/jobs.ts";
import { TIER_COUNT } from "./tiers.ts";

const SHARE_THAT_MAY_END = 0.05;
const ROWS_PER_SWEEP = 500;
/** How long a payer may still read of a payment of which nothing came. */
const FORGET_AFTER_MS = 24 * 3_600_000;
const VANISHED_AFTER_BLOCKS = 10;
const MESSAGES_PER_BATCH = 100;
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
    wake: async () => enqueue(jobs, await wakeStalled(db, now, ROWS_PER_SWEEP)),
    expire: async () => cursor !== null && enqueue(jobs, await expire(db, config, cursor.blockTimestamp, now)),
    vanished: async () =>
      cursor !== null && enqueue(jobs, await store.retireVanished(db, cursor.blockNumber - VANISHED_AFTER_BLOCKS, now)),
    refunds: async () => {
      const due = await wakeRefunds(db, now, ROWS_PER_SWEEP);
      await sendAll(
        jobs,
        due.map(({ incarnation, kind }) => ({ kind: "refund", incarnation, of: kind })),
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
    compare: () => compareOwners(context),
    owners: () => settleDisputes(context),
    newest: () => probeNewest(context),
    gaps: async () => enqueue(jobs, await fillGaps(context)),
    catalog: async () => {
      if (!(await claimTurn(db, "catalogAskedAt", now, config.CATALOG_SECONDS * 1_000))) return;
      await jobs.send({ kind: "catalog" });
      await refreshTiers(db, chain, now);
    },
  };
  const began = Date.now();
  const failed: string[] = [];
  for (const [part, run] of Object.entries(parts)) {
    try {
      await run();
    } catch (error) {
      failed.push(part);
      log(isDatabaseRefusal(error) ? "page" : "error", "sweep_part_failed", { part, ...errorFields(error) });
    }
  }
  log("info", "sweep", { outcome: failed.length === 0 ? "done" : "failed", failed, ms: Date.now() - began });
}

/**
 * Ends what is past its time by the chain's clock. More at once than max(SWEEP_MAX_ENDS, 5 %) of what runs looks like
 * bad data, not like customers: nothing ends and a person is paged (hard case 13).
 */
async function expire(db: Database, config: EdgeConfig, chainTime: number, now: number): Promise<QueuedVm[]> {
  const { published, due } = await store.countDue(db, chainTime);
  if (due === 0) return [];
  const limit = Math.max(config.SWEEP_MAX_ENDS, Math.floor(published * SHARE_THAT_MAY_END));
  if (due > limit) {
    log("page", "sweep_stopped", { due, limit, published, hint: "raise SWEEP_MAX_ENDS if these are genuine" });
    return [];
  }
  return store.expireDue(db, chainTime, now, limit);
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
