// The cron fires once a minute; a purchase must be seen within seconds. So one invocation keeps polling until the next
// one takes over. Waiting costs no CPU, and a lease in the database keeps two of them apart.
import type { EdgeConfig } from "../config.ts";
import { keyRing } from "../credentials/key-ring.ts";
import { openDatabase } from "../db/client.ts";
import { publishDataKeys } from "../db/data-keys.ts";
import { claimTurn, releaseScanLease, takeScanLease } from "../db/scan.ts";
import { errorFields, log } from "../log.ts";
import { enqueue, sweep } from "../vms/sweep.ts";
import { connectChain } from "./client.ts";
import { scanPass, startCursor } from "./scan.ts";

// Longer than one pass may take with every node timing out.
const LEASE_MS = 40_000;
const LEASE_RETRY_MS = 500;
// Far below what one invocation may ask of D1 (1,000 statements), catch-up included; the next cron goes on.
const MAX_PASSES = 120;

const wait = (ms: number) => new Promise<void>((resolve) => setTimeout(resolve, ms));

/** Scans and sweeps for `SCAN_RUN_SECONDS`. A failed pass is logged and the next one tries again. */
export async function pollChain(config: EdgeConfig, afterPass: () => void = () => {}): Promise<void> {
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
  for (let passes = 0; passes < MAX_PASSES && Date.now() < until; passes++) {
    const now = Date.now();
    const fence = { holder, leaseUntil: now + LEASE_MS };
    let pause = config.SCAN_INTERVAL_MS;
    try {
      if (heldUntil - now < LEASE_MS / 2) {
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
      // Catching up goes without a pause, until what is left of the passes has to last for the rest of the minute.
      if (!result.caughtUp) pause = passes < MAX_PASSES / 2 ? 0 : (until - now) / (MAX_PASSES - passes);
      if (await claimTurn(db, "sweptAt", now, config.SWEEP_INTERVAL_SECONDS * 1_000)) await sweep(context);
    } catch (error) {
      // The lease may be another's by now: take it again before the next write.
      heldUntil = 0;
      log("error", "scan_pass_failed", errorFields(error));
    }
    afterPass();
    await wait(pause);
  }
  await releaseScanLease(db, holder);
}
