// What goes wrong in a run, and when: each run draws which kinds there are and how often they strike. Every strike has a
// number, so that a run can be repeated without some of them.
import type { Random } from "./random.ts";

/** How often a kind strikes per chance to do so, at its most. */
export const KINDS = {
  // At every call of a Worker or an object to something outside.
  crash_before: 0.004,
  crash_after: 0.004,
  slow: 0.05,
  // At every call of a node, and with each look at the world (every five seconds).
  rpc_fails: 0.03,
  rpc_hangs: 0.01,
  node_lags: 0.1,
  node_forks: 0.1,
  node_lies: 0.3,
  node_down: 0.05,
  // At every call of a vendor.
  vendor_fails_before: 0.1,
  vendor_fails_after: 0.1,
  vendor_hangs_before: 0.1,
  vendor_hangs_after: 0.3,
  vendor_acts_late: 0.5,
  vendor_acts_too_late: 0.1,
  rate_limited: 0.05,
  refused: 0.03,
  sold_out: 0.3,
  list_stale: 0.6,
  list_cut: 0.05,
  slow_delete: 0.3,
  locked: 0.2,
  // At every call of the facilitator.
  facilitator_fails: 0.2,
  facilitator_hangs: 0.1,
  facilitator_forgets: 0.3,
  facilitator_loses_answer: 0.4,
  facilitator_is_late: 0.4,
  facilitator_lies: 0.2,
  // At every machine that is made.
  never_boots: 0.2,
  slow_boot: 0.2,
  stranger_answers: 0.1,
  dies_booting: 0.1,
  // At every message.
  queue_duplicates: 0.1,
  queue_delays: 0.1,
  // With each look at the world.
  reorg: 0.2,
  chain_halts: 0.04,
  fees_rise: 0.06,
  transaction_forgotten: 0.1,
  foreign_transaction: 0.02,
  market_empty: 0.04,
  lists_fail: 0.15,
  vendor_down: 0.06,
  machine_dies: 0.02,
  machine_vanishes: 0.04,
  pod_moves: 0.1,
  tenant_renames: 0.06,
  token_sold: 0.16,
  token_renewed: 0.04,
  token_given_up: 0.02,
  price_changes: 0.06,
  payer_spends: 0.1,
  payer_earns: 0.1,
  payer_cancels: 0.08,
  payer_repeats: 0.2,
  stranger_submits: 0.1,
  row_forged: 0.04,
  database_restored: 0.02,
  key_fetched: 0.3,
  key_rotated: 0.08,
  refund_claimed: 0.2,
  operator_ends: 0.02,
  operator_retries: 0.2,
  operator_pauses: 0.04,
  // The adversary's. At every look of a node, and of the one that may lie.
  range_capped: 0.05,
  logs_late: 0.15,
  receipts_bare: 0.15,
  receipts_differ: 0.15,
  head_ahead: 0.1,
  other_chain: 0.5,
  nonsense: 0.15,
  // At every order.
  order_is_long: 0.5,
  order_repeated: 0.7,
  // With each look at the world.
  payer_batches: 0.1,
  payer_pays_late: 0.06,
  payer_submits: 0.06,
  payer_delegates: 0.06,
  stranger_batches: 0.08,
  transfer_storm: 0.01,
  // Marks the world.
  database_written: 0.02,
  // At every settlement of the facilitator.
  facilitator_batches: 0.5,
  // The platform's. At every round trip to D1.
  d1_fails: 0.02,
  d1_loses_answer: 0.02,
  d1_stalls: 0.004,
  // At every call of an object.
  object_fails: 0.03,
  object_loses_answer: 0.03,
  object_stalls: 0.01,
  // With each look at the world.
  d1_down: 0.1,
  // The shop's bad days. Once, as the world begins.
  nodes_capped: 0.9,
  zero_for_unknown: 0.9,
  // At every look of a node.
  logs_fail: 0.05,
  // With each look at the world.
  dense_storm: 0.05,
  chain_set_back: 0.05,
  crowd_buys: 0.04,
  tenant_deletes: 0.1,
  long_pause: 0.04,
  // Once, after all has healed.
  calm_trial: 0.9,
  // The vendors' hard days. At every call of theirs.
  vendor_prose: 0.5,
  odd_answer: 0.1,
  key_refused: 0.05,
  odd_neighbours: 0.3,
  counts_deleted: 0.5,
  delete_pending: 0.3,
  // At every machine that is made or installed.
  machine_hidden: 0.4,
  long_lock: 0.3,
  pull_hangs: 0.2,
  no_public_address: 0.2,
  ports_only: 0.2,
  silent_address: 0.2,
  // With each look at the world.
  balance_gone: 0.03,
} as const;
export type Kind = keyof typeof KINDS;

/** A strike that was drawn: its number in the run is what a mask names. */
export type Strike = { number: number; kind: Kind; at: number };

const SHARE_OF_KINDS = 0.35;
/** From streams of their own, and each in a part of the worlds: all others are as they were without them. */
const PLATFORM: ReadonlySet<Kind> = new Set(
  (Object.keys(KINDS) as Kind[]).filter((kind) => kind.startsWith("d1_") || kind.startsWith("object_")),
);
const SHARE_OF_PLATFORMS = 0.4;
const SHOP: ReadonlySet<Kind> = new Set([
  "nodes_capped",
  "zero_for_unknown",
  "logs_fail",
  "dense_storm",
  "chain_set_back",
  "crowd_buys",
  "tenant_deletes",
  "long_pause",
  "calm_trial",
]);
const SHARE_OF_SHOPS = 0.25;
const VENDORS: ReadonlySet<Kind> = new Set([
  "vendor_prose",
  "odd_answer",
  "key_refused",
  "odd_neighbours",
  "counts_deleted",
  "delete_pending",
  "machine_hidden",
  "long_lock",
  "pull_hangs",
  "no_public_address",
  "ports_only",
  "silent_address",
  "balance_gone",
]);
const SHARE_OF_HARD_VENDORS = 0.3;

let often: readonly Kind[] = [];
/** From here on every run of this process has these, at their most: a search for what they alone bring about. */
export const strikeOften = (kinds: readonly Kind[]): void => {
  often = kinds;
};

export class Faults {
  /** All that were drawn, masked ones too. */
  readonly drawn: Strike[] = [];
  /** While false nothing strikes: the world heals. */
  active = true;
  readonly #rates = new Map<Kind, number>();
  readonly #random: Random;
  readonly #platform: Random;
  readonly #shop: Random;
  readonly #vendors: Random;
  readonly #without: ReadonlySet<number>;
  readonly #now: () => number;

  constructor(
    random: Random,
    own: { platform: Random; shop: Random; vendors: Random },
    without: ReadonlySet<number>,
    now: () => number,
  ) {
    const { platform, shop, vendors } = own;
    this.#random = random;
    this.#platform = platform;
    this.#shop = shop;
    this.#vendors = vendors;
    this.#without = without;
    this.#now = now;
    const isGood = platform.unit() >= SHARE_OF_PLATFORMS;
    const isQuiet = shop.unit() >= SHARE_OF_SHOPS;
    const isEasy = vendors.unit() >= SHARE_OF_HARD_VENDORS;
    const isOut = (kind: Kind) =>
      (isGood && PLATFORM.has(kind)) || (isQuiet && SHOP.has(kind)) || (isEasy && VENDORS.has(kind));
    for (const [kind, most] of Object.entries(KINDS) as [Kind, number][]) {
      const { unit } = this.#streamOf(kind);
      const share = unit();
      const rate = unit();
      // Many runs know few kinds, so that each gets its turn without the others' noise.
      if (share < SHARE_OF_KINDS && !isOut(kind)) this.#rates.set(kind, most * (0.1 + 0.9 * rate * rate));
    }
    for (const kind of often) this.#rates.set(kind, KINDS[kind]);
  }

  /** Whether a fault of that kind happens here and now. */
  strikes(kind: Kind): boolean {
    const rate = this.active ? this.#rates.get(kind) : undefined;
    if (rate === undefined || this.#streamOf(kind).unit() >= rate) return false;
    const number = this.drawn.length;
    this.drawn.push({ number, kind, at: this.#now() });
    return !this.#without.has(number);
  }

  #streamOf = (kind: Kind): Random =>
    PLATFORM.has(kind)
      ? this.#platform
      : SHOP.has(kind)
        ? this.#shop
        : VENDORS.has(kind)
          ? this.#vendors
          : this.#random;
}
