// What the steps of a payment have alike.
import { readAuthorizationUse } from "../../chain/authorization.ts";
import { readHead } from "../../chain/client.ts";
import { askTwo } from "../../chain/witness.ts";
import * as store from "../../db/payments.ts";
import { log } from "../../log.ts";
import { authorizationOf } from "../../model/payment.ts";
import type { Context } from "../context.ts";

/** How a step ended: the row as it is now, to go on with; seconds to wait; or null, nothing to do until the sweep. */
export type Turn = store.Payment | { waitSeconds: number } | null;

export const WATCH_MS = 60_000;

export const BLOCK_SECONDS = 2;

export const WALLET_WAIT_SECONDS = 10;
/** A purchase or a capture is sent so often, each after the one before has reverted. */
export const MAX_REVERTS = 3;

/**
 * A token that can't be bought so long after the capture, is not seen so long after its purchase, or can't be moved for so
 * long (hard case 19), is given up.
 */
export const DELIVER_MS = 900_000;

/** What became of a payment's authorization, by two nodes. */
export const useOf = (
  { chain, config }: Context,
  row: store.Payment,
  blockTag: "latest" | "newest" | "finalized" = "latest",
) => readAuthorizationUse(chain, config.USDC_ADDRESS, authorizationOf(row), row.fromBlock, blockTag);

export async function isConfirmed({ chain, config }: Context, blockNumber: number): Promise<boolean> {
  return askTwo(chain, async (node) => (await readHead(node)).number >= blockNumber + config.CONFIRMATIONS);
}

/** Leaves the row to the sweep, which looks again after so long. */
export async function lookAgain({ db, now }: Context, row: store.Payment, ms: number): Promise<null> {
  await store.movePayment(db, row, { wakeAt: now() + ms });
  return null;
}

export async function hold({ db, now }: Context, row: store.Payment, reason: string): Promise<Turn> {
  // The sweep pages for what is held, until nothing is.
  log("error", "payment_held", { payment: row.id, reason });
  return store.movePayment(db, row, { state: "held", step: "idle", reason, wakeAt: null, endedAt: now() });
}

/** What an order waits for; a person is called by the sweep, where orders wait for long (hard case 40). */
export const tellOfWait = (event: "purchase_waits" | "capture_waits", { id }: store.Payment, why: string): void =>
  log(why === "queued" ? "info" : "warn", event, { payment: id, why });
