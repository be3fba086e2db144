// The cron fires once a minute; a purchase must be seen within seconds. So one invocation keeps polling until the next
// one takes over. Waiting costs no CPU, and a lease in the database keeps two of them apart.

import { connectChain } from "../chain/client.ts";
import { keyRing } from "../credentials/key-ring.ts";
import { type Database, inBackground, MAX_STATEMENTS, openDatabase, statementsLeft } from "../db/client.ts";
import { publishDataKeys } from "../db/data-keys.ts";
import { claimTurn, releaseScanLease, takeScanLease } from "../db/scan.ts";
import { isTransient } from "../errors.ts";
import { allClear, errorFields, levelOfFault, log } from "../log.ts";
import { Connections } from "../outbound.ts";
import type { EdgeConfig } from "./config.ts";
import { PASS_MS, scanPass, startCursor } from "./scan.ts";
import { enqueue, sweep } from "./sweep.ts";

const LEASE_MS = 40_000;
/** What has to be left of it when a pass begins: the pass, and its batch. */
const LEASE_LEFT_MS = PASS_MS + 6_000;
const LEASE_RETRY_MS = 500;
/** Of an invocation's statements, what a sweep may need: passes leave them, and the next cron goes on (hard case 54). */
const SWEEP_STATEMENTS = 300;
/** Between two passes while the database does not answer. */
const DATABASE_RETRY_MS = 2_000;

const wait = (ms: number) => new Promise<void>((resolve) => setTimeout(resolve, ms));

/**
 * Scans and sweeps for `SCAN_RUN_SECONDS`, or until the invocation's statements are used up. A failed pass is logged and the
 * next one tries again.
 */
export const pollChain = (config: EdgeConfig, afterPass: () => void = () => {}): Promise<void> =>
  new Connections().run(() => inBackground(() => poll(config, afterPass)));

async function poll(config: EdgeConfig, afterPass: () => void): Promise<void> {
  const db = openDatabase(config.DB);
  const chain = connectChain(config);
  try {
    await publishDataKeys(db, keyRing(config), Date.now());
  } catch (error) {
    log("error", "data_keys_not_published", errorFields(error));
  }
  const holder = crypto.randomUUID();
  const until = Date.now() + config.SCAN_RUN_SECONDS * 1_000;
  let heldUntil = 0;
  const passStatements = () => statementsLeft() - SWEEP_STATEMENTS;
  for (let passes = 1; passStatements() > 0 && Date.now() < until; passes++) {
    const now = Date.now();
    const fence = { holder, leaseUntil: now + LEASE_MS };
    let pause = config.SCAN_INTERVAL_MS;
    try {
      if (heldUntil - now < LEASE_LEFT_MS) {
        await startCursor({ db, chain, config, now });
        if (!(await takeScanLease(db, fence, now))) {
          await wait(LEASE_RETRY_MS);
          continue;
        }
        heldUntil = fence.leaseUntil;
      }
      const context = { db, chain, config, fence, now };
      const result = await scanPass(context);
      await enqueue(config.JOBS, result.queued);
      log(result.queued.length > 0 ? "info" : "debug", "scan_pass", {
        outcome: result.outcome,
        caughtUp: result.caughtUp,
        purchases: result.queued.length,
        ms: Date.now() - now,
      });
      if (result.outcome === "advanced" || result.outcome === "rolled_back") heldUntil = fence.leaseUntil;
      if (!result.caughtUp) pause = 0;
      if (await claimTurn(db, "sweptAt", now, config.SWEEP_INTERVAL_SECONDS * 1_000)) await sweep(context);
      allClear("scan_pass_failed");
    } catch (error) {
      // The lease may be another's by now: take it again before the next write.
      heldUntil = 0;
      log(levelOfFault(error), "scan_pass_failed", errorFields(error));
      if (isTransient(error)) pause = Math.max(pause, DATABASE_RETRY_MS);
    }
    afterPass();
    await wait(Math.max(pause, paceOf(passes, passStatements(), until - now)));
  }
  await giveBack(db, holder);
}

/** Nothing, until what is left of the statements has to last for the rest of the time: then an equal part of it for each pass. */
function paceOf(passes: number, left: number, restMs: number): number {
  const used = MAX_STATEMENTS - SWEEP_STATEMENTS - left;
  return left > used ? 0 : (restMs * used) / (passes * Math.max(1, left));
}

/** A lease that can't be given back ends by itself. */
async function giveBack(db: Database, holder: string): Promise<void> {
  try {
    await releaseScanLease(db, holder);
  } catch (error) {
    log("warn", "scan_lease_kept", errorFields(error));
  }
}
