// A token for an order, bought with our money, or one that is left of an order that came to nothing.
import { boughtVm, heldToken, serveHeldToken } from "../../db/orders.ts";
import { isPaused } from "../../db/pauses.ts";
import * as store from "../../db/payments.ts";
import { chainTime } from "../../db/vms.ts";
import { log } from "../../log.ts";
import {
  captureDeadline,
  HELD_DEADLINE_SECONDS,
  heldTokenEnds,
  isPastCapture,
  MAX_RISE,
  orderSeconds,
  SIGNING_SECONDS,
  signedPaymentOf,
} from "../../model/payment.ts";
import { addressInRows, type Context } from "../context.ts";
import { isNotOurs } from "../refunds/waits.ts";
import { walletOf } from "../wallet.ts";
import { giveUp } from "./give-up.ts";
import { agreedTier } from "./price.ts";
import { follow } from "./token.ts";
import {
  DELIVER_MS,
  isConfirmed,
  lookAgain,
  MAX_REVERTS,
  type Turn,
  tellOfWait,
  WALLET_WAIT_SECONDS,
  WATCH_MS,
} from "./turn.ts";

/** What was charged first goes back where no token can be had for it: its payer waits for no funds of ours, and no pause. */
const isOwed = ({ now }: Context, { state, settledAt }: store.Order): boolean =>
  state === "settled" && now() > (settledAt ?? now()) + DELIVER_MS;

/** A held token serves the order, or one is to be bought for it. */
export async function chooseToken(context: Context, row: store.Order): Promise<Turn> {
  const { db, config, now } = context;
  const { tier, durationDays } = row;
  const head = await chainTime(db);
  if (isPastCapture(row, head) || isOwed(context, row)) return giveUp(context, row, "too_late");
  if (await isPaused(db, "provisioning")) return { waitSeconds: WALLET_WAIT_SECONDS };
  // What was used of a longer one is reckoned by the payment's time: an order whose payment is of another gets a new one.
  const inTime = row.validBefore - head;
  const isOfNow = inTime >= 0 && inTime <= orderSeconds(tier) + SIGNING_SECONDS;
  const ends = heldTokenEnds(head, durationDays);
  const held = isOfNow ? await heldToken(db, tier, addressInRows(context), ends) : null;
  const deadline = row.state === "settled" ? head + HELD_DEADLINE_SECONDS : captureDeadline(row);
  const served =
    held === null
      ? null
      : await serveHeldToken(db, row, held, { now: now(), deadline, graceSeconds: config.EXPIRY_GRACE_SECONDS });
  if (served !== null) {
    log("info", "held_token_served", { payment: row.id, tokenId: served.row.tokenId });
    await config.JOBS.send({ kind: "advance", ...served.queued });
    return served.row;
  }
  const { pricePerDay } = await agreedTier(context, tier);
  const cost = pricePerDay * BigInt(durationDays);
  if (cost > BigInt(row.amount) * MAX_RISE) return giveUp(context, row, "price");
  return store.movePayment(db, row, { cost: String(cost), boughtAt: now() });
}

/** Has the wallet buy the token, until the scan shows its purchase. */
export async function buy(context: Context, row: store.CostedOrder): Promise<Turn> {
  const { db, now } = context;
  const { tier, durationDays } = row;
  const late = isPastCapture(row, await chainTime(db));
  const order = {
    kind: "purchase",
    // Each try is an order of its own.
    id: `purchase/${row.id}${row.reverts === 0 ? "" : `/${row.reverts}`}`,
    payment: row.id,
    tier,
    durationDays,
    cost: row.cost,
    paid: signedPaymentOf(row),
  } as const;
  const bought = await walletOf(context).order(order);
  if (bought.state === "waiting") {
    tellOfWait("purchase_waits", row, bought.why);
    const isHopeless = bought.why === "would_fail" || isNotOurs(bought.why);
    return isHopeless || late || isOwed(context, row)
      ? giveUp(context, row, `purchase_${bought.why}`)
      : { waitSeconds: WALLET_WAIT_SECONDS };
  }
  // A purchase that a reorg brings back after all stays ours, and serves another order.
  const mined = bought.state === "sent" && bought.mined?.status === "reverted" ? bought.mined : null;
  if (bought.state === "reverted" || (mined !== null && (await isConfirmed(context, mined.blockNumber)))) {
    // Its approval was used up, or the price has changed: while there is time it is bought again (hard case 55).
    if (late || row.reverts + 1 >= MAX_REVERTS) return giveUp(context, row, "purchase_reverted");
    log("warn", "purchase_reverted", { payment: row.id, txHash: bought.hash });
    return store.movePayment(db, row, { reverts: row.reverts + 1, cost: null, boughtAt: null, purchaseTx: null });
  }
  if (row.purchaseTx !== bought.hash) return store.movePayment(db, row, { purchaseTx: bought.hash });
  // The scan sees it like any purchase, and its first step links it to this order (hard case 20), unless it ended before.
  const vm = await boughtVm(db, row, addressInRows(context));
  if (vm !== null && vm.status !== "provisioning") return follow(context, row, vm);
  // After a reorg it may have a token that was on its way to the payer of another order.
  const isOverdue = bought.state === "final" && now() > row.boughtAt + DELIVER_MS;
  if (vm === null && (late || isOverdue)) return giveUp(context, row, "purchase_gone");
  return lookAgain(context, row, WATCH_MS);
}
