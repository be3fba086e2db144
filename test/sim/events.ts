// What people, vendors and the chain do of their own accord.

import { orderRotation } from "../../src/db/delivery.ts";
import { orderEnd, retryFailed } from "../../src/db/operators.ts";
import { pause, resume } from "../../src/db/pauses.ts";
import { claimRefund } from "../../src/db/refunds.ts";
import { vms } from "../../src/db/schema.ts";
import { loadVm } from "../../src/db/vms.ts";
import { deliverKey } from "../../src/edge/delivery.ts";
import { enqueue } from "../../src/edge/sweep.ts";
import { insertion, machineRow, rawInsertion } from "../rows.ts";
import { batchNonces, batchPayments, delegate, payLate, storm, submitOwn } from "./adversary.ts";
import { crowdBuys, deleteOwn, denseStorm, pauseLong, setBack } from "./bad-days.ts";
import type { Kind } from "./faults.ts";
import { writeDatabase } from "./forger.ts";
import { cancel, earn, repeat, spend, submit } from "./payers.ts";
import { config, database, db, OPERATOR } from "./product.ts";
import type { World } from "./world.ts";

export type Event = (world: World) => void;

const MAX_REORG = 64;
const ROTATION_DEADLINE_SECONDS = 3_600;

type Row = { incarnation: string; token_id: number; status: string; owner: string; instance_id: string | null };

const anyRow = (world: World, where: string): Row | undefined =>
  world.random.pick(world.rows<Row>(`SELECT * FROM vms WHERE current = 1 AND ${where} ORDER BY incarnation`));

/** The product's own code, called as its routes would. */
const act = (world: World, who: string, work: () => Promise<unknown>): void => void world.runtime.run(who, work);

const ownerOf = (world: World, tokenId: number): string | undefined =>
  world.chain.head.state.tokens.get(tokenId)?.owner;

/** Of somebody else than the operator. */
const anyToken = (world: World): number | undefined =>
  world.random.pick([...world.chain.head.state.tokens].flatMap(([id, { owner }]) => (owner === OPERATOR ? [] : [id])));

const anyMachine = (world: World) => world.random.pick(world.machines);

export const purchase: Event = (world) => {
  const buyer = world.random.pick(world.agents) ?? "";
  const tier = world.random.int(0, 7);
  const durationDays = world.random.int(1, 2);
  const { hash } = world.chain.submit({ kind: "purchase", buyer, tier, durationDays });
  world.note(`${buyer.slice(0, 4)} buys tier ${tier} for ${durationDays} days (${hash.slice(0, 10)})`);
};

export const resumeAll = async (world: World): Promise<void> => {
  if (world.clock.now >= world.pausedUntil) await resume(db, "provisioning", world.clock.now);
  await resume(db, "payouts", world.clock.now);
};

export const EVENTS: Partial<Record<Kind, Event>> = {
  reorg: (world) => world.reorg(world.random.int(1, MAX_REORG)),

  chain_halts: (world) => {
    world.chain.haltedUntil = world.clock.now + world.random.int(10_000, 120_000);
    world.note("the chain halts");
  },

  fees_rise: (world) => {
    world.chain.dearUntil = world.clock.now + world.random.int(30_000, 300_000);
    world.note("gas is dear");
  },

  transaction_forgotten: (world) => world.chain.forget(),

  foreign_transaction: (world) => {
    world.chain.submit({ kind: "foreign", nonce: world.chain.head.state.nonce });
    world.note("the operator's key is used elsewhere");
  },

  market_empty: (world) => {
    const ms = world.random.int(60_000, 1_200_000);
    for (const vendor of Object.values(world.vendors)) vendor.emptyUntil = world.clock.now + ms;
    world.note(`nobody has machines for ${Math.round(ms / 1_000)} s`);
  },

  vendor_down: (world) => {
    const vendor = world.random.pick(Object.values(world.vendors));
    if (vendor === undefined) return;
    vendor.downUntil = world.clock.now + world.random.int(10_000, 180_000);
    world.note(`${vendor.name} is down`);
  },

  balance_gone: (world) => {
    const ms = world.random.int(60_000, 600_000);
    world.vendors.runpod.loseBalance(ms);
    world.note(`runpod's balance is gone for ${Math.round(ms / 1_000)} s, and so are its pods`);
  },

  lists_fail: (world) => {
    const vendor = world.random.pick(Object.values(world.vendors));
    if (vendor === undefined) return;
    vendor.listsFailUntil = world.clock.now + world.random.int(60_000, 300_000);
    world.note(`${vendor.name}'s lists fail`);
  },

  d1_down: (world) => {
    const ms = world.random.int(2_000, 20_000);
    world.runtime.databaseDownUntil = world.clock.now + ms;
    world.note(`D1 is down for ${Math.round(ms / 1_000)} s`);
  },

  machine_dies: (world) => {
    const machine = anyMachine(world);
    if (machine === undefined) return;
    machine.dead = true;
    world.note(`${machine.id} dies`);
  },

  machine_vanishes: (world) => {
    const machine = anyMachine(world);
    if (machine === undefined) return;
    machine.deletedAt = world.clock.now;
    world.note(`${machine.id} vanishes`);
  },

  pod_moves: (world) => {
    const machine = world.random.pick(world.machines.filter(({ vendor }) => vendor === "runpod"));
    if (machine === undefined) return;
    machine.port += 1;
    world.note(`${machine.id} moves to port ${machine.port}`);
  },

  /** Hard case 12: into the name of the next attempt, of its own purchase or of somebody else's. */
  tenant_renames: (world) => {
    // A tenant is in the machine once its key was handed out.
    const row = anyRow(world, "status = 'running' AND provider = 'runpod'");
    const machine = world.machines.find(({ id }) => id === row?.instance_id);
    const other = anyMachine(world);
    if (machine === undefined || other === undefined) return;
    machine.label = other.label.replace(/\d+$/, (number) => String(Number(number) + 1));
    world.note(`${machine.id} is renamed ${machine.label}`);
  },

  token_sold: (world) => {
    const tokenId = anyToken(world);
    const from = tokenId === undefined ? undefined : ownerOf(world, tokenId);
    const to = world.random.pick(world.agents.filter((agent) => agent !== from));
    if (tokenId === undefined || from === undefined || to === undefined) return;
    world.chain.submit({ kind: "call", from, call: { kind: "hand_over", tokenId, from, to } });
    world.note(`token ${tokenId} goes from ${from.slice(0, 4)} to ${to.slice(0, 4)}`);
  },

  token_renewed: (world) => {
    const tokenId = anyToken(world);
    const from = tokenId === undefined ? undefined : ownerOf(world, tokenId);
    if (tokenId === undefined || from === undefined) return;
    world.chain.submit({ kind: "call", from, call: { kind: "renew", tokenId, days: 1 } });
    world.note(`token ${tokenId} is renewed`);
  },

  token_given_up: (world) => {
    const tokenId = anyToken(world);
    const from = tokenId === undefined ? undefined : ownerOf(world, tokenId);
    if (tokenId === undefined || from === undefined) return;
    world.chain.submit({ kind: "call", from, call: { kind: "give_up", tokenId } });
    world.note(`token ${tokenId} is given up`);
  },

  price_changes: (world) => {
    const tier = world.random.int(0, 7);
    world.chain.submit({ kind: "price", tier, price: BigInt(world.random.int(1, 90) * 1_000_000) });
    world.note(`tier ${tier} has another price`);
  },

  payer_spends: spend,
  payer_earns: earn,
  payer_cancels: cancel,
  payer_repeats: repeat,
  stranger_submits: submit,
  stranger_batches: batchPayments,
  payer_batches: batchNonces,
  payer_pays_late: payLate,
  payer_submits: submitOwn,
  payer_delegates: delegate,
  transfer_storm: storm,
  dense_storm: denseStorm,
  chain_set_back: setBack,
  crowd_buys: crowdBuys,
  tenant_deletes: deleteOwn,
  long_pause: pauseLong,
  database_written: (world) => {
    if (!world.written) writeDatabase(world);
  },

  /** Hard case 4: whoever writes the database writes himself a machine. */
  row_forged: (world) => {
    const row = anyRow(world, "status = 'provisioning'");
    if (row !== undefined && world.random.unit() < 0.5) {
      database
        .prepare("UPDATE vms SET tier = 7, vm_type = 'gpu' WHERE incarnation = ? AND tier <> 7")
        .run(row.incarnation);
      world.note(`token ${row.token_id}'s row says tier 7`);
      return;
    }
    const purchase = { tokenId: 9_000, txHash: `0x${world.random.hex(64)}` as const };
    const { number: blockNumber, timestamp: createdAt } = world.chain.head;
    const forged = machineRow({
      ...purchase,
      incarnation: world.incarnationOf(purchase),
      owner: `0x${"ff".repeat(20)}`,
      blockNumber,
      wakeAt: world.clock.now,
      createdAt,
      deadline: createdAt + 900,
    });
    const { sql, json } = insertion(vms, [forged], "IGNORE");
    database.prepare(sql).run(json);
    world.note("a row is forged");
  },

  /** Hard case 13. */
  database_restored: (world) => {
    if (world.snapshot === null) {
      world.snapshot = takeSnapshot();
      return;
    }
    restore(world.snapshot);
    world.restored = true;
    world.note("the database is set back to an earlier state");
  },

  key_fetched: (world) => {
    const row = anyRow(world, "status = 'running'");
    const owner = row === undefined ? undefined : ownerOf(world, row.token_id);
    if (row === undefined || owner !== row.owner || owner === OPERATOR) return;
    const fresh = world.random.unit() < 0.7;
    act(world, "the owner", async () => {
      const vm = await loadVm(db, row.incarnation);
      if (vm === null || vm.status !== "running") return;
      const { privateKey } = await deliverKey(vm, { db, config: config.edge, owner, fresh, now: world.clock.now });
      if (privateKey === null) return;
      world.note(`token ${vm.tokenId}'s owner has the key`);
      const machine = world.machines.find(({ id }) => id === vm.instanceId);
      if (machine === undefined || machine.dead || `private half of ${machine.booted.publicKey}` === privateKey) return;
      const again = await loadVm(db, row.incarnation);
      if (again?.generation !== vm.generation) return;
      world.violate(
        "a delivered key opens the machine",
        `token ${vm.tokenId}: the key that was delivered does not open ${machine.id}`,
      );
    });
  },

  key_rotated: (world) => {
    const row = anyRow(world, "status = 'running'");
    if (row === undefined || ownerOf(world, row.token_id) !== row.owner || row.owner === OPERATOR) return;
    // A machine that a rotation costs is none that the tenant has ended: rotations have a limit of their own.
    const ended = world.deletions.get(row.incarnation);
    if (ended !== undefined) world.deletions.set(row.incarnation, ended - 1);
    world.note(`token ${row.token_id}'s owner wants another key`);
    act(world, "the owner", async () => {
      const queued = await orderRotation(db, row, world.clock.now, ROTATION_DEADLINE_SECONDS);
      if (queued !== null) await enqueue(config.edge.JOBS, [queued]);
    });
  },

  refund_claimed: (world) => {
    const row = anyRow(world, "status = 'failed'");
    const owner = row === undefined ? undefined : ownerOf(world, row.token_id);
    if (row === undefined || owner === undefined || owner === OPERATOR) return;
    world.claims.set(row.incarnation, (world.claims.get(row.incarnation) ?? new Set()).add(owner));
    world.note(`token ${row.token_id}'s owner claims the refund`);
    act(world, "the owner", () => claimRefund(db, row.incarnation, owner, world.clock.now));
  },

  operator_ends: (world) => {
    const row = anyRow(world, "status IN ('running', 'provisioning')");
    if (row === undefined) return;
    world.endedByOrder.add(row.incarnation);
    world.note(`an operator ends token ${row.token_id}'s machine`);
    act(world, "an operator", async () => {
      const queued = await orderEnd(db, row.token_id, world.clock.now);
      if (queued !== null) await enqueue(config.edge.JOBS, [queued]);
    });
  },

  operator_retries: (world) => {
    const row = anyRow(world, "status = 'failed'");
    if (row === undefined) return;
    world.deletions.delete(row.incarnation);
    world.note(`an operator sends token ${row.token_id} back to work`);
    act(world, "an operator", async () => {
      const queued = await retryFailed(db, row.incarnation, world.clock.now, {
        deadlineSeconds: config.edge.PROVISION_DEADLINE_SECONDS,
        graceSeconds: config.edge.EXPIRY_GRACE_SECONDS,
      });
      if (queued !== null) await enqueue(config.edge.JOBS, [queued]);
    });
  },

  operator_pauses: (world) => {
    const what = world.random.unit() < 0.5 ? "provisioning" : "payouts";
    world.note(`${what} pauses`);
    act(world, "an operator", () => pause(db, { what, since: world.clock.now, reason: "drill", by: "sim" }));
    world.clock.after(world.random.int(10_000, 300_000), () =>
      act(world, "an operator", () => resume(db, what, world.clock.now)),
    );
  },
};

const tables = (): string[] =>
  (
    database.prepare("SELECT name FROM sqlite_master WHERE type = 'table' AND name NOT LIKE 'sqlite_%'").all() as {
      name: string;
    }[]
  )
    .map(({ name }) => name)
    // What triggers count comes last, over what they counted meanwhile.
    .sort((a, b) => Number(COUNTED.has(a)) - Number(COUNTED.has(b)));
const COUNTED = new Set(["counters", "owner_counts"]);

const takeSnapshot = () =>
  new Map(tables().map((name) => [name, database.prepare(`SELECT * FROM ${name}`).all() as Record<string, unknown>[]]));

function restore(snapshot: ReadonlyMap<string, readonly Record<string, unknown>[]>): void {
  for (const [name, rows] of snapshot) {
    database.exec(`DELETE FROM ${name}`);
    if (rows.length === 0) continue;
    const { sql, json } = rawInsertion(name, rows);
    database.prepare(sql).run(json);
  }
}
