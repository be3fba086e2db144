// Once per interval: whatever stopped moving is sent again, whatever ended is ended. Everything here may run twice.

import { askFirst, type Chain, readTier } from "../chain/client.ts";
import { fillGaps, type ScanContext } from "../chain/scan.ts";
import type { EdgeConfig } from "../config.ts";
import type { Database } from "../db/client.ts";
import { claimTurn, loadCursor, type QueuedVm, wakeStalled } from "../db/scan.ts";
import * as store from "../db/sweep.ts";
import { log } from "../log.ts";
import type { Job } from "../provisioner/jobs.ts";
import { TIER_COUNT } from "./tiers.ts";

const SHARE_THAT_MAY_END = 0.05;
const ROWS_PER_SWEEP = 500;
const VANISHED_AFTER_BLOCKS = 10;
const MESSAGES_PER_BATCH = 100;

/** Queues the next step of each machine. */
export async function enqueue(jobs: Queue<Job>, rows: readonly QueuedVm[]): Promise<void> {
  for (let i = 0; i < rows.length; i += MESSAGES_PER_BATCH) {
    await jobs.sendBatch(
      rows
        .slice(i, i + MESSAGES_PER_BATCH)
        .map(({ incarnation, generation }) => ({ body: { kind: "advance", incarnation, generation } })),
    );
  }
}

export async function sweep(context: ScanContext): Promise<void> {
  const { db, config, now, chain } = context;
  const jobs = config.JOBS;
  await enqueue(jobs, await wakeStalled(db, now, ROWS_PER_SWEEP));
  await enqueue(jobs, await fillGaps(context));
  const cursor = await loadCursor(db);
  if (cursor !== null) {
    await enqueue(jobs, await expire(db, config, cursor.blockTimestamp, now));
    await enqueue(jobs, await store.retireVanished(db, cursor.blockNumber - VANISHED_AFTER_BLOCKS, now));
  }
  await jobs.send({ kind: "reap" });
  await store.eraseDeliveredKeys(db, now - config.KEY_GRACE_SECONDS * 1_000);
  await store.deleteOldNonces(db, now);
  if (await claimTurn(db, "catalogAskedAt", now, config.CATALOG_SECONDS * 1_000)) {
    await jobs.send({ kind: "catalog" });
    await refreshTiers(db, chain, now);
  }
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
