// Where a tier's machine may come from, what of it the vendors' catalogs have, and what it may cost: both Workers ask. Which of
// the places is tried next is the provisioner's.
export type VendorName = "vultr" | "runpod";

export type Candidate = { vendor: VendorName; region: string; plan: string };

export type Offer = {
  region: string;
  plan: string;
  stock: "high" | "low" | "none";
  /** What the vendor takes, where its catalog says so. */
  usdPerHour?: number;
};

/**
 * `maxCostShare`: the provisioner's MAX_COST_SHARE, by which the edge refuses what is not bought for an order. `balanceUsd`:
 * what our account there can still spend; null where it could not be read, or is billed afterwards.
 */
export type StockByVendor = Partial<
  Record<VendorName, { readAt: number; offers: Offer[]; maxCostShare?: number; balanceUsd?: number | null }>
>;

/**
 * The cards of tiers 4 to 7: what was paid for, then the next larger ones; cards in one group are as good as each other.
 * There is no A100 40GB PCIe any more: the SXM card of that size where it is left, else one of 80 GB.
 */
export const RUNPOD_GPUS: Readonly<Record<number, readonly (readonly string[])[]>> = {
  4: [["NVIDIA GeForce RTX 4090"], ["NVIDIA L40S"]],
  5: [["NVIDIA A100-SXM4-40GB"], ["NVIDIA A100 80GB PCIe", "NVIDIA A100-SXM4-80GB"]],
  6: [["NVIDIA A100 80GB PCIe"], ["NVIDIA A100-SXM4-80GB"], ["NVIDIA H100 PCIe"]],
  7: [["NVIDIA H100 PCIe"], ["NVIDIA H100 80GB HBM3", "NVIDIA H100 NVL"]],
};

/** Vultr's plans, by tier. */
export const VULTR_PLANS: readonly string[] = ["vc2-1c-1gb", "vc2-1c-2gb", "vc2-2c-4gb", "vc2-4c-8gb"];
/** A whole A100 of 80 GB: what tier 6 pays for and more than tier 5 does. Other cards of ours Vultr has not, or by eights. */
export const VULTR_GPU_PLANS: Readonly<Record<number, readonly (readonly string[])[]>> = {
  5: [[], ["vcg-a100-12c-120g-80vram"]],
  6: [["vcg-a100-12c-120g-80vram"]],
};

const STOCK_MAX_AGE_MS = 900_000;

/** Vendors that sell a tier's machines. */
export const vendorsOf = (tier: number, { VULTR_GPUS }: { VULTR_GPUS: boolean }): VendorName[] =>
  VULTR_PLANS[tier] !== undefined ? ["vultr"] : VULTR_GPUS ? ["runpod", "vultr"] : ["runpod"];

/** A tier's plans at each vendor: the size that was paid for, then the larger ones that may stand in for it. */
export const sizesOf = (tier: number): Record<VendorName, readonly (readonly string[])[]> => {
  const plan = VULTR_PLANS[tier];
  return {
    runpod: RUNPOD_GPUS[tier] ?? [],
    vultr: plan === undefined ? (VULTR_GPU_PLANS[tier] ?? []) : [[plan]],
  };
};

export const offerOf = (stock: StockByVendor, { vendor, region, plan }: Candidate): Offer | undefined =>
  stock[vendor]?.offers.find((offer) => offer.region === region && offer.plan === plan);

/** What vendors said not long ago: beyond that their stock says nothing any more. */
export const recentStock = (stock: StockByVendor, now: number): StockByVendor =>
  Object.fromEntries(Object.entries(stock).filter(([, read]) => now - read.readAt < STOCK_MAX_AGE_MS));

/** For an order by x402, the vendor takes no more than its share of a day's price (10^-6 USDC). */
export const isWithinShare = (offer: Offer | undefined, pricePerDay: number, share: number): boolean =>
  (offer?.usdPerHour ?? 0) <= (pricePerDay / 1e6 / 24) * share;

/** A tier's stock over everything that its machine may be, or that an order may have. */
export function stockOf(
  tier: number,
  stock: StockByVendor,
  isFor: (offer: Offer, maxCostShare: number) => boolean = () => true,
): "high" | "low" | "none" | "unknown" {
  const sizes = sizesOf(tier);
  const offers = (["runpod", "vultr"] as const).flatMap((vendor) => {
    const plans = sizes[vendor].flat();
    const read = stock[vendor];
    return (read?.offers ?? [])
      .filter((offer) => plans.includes(offer.plan))
      .map((offer) => (isFor(offer, read?.maxCostShare ?? 1) ? offer.stock : "none"));
  });
  return (["high", "low", "none"] as const).find((level) => offers.includes(level)) ?? "unknown";
}
