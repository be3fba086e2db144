// What must hold of payments over x402: at every transaction of the operator's when a node first takes it, and in the
// books once all has settled.
import type { Hex } from "viem";
import { incomeOf, standing } from "./coins.ts";
import { type Call, paidTo, type SignedAuthorization, type Use, useKey } from "./contracts.ts";
import type { Refund } from "./invariants.ts";
import { CAPTURE_FIRST_TIER, FLOAT, OPERATOR } from "./product.ts";
import type { World } from "./world.ts";

/** What final history grows by between a decision and the next look at it. */
const DECISION_BLOCKS = 15;

type Payment = {
  id: string;
  kind: "credentials" | "compute";
  payer: string;
  nonce: Hex;
  amount: string;
  valid_before: number;
  state: string;
  step: string;
  reason: string | null;
  token_id: number | null;
  tier: number | null;
  incarnation: string | null;
  cost: string | null;
  capture_first: number;
  held: number;
  purchase_tx: string | null;
  settle_tx: string | null;
  transfer_tx: string | null;
  refund_tx: string | null;
  served_at: number | null;
};
type Machine = { status: string; current: number; ssh_host: string | null; running_at: number | null };

/** What an order may take that was given when nothing was paused. */
const PAUSE_TAKES_MS = 60_000;

const nameOf = ({ id, kind, state, step }: Payment): string => `${kind} ${id.slice(0, 8)} (${state}/${step})`;

/** A transaction of the operator's is on its way for the first time. */
export function checkSent(world: World, hash: Hex, call: Call): void {
  checkPaused(world, call);
  switch (call.kind) {
    case "pay":
      world.note(`the operator pays ${call.amount} to ${call.to.slice(0, 6)}`);
      checkPayment(world, call.to, call.amount);
      break;
    case "buy":
      world.note(`the operator buys tier ${call.tier} (${hash.slice(0, 10)})`);
      checkBought(world, hash);
      break;
    case "take":
      world.note(`the operator takes ${call.authorization.nonce.slice(0, 10)}`);
      checkTaken(world, call.authorization);
      break;
    case "hand_over":
      world.note(`the operator hands token ${call.tokenId} to ${call.to.slice(0, 6)}`);
      checkHandedOver(world, call.tokenId, call.to);
      break;
    case "approve":
    case "nothing":
      break;
    default:
      world.violate("the operator sends what was ordered alone", `it sends ${call.kind}`);
  }
}

/** Hard case 45: payouts that have paused stop whatever was not signed before. */
function checkPaused(world: World, call: Call): void {
  const name = JSON.stringify(call, (_key, value) => (typeof value === "bigint" ? String(value) : value));
  const isNew = !world.sentCalls.has(name) && call.kind !== "nothing";
  world.sentCalls.add(name);
  const since = world.clock.now - PAUSE_TAKES_MS;
  const [paused] = world.rows("SELECT 1 FROM pauses WHERE what = 'payouts' AND since < ?", since);
  if (isNew && paused !== undefined) world.violate("paused means paused", `the operator sends ${call.kind}`);
}

/** Hard case 20: whose purchase it is stands in the database before anybody can see it. */
function checkBought(world: World, hash: Hex): void {
  if (world.restored) return;
  const [link] = world.rows("SELECT 1 FROM payment_links WHERE tx_hash = ?", hash);
  if (link === undefined)
    world.violate("no token is bought without a link", `${hash.slice(0, 10)} is nobody's purchase`);
}

/** Nobody pays for a machine that does not answer, but where the payment comes first. */
function checkTaken(world: World, { from, nonce }: SignedAuthorization): void {
  if (world.restored) return;
  const [row] = world.rows<Payment>("SELECT * FROM payments WHERE payer = ? AND nonce = ?", from, nonce.toLowerCase());
  if (row === undefined) {
    world.violate("what is taken was claimed", `${nonce.slice(0, 10)} is no payment's`);
    return;
  }
  // What was once on its way is sent until it arrives, under another nonce or at a higher fee.
  const key = useKey(from, nonce);
  if (world.taken.has(key)) return;
  world.taken.add(key);
  // As its quote and its row said.
  const isFirst = row.capture_first === 1 || row.tier === CAPTURE_FIRST_TIER;
  if (row.incarnation === null && isFirst) return;
  const [vm] = world.rows<Machine>("SELECT * FROM vms WHERE incarnation = ?", row.incarnation ?? "");
  if (vm?.status === "running" && vm.current === 1 && vm.ssh_host !== null) return;
  // Signed while it answered, and sent by the wallet that has crashed meanwhile: a machine that was lost is replaced.
  if (vm?.status === "provisioning" && vm.current === 1 && vm.running_at !== null) return;
  const there = vm === undefined ? "there is none" : `it is ${vm.status}`;
  world.violate("nothing is taken before the machine answers", `${nameOf(row)}: ${there}`);
}

/** Nobody gets a token that is not paid for. */
function checkHandedOver(world: World, tokenId: number, to: string): void {
  if (world.restored) return;
  const [row] = world.rows<Payment>(
    "SELECT * FROM payments WHERE kind = 'compute' AND token_id = ? AND payer = ? AND state = 'settled'",
    tokenId,
    to,
  );
  if (row === undefined) world.violate("a token is handed over once it is paid", `token ${tokenId} to ${to}`);
}

/** Everything about payments, after everything has healed. What a restored database forgot is not held against it. */
export function checkTill(world: World): void {
  if (world.restored) return;
  const payments = world.rows<Payment>("SELECT * FROM payments ORDER BY id");
  const { used } = world.chain.head.state;
  for (const row of payments) {
    const wrong = wrongWith(world, row, used.get(useKey(row.payer, row.nonce)), payments);
    if (wrong !== null) world.violate("a payment ends with its machine, or with its money", `${nameOf(row)}: ${wrong}`);
  }
  checkTokens(world, payments);
  checkSums(world);
}

function wrongWith(world: World, row: Payment, use: Use | undefined, all: readonly Payment[]): string | null {
  const isPaid = paidTo(OPERATOR, use) >= BigInt(row.amount);
  const other = use === undefined ? "unused" : use === "cancelled" ? use : `${use.value} to ${use.to.slice(0, 6)}`;
  if (row.step !== "idle") return `it has not ended (${row.reason})`;
  const refunds = standing(world, "pay").filter(({ tx, from }) => from === OPERATOR && tx.hash === row.refund_tx);
  const [booked] = world.rows<Refund>("SELECT * FROM refunds WHERE kind = 'payment' AND incarnation = ?", row.id);
  const owner = row.token_id === null ? undefined : world.chain.head.state.tokens.get(row.token_id)?.owner;
  const handedOver = standing(world, "hand_over").filter(
    ({ call, from }) => from === OPERATOR && call.tokenId === row.token_id && call.to === row.payer,
  );
  const isOwed = booked !== undefined && booked.state !== "cancelled";
  if (isOwed && row.state !== "refund_due" && row.state !== "refunded") return `its refund is ${booked.state}`;
  switch (row.state) {
    case "settled": {
      if (!isPaid) return `its authorization is ${other}`;
      if (row.kind === "credentials") return row.served_at === null ? "it was never served" : null;
      if (handedOver.length !== 1 || owner === OPERATOR) return `its token ${row.token_id} is ${owner}'s`;
      const [vm] = world.rows<Machine>("SELECT * FROM vms WHERE incarnation = ?", row.incarnation ?? "");
      return vm?.running_at == null ? "its machine never answered" : null;
    }
    case "refunded":
      if (booked?.state !== "paid" || booked.tx_hash !== row.refund_tx) return "its refund is not the ledger's";
      if (!isPaid) return `its authorization is ${other}`;
      if (refunds.length !== 1) return `${refunds.length} payments are its refund`;
      if (String(refunds[0]?.call.amount) !== row.amount) return "the refund is of another amount";
      // After a reorg another order of the same payer may have a token of this number.
      return row.kind === "compute" && handedOver.length > all.filter((one) => isServedBy(one, row)).length
        ? "the payer has the token as well"
        : null;
    case "refund_due":
      // A person decides.
      if (booked?.state !== "held" && booked?.state !== "waiting") return `its refund is ${booked?.state}`;
      return booked.reason === null ? "its refund is held without a reason" : null;
    case "released":
      if (isPaid) return "its authorization was used";
      return use === undefined && world.chain.final.timestamp < row.valid_before ? "it can still be used" : null;
    case "held":
      return row.reason === null ? "it is held without a reason" : null;
    default:
      return "that is no end";
  }
}

const isServedBy = (one: Payment, { payer, token_id }: Payment): boolean =>
  one.kind === "compute" && one.state === "settled" && one.payer === payer && one.token_id === token_id;

/** Each token that we bought is a payer's, or waits for one. */
function checkTokens(world: World, payments: readonly Payment[]): void {
  const links = world.rows<{ tx_hash: string; payment: string }>("SELECT * FROM payment_links");
  const bought = new Map<string, number>();
  for (const { tx } of standing(world, "buy")) {
    const payment = links.find(({ tx_hash }) => tx_hash === tx.hash)?.payment;
    if (payment === undefined) world.violate("no token is bought without a link", `${tx.hash.slice(0, 10)} has none`);
    else bought.set(payment, (bought.get(payment) ?? 0) + 1);
  }
  for (const [payment, times] of bought) {
    if (times > 1) world.violate("one token for one payment", `${payment.slice(0, 8)} has bought ${times}`);
  }
  for (const sale of world.sales.filter(({ buyer }) => buyer === OPERATOR)) {
    const incarnation = world.incarnationOf(sale);
    const owner = world.chain.head.state.tokens.get(sale.tokenId)?.owner;
    const holders = payments.filter((row) => row.incarnation === incarnation);
    const isKnown = holders.some(({ held, state }) => held === 1 && (state === "released" || state === "refunded"));
    const isWaiting = holders.some(({ state }) => state === "held" || state === "refund_due");
    if (owner !== OPERATOR || isKnown || isWaiting) continue;
    world.violate("a token that is ours is held", `token ${sale.tokenId} is nobody's: ${holders.map(nameOf)}`);
  }
}

/** The operator's USDC by the chain, and by the rows. */
function checkSums(world: World): void {
  const { state } = world.chain.head;
  const sum = (amounts: readonly bigint[]) => amounts.reduce((total, one) => total + one, 0n);
  const refunds = world.rows<{ amount: string }>("SELECT amount FROM refunds WHERE state = 'paid'");
  const tokens = sum(world.sales.filter(({ buyer }) => buyer === OPERATOR).map(({ totalCost }) => totalCost));
  const expected = FLOAT + incomeOf(world) - sum(refunds.map(({ amount }) => BigInt(amount))) - tokens;
  const has = state.usdc.get(OPERATOR) ?? 0n;
  if (has !== expected) {
    world.violate("the books match the chain", `the operator has ${has}, and by its rows ${expected}`);
  }
  for (const { tx } of standing(world, "buy")) {
    const sale = world.sales.find(({ txHash }) => txHash === tx.hash);
    const [row] = world.rows<Payment>(
      "SELECT payments.* FROM payments JOIN payment_links ON payment = id WHERE tx_hash = ?",
      tx.hash,
    );
    if (sale === undefined || row === undefined) continue;
    if (row.cost === null || sale.totalCost > BigInt(row.cost)) {
      world.violate(
        "the books match the chain",
        `token ${sale.tokenId} cost ${sale.totalCost}, its row says ${row.cost}`,
      );
    }
  }
}

/** Money leaves: only on final history as it was when that was decided, only to whom the chain names. */
function checkPayment(world: World, to: string, amount: bigint): void {
  const { final } = world.chain;
  const refunds = world.rows<Refund>("SELECT * FROM refunds WHERE state = 'paying'");
  const isOwed = refunds.some((refund) => {
    if (refund.recipient?.toLowerCase() !== to || refund.amount !== String(amount)) return false;
    if (refund.kind === "payment") return isChargedFor(world, refund.incarnation, to, amount);
    const sale = final.state.sales.find((one) => world.incarnationOf(one) === refund.incarnation);
    if (sale === undefined) return false;
    const began = world.begun.get(`${refund.kind}/${refund.incarnation}`) ?? final.number;
    const decidedOn = world.chain.blocks.slice(Math.max(0, began - DECISION_BLOCKS), final.number + 1);
    if (!decidedOn.some(({ state }) => state.tokens.get(sale.tokenId)?.owner === to)) return false;
    const claimed = world.claims.get(refund.incarnation)?.has(to) === true;
    // Sold over x402 and handed over: what is owed for it is its payer's.
    const handedOver = sale.buyer === OPERATOR;
    return sale.buyer === to || claimed || handedOver;
  });
  if (isOwed || world.restored) return;
  world.violate("refunds leave on final history alone", `${amount} to ${to}, whom final history owes nothing`);
}

/** A payment that is to be paid back: final history has its charge. */
const isChargedFor = (world: World, id: string, to: string, amount: bigint): boolean =>
  world
    .rows<{ payer: string; nonce: string }>(
      "SELECT payer, nonce FROM payments WHERE id = ? AND state = 'refund_due' AND payer = ? AND amount = ?",
      ...[id, to, String(amount)],
    )
    .some(({ payer, nonce }) => paidTo(OPERATOR, world.chain.final.state.used.get(useKey(payer, nonce))) >= amount);
