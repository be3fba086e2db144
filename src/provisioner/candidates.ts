import type { StockByVendor } from "../db/schema.ts";
import { RUNPOD_CLOUDS, RUNPOD_GPUS } from "./vendors/runpod.ts";
import type { Candidate } from "./vendors/vendor.ts";
import { VULTR_PLANS, VULTR_REGIONS } from "./vendors/vultr.ts";

const FIRST_ROUND_WAIT_MS = 10_000;
const MAX_ROUND_WAIT_MS = 300_000;

/** Everywhere a tier's machine could come from, best first. What the catalog calls sold out is tried last, not never. */
export function candidatesOf(tier: number, stock: StockByVendor): Candidate[] {
  const plan = VULTR_PLANS[tier];
  const all: Candidate[] =
    plan === undefined
      ? RUNPOD_CLOUDS.flatMap((region) =>
          (RUNPOD_GPUS[tier] ?? []).map((gpu) => ({ vendor: "runpod", region, plan: gpu })),
        )
      : VULTR_REGIONS.map((region) => ({ vendor: "vultr", region, plan }));
  const soldOut = (candidate: Candidate) =>
    stock[candidate.vendor]?.offers.some(
      (offer) => offer.region === candidate.region && offer.plan === candidate.plan && offer.stock === "none",
    ) === true;
  return [...all.filter((candidate) => !soldOut(candidate)), ...all.filter(soldOut)];
}

/** A tier's stock over all its candidates, for `/tiers`. */
export function stockOf(tier: number, stock: StockByVendor): "high" | "low" | "none" | "unknown" {
  const levels = candidatesOf(tier, stock).map(
    (candidate) =>
      stock[candidate.vendor]?.offers.find(
        (offer) => offer.region === candidate.region && offer.plan === candidate.plan,
      )?.stock,
  );
  return (["high", "low", "none"] as const).find((level) => levels.includes(level)) ?? "unknown";
}

export type Tried = { provider: string; region: string; plan: string; outcome: string | null; endedAt: number | null };

/**
 * The candidate to try next: each one once, in order, then all again after a wait that doubles from round to round.
 * A try that the vendor put off (`wait`) does not count.
 */
export function nextCandidate(
  candidates: readonly Candidate[],
  tried: readonly Tried[],
  now: number,
): { candidate: Candidate } | { waitMs: number } {
  const counted = tried.filter((attempt) => attempt.outcome !== "wait");
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
  const waitMs = lastEnd + Math.min(MAX_ROUND_WAIT_MS, FIRST_ROUND_WAIT_MS * 2 ** (round - 1)) - now;
  return waitMs > 0 ? { waitMs } : { candidate };
}
