// Before anything is bought for an order: neither its row nor the edge is believed, so signature, price and balance are looked at
// here again (hard case 4).
import { type AuthorizationUse, authorizationSigner } from "../../chain/authorization.ts";
import { coinOf } from "../../chain/coin.ts";
import { canDeliver } from "../../chain/orders.ts";
import { parsePublicKey } from "../../credentials/ssh-keys.ts";
import * as store from "../../db/payments.ts";
import { chainTime } from "../../db/vms.ts";
import { authorizationOf, isPastCapture } from "../../model/payment.ts";
import { TIERS } from "../../model/tiers.ts";
import { type Context, operatorOf } from "../context.ts";
import { walletOf } from "../wallet.ts";
import { captureOf } from "./capture.ts";
import { giveUp } from "./give-up.ts";
import { agreedTier, wasQuoted } from "./price.ts";
import { BLOCK_SECONDS, type Turn, useOf, WATCH_MS } from "./turn.ts";

const ANY = 10n ** 18n;

/** Before anything is bought. */
export async function check(context: Context, row: store.Payment): Promise<Turn> {
  const { db, config, now } = context;
  const use = await useOf(context, row);
  if (use.state === "unclear") return { waitSeconds: BLOCK_SECONDS };
  // Two nodes that are behind its quote don't show yet what its payer had spent by then, or got.
  const isBehind = use.state === "unused" && use.blockNumber < (row.quotedBlock ?? 0);
  if (isBehind && row.state !== "settled" && !isPastCapture(row, await chainTime(db)))
    return { waitSeconds: BLOCK_SECONDS };
  const problem = await problemOf(context, row, use);
  if (problem !== null) {
    // Somebody's transaction with it may be what a node has seen already that said no.
    const newest = use.state === "unused" ? await useOf(context, row, "newest") : null;
    const isUsed = newest?.state === "paid" || newest?.state === "unclear";
    return isUsed ? { waitSeconds: BLOCK_SECONDS } : giveUp(context, row, problem);
  }
  if (use.state === "cancelled") return giveUp(context, row, "cancelled");
  if (use.state === "paid" && row.state !== "settled") {
    // Somebody has submitted it: it is paid before it is delivered.
    const settled = { state: "settled", step: "buy", settledAt: now(), wakeAt: now() + WATCH_MS } as const;
    return store.settlePayment(db, row, use, settled);
  }
  const isFirst =
    row.state === "authorized" && (row.captureFirst || config.CAPTURE_FIRST_TIERS.includes(row.tier ?? -1));
  return store.movePayment(db, row, { step: isFirst ? "capture" : "buy", wakeAt: now() + WATCH_MS });
}

async function problemOf(context: Context, row: store.Payment, use: AuthorizationUse): Promise<string | null> {
  const { chain, config, db, now } = context;
  const operator = operatorOf(context);
  const authorization = authorizationOf(row);
  const { tier, durationDays } = row;
  if (operator === null || authorization.to !== operator || row.chainId !== config.CHAIN_ID) return "recipient";
  if (tier === null || TIERS[tier] === undefined || durationDays === null || durationDays < 1) return "unknown_tier";
  if (row.sshPublicKey !== null && !isLine(row.sshPublicKey)) return "ssh_public_key";
  const signer = await authorizationSigner(chain, coinOf(config), authorization);
  if (signer === null) return "signature";
  if (row.state !== "settled" && isPastCapture(row, await chainTime(db))) return "too_late";
  const { pricePerDay, active } = await agreedTier(context, tier);
  if (!active) return "tier_inactive";
  if (authorization.value !== pricePerDay * BigInt(durationDays) && !(await wasQuoted(context, row))) return "price";
  // What has arrived is no more in the payer's account.
  if (row.state !== "settled" && use.state === "unused") {
    const limits = { balance: use.balance, float: ANY, uncaptured: ANY };
    const exceeded = await store.exceededLimit(db, row, limits, now());
    if (exceeded !== null) return exceeded;
    // A blocked account, or a signature that the coin does not take: better known before anything is bought.
    const refusal = await walletOf(context).simulate(await captureOf(context, row));
    if (refusal === "would_fail") return "capture_would_fail";
  }
  const cost = String(pricePerDay * BigInt(durationDays));
  const trial = { kind: "purchase", id: "trial", payment: row.id, tier, durationDays, cost } as const;
  const places = { contract: config.CONTRACT_ADDRESS, coin: config.USDC_ADDRESS, operator };
  return (await canDeliver(chain, trial, authorization.from, places)) ? null : "cannot_deliver";
}

/** As the edge stores a key that it has parsed, and nothing else. */
function isLine(publicKey: string): boolean {
  const parsed = parsePublicKey(publicKey);
  return "line" in parsed && parsed.line === publicKey;
}
