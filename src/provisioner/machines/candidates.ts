// Where a tier's machine may come from, and in which order it is tried.

import { type Candidate, offerOf, type StockByVendor, sizesOf, vendorsOf } from "../../model/stock.ts";
import type { ProvisionerConfig } from "../config.ts";

const FIRST_ROUND_WAIT_MS = 10_000;
const MAX_ROUND_WAIT_MS = 300_000;

type Places = Pick<ProvisionerConfig, "VULTR_REGIONS" | "VULTR_GPUS" | "RUNPOD_CLOUDS">;

export type Market = {
  places: Places;
  /** What the catalogs last said. */
  stock: StockByVendor;
  /** Whether machines could not be had, or did not come up, there lately. */
  isTroubled: (candidate: Candidate) => boolean;
};

/**
 * Everywhere a tier's machine could come from, best first. Nothing is left out: what has had trouble lately comes last,
 * then what the catalog calls sold out; a larger machine comes after every place of the smaller one. Between equals the
 * configured order of clouds and regions decides, then stock, then price.
 */
export function candidatesOf(tier: number, { places, stock, isTroubled }: Market): Candidate[] {
  const sizes = sizesOf(tier);
  const regions = { runpod: places.RUNPOD_CLOUDS, vultr: places.VULTR_REGIONS };
  const ranked = vendorsOf(tier, places).flatMap((vendor, vendorRank) =>
    sizes[vendor].flatMap((plans, size) =>
      regions[vendor].flatMap((region, place) =>
        plans.map((plan) => {
          const candidate = { vendor, region, plan };
          const offer = offerOf(stock, candidate);
          const rank = [
            isTroubled(candidate) ? 1 : 0,
            offer?.stock === "none" ? 1 : 0,
            size,
            vendorRank,
            place,
            offer?.stock === "low" ? 1 : 0,
            offer?.usdPerHour ?? 0,
          ];
          return { candidate, rank };
        }),
      ),
    ),
  );
  return ranked.sort((a, b) => compare(a.rank, b.rank)).map(({ candidate }) => candidate);
}

/** The same without their order. */
export const placesOfTier = (tier: number, places: Places): Candidate[] =>
  candidatesOf(tier, { places, stock: {}, isTroubled: () => false });

function compare(a: readonly number[], b: readonly number[]): number {
  const index = a.findIndex((rank, i) => rank !== b[i]);
  return index === -1 ? 0 : (a[index] ?? 0) - (b[index] ?? 0);
}

/** What a vendor's gate remembers troubles by. */
export const placeOf = ({ region, plan }: { region: string; plan: string }): string => `${region}/${plan}`;

export type Tried = { provider: string; region: string; plan: string; outcome: string | null; endedAt: number | null };

/**
 * The candidate to try next: each one once, in order, then all again after a wait that doubles from round to round.
 * A try that the vendor put off (`wait`) does not count, nor does one whose machine ran. `jitter`, 0 to 1, keeps purchases
 * of one moment from coming back in one moment.
 */
export function nextCandidate(
  candidates: readonly Candidate[],
  tried: readonly Tried[],
  now: number,
  jitter = 1,
): { candidate: Candidate } | { waitMs: number } {
  const counted = tried.filter((attempt) => attempt.outcome !== "wait" && attempt.outcome !== "running");
  const tries = (candidate: Candidate) =>
    counted.filter(
      (attempt) =>
        attempt.provider === candidate.vendor && attempt.region === candidate.region && attempt.plan === candidate.plan,
    ).length;
  const round = Math.min(...candidates.map(tries));
  const candidate = candidates.find((one) => tries(one) === round);
  if (candidate === undefined) return { waitMs: MAX_ROUND_WAIT_MS };
  // The wait comes before a round's first try, not between its candidates.
  const roundOpen = candidates.some((one) => tries(one) > round);
  if (round === 0 || roundOpen) return { candidate };
  const lastEnd = Math.max(0, ...counted.map((attempt) => attempt.endedAt ?? 0));
  const wait = Math.min(MAX_ROUND_WAIT_MS, FIRST_ROUND_WAIT_MS * 2 ** (round - 1)) * (0.5 + jitter / 2);
  const waitMs = lastEnd + wait - now;
  return waitMs > 0 ? { waitMs } : { candidate };
}
