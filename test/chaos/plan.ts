// Everything that a run does to the world and when, drawn from its seed before it begins. What each blow meets depends on
// the machine; the blows do not.
import type { Random } from "../sim/random.ts";
import type { RpcFault } from "../world/rpc-proxy.ts";
import type { Fault } from "../world/vendor-server.ts";

export type Happening = { atMs: number } & (
  | { kind: "purchase"; agent: number; tier: number }
  /** SIGKILL to the process group of the Workers; they stay down for a while. */
  | { kind: "kill"; downMs: number }
  /** `kept`: the share of the senders whose transactions the new blocks hold as well. */
  | { kind: "reorg"; depth: number; kept: number }
  /** From here on these faults are on, and no others. */
  | { kind: "vendor"; vendor: "vultr" | "runpod"; faults: Fault[] }
  | { kind: "rpc"; faults: RpcFault[] }
);

export type PlanOptions = { purchases: number; seconds: number; kills: number; reorgs: number };

const AGENTS = 5;
const TIERS = 8;
/** Purchases come in the first part, so that what follows meets them at work. */
const BUYING_SHARE = 0.8;
const MAX_REORG_DEPTH = 6;
/** Longer than a request may take: the Workers see no answer. */
const HANG_MS = 8_000;
const MAX_LISTING_LAG_MS = 3_500;
/** Of locks, of deletes that take effect late, of images that are pulled. */
const MAX_WAIT_MS = 12_000;

export function drawPlan(random: Random, { purchases, seconds, kills, reorgs }: PlanOptions): Happening[] {
  const span = seconds * 1_000;
  /** One moment in each of so many equal parts of a span. */
  const moments = (count: number, until: number) =>
    Array.from({ length: count }, (_, i) => Math.round(((i + random.unit()) * until) / count));
  const plan: Happening[] = [
    ...moments(purchases, span * BUYING_SHARE).map((atMs) => ({
      atMs,
      kind: "purchase" as const,
      agent: random.int(0, AGENTS - 1),
      tier: random.int(0, TIERS - 1),
    })),
    ...moments(kills, span).map((atMs) => ({ atMs, kind: "kill" as const, downMs: random.int(0, 3_000) })),
    ...moments(reorgs, span).map((atMs) => ({
      atMs,
      kind: "reorg" as const,
      depth: random.int(1, MAX_REORG_DEPTH),
      kept: pickOne(random, [0, 0.5, 1]),
    })),
    ...(["vultr", "runpod"] as const).flatMap((vendor) =>
      spells(random, span).map((atMs) => ({
        atMs,
        kind: "vendor" as const,
        vendor,
        faults: drawFaults(random, vendor),
      })),
    ),
    ...spells(random, span).map((atMs) => ({ atMs, kind: "rpc" as const, faults: drawRpcFaults(random) })),
  ];
  return plan.sort((a, b) => a.atMs - b.atMs);
}

const pickOne = <T>(random: Random, list: readonly [T, ...T[]]): T => random.pick(list) ?? list[0];

/** When the weather changes: every three to ten seconds. */
function spells(random: Random, span: number): number[] {
  const starts: number[] = [];
  for (let at = 0; at < span; at += random.int(3_000, 10_000)) starts.push(at);
  return starts;
}

const ANY_CALL = ["create", "get", "list", "delete", "catalog"] as const;

/** None in a third of the spells, else up to four at once. */
function drawFaults(random: Random, vendor: "vultr" | "runpod"): Fault[] {
  if (random.unit() < 1 / 3) return [];
  return Array.from({ length: random.int(1, 4) }, () =>
    random.unit() < 0.5 ? drawFault(random) : drawHardship(random, vendor),
  );
}

function drawFault(random: Random): Fault {
  const times = random.int(1, 6);
  const call = pickOne(random, ANY_CALL);
  return pickOne<Fault>(random, [
    { call: "create", kind: "sold_out", times: times * 4 },
    { call: "catalog", kind: "sold_out", times: times * 4 },
    { call, kind: "rate_limited", times },
    { call, kind: "error_before", times },
    { call, kind: "error_after", times },
    { call: "create", kind: "error_after", times },
    { call, kind: "timeout_before", times, ms: HANG_MS },
    { call, kind: "timeout_after", times, ms: HANG_MS },
    { call: "create", kind: "timeout_after", times, ms: HANG_MS },
    { call: "create", kind: "never_boots", times: Math.ceil(times / 2) },
    { call: "create", kind: "late_address", times, ms: random.int(1_000, 6_000) },
    { call: "create", kind: "wrong_mark", times: Math.ceil(times / 2) },
    { call: "list", kind: "lagging_list", times: times * 4, ms: random.int(1_000, MAX_LISTING_LAG_MS) },
    { call: "delete", kind: "locked", times },
  ]);
}

/** What users of that vendor tell of it. */
function drawHardship(random: Random, vendor: "vultr" | "runpod"): Fault {
  const times = random.int(1, 4);
  const call = pickOne(random, ANY_CALL);
  const ms = random.int(1_000, MAX_WAIT_MS);
  return pickOne<Fault>(random, [
    { call: "create", kind: "hidden", times, ms: Math.min(ms, MAX_LISTING_LAG_MS) },
    { call: "create", kind: "silent_address", times: 1 },
    { call: "create", kind: "odd_after", times },
    { call, kind: "odd_after", times },
    { call, kind: "prose_before", times },
    { call, kind: "prose_after", times },
    { call: "list", kind: "odd_neighbours", times: times * 4 },
    { call: "delete", kind: "slow_delete", times, ms },
    ...HARDSHIPS[vendor].map((fault) => ({ ...fault, times, ms })),
  ]);
}

/** Each vendor's own. */
const HARDSHIPS: Record<"vultr" | "runpod", Fault[]> = {
  vultr: [
    { call: "any", kind: "wrong_address" },
    { call: "create", kind: "counts_deleted" },
    { call: "create", kind: "locked" },
    { call: "delete", kind: "locked" },
    { call: "change", kind: "locked" },
  ],
  runpod: [
    { call: "any", kind: "few_rights" },
    { call: "create", kind: "no_balance" },
    { call: "create", kind: "no_address" },
    { call: "create", kind: "ports_only" },
    { call: "create", kind: "hanging_pull" },
    { call: "list", kind: "moved_port" },
  ],
};

function drawRpcFaults(random: Random): RpcFault[] {
  return pickOne<() => RpcFault[]>(random, [
    () => [],
    () => [],
    () => [{ kind: "down" }],
    () => [{ kind: "hang" }],
    () => [{ kind: "lag", blocks: random.int(1, 12) }],
    () => [{ kind: "drop_logs" }],
    () => [{ kind: "max_range", blocks: random.int(1, 20) }],
  ])();
}
