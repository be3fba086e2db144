// Who pays over x402: they ask for a quote, sign, send, send again when nothing comes back, and repeat themselves. Their
// requests go through the edge's own routes; their answers may be lost like any other.
import type { PaymentRequirements } from "@x402/core/types";
import type { Hex } from "viem";
import { privateKeyToAccount } from "viem/accounts";
import { orderEnd } from "../../src/db/operators.ts";
import { requestHash } from "../../src/edge/payments/gate.ts";
import { enqueue } from "../../src/edge/sweep.ts";
import { authorize, paymentHeaderV1, paymentHeaderV2, readQuote } from "../world/payer.ts";
import { costOf, paidTo, type SignedAuthorization, useKey, wordsOf } from "./contracts.ts";
import { config, db, OPERATOR, serve } from "./product.ts";
import type { World } from "./world.ts";

const ACCOUNTS = ["a1", "b2", "c3"].map((byte) => privateKeyToAccount(`0x${byte.repeat(32)}`));
export type Account = (typeof ACCOUNTS)[number];
export const PAYERS = ACCOUNTS.map(({ address }) => address.toLowerCase());
/** Has money, and shows everybody's authorizations to the coin. */
export const STRANGER = `0x${"ee".repeat(20)}`;
const PURSES = [0n, 3n, 20n, 100n, 400n, 400n, 2_000n].map((usdc) => usdc * 1_000_000n);
const RETRIES = 6;
const GATEWAY_LOST = 0;
/** More than any node lags. */
const BLOCKS_BEHIND = 60;

type Request = { path: string; method: "GET" | "POST"; body: string | null; headers: Record<string, string> };
type Answered = { status: number; body: Record<string, unknown>; headers: Headers };
/** What a payer has signed, and the request that carries it. */
export type Signed = { authorization: SignedAuthorization; request: Request; kind: "compute" | "credentials" };

export const pursesOf = (world: Pick<World, "random">): Record<string, bigint> =>
  Object.fromEntries(PAYERS.map((payer) => [payer, world.random.pick(PURSES) ?? 0n]));

/** Of a request whose Worker died, nothing comes back. */
async function send(world: World, request: Request): Promise<Answered> {
  const { path, method, body, headers } = request;
  let answered: Answered = { status: GATEWAY_LOST, body: {}, headers: new Headers() };
  await world.runtime.run("the edge", async () => {
    const response = await serve(path, { method, headers, ...(body === null ? {} : { body }) });
    const text = await response.text();
    answered = { status: response.status, body: JSON.parse(text), headers: response.headers };
  });
  const { status, body: said, headers: told } = answered;
  if (status === 500 || (status === 503 && told.get("retry-after") === null && said["error"] !== undefined))
    world.violate("what passes by itself is said to pass", `${method} ${path} answers ${status}: ${said["code"]}`);
  return answered;
}

/** Whoever's money has arrived, and is not on its way back, is not told to sign again. */
async function sendSigned(world: World, { authorization, request }: Signed): Promise<Answered> {
  const had = hasArrived(world, authorization);
  const answered = await send(world, request);
  if (answered.status !== 402 || !had || !hasArrived(world, authorization)) return answered;
  const { from, nonce } = authorization;
  const [row] = world.rows<{ state: string }>("SELECT state FROM payments WHERE payer = ? AND nonce = ?", from, nonce);
  if (row?.state.startsWith("refund")) return answered;
  world.violate(
    "nobody who has paid is told to pay again",
    `${nonce.slice(0, 10)} has arrived, and is answered 402: ${String(answered.body["error"])}`,
  );
  return answered;
}

/** By two nodes that are well. */
function hasArrived({ chain, nodes }: World, { from, to, value, nonce }: SignedAuthorization): boolean {
  const key = useKey(from, nonce);
  if (paidTo(to, chain.head.state.used.get(key)) < value) return false;
  const block = chain.blocks.findLast(({ number }) => chain.blocks[number - 1]?.state.used.has(key) !== true);
  return block !== undefined && nodes.filter((node) => node.shows(block)).length >= 2;
}

/** Nobody is barred who had the money and has done nothing by which a capture fails: looked at once, as it happens. */
export function checkPayers(world: World): void {
  const barred = world.rows<{ payer: string; nonce: Hex; amount: string }>(
    "SELECT payer, nonce, amount FROM payments WHERE reason = 'capture_refused'",
  );
  for (const { payer, nonce, amount } of barred) {
    const key = useKey(payer, nonce);
    if (world.barred.has(key) || world.wrongdoers.has(payer)) continue;
    world.barred.add(key);
    const isPaid = world.chain.paid.has(key);
    const balances = world.chain.blocks.slice(-BLOCKS_BEHIND).map(({ state }) => state.usdc.get(payer) ?? 0n);
    if (!isPaid && balances.some((has) => has < BigInt(amount))) continue;
    const why = isPaid ? "which has arrived" : "and it had the money";
    world.violate("no honest payer is barred", `${payer.slice(0, 6)} is, for ${nonce.slice(0, 10)}, ${why}`);
  }
}

/** A machine for a signed authorization. */
export function order(world: World, isShort = false): void {
  const { random, faults } = world;
  const again = !isShort && faults.strikes("order_repeated") ? world.lastOrder : null;
  const account = again?.account ?? random.pick(ACCOUNTS);
  if (account === undefined) return;
  const key = random.unit() < 0.3 ? { sshPublicKey: `ssh-ed25519 simulated-${account.address.slice(2, 10)}` } : {};
  const isLong = !isShort && faults.strikes("order_is_long");
  if (isLong) leaveItHeld(world, account);
  const tier = isLong || isShort ? 4 : random.pick([0, 0, 1, 1, 2, 3, 4, 6]);
  const durationDays = isLong ? random.int(20, 60) : random.int(1, 2);
  if (isLong || isShort) giveEnough(world, account, tier ?? 0, durationDays);
  const body = again?.body ?? JSON.stringify({ tier, durationDays, ...key });
  world.lastOrder = { account, body };
  world.note(`${account.address.slice(0, 6).toLowerCase()} wants a machine over x402: ${body}`);
  const headers: Record<string, string> = { "content-type": "application/json" };
  const request: Request = { path: "/x402/purchase-compute", method: "POST", body, headers };
  void (async () => {
    const message = `ClawCloud Purchase: ${requestHash(body)}`;
    if (body.includes("sshPublicKey")) headers["x-body-signature"] = await account.signMessage({ message });
    await pay(world, account, request, "compute");
  })();
}

/** Few purses are so deep; without the money nothing would be bought, and nothing left to be held. */
function giveEnough({ chain }: World, { address }: Account, tier: number, durationDays: number): void {
  const to = address.toLowerCase();
  const { state } = chain.head;
  const missing = costOf(state, tier, durationDays) - (state.usdc.get(to) ?? 0n);
  if (missing <= 0n) return;
  chain.submit({ kind: "call", from: STRANGER, call: { kind: "pay", to, amount: missing } });
}

/** Hard case 33: of many days at once nothing comes, and whoever orders one day next may get the token that is left. */
function leaveItHeld(world: World, account: Account): void {
  const { random } = world;
  const from = account.address.toLowerCase();
  if (random.unit() < 0.4) world.later(random.int(40_000, 150_000), () => spendAll(world, from));
  else world.later(random.int(20_000, 120_000), () => endOrdered(world));
  world.later(random.int(300_000, 2_400_000), () => order(world, true));
}

/** What is paid for first stays ours where an operator ends its machine before it is handed over. */
function endOrdered(world: World): void {
  const [row] = world.rows<{ incarnation: string; token_id: number }>(
    "SELECT * FROM vms WHERE current = 1 AND owner = ? AND tier = 4 AND status IN ('provisioning', 'running')",
    OPERATOR,
  );
  if (row === undefined) return;
  world.endedByOrder.add(row.incarnation);
  world.note(`an operator ends token ${row.token_id}'s machine`);
  void world.runtime.run("an operator", async () => {
    const queued = await orderEnd(db, row.token_id, world.clock.now);
    if (queued !== null) await enqueue(config.edge.JOBS, [queued]);
  });
}

/** The login of a machine that a payer has. */
export function fetchCredentials(world: World): void {
  const { random, chain } = world;
  const running = world.rows<{ token_id: number }>("SELECT token_id FROM vms WHERE status = 'running' AND current = 1");
  const owned = running.flatMap(({ token_id: tokenId }) => {
    const owner = chain.head.state.tokens.get(tokenId)?.owner;
    const account = ACCOUNTS.find(({ address }) => address.toLowerCase() === owner);
    return account === undefined ? [] : [{ tokenId, account }];
  });
  const one = random.pick(owned);
  if (one === undefined) return;
  world.note(`${one.account.address.slice(0, 6).toLowerCase()} pays for token ${one.tokenId}'s credentials`);
  const path = `/x402/vm-credentials?tokenId=${one.tokenId}`;
  void pay(world, one.account, { path, method: "GET", body: null, headers: {} }, "credentials");
}

async function pay(
  world: World,
  account: (typeof ACCOUNTS)[number],
  request: Request,
  kind: Signed["kind"],
): Promise<void> {
  const { random, clock } = world;
  const identifier = random.unit() < 0.3 ? `sim-${random.hex(24)}` : null;
  for (let signatures = 0; signatures < 2; signatures++) {
    const ask = () => send(world, request);
    const quote = await persist(world, ask, 2, ({ status }) => status === GATEWAY_LOST || status >= 500);
    if (quote.status !== 402) {
      world.note(`no quote: ${quote.status} ${String(quote.body["code"] ?? "")}`);
      return;
    }
    const [requirement] = readQuote(quote).accepts;
    if (requirement === undefined) return;
    if (random.unit() < 0.5) await clock.sleep(random.int(0, 60_000));
    const signed = await sign(world, account, request, requirement, { identifier, kind });
    world.note(`${account.address.slice(0, 6).toLowerCase()} signs ${signed.authorization.nonce.slice(0, 10)}`);
    if (random.unit() < 0.2) void sendSigned(world, signed);
    const { status, body } = await persist(world, () => sendSigned(world, signed), RETRIES, isOpen);
    world.note(
      `${signed.authorization.nonce.slice(0, 10)} is answered ${status} ${String(body["code"] ?? body["status"] ?? "")}`,
    );
    // A stock client signs again.
    if (status !== 402 || random.unit() < 0.5) return;
  }
}

const isOpen = ({ status, body }: Answered): boolean =>
  status === GATEWAY_LOST || status >= 500 || (status === 202 && body["status"] === "settling");

async function persist(
  world: World,
  ask: () => Promise<Answered>,
  times: number,
  goesOn: (answered: Answered) => boolean,
): Promise<Answered> {
  let answered = await ask();
  for (let time = 0; time < times && goesOn(answered); time++) {
    await world.clock.sleep(world.random.int(2_000, 30_000));
    answered = await ask();
  }
  return answered;
}

async function sign(
  world: World,
  account: (typeof ACCOUNTS)[number],
  request: Request,
  requirement: PaymentRequirements,
  { identifier, kind }: { identifier: string | null; kind: Signed["kind"] },
): Promise<Signed> {
  const nonce = world.nonces.get(account.address.toLowerCase())?.shift() ?? (`0x${world.random.hex(64)}` as Hex);
  const payment = await authorize(account, requirement, { nonce });
  const { from, to, value, validAfter, validBefore } = payment.authorization;
  const authorization: SignedAuthorization = {
    from: from.toLowerCase(),
    to: to.toLowerCase(),
    value: BigInt(value),
    validAfter: Number(validAfter),
    validBefore: Number(validBefore),
    nonce,
    signature: payment.signature,
  };
  world.chain.signatures.set(payment.signature, wordsOf(authorization));
  const named = identifier === null ? {} : { extensions: { "payment-identifier": { info: { id: identifier } } } };
  const isOld = identifier === null && world.random.unit() < 0.3;
  const header: Record<string, string> = isOld
    ? { "x-payment": paymentHeaderV1(requirement, payment) }
    : { "payment-signature": paymentHeaderV2(requirement, payment, named) };
  const signed = { authorization, kind, request: { ...request, headers: { ...request.headers, ...header } } };
  world.signed.push(signed);
  return signed;
}

export const anySigned = (world: World): Signed | undefined => world.random.pick(world.signed);

export const spend = (world: World): void => {
  const from = anySigned(world)?.authorization.from;
  if (from !== undefined) spendAll(world, from);
};

const spendAll = (world: World, from: string): void => {
  const has = world.chain.head.state.usdc.get(from) ?? 0n;
  if (has === 0n) return;
  world.wrongdoers.add(from);
  world.chain.submit({ kind: "call", from, call: { kind: "pay", to: STRANGER, amount: has } });
  world.note(`${from.slice(0, 6)} moves its money away`);
};

export const earn = (world: World): void => {
  const to = world.random.pick(PAYERS);
  const amount = world.random.pick(PURSES);
  if (to === undefined || amount === undefined || amount === 0n) return;
  world.chain.submit({ kind: "call", from: STRANGER, call: { kind: "pay", to, amount } });
  world.note(`${to.slice(0, 6)} is given ${amount}`);
};

export const cancel = (world: World): void => {
  const signed = anySigned(world);
  if (signed === undefined) return;
  const { from, nonce } = signed.authorization;
  world.wrongdoers.add(from);
  world.chain.submit({ kind: "call", from, call: { kind: "cancel", nonce } });
  world.note(`${from.slice(0, 6)} cancels ${nonce.slice(0, 10)}`);
};

export const repeat = (world: World): void => {
  const signed = anySigned(world);
  if (signed === undefined) return;
  world.note(`${signed.authorization.nonce.slice(0, 10)} is sent once more`);
  void sendSigned(world, signed);
};

export const submit = (world: World): void => {
  const signed = anySigned(world);
  if (signed === undefined) return;
  const { authorization } = signed;
  world.chain.submit({ kind: "call", from: STRANGER, call: { kind: "take", authorization } });
  world.note(`a stranger submits ${authorization.nonce.slice(0, 10)}`);
};
