// What a machine costs over x402 right now, and whether one can be sold at all.
import type { Till } from "../../access/payment-wire.ts";
import type { App } from "../../app.ts";
import { type Offer, readOffer } from "../../chain/offers.ts";
import { saveQuote } from "../../db/payments.ts";
import { statementsOf } from "../../db/reads.ts";
import { AppError } from "../../errors.ts";
import { log } from "../../log.ts";
import { recentStock, stockOf } from "../../provisioner/candidates.ts";

const OFFER_CACHE_MS = 3_000;
export const RETRY_SECONDS = 30;
/** What approving, buying, taking a payment and handing the token over use together, with room to spare. */
const GAS_PER_ORDER = 900_000n;

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

/** What can't be sold is refused before anybody signs for it. */
export async function requireSaleable(
  { config, db }: App["Variables"],
  offer: Offer,
  { tier, durationDays }: { tier: number; durationDays: number },
  now: number,
): Promise<void> {
  const refuse = (code: ConstructorParameters<typeof AppError>[0], sentence: string) =>
    new AppError(code, sentence, { retryAfterSeconds: RETRY_SECONDS });
  if (!offer.active) throw refuse("tier_inactive", `Tier ${tier} is not sold at the moment; /tiers lists what is.`);
  if (offer.baseFee > config.MAX_BASE_FEE_GWEI) {
    throw refuse("gas_too_dear", "Transactions are too dear on the chain right now; try again later.");
  }
  const gas = GAS_PER_ORDER * 2n * offer.baseFee;
  if (offer.usdc6 < offer.pricePerDay * BigInt(durationDays) || offer.wei < gas) {
    log("page", "operator_short", { usdc6: String(offer.usdc6), tier, durationDays });
    throw refuse(
      "operator_short",
      "We can't buy the token for you at the moment; buy on the contract, as /llms.txt says, or try later.",
    );
  }
  const [row] = await statementsOf(db).catalog.all();
  if (stockOf(tier, recentStock(row?.stock ?? {}, now)) === "none") {
    throw refuse(
      "sold_out",
      `No vendor has a machine of tier ${tier} right now; /tiers shows the stock of the others.`,
    );
  }
}
