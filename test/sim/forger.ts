// Somebody who can write every row of the database, and wants our money (hard case 34). A world that has met him is marked:
// from then on nothing is counted but coins.
import type { Hex } from "viem";
import type { NewPayment } from "../../src/db/payments.ts";
import { payments } from "../../src/db/schema.ts";
import { paymentId } from "../../src/model/payment.ts";
import { insertion, paymentRow, rawInsertion } from "../rows.ts";
import { useKey, wordsOf } from "./contracts.ts";
import { CHAIN_ID } from "./oddities.ts";
import { PAYERS } from "./payers.ts";
import { database, OPERATOR } from "./product.ts";
import type { World } from "./world.ts";

const FORGER = `0x${"f0".repeat(20)}`;
const ACCOMPLICE = `0x${"f1".repeat(20)}`;
const WRITES = { least: 4, most: 10 };
const SPAN_MS = 900_000;
/** What finds nothing to write to looks again: some of it needs an order that is under way. */
const PATIENCE = { ms: 20_000, times: 20 };
const LOOT = ["500000", "18000000", "359990000", "1500000000"];
const DAY = 86_400;

type Value = string | number | null;
type Row = Record<string, Value>;
type Machine = { incarnation: string; token_id: number; tx_hash: string };
type Write = (world: World) => string | null;

export function writeDatabase(world: World): void {
  const { random, clock } = world;
  world.written = true;
  world.note("somebody can write the database");
  for (let left = random.int(WRITES.least, WRITES.most); left > 0; left--) {
    const write = random.pick(WRITINGS);
    if (write !== undefined) clock.after(random.int(0, SPAN_MS), () => tryToWrite(world, write, PATIENCE.times));
  }
}

function tryToWrite(world: World, write: Write, times: number): void {
  const text = write(world);
  if (text !== null) world.note(`written: ${text}`);
  else if (times > 1) world.clock.after(PATIENCE.ms, () => tryToWrite(world, write, times - 1));
}

/** What breaks a constraint is not written. */
function run(sql: string, ...values: Value[]): number {
  try {
    return Number(database.prepare(sql).run(...values).changes);
  } catch {
    return 0;
  }
}

function insert(table: string, row: Row): number {
  const { sql, json } = rawInsertion(table, [row], "REPLACE");
  return run(sql, json);
}

const any = <T extends Row>(world: World, table: string, where = "1"): T | undefined =>
  world.random.pick(world.rows<T>(`SELECT * FROM ${table} WHERE ${where} ORDER BY rowid`));

const anybody = (world: World): string => world.random.pick([FORGER, FORGER, ...PAYERS]) ?? FORGER;
const loot = (world: World): string => world.random.pick(LOOT) ?? "1";
const nonceOf = (world: World): Hex => `0x${world.random.hex(64)}`;

/** A payment as the edge would have written it. */
function payment(world: World, { payer, nonce, ...more }: Partial<NewPayment> & { payer: string; nonce: string }) {
  const { now } = world.clock;
  const { number, timestamp } = world.chain.head;
  const row = paymentRow({
    id: paymentId(CHAIN_ID, payer, nonce),
    payer,
    nonce,
    request: world.random.hex(64),
    amount: loot(world),
    payTo: OPERATOR,
    validBefore: timestamp + 1_200,
    signature: `0x${world.random.hex(130)}`,
    fromBlock: Math.max(0, number - 60),
    tier: 4,
    durationDays: 1,
    wakeAt: now,
    createdAt: now,
    ...more,
  });
  const { sql, json } = insertion(payments, [row], "REPLACE");
  return run(sql, json);
}

/** The same payment in another row: the nonce or the payer is written otherwise, or the chain is another. */
function twinOf({ random }: World, row: Row): Row & { id: string } {
  const loud = (text: Value) => String(text).toUpperCase().replace("0X", "0x");
  const ways = [{ nonce: loud(row["nonce"] ?? "") }, { payer: loud(row["payer"] ?? "") }, { chain_id: CHAIN_ID + 1 }];
  return { ...row, ...random.pick(ways), id: random.hex(32), identifier: null };
}

const hasArrived = ({ chain }: World, { payer, nonce }: Row): boolean =>
  chain.paid.has(useKey(String(payer), String(nonce)));

const WRITINGS: readonly Write[] = [
  /** Paid, says the row: a token is to be bought for it. */
  (world) => {
    const row = { payer: anybody(world), nonce: nonceOf(world), settledAt: world.clock.now };
    const step = world.random.pick(["check", "buy"] as const) ?? "buy";
    return payment(world, { ...row, state: "settled", step }) > 0
      ? `a payment of ${row.payer.slice(0, 6)} is settled`
      : null;
  },
  /** The same, for a token that stands there. */
  (world) => {
    const vm = any<Machine>(world, "vms", "current = 1");
    if (vm === undefined) return null;
    const row = {
      payer: anybody(world),
      nonce: nonceOf(world),
      state: "settled",
      step: world.random.pick(["deliver", "provision"] as const) ?? "deliver",
      settledAt: world.clock.now,
      tokenId: vm.token_id,
      incarnation: vm.incarnation,
      purchaseTx: vm.tx_hash,
      cost: "0",
    } as const;
    return payment(world, row) > 0 ? `token ${row.tokenId} is paid for by ${row.payer.slice(0, 6)}` : null;
  },
  /** An open order is called paid. */
  (world) => {
    const row = any(world, "payments", "state NOT IN ('settled', 'refunded')");
    if (row === undefined) return null;
    const step = world.random.pick(["buy", "provision", "deliver"]) ?? "buy";
    run(
      "UPDATE payments SET state = 'settled', step = ?, settled_at = ?, wake_at = ?, generation = generation + 1 WHERE id = ?",
      ...[step, world.clock.now, world.clock.now, row["id"] ?? ""],
    );
    return `payment ${String(row["id"]).slice(0, 8)} is settled/${step}`;
  },
  /** An authorization that went to an accomplice is to be paid back. */
  (world) => {
    const { chain, random } = world;
    const amount = BigInt(loot(world));
    const [nonce, signature] = [nonceOf(world), `0x${random.hex(130)}` as Hex];
    const authorization = { from: FORGER, to: ACCOMPLICE, value: amount, validAfter: 0, validBefore: 10 ** 12 };
    chain.signatures.set(signature, wordsOf({ ...authorization, nonce, signature }));
    const call = { kind: "take", authorization: { ...authorization, nonce, signature } } as const;
    chain.submit({ kind: "call", from: FORGER, call: { kind: "batch", calls: [{ from: FORGER, call }] } });
    const row = { payer: FORGER, nonce, amount: String(amount), payTo: ACCOMPLICE, state: "refund_due" } as const;
    return payment(world, { ...row, step: "refund" }) > 0 ? `${amount} that went elsewhere is to be paid back` : null;
  },
  /** What was never taken, or was served, is to be paid back, or its refund has begun; or more of it than there was. */
  (world) => {
    const row = any(world, "payments");
    if (row === undefined) return null;
    const more = world.random.unit() < 0.5 ? loot(world) : String(row["amount"]);
    const state = world.random.pick(["refund_due", "refunding"]) ?? "refund_due";
    run(
      "UPDATE payments SET state = ?, step = 'refund', amount = ?, wake_at = ?, generation = generation + 1 WHERE id = ?",
      ...[state, more, world.clock.now, row["id"] ?? ""],
    );
    // Or in the ledger as well.
    if (world.random.unit() < 0.5) {
      const { now } = world.clock;
      const owed = { incarnation: row["id"] ?? "", kind: "payment", token_id: -1, state: "paying", amount: more };
      insert("refunds", { ...owed, recipient: row["payer"] ?? "", wake_at: now, created_at: now });
      run("UPDATE payments SET state = 'refund_due', step = 'idle', wake_at = NULL WHERE id = ?", row["id"] ?? "");
    }
    return `payment ${String(row["id"]).slice(0, 8)} of ${row["amount"]} is ${state} at ${more}`;
  },
  /** Somebody else is called the payer. */
  (world) => {
    const row = any(world, "payments");
    if (row === undefined) return null;
    run("UPDATE payments SET payer = ?, generation = generation + 1 WHERE id = ?", FORGER, row["id"] ?? "");
    return `payment ${String(row["id"]).slice(0, 8)} is another's`;
  },
  /** A claim is forgotten. */
  (world) => {
    const row = any(world, "payments");
    if (row === undefined) return null;
    run("DELETE FROM payments WHERE id = ?", row["id"] ?? "");
    return `payment ${String(row["id"]).slice(0, 8)} is gone`;
  },
  /** Of a machine that runs, both kinds of refund are owed. */
  (world) => {
    const vm = any(world, "vms", "current = 1");
    if (vm === undefined) return null;
    const { now } = world.clock;
    for (const kind of ["failed", "late"]) {
      const owed = { incarnation: vm["incarnation"] ?? "", kind, token_id: vm["token_id"] ?? 0, state: "due" };
      insert("refunds", { ...owed, amount: loot(world), wake_at: now, created_at: now });
    }
    if (world.random.unit() < 0.5) {
      run("UPDATE vms SET status = 'failed', step = 'idle' WHERE incarnation = ?", vm["incarnation"] ?? "");
    }
    return `token ${vm["token_id"]} is owed twice`;
  },
  /** A refund goes to another, or is more. */
  (world) => {
    const row = any(world, "refunds");
    if (row === undefined) return null;
    const { now } = world.clock;
    const set = { state: "paying", amount: loot(world), recipient: FORGER, pay_to: FORGER, wake_at: now };
    insert("refunds", { ...row, ...set });
    return `token ${row["token_id"]}'s refund is ${set.amount} and goes to the forger`;
  },
  /** One that is paid is due again; the order's name is the incarnation's, so that one of another name is made. */
  (world) => {
    const row = any(world, "refunds", "state = 'paid'");
    if (row === undefined) return null;
    const { now } = world.clock;
    insert("refunds", { ...row, kind: row["kind"] === "late" ? "failed" : "late", state: "due", wake_at: now });
    return `token ${row["token_id"]}'s refund is due again`;
  },
  /** A purchase was of more days, and dearer, and its buyer another. */
  (world) => {
    const row = any(world, "purchases");
    if (row === undefined) return null;
    run(
      "UPDATE purchases SET total_cost = ?, duration_days = 365, buyer = ? WHERE incarnation = ?",
      ...[loot(world), FORGER, row["incarnation"] ?? ""],
    );
    run(
      "UPDATE vms SET owner = ?, expires_at = expires_at + ?, tier = 7 WHERE incarnation = ?",
      ...[FORGER, 300 * DAY, row["incarnation"] ?? ""],
    );
    return `token ${row["token_id"]}'s purchase is dearer`;
  },
  /** A machine's attempts never were. */
  (world) => {
    const row = any(world, "attempts");
    if (row === undefined) return null;
    run("DELETE FROM attempts WHERE incarnation = ?", row["incarnation"] ?? "");
    run(
      "UPDATE vms SET status = 'provisioning', step = 'create', generation = generation + 1, wake_at = ? WHERE incarnation = ?",
      ...[world.clock.now, row["incarnation"] ?? ""],
    );
    return `${String(row["label"])} never was`;
  },
  /** What one order has bought is another's. */
  (world) => {
    const link = any(world, "payment_links");
    const other = any(world, "payments", "kind = 'compute'");
    if (link === undefined || other === undefined) return null;
    run("UPDATE payment_links SET payment = ? WHERE tx_hash = ?", other["id"] ?? "", link["tx_hash"] ?? "");
    return `${String(link["tx_hash"]).slice(0, 10)} is bought for ${String(other["id"]).slice(0, 8)}`;
  },
  /** A payment that came in is another row's as well. */
  (world) => {
    const row = any(world, "payments", "state = 'settled'");
    if (row === undefined) return null;
    const paid = hasArrived(world, row) ? "paid" : "unpaid";
    const twin = twinOf(world, { ...row, state: "refund_due", step: "refund", wake_at: world.clock.now });
    return insert("payments", twin) > 0 ? `payment ${twin.id.slice(0, 8)} is the same money (${paid})` : null;
  },
  /** A purchase's price is due under each spelling of its key. */
  (world) => {
    const row = any(world, "vms", `current = 1 AND owner NOT IN ('', '${OPERATOR}')`);
    const [purchase] = world.rows<Row>("SELECT * FROM purchases WHERE incarnation = ?", String(row?.["incarnation"]));
    if (row === undefined || purchase === undefined) return null;
    const { incarnation, token_id, total_cost: amount } = purchase;
    const { now } = world.clock;
    const spellings = [`/${token_id}/`, `/0${token_id}/`, `/00${token_id}/`].map((number) =>
      String(incarnation).replace(`/${token_id}/`, number),
    );
    for (const spelling of [...spellings, `${incarnation}0`]) {
      const owed = { incarnation: spelling, kind: "failed", token_id: token_id ?? 0, state: "paying" };
      const payee = { amount: amount ?? "0", recipient: row["owner"] ?? "", wake_at: now, created_at: now };
      insert("refunds", { ...owed, ...payee });
    }
    return `token ${token_id}'s purchase has other names as well`;
  },
  /** A token that was sold to one payer is called another's order, and what that has paid goes back to the first. */
  (world) => {
    const sold = any(world, "payments", "state = 'settled' AND transfer_tx IS NOT NULL AND incarnation IS NOT NULL");
    if (sold === undefined) return null;
    const others = world
      .rows<Row>("SELECT * FROM payments WHERE payer <> ? ORDER BY id", String(sold["payer"]))
      .filter((row) => hasArrived(world, row) && BigInt(String(row["amount"])) > BigInt(String(sold["amount"])));
    const other = world.random.pick(others);
    if (other === undefined) return null;
    const { now } = world.clock;
    run(
      "UPDATE payments SET incarnation = ?, created_at = ? WHERE id = ?",
      ...[sold["incarnation"] ?? "", now, other["id"] ?? ""],
    );
    const owed = { incarnation: sold["incarnation"] ?? "", kind: "failed", token_id: sold["token_id"] ?? 0 };
    const payee = { recipient: sold["payer"] ?? "", amount: other["amount"] ?? "0", wake_at: now, created_at: now };
    insert("refunds", { ...owed, ...payee, state: "paying" });
    return `${String(sold["payer"]).slice(0, 6)}'s token ${sold["token_id"]} was paid for by ${String(other["payer"]).slice(0, 6)}`;
  },
  /** Every token of ours goes to one payer, at one moment. */
  (world) => {
    const paid = world
      .rows<Row>("SELECT * FROM payments WHERE transfer_tx IS NULL AND refund_tx IS NULL ORDER BY id")
      .filter((row) => hasArrived(world, row));
    const row = world.random.pick(paid);
    const tokens = world.rows<Row>("SELECT * FROM vms WHERE current = 1 AND owner = ? ORDER BY token_id", OPERATOR);
    if (row === undefined || tokens.length < 2) return null;
    const { now } = world.clock;
    const ready = { kind: "compute", state: "settled", step: "deliver", settled_at: now, wake_at: now };
    for (const [i, { token_id, incarnation }] of tokens.entries()) {
      const wanted = { ...row, ...ready, token_id: token_id ?? 0, incarnation: incarnation ?? "" };
      insert("payments", i === 0 ? { ...wanted, generation: Number(row["generation"]) + 1 } : twinOf(world, wanted));
    }
    return `tokens ${tokens.map(({ token_id }) => token_id).join(" and ")} are for ${String(row["id"]).slice(0, 8)}`;
  },
];
