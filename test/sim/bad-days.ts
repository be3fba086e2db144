// What strikes a shop on an ordinary bad day, or for a few dollars: plans of few blocks, storms of transfers, a chain that is
// set back, crowds, tenants that end their own machines, long pauses. And trials: one of these alone, while all else is well.
import { pause, resume } from "../../src/db/pauses.ts";
import type { Event } from "./events.ts";
import { CAPS, type Plan, RESULTS } from "./oddities.ts";
import { db, OPERATOR } from "./product.ts";
import type { World } from "./world.ts";

const NO_LIMIT = Number.POSITIVE_INFINITY;
const CROWD = 12;
/** More than the smallest plan of results, in one block. */
const DENSE = { least: 60, most: 100 };
const STORM_BLOCKS = 6;
const BLOCK_MS = 2_000;
/** Its first machine and three others. */
const MOST_MACHINES = 4;
/** Longer than a purchase of a day waits: its deadline, and a tenth of its time. */
const LONG_PAUSE_MS = { least: 10_500_000, most: 11_500_000 };
/** What is past its deadline is decided within this, and what is past its time ends: final history, a stall and sweeps included. */
const PACE_MS = 600_000;
const SEEN_SECONDS = 1_800;

const plan = ({ random }: World): Plan => ({
  blocks: random.pick([...CAPS, NO_LIMIT]) ?? 1,
  results: random.pick([...RESULTS, NO_LIMIT]) ?? NO_LIMIT,
});

function planAll(world: World, of: () => Plan): void {
  for (const node of world.nodes) node.plan = of();
  const plans = world.nodes.map(({ plan: { blocks, results } }) => `${blocks} blocks and ${results} logs`);
  world.note(`eth_getLogs gives at most ${plans.join(", ")}`);
}

/** What is so from the beginning. */
export function openShop(world: World): void {
  const { faults, random, chain } = world;
  chain.zeroForUnknown = faults.strikes("zero_for_unknown");
  if (!faults.strikes("nodes_capped")) return;
  const same = plan(world);
  const alike = random.unit() < 0.5;
  planAll(world, () => (alike ? same : plan(world)));
}

const buy = (world: World, tier: number) => {
  const buyer = world.random.pick(world.agents) ?? "";
  return world.chain.submit({ kind: "purchase", buyer, tier, durationDays: 1 });
};

/** A dozen tokens that end in the same minute. */
export const crowdBuys: Event = (world) => {
  if (world.crowded) return;
  world.crowded = true;
  for (let i = 0; i < CROWD; i++) buy(world, world.random.int(0, 3));
  world.note(`${CROWD} are bought at once`);
};

/** One token, in each block more transfers than a node's answer holds. */
export const denseStorm: Event = (world) => {
  const { random, chain, clock } = world;
  const token = random.pick([...chain.head.state.tokens].filter(([, { owner }]) => owner !== OPERATOR));
  if (token === undefined) return;
  const [tokenId, { owner }] = token;
  const results = Math.min(...RESULTS);
  planAll(world, () => ({ blocks: NO_LIMIT, results }));
  let from = owner;
  for (let block = 0; block < STORM_BLOCKS; block++) {
    const calls = Array.from({ length: random.int(DENSE.least, DENSE.most) }, () => {
      const sender = from;
      from = random.pick(world.agents.filter((agent) => agent !== sender)) ?? owner;
      return { from: sender, call: { kind: "hand_over", tokenId, from: sender, to: from } as const };
    });
    clock.after(block * BLOCK_MS, () => chain.submit({ kind: "call", from: owner, call: { kind: "batch", calls } }));
  }
  world.note(`token ${tokenId} changes hands more than ${results} times a block`);
};

/** An outage, after which the chain goes on from some blocks before it. */
export const setBack: Event = (world) => {
  const { random, clock, chain, faults } = world;
  const ms = random.int(20_000, 120_000);
  chain.haltedUntil = clock.now + ms;
  world.note("the chain halts, and will be set back");
  clock.after(ms, () => faults.active && world.setBack(random.int(10, 60)));
};

/** A tenant ends its own machine, and each one that it gets in its place. */
export const deleteOwn: Event = (world) => {
  const rows = world.rows<{ incarnation: string; token_id: number }>(
    "SELECT incarnation, token_id FROM vms WHERE current = 1 AND status = 'running' ORDER BY incarnation",
  );
  const row = world.random.pick(rows);
  if (row === undefined || world.deletions.size > 0) return;
  world.deletions.set(row.incarnation, 0);
  world.note(`token ${row.token_id}'s tenant will end every machine of its own`);
};

export function deleteAgain(world: World): void {
  for (const [incarnation, times] of world.deletions) {
    const [row] = world.rows<{ status: string; current: number; instance_id: string | null; token_id: number }>(
      "SELECT status, current, instance_id, token_id FROM vms WHERE incarnation = ?",
      incarnation,
    );
    const isOver = row === undefined || row.current === 0 || !["running", "provisioning"].includes(row.status);
    if (isOver || world.restored || world.written) {
      world.deletions.delete(incarnation);
      continue;
    }
    const machine = world.machines.find(({ id }) => id === row.instance_id);
    if (row.status !== "running" || machine === undefined) continue;
    machine.deletedAt = world.clock.now;
    world.deletions.set(incarnation, times + 1);
    world.note(`token ${row.token_id}'s tenant ends ${machine.id}`);
    if (times + 1 > MOST_MACHINES) {
      world.violate("a purchase is worth so many machines", `token ${row.token_id} has had ${times + 1}`);
    }
  }
}

/** Provisioning stands still for longer than a purchase may wait; somebody buys meanwhile. */
export const pauseLong: Event = (world) => {
  const { random, clock } = world;
  if (world.pausedUntil > 0) return;
  const ms = random.int(LONG_PAUSE_MS.least, LONG_PAUSE_MS.most);
  world.pausedUntil = clock.now + ms;
  world.note(`provisioning pauses for ${Math.round(ms / 1_000)} s`);
  const since = clock.now;
  void world.runtime.run("an operator", () => pause(db, { what: "provisioning", since, reason: "drill", by: "sim" }));
  clock.after(random.int(10_000, 60_000), () => buy(world, random.int(0, 3)));
  world.later(ms, () => void world.runtime.run("an operator", () => resume(db, "provisioning", clock.now)));
};

type Late = { incarnation: string; token_id: number; status: string; step: string };

/** Nobody waits beyond the deadline, paused or not: a machine by then, or the money back. And no machine outlasts its time. */
export function checkPace(world: World): void {
  if (world.restored) return;
  const { lateSince, clock } = world;
  const late = lateRows(world);
  const keyOf = ({ incarnation, status }: Late) => `${status}/${incarnation}`;
  const keys = new Set(late.map(keyOf));
  for (const key of lateSince.keys()) if (!keys.has(key)) lateSince.delete(key);
  for (const row of late) {
    const since = lateSince.get(keyOf(row)) ?? clock.now;
    lateSince.set(keyOf(row), since);
    if (clock.now - since <= PACE_MS) continue;
    const rule = row.status === "running" ? "machines end within the pace" : "a deadline decides";
    const seconds = Math.round((clock.now - since) / 1_000);
    world.violate(rule, `token ${row.token_id} is ${row.status}/${row.step}, and has been late for ${seconds} s`);
  }
}

/** Whatever was bought has a row soon, once the nodes are well: a gap's few tries included. */
export function checkSeen(world: World): void {
  if (world.restored) return;
  const before = world.chain.head.timestamp - SEEN_SECONDS;
  if (world.clock.now - world.healedAt < SEEN_SECONDS * 1_000) return;
  for (const sale of world.sales.filter(({ purchaseDate }) => purchaseDate < before)) {
    const rows = world.rows("SELECT 1 FROM purchases WHERE incarnation = ?", world.incarnationOf(sale));
    if (rows.length > 0) continue;
    world.violate("every purchase is seen", `token ${sale.tokenId} is not, ${SEEN_SECONDS} s after it was bought`);
  }
}

function lateRows(world: World): Late[] {
  const { timestamp } = world.chain.head;
  const rows = world.rows<Late>(
    `SELECT incarnation, token_id, status, step FROM vms WHERE current = 1 AND (status = 'running' AND expires_at < ?
      OR status = 'provisioning' AND ? > deadline + CASE WHEN EXISTS (SELECT 1 FROM pauses WHERE what = 'provisioning')
        THEN (expires_at - created_at) / 10 ELSE 0 END)`,
    timestamp,
    timestamp,
  );
  // One that is renewed has time left, whether its row knows of it or not.
  return rows.filter(({ status, token_id }) => status !== "running" || !world.isValidNow(token_id));
}

/** Of a crowd, all that are past their time have to end before the world does. */
export const isCrowdServed = (world: World): boolean =>
  !world.crowded || world.restored || lateRows(world).length === 0;

/** What nodes with nothing else wrong are tried with. */
export const TRIALS = ["storm", "set_back", "ten_blocks", "one_block"] as const;
export type Trial = (typeof TRIALS)[number];

/** Longer than anything that was under way may stall. */
const CALM_MS = 100_000;
const SCAN_EVERY_MS = 10_000;
/** A storm delays nobody's purchase by more than a minute; the next scan sees it. */
const SEEN_WITHIN_MS = 60_000 + SCAN_EVERY_MS;

const STRIKE: Record<Trial, (world: World) => void> = {
  storm: denseStorm,
  set_back: (world) => world.setBack(60),
  ten_blocks: (world) => planAll(world, () => ({ blocks: 10, results: NO_LIMIT })),
  one_block: (world) => planAll(world, () => ({ blocks: 1, results: NO_LIMIT })),
};

/** All is well, but for this: a purchase that is made now is seen all the same, and soon. */
export async function tryInCalm(
  world: World,
  trial: Trial,
  { pass, scan }: { pass: (ms: number) => Promise<void>; scan: () => void },
): Promise<void> {
  const scanFor = async (ms: number) => {
    for (let left = ms; left > 0; left -= SCAN_EVERY_MS) {
      scan();
      await pass(SCAN_EVERY_MS);
    }
  };
  await pass(CALM_MS);
  await scanFor(CALM_MS);
  world.note(`in calm: ${trial}`);
  STRIKE[trial](world);
  const { hash } = buy(world, 0);
  await scanFor(SEEN_WITHIN_MS);
  const [row] = world.rows("SELECT 1 FROM purchases WHERE tx_hash = ? AND orphaned = 0", hash);
  if (row === undefined) {
    world.violate("a purchase is seen within a minute", `${hash.slice(0, 10)}, with nothing wrong but: ${trial}`);
  }
}
