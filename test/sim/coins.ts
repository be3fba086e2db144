// Coins, counted by the chain alone: rows that say paid never exceed what came in, and nothing leaves that did not come
// in. The second holds whatever was written into the database.
import type { Tx } from "./chain.ts";
import { type Call, paidTo, type Sale, useKey } from "./contracts.ts";
import { OPERATOR } from "./product.ts";
import type { World } from "./world.ts";

/** The one rule that holds in a world whose database somebody has written. */
export const COINS_RULE = "no coin leaves that did not come in";
const DAY = 86_400;
/** A held token may be so much longer than its order, and a price is kept for a while. */
const TOLERANCE = 0.9;
/** Beyond so many ways to explain what left, it counts as explained. */
const MAX_TRIES = 20_000;

/** Transactions that stand in the chain and did what they were for. */
export function standing<K extends Call["kind"]>(world: World, kind: K) {
  const done: { tx: Tx; from: string; at: number; call: Extract<Call, { kind: K }> }[] = [];
  for (const block of world.chain.blocks) {
    for (const { tx, success } of block.txs) {
      const { intent } = tx;
      if (!success || (intent.kind !== "operator" && intent.kind !== "call") || intent.call.kind !== kind) continue;
      const from = intent.kind === "operator" ? OPERATOR : intent.from;
      done.push({ tx, from, at: block.timestamp, call: intent.call as Extract<Call, { kind: K }> });
    }
  }
  return done;
}

/** What came in by authorizations, by the chain as it is. */
export const incomeOf = (world: World): bigint =>
  [...world.chain.head.state.used.values()].reduce((sum, use) => sum + paidTo(OPERATOR, use), 0n);

type Claim = { payer: string; nonce: string; amount: string; state: string };

/** Each row that says paid has its own transfer to us, under its own nonce, in some block that there was. */
export function checkPaidRows(world: World): void {
  const rows = world.rows<Claim>(
    "SELECT payer, nonce, amount, state FROM payments WHERE state IN ('settled', 'refund_due', 'refunded')",
  );
  for (const { payer, nonce, amount, state } of rows) {
    const paid = world.chain.paid.get(useKey(payer, nonce)) ?? 0n;
    if (paid >= BigInt(amount)) continue;
    const text = `${nonce.slice(0, 10)} is ${state} at ${amount}, and ${paid} came in under it`;
    world.violate("what rows call paid came in", text);
  }
}

type Inflow = { payer: string; amount: bigint; stands: boolean };
type Handed = { sale: Sale; to: string; worth: bigint };
type Paid = { to: string; amount: bigint };

/**
 * Every payment and every token that left the operator is explained by something of its own that came in: a token by an
 * authorization of whom it went to; a payment by an authorization that nothing else is for, or by the sale of a token that
 * its recipient has had, all payments for that sale together within its price, or what the payer paid for it.
 */
export function checkOutflow(world: World): void {
  const { chain } = world;
  const { state } = chain.head;
  const inflows: Inflow[] = [...chain.paid].map(([key, amount]) => ({
    payer: key.split("/")[0] ?? "",
    amount,
    stands: paidTo(OPERATOR, state.used.get(key)) > 0n,
  }));
  const isOperators = ({ from }: { from: string }) => from === OPERATOR;
  const handed = standing(world, "hand_over")
    .filter(isOperators)
    .flatMap(({ call, at }): Handed[] => {
      const sale = state.sales[call.tokenId];
      return sale === undefined ? [] : [{ sale, to: call.to, worth: worthOf(world, sale, at) }];
    });
  const paid = standing(world, "pay").flatMap(({ from, call: { to, amount } }): Paid[] =>
    from === OPERATOR && to !== OPERATOR ? [{ to, amount }] : [],
  );
  if (handed.length + paid.length === 0) return;
  const caps = new Map(
    state.sales.filter(({ buyer }) => buyer !== OPERATOR).map(({ tokenId, totalCost }) => [tokenId, totalCost]),
  );
  const search = { inflows, owners: ownersOf(world), tries: 0 };
  if (explains(search, handed, paid, new Set(), caps)) return;
  const tokens = handed.map(({ sale, to, worth }) => `token ${sale.tokenId} (${worth}) to ${to.slice(0, 6)}`);
  const left = [...tokens, ...paid.map(({ to, amount }) => `${amount} to ${to.slice(0, 6)}`)].join(", ");
  const came = inflows.map(({ payer, amount }) => `${amount} from ${payer.slice(0, 6)}`).join(", ") || "nothing";
  world.violate(COINS_RULE, `${left} left, and ${came} came in beside ${caps.size} sales`);
}

/** By the lowest price that its tier ever had: what is left of it at that time. */
function worthOf({ chain }: World, { tokenId, tier, durationDays }: Sale, at: number): bigint {
  const token = chain.head.state.tokens.get(tokenId);
  const days = Math.min(durationDays, Math.max(0, ((token?.expiresAt ?? at) - at) / DAY));
  return BigInt(Math.floor(Number(chain.lowestPrices[tier] ?? 0n) * days * TOLERANCE));
}

/** Who has ever owned each token, by the chain as it is. */
function ownersOf({ chain }: World): ReadonlyMap<number, ReadonlySet<string>> {
  const owners = new Map<number, Set<string>>();
  for (const { txs, state } of chain.blocks) {
    if (txs.length === 0) continue;
    for (const [tokenId, { owner }] of state.tokens) {
      const known = owners.get(tokenId);
      if (known === undefined) owners.set(tokenId, new Set([owner]));
      else known.add(owner);
    }
  }
  return owners;
}

type Search = { inflows: readonly Inflow[]; owners: ReadonlyMap<number, ReadonlySet<string>>; tries: number };

/** Whether the rest can be explained by what is not used yet. */
function explains(
  search: Search,
  handed: readonly Handed[],
  paid: readonly Paid[],
  used: ReadonlySet<Inflow>,
  caps: ReadonlyMap<number, bigint>,
): boolean {
  search.tries += 1;
  if (search.tries > MAX_TRIES) return true;
  const [token, ...otherTokens] = handed;
  const free = search.inflows.filter((inflow) => !used.has(inflow));
  if (token !== undefined) {
    const { sale, to, worth } = token;
    return free.some((inflow) => {
      if (inflow.payer !== to || inflow.amount < worth) return false;
      const cap = inflow.amount < sale.totalCost ? inflow.amount : sale.totalCost;
      return explains(search, otherTokens, paid, new Set([...used, inflow]), new Map(caps).set(sale.tokenId, cap));
    });
  }
  const [payment, ...others] = paid;
  if (payment === undefined) return true;
  const { to, amount } = payment;
  const byItself = free.some(
    (inflow) =>
      inflow.payer === to &&
      inflow.stands &&
      inflow.amount >= amount &&
      explains(search, [], others, new Set([...used, inflow]), caps),
  );
  if (byItself) return true;
  return [...caps].some(
    ([tokenId, cap]) =>
      cap >= amount &&
      search.owners.get(tokenId)?.has(to) === true &&
      explains(search, [], others, used, new Map(caps).set(tokenId, cap - amount)),
  );
}
