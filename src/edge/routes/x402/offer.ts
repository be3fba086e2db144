// What a machine costs over x402 right now, whether one can be sold at all, and by which rule it is charged.

import { formatUsdc } from "../../../chain/contract.ts";
import { hasGas, type Offer, readOffer } from "../../../chain/offers.ts";
import { type Market, saveQuote } from "../../../db/payments.ts";
import { AppError } from "../../../errors.ts";
import { log } from "../../../log.ts";
import { SCAN_STALE_MS } from "../../../model/shop.ts";
import { isWithinShare, recentStock, stockOf } from "../../../model/stock.ts";
import { REGIONS, type Region } from "../../../model/tiers.ts";
import type { EdgeConfig } from "../../config.ts";
import type { App } from "../../http.ts";
import type { Till } from "../../payments/wire.ts";

const OFFER_CACHE_MS = 3_000;
export const RETRY_SECONDS = 30;
const MAX_ALTERNATIVES = 3;

// Per isolate and tier: quotes in a burst are one read of the chain, and one row.
const offers = new WeakMap<object, Map<number, { offer: Promise<Offer>; at: number }>>();

export async function currentOffer(
  { chain, config, db }: App["Variables"],
  till: Till,
  tier: number,
  now: number,
): Promise<Offer> {
  const known = offers.get(config) ?? new Map<number, { offer: Promise<Offer>; at: number }>();
  offers.set(config, known);
  const cached = known.get(tier);
  if (cached !== undefined && now - cached.at < OFFER_CACHE_MS) return cached.offer;
  const read = async () => {
    const offer = await readOffer(chain, tier, till.coin.address, till.payTo);
    await saveQuote(db, {
      tier,
      pricePerDay: String(offer.pricePerDay),
      blockNumber: offer.blockNumber,
      quotedAt: now,
    });
    return offer;
  };
  const offer = read();
  known.set(tier, { offer, at: now });
  offer.catch(() => known.delete(tier));
  return offer;
}

/** `paid`: what its payment pays, in 10^-6 USDC, where there is one: at an earlier price it may be another than today's. */
type Order = { tier: number; durationDays: number; region?: string | undefined; paid?: bigint };
type Rules = Pick<EdgeConfig, "CAPTURE_FIRST_TIERS" | "UNCAPTURED_LIMIT_USDC_PER_HOUR">;

/** How much may be delivered before it is paid; beyond it every order is captured first. */
export const uncapturedRoom = ({ UNCAPTURED_LIMIT_USDC_PER_HOUR: limit }: Rules): bigint => limit / 2n;

/** Whether an order is paid before anything is bought for it, so that no order closes the shop for others (hard case 38). */
export const isCapturedFirst = (rules: Rules, tier: number, amount: bigint, unpaid: bigint): boolean =>
  rules.CAPTURE_FIRST_TIERS.includes(tier) ||
  amount * 10n > rules.UNCAPTURED_LIMIT_USDC_PER_HOUR ||
  unpaid + amount > uncapturedRoom(rules);

/** What can't be sold is refused before anybody signs for it, with the nearest that can be (hard case 56). */
export function requireSaleable(
  { MAX_BASE_FEE_GWEI: maxBaseFee, PURCHASE_LIMIT_USDC_PER_DAY: limit }: EdgeConfig,
  offer: Offer,
  { tier, durationDays, region, paid }: Order,
  market: Market,
  now: number,
): void {
  const { active, baseFee, pricePerDay, usdc6 } = offer;
  const stock = recentStock(market.stock, now);
  const regions: readonly string[] | undefined = REGIONS[region as Region];
  // What an order is not bought for: another region than its own, or an offer that takes more than its share of the price.
  const isSoldOut = (one: number, price: bigint, places: readonly string[] | undefined) =>
    stockOf(
      one,
      stock,
      (place, share) => places?.includes(place.region) !== false && isWithinShare(place, Number(price), share),
    ) === "none";
  const { standing } = market;
  // By the chain's clock: a chain that stands still has nothing that is not read, and a scan that moves may be hours behind.
  if ((offer.blockTimestamp - standing.blockTimestamp) * 1_000 >= SCAN_STALE_MS) {
    throw new AppError("delivery_stalled", "No orders are accepted while the chain is not read; try again later.", {
      retryAfterSeconds: RETRY_SECONDS,
    });
  }
  if (standing.pausedSince !== null) {
    throw new AppError("provisioning_paused", "No orders are accepted while provisioning is paused; try again later.", {
      retryAfterSeconds: RETRY_SECONDS,
    });
  }
  if (baseFee > maxBaseFee) {
    throw new AppError("gas_too_dear", "Transactions are too dear on the chain right now; try again later.", {
      retryAfterSeconds: RETRY_SECONDS,
    });
  }
  const funds = usdc6 - market.unbought;
  const today = limit - market.spent - market.unbought;
  const canPayGas = hasGas(offer);
  const room = canPayGas ? least(funds, today) : -1n;
  const others = market.tiers
    .filter((one) => one.active && one.tier !== tier && !isSoldOut(one.tier, BigInt(one.pricePerDayUsdc6), undefined))
    .map((one) => ({ tier: one.tier, durationDays, cost: BigInt(one.pricePerDayUsdc6) * BigInt(durationDays) }))
    .filter(({ cost }) => cost <= room);
  const cost = pricePerDay * BigInt(durationDays);
  const refuse = (code: ConstructorParameters<typeof AppError>[0], reason: string, days = 0n) => {
    const fewer = days < 1n ? [] : [{ tier, durationDays: Number(days), cost: pricePerDay * days }];
    const near = [...fewer, ...others.sort((a, b) => distance(a.cost, cost) - distance(b.cost, cost))];
    const [nearest] = near;
    const instead =
      nearest === undefined
        ? "; try again later, or buy on the contract, as /llms.txt says."
        : `; tier ${nearest.tier} for ${inDays(nearest.durationDays)} can be had, for ${formatUsdc(nearest.cost)} USDC.`;
    return new AppError(code, reason + instead, {
      retryAfterSeconds: RETRY_SECONDS,
      details: near
        .slice(0, MAX_ALTERNATIVES)
        .map(({ cost: price, ...order }) => ({ ...order, amount: formatUsdc(price) })),
    });
  };
  if (!active) throw refuse("tier_inactive", `Tier ${tier} is not sold at the moment`);
  if (isSoldOut(tier, paid === undefined ? pricePerDay : paid / BigInt(durationDays), regions)) {
    const where = regions === undefined ? "" : ` in ${region}`;
    const why = stockOf(tier, stock) === "none" ? "" : " that we can sell at its price";
    throw refuse("sold_out", `No vendor has a machine of tier ${tier}${where}${why} right now`);
  }
  if (cost <= room) return;
  const days = pricePerDay > 0n && room > 0n ? room / pricePerDay : 0n;
  if (cost > limit) throw refuse("order_too_large", `One order may cost at most ${formatUsdc(limit)} USDC`, days);
  if (canPayGas && cost <= funds) throw refuse("orders_full", "We buy no more than that for orders in a day", days);
  // What strangers ask for calls nobody: the sweep looks at the wallet (hard case 40).
  log("warn", "order_beyond_funds", { usdc6: String(usdc6), tier, durationDays });
  throw refuse("operator_short", "We can't buy that token for you at the moment", days);
}

const least = (a: bigint, b: bigint): bigint => (a < b ? a : b);
const distance = (a: bigint, b: bigint): number => Math.abs(Number(a - b));
const inDays = (days: number): string => (days === 1 ? "1 day" : `${days} days`);
