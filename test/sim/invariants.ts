// What must hold: some at every machine and every payment, all once the world has healed.
import { familyOfLabel } from "../../src/model/purchase-key.ts";
import { checkOutflow } from "./coins.ts";
import { isValid, type Sale } from "./contracts.ts";
import { OPERATOR, ORPHAN_GRACE_SECONDS } from "./product.ts";
import { opened } from "./seals.ts";
import { checkTill } from "./till.ts";
import type { Machine } from "./vendors.ts";
import type { World } from "./world.ts";

/** How long after its paid time a machine may still stand: final history has to get there, and the sweep. */
const END_SLACK_SECONDS = 900;

type Vm = {
  incarnation: string;
  token_id: number;
  current: number;
  owner: string;
  status: string;
  step: string;
  attempt: number;
  instance_id: string | null;
  ssh_host: string | null;
  ssh_port: number | null;
  ssh_private_key: string | null;
  failure: string | null;
};
type Attempt = { incarnation: string; number: number; mark: string; public_key: string; instance_id: string | null };
export type Refund = {
  incarnation: string;
  kind: string;
  token_id: number;
  state: string;
  reason: string | null;
  amount: string;
  recipient: string | null;
  pay_to: string | null;
  tx_hash: string | null;
};

const LABEL = /^clawcloud-sim-(\d+)-([0-9a-f]{8})-(\d+)-(\d+)$/;

const saleBehind = (world: World, label: string): { tokenId: number; isMade: boolean } => {
  const [, tokenId = "-1", tx8 = ""] = LABEL.exec(label) ?? [];
  const isMade = [...world.chain.transactions.values()].some(
    ({ hash, intent }) =>
      (intent.kind === "purchase" || (intent.kind === "operator" && intent.call.kind === "buy")) &&
      hash.startsWith(`0x${tx8}`),
  );
  return { tokenId: Number(tokenId), isMade };
};

/** A machine is made: somebody has paid for it, and it is the only one of its purchase. */
export function checkCreated(world: World, machine: Machine): void {
  const { tokenId, isMade } = saleBehind(world, machine.label);
  if (!isMade) world.violate("nobody gets a machine without paying", `${machine.id} is for no purchase`);
  if (world.restored || machine.ghost) return;
  const family = familyOfLabel(machine.label);
  const other = world.machines.find((one) => one !== machine && !one.ghost && familyOfLabel(one.orderedAs) === family);
  if (other === undefined) return;
  world.violate("one machine at a time", `${machine.id} is made for token ${tokenId} while ${other.id} stands`);
}

/** A machine is ended: nobody has a right to it. */
export function checkDeleting(world: World, machine: Machine): void {
  const [row] = world.rows<Vm>("SELECT * FROM vms WHERE instance_id = ?", machine.id);
  if (row === undefined || world.endedByOrder.has(row.incarnation)) return;
  const wasPublished = ["running", "expired"].includes(row.status) || row.step === "retire";
  const sale = world.sales.find((one) => world.incarnationOf(one) === row.incarnation);
  if (!wasPublished || sale === undefined || !world.isValidNow(sale.tokenId)) return;
  // An order that came to nothing takes its machine along.
  if (world.chain.head.state.tokens.get(sale.tokenId)?.owner === OPERATOR) return;
  world.violate("no paid machine is ended", `${machine.id} is deleted, and token ${sale.tokenId} is valid`);
}

/** What was decided since the last look is carried to its end, whatever becomes of its token meanwhile. */
export function noteBegun(world: World): void {
  for (const { incarnation, kind } of world.rows<Refund>(
    "SELECT incarnation, kind FROM refunds WHERE state = 'paying'",
  )) {
    const key = `${kind}/${incarnation}`;
    if (!world.begun.has(key)) world.begun.set(key, world.chain.final.number);
  }
}

/** Everything, after everything has healed. */
export function checkAll(world: World): void {
  checkOutflow(world);
  const { head, highestNonce } = world.chain;
  if (head.state.nonce <= highestNonce) {
    world.violate("the wallet goes on", `nonce ${head.state.nonce} is never used, and ${highestNonce} was signed for`);
  }
  const vms = world.rows<Vm>("SELECT * FROM vms");
  for (const sale of world.sales) {
    const lost = lossOf(world, sale, vms);
    if (lost !== null) world.violate("nothing is lost", `token ${sale.tokenId}: ${lost}`);
  }
  for (const row of vms.filter(({ status, current }) => status === "running" && current === 1)) {
    const wrong = wrongWith(world, row);
    if (wrong !== null) world.violate("a running machine is its owner's", `token ${row.token_id}: ${wrong}`);
  }
  checkRowsWithoutSale(world, vms);
  checkMachines(world, vms);
  checkBooks(world);
  checkTill(world);
}

/** What is wrong with what became of a sale that stands. */
function lossOf(world: World, sale: Sale, vms: readonly Vm[]): string | null {
  const incarnation = world.incarnationOf(sale);
  const row = vms.find((one) => one.incarnation === incarnation);
  const token = world.chain.head.state.tokens.get(sale.tokenId);
  if (token === undefined) return "the chain has no such token";
  if (row === undefined || row.current !== 1) return "no row holds its purchase";
  if (row.owner !== token.owner) return `its owner is ${token.owner}, and its row says ${row.owner}`;
  const now = world.chain.head.timestamp;
  // Nobody's: its order came to nothing, and nothing may run on it.
  if (token.owner === OPERATOR) {
    if (world.restored) return null;
    const stands = world.machines.find(({ id }) => id === row.instance_id);
    if (stands !== undefined) return `it is the operator's, and ${stands.id} stands`;
    return row.status === "terminated" || row.status === "failed" ? null : `its order is over, and it is ${row.status}`;
  }
  if (row.status === "running") {
    const [gone] = world.rows("SELECT 1 FROM purchases WHERE incarnation = ? AND orphaned = 1", incarnation);
    if (gone !== undefined) return "its purchase stands, and its row says that the chain took it back";
    return now > token.expiresAt + END_SLACK_SECONDS ? "its time is over and its machine runs" : null;
  }
  if (row.status !== "terminated" && row.status !== "failed") return `it stays at ${row.status}/${row.step}`;
  if (row.status === "terminated" && isValid(token, now) && !world.endedByOrder.has(incarnation)) {
    return "its machine was ended before its time";
  }
  if (row.status === "failed") checkFailed(world, row);
  const left = world.machines.find(({ orderedAs }) => saleBehind(world, orderedAs).tokenId === sale.tokenId);
  return left === undefined || world.restored ? null : `it is ${row.status}, and ${left.id} stands`;
}

/** What is wrong with a machine that is said to run. */
function wrongWith(world: World, row: Vm): string | null {
  const machine = world.machines.find(({ id }) => id === row.instance_id);
  const [attempt] = world.rows<Attempt>(
    "SELECT * FROM attempts WHERE incarnation = ? AND number = ?",
    row.incarnation,
    row.attempt,
  );
  if (machine === undefined) return `its machine ${row.instance_id} does not exist`;
  if (attempt === undefined) return "its attempt is lost";
  // What died under a customer is a person's case; what was set back is told by the pages.
  if (machine.dead || world.restored) return null;
  if (machine.stranger || world.clock.now < machine.bootAt) return `somebody else answers at ${machine.id}'s address`;
  if (machine.booted.mark !== attempt.mark) return `${machine.id} does not bear its mark`;
  if (machine.booted.publicKey !== attempt.public_key) return `${machine.id} opens with another key`;
  if (machine.host !== row.ssh_host || machine.port !== row.ssh_port) return `${machine.id} is at another address`;
  if (row.ssh_private_key === null) return null;
  const context = { kind: "ssh", subject: row.incarnation, attempt: row.attempt };
  const opens = opened(context, row.ssh_private_key) === `private half of ${attempt.public_key}`;
  return opens ? null : "the key that is kept does not open it";
}

/** Paid back, or waiting for somebody who knows of it. */
function checkFailed(world: World, row: Vm): void {
  const [failure] = world.rows("SELECT * FROM failed_provisionings WHERE incarnation = ?", row.incarnation);
  if (failure === undefined) world.violate("every failure is a row", `token ${row.token_id} failed without one`);
  const [refund] = world.rows<Refund>(
    "SELECT * FROM refunds WHERE incarnation = ? AND kind = 'failed'",
    row.incarnation,
  );
  // Paid for over x402, and paid back as that.
  const [order] = world.rows<{ state: string }>(
    "SELECT state FROM payments WHERE incarnation = ? AND state = 'refunded'",
    row.incarnation,
  );
  if (order !== undefined) return;
  const isHeld = row.failure === "purchase_mismatch" || row.failure === "price_mismatch";
  if (refund?.state === "paid" || refund?.state === "held" || refund?.state === "waiting" || isHeld) return;
  world.violate(
    "nobody pays for nothing",
    `token ${row.token_id} failed (${row.failure}): ${refund?.state ?? "nothing"}`,
  );
}

/** A purchase that the chain has taken back, or never knew, has nothing. */
function checkRowsWithoutSale(world: World, vms: readonly Vm[]): void {
  const sold = new Set(world.sales.map(world.incarnationOf));
  for (const row of vms) {
    if (sold.has(row.incarnation)) continue;
    if (["terminated", "failed"].includes(row.status) && row.step === "idle") continue;
    world.violate("what the chain took back has no machine", `token ${row.token_id} is ${row.status}/${row.step}`);
  }
}

/** Each machine is a running row's. */
function checkMachines(world: World, vms: readonly Vm[]): void {
  const claimed = new Set(vms.filter(({ status }) => status === "running").map(({ instance_id }) => instance_id));
  for (const machine of world.machines) {
    const age = (world.clock.now - machine.createdAt) / 1_000;
    if (claimed.has(machine.id) || age < ORPHAN_GRACE_SECONDS * 2) continue;
    // What a restored database has forgotten may be in use.
    if (world.restored) continue;
    world.violate("no machine is left over", `${machine.id} (${machine.label}) is nobody's`);
  }
}

/** Every payment is one refund's, and every paid refund has its payment. */
function checkBooks(world: World): void {
  const refunds = world.rows<Refund>("SELECT * FROM refunds");
  const paid = [...world.chain.transactions.values()].flatMap(({ hash, intent, minedIn }) => {
    if (intent.kind !== "operator" || intent.call.kind !== "pay") return [];
    const block = [...minedIn].find((one) => world.chain.blocks[one.number] === one);
    const isDone = block?.txs.some((done) => done.success && done.tx.intent === intent) === true;
    return isDone ? [{ hash, amount: intent.call.amount }] : [];
  });
  for (const { hash, amount } of paid) {
    const matching = refunds.filter(({ tx_hash }) => tx_hash === hash);
    if (matching.length !== 1 && !world.restored) {
      world.violate("the books match the chain", `the payment ${hash.slice(0, 12)} is ${matching.length} refunds'`);
    }
    const [refund] = matching;
    if (refund !== undefined && refund.amount !== String(amount)) {
      world.violate("the books match the chain", `token ${refund.token_id} is owed ${refund.amount}, paid ${amount}`);
    }
  }
  for (const refund of refunds.filter(({ state }) => state === "paid")) {
    if (paid.some(({ hash }) => hash === refund.tx_hash)) continue;
    world.violate(
      "the books match the chain",
      `token ${refund.token_id}'s refund is called paid, and no payment is there`,
    );
  }
  const byPurchase = new Map<string, number>();
  for (const { hash } of paid) {
    const refund = refunds.find(({ tx_hash }) => tx_hash === hash);
    const key = refund === undefined ? hash : `${refund.incarnation}/${refund.kind}`;
    byPurchase.set(key, (byPurchase.get(key) ?? 0) + 1);
  }
  for (const [key, times] of byPurchase) {
    if (times > 1) world.violate("a refund is paid once", `${key} was paid ${times} times`);
  }
}
