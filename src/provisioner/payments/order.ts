// A machine for a payment by x402: the token is bought with our money, its machine made as for any purchase, and the
// payment taken once it answers; on the receipt of that the token goes to the payer. Where there is no machine nothing is
// taken. Neither the row nor the edge is believed: signature, price and balance are looked at here again (hard case 4).
import { type AuthorizationUse, authorizationSigner, signatureForCoin } from "../../chain/authorization.ts";
import { readHead, readTier } from "../../chain/client.ts";
import { coinOf } from "../../chain/coin.ts";
import { canDeliver, type WalletOrder } from "../../chain/orders.ts";
import { askTwo } from "../../chain/witness.ts";
import { parsePublicKey } from "../../credentials/ssh-keys.ts";
import { orderEnd } from "../../db/operators.ts";
import { boughtVm, heldToken, serveHeldToken } from "../../db/orders.ts";
import { isPaused } from "../../db/pauses.ts";
import * as store from "../../db/payments.ts";
import { moveRefund } from "../../db/refunds.ts";
import type { Vm } from "../../db/schema.ts";
import { chainTime, loadVm, type TimedVm } from "../../db/vms.ts";
import { allClear, log } from "../../log.ts";
import {
  authorizationOf,
  CAPTURE_SECONDS,
  captureDeadline,
  heldTokenEnds,
  MAX_RISE,
  orderSeconds,
  SIGNING_SECONDS,
  signedPaymentOf,
} from "../../model/payment-life.ts";
import { TIERS } from "../../model/tiers.ts";
import { type Context, operatorOf } from "../context.ts";
import { walletOf } from "../wallet.ts";
import { isNotOurs, lookAgain, type Turn, transferOf, useOf } from "./payment.ts";

const WATCH_MS = 60_000;
const BLOCK_SECONDS = 2;
const WALLET_WAIT_SECONDS = 10;
/**
 * A token that can't be bought so long after the capture, is not seen so long after its purchase, or can't be moved for so
 * long (hard case 19), is given up.
 */
const DELIVER_MS = 900_000;
/** What may pass between a quote's block and its payment's arrival, beside the time that a quote is kept. */
const QUOTE_SLACK_SECONDS = 120;
/** A capture that would fail for so long is refused: its machine runs for nothing meanwhile (hard case 36). */
const REFUSED_MS = 60_000;
const MAX_REVERTS = 3;
/** How long a held token's machine may take, of a payment that was taken first. */
export const HELD_DEADLINE_SECONDS = CAPTURE_SECONDS * 10;
const ANY = 10n ** 18n;

const addressInRows = (context: Pick<Context, "config">): string => operatorOf(context)?.toLowerCase() ?? "";

/** Whether a machine's token is ours: bought for a payment that has not been taken yet, or held. */
export const isOurs = (context: Pick<Context, "config">, vm: Pick<Vm, "owner">): boolean =>
  vm.owner === operatorOf(context)?.toLowerCase();

/** Whoever made a machine's last step tells the order that waits for it; a message that is lost the sweep sends again. */
export async function tellOrder(context: Context, vm: Vm): Promise<void> {
  if (!isOurs(context, vm)) return;
  const row = await store.paymentOfPurchase(context.db, vm.incarnation);
  if (row !== null) {
    await context.config.JOBS.send({ kind: "payment", payment: row.id, generation: row.generation });
  }
}

/** Before anything is bought. */
export async function check(context: Context, row: store.Payment): Promise<Turn> {
  const { db, config, now } = context;
  const use = await useOf(context, row);
  if (use.state === "unclear") return { waitSeconds: BLOCK_SECONDS };
  const problem = await problemOf(context, row, use);
  if (problem !== null) {
    // Somebody's transaction with it may be what a node has seen already that said no.
    const newest = use.state === "unused" ? await useOf(context, row, "newest") : null;
    const isUsed = newest?.state === "paid" || newest?.state === "unclear";
    return isUsed ? { waitSeconds: BLOCK_SECONDS } : abandon(context, row, problem);
  }
  if (use.state === "cancelled") return abandon(context, row, "cancelled");
  if (use.state === "paid" && row.state !== "settled") {
    // Somebody has submitted it: it is paid before it is delivered.
    const settled = { state: "settled", step: "buy", settledAt: now(), wakeAt: now() + WATCH_MS } as const;
    return store.settlePayment(db, row, use, settled);
  }
  const isFirst =
    row.state === "authorized" && (row.captureFirst || config.CAPTURE_FIRST_TIERS.includes(row.tier ?? -1));
  return store.movePayment(db, row, { step: isFirst ? "capture" : "buy", wakeAt: now() + WATCH_MS });
}

async function problemOf(context: Context, row: store.Payment, use: AuthorizationUse): Promise<string | null> {
  const { chain, config, db, now } = context;
  const operator = operatorOf(context);
  const authorization = authorizationOf(row);
  const { tier, durationDays } = row;
  if (operator === null || authorization.to !== operator || row.chainId !== config.CHAIN_ID) return "recipient";
  if (tier === null || TIERS[tier] === undefined || durationDays === null || durationDays < 1) return "unknown_tier";
  if (row.sshPublicKey !== null && !isLine(row.sshPublicKey)) return "ssh_public_key";
  const signer = await authorizationSigner(chain, coinOf(config), authorization);
  if (signer === null) return "signature";
  if ((await chainTime(db)) > captureDeadline(row) && row.state !== "settled") return "too_late";
  const { pricePerDay, active } = await agreedTier(context, tier);
  if (!active) return "tier_inactive";
  if (authorization.value !== pricePerDay * BigInt(durationDays) && !(await wasQuoted(context, row))) return "price";
  // What has arrived is no more in the payer's account.
  if (row.state !== "settled" && use.state === "unused") {
    const limits = { balance: use.balance, float: ANY, uncaptured: ANY };
    const exceeded = await store.exceededLimit(db, row, limits, now());
    if (exceeded !== null) return exceeded;
    // A blocked account, or a signature that the coin does not take: better known before anything is bought.
    const refusal = await walletOf(context).simulate(await captureOf(context, row));
    if (refusal === "would_fail") return "capture_would_fail";
  }
  const cost = String(pricePerDay * BigInt(durationDays));
  const trial = { kind: "purchase", id: "trial", payment: row.id, tier, durationDays, cost } as const;
  const places = { contract: config.CONTRACT_ADDRESS, coin: config.USDC_ADDRESS, operator };
  return (await canDeliver(chain, trial, authorization.from, places)) ? null : "cannot_deliver";
}

/** As the edge stores a key that it has parsed, and nothing else. */
function isLine(publicKey: string): boolean {
  const parsed = parsePublicKey(publicKey);
  return "line" in parsed && parsed.line === publicKey;
}

/** Two nodes, since money follows from it. */
const agreedTier = ({ chain }: Context, tier: number, blockNumber?: bigint) =>
  askTwo(chain, (node) => readTier(chain, node, tier, blockNumber));

/** A price of a little while ago: the contract has to have said so at the block that the quote names. */
async function wasQuoted(context: Context, row: store.Payment): Promise<boolean> {
  const { chain, config } = context;
  if (row.quotedBlock === null || row.tier === null) return false;
  const blockNumber = row.quotedBlock;
  const { pricePerDay } = await agreedTier(context, row.tier, BigInt(blockNumber));
  const block = await askTwo(chain, (node) => readHead(node, blockNumber));
  const age = row.createdAt / 1_000 - block.timestamp;
  return (
    BigInt(row.amount) === pricePerDay * BigInt(row.durationDays ?? 0) &&
    age <= config.QUOTE_SECONDS + QUOTE_SLACK_SECONDS
  );
}

/** A token: one that is left of an order that came to nothing, or a new one. */
export async function buy(context: Context, row: store.Payment): Promise<Turn> {
  const { db, config, now } = context;
  const { tier, durationDays } = row;
  if (tier === null || durationDays === null) return abandon(context, row, "unknown_tier");
  const head = await chainTime(db);
  const isLate = row.state !== "settled" && head > captureDeadline(row);
  // What was charged first goes back where no token can be had for it: its payer waits for no funds of ours, and no pause.
  const isOwed = row.state === "settled" && now() > (row.settledAt ?? now()) + DELIVER_MS;
  if (row.cost === null) {
    if (isLate || isOwed) return abandon(context, row, "too_late");
    if (await isPaused(db, "provisioning")) return { waitSeconds: WALLET_WAIT_SECONDS };
    // What was used of a longer one is reckoned by the payment's time: an order whose payment is of another gets a new one.
    const inTime = row.validBefore - head;
    const isOfNow = inTime >= 0 && inTime <= orderSeconds(tier) + SIGNING_SECONDS;
    const ends = heldTokenEnds(head, durationDays);
    const held = isOfNow ? await heldToken(db, tier, addressInRows(context), ends) : null;
    const deadline = row.state === "settled" ? head + HELD_DEADLINE_SECONDS : captureDeadline(row);
    const served =
      held === null
        ? null
        : await serveHeldToken(db, row, held, { now: now(), deadline, graceSeconds: config.EXPIRY_GRACE_SECONDS });
    if (served !== null) {
      log("info", "held_token_served", { payment: row.id, tokenId: served.row.tokenId });
      await config.JOBS.send({ kind: "advance", ...served.queued });
      return served.row;
    }
    const { pricePerDay } = await agreedTier(context, tier);
    const cost = pricePerDay * BigInt(durationDays);
    if (cost > BigInt(row.amount) * MAX_RISE) return abandon(context, row, "price");
    return store.movePayment(db, row, { cost: String(cost), boughtAt: now() });
  }
  const order = {
    kind: "purchase",
    // Each try is an order of its own.
    id: `purchase/${row.id}${row.reverts === 0 ? "" : `/${row.reverts}`}`,
    payment: row.id,
    tier,
    durationDays,
    cost: row.cost,
    paid: signedPaymentOf(row),
  } as const;
  const bought = await walletOf(context).order(order);
  if (bought.state === "waiting") {
    tellOfWait("purchase_waits", row, bought.why);
    const isHopeless = bought.why === "would_fail" || isNotOurs(bought.why);
    return isHopeless || isLate || isOwed
      ? abandon(context, row, `purchase_${bought.why}`)
      : { waitSeconds: WALLET_WAIT_SECONDS };
  }
  // A purchase that a reorg brings back after all stays ours, and serves another order.
  const mined = bought.state === "sent" && bought.mined?.status === "reverted" ? bought.mined : null;
  if (bought.state === "reverted" || (mined !== null && (await isConfirmed(context, mined.blockNumber)))) {
    // Its approval was used up, or the price has changed: while there is time it is bought again (hard case 55).
    if (isLate || row.reverts + 1 >= MAX_REVERTS) return abandon(context, row, "purchase_reverted");
    log("warn", "purchase_reverted", { payment: row.id, txHash: bought.hash });
    return store.movePayment(db, row, { reverts: row.reverts + 1, cost: null, boughtAt: null, purchaseTx: null });
  }
  if (row.purchaseTx !== bought.hash) return store.movePayment(db, row, { purchaseTx: bought.hash });
  // The scan sees it like any purchase, and its first step links it to this order (hard case 20), unless it ended before.
  const vm = await boughtVm(db, row, addressInRows(context));
  if (vm !== null && vm.status !== "provisioning") return follow(context, row, vm);
  // After a reorg it may have a token that was on its way to the payer of another order.
  const isOverdue = bought.state === "final" && now() > (row.boughtAt ?? 0) + DELIVER_MS;
  if (vm === null && (isLate || isOverdue)) return abandon(context, row, "purchase_gone");
  return lookAgain(context, row, WATCH_MS);
}

/** A step about an order's machine; where a reorg has put another one in its place, the order follows that first. */
export async function onMachine(
  context: Context,
  row: store.Payment,
  step: (context: Context, row: store.Payment, vm: TimedVm | null) => Promise<Turn>,
): Promise<Turn> {
  const vm = await machineOf(context, row);
  return vm !== null && vm.incarnation !== row.incarnation ? follow(context, row, vm) : step(context, row, vm);
}

/** What stands for an order's purchase: reorgs give it another token or transaction, and the first one back. */
async function machineOf(context: Context, row: store.Payment): Promise<TimedVm | null> {
  const vm = row.incarnation === null ? null : await loadVm(context.db, row.incarnation);
  if (vm?.current || row.purchaseTx === null) return vm;
  return (await boughtVm(context.db, row, addressInRows(context))) ?? vm;
}

/** From here on it is about this machine. Another token that was on its way to the payer was not this order's. */
function follow({ db, now }: Context, row: store.Payment, vm: Vm): Promise<store.Payment | null> {
  const isOnItsWay = vm.tokenId === row.tokenId && (row.step === "deliver" || row.step === "close");
  const again = isTheirs(row, vm)
    ? ({ step: "close" } as const)
    : isOnItsWay
      ? {}
      : ({ step: "provision", transferTx: null } as const);
  return store.movePayment(db, row, { ...linkTo(vm), ...again, wakeAt: now() + WATCH_MS });
}

/** Paid, and with the payer: what is owed for a machine that fails from here on is booked for the token's owner. */
export const isTheirs = (row: store.Payment, vm: Vm | null): boolean =>
  vm !== null && row.state === "settled" && vm.current && vm.owner === row.payer;

const toClose = ({ db, now }: Context, row: store.Payment): Promise<store.Payment | null> =>
  store.movePayment(db, row, { step: "close", servedAt: row.servedAt ?? now(), wakeAt: now() + WATCH_MS });

const linkTo = ({ incarnation, tokenId, txHash }: Vm) => ({ incarnation, tokenId, purchaseTx: txHash });

/** Waits for the machine; whoever publishes it, or fails, sends a message. */
export async function provision(context: Context, row: store.Payment, vm: TimedVm | null): Promise<Turn> {
  const { db, now } = context;
  if (vm === null) return abandon(context, row, "purchase_gone");
  if (isTheirs(row, vm)) return toClose(context, row);
  if (isServing(vm)) {
    const step = row.state === "settled" ? "deliver" : "capture";
    return store.movePayment(db, row, { step, wakeAt: now() + WATCH_MS });
  }
  if (vm.status !== "provisioning" || !vm.current) return abandon(context, row, vm.failure ?? "machine_ended");
  if (row.state !== "settled" && vm.chainTime > row.validBefore) return abandon(context, row, "no_machine_in_time");
  return lookAgain(context, row, WATCH_MS);
}

/** What an order waits for; a person is called by the sweep, where orders wait for long (hard case 40). */
const tellOfWait = (event: "purchase_waits" | "capture_waits", { id }: store.Payment, why: string): void =>
  log(why === "queued" ? "info" : "warn", event, { payment: id, why });

const isServing = (vm: Vm): boolean => vm.status === "running" && vm.sshHost !== null && vm.current;

/** Takes the payment: by our own transaction, so that no facilitator has to be up for it. */
export async function capture(context: Context, row: store.Payment, vm: Vm | null): Promise<Turn> {
  const { db, now } = context;
  // Without a machine only where the payment comes first.
  const isReady = vm === null ? row.cost === null : isServing(vm);
  const use = await useOf(context, row);
  if (use.state === "paid") {
    if (!(await isConfirmed(context, use.blockNumber))) return { waitSeconds: BLOCK_SECONDS };
    log("info", "payment_settled", { payment: row.id, kind: row.kind, amount: row.amount, txHash: use.txHash });
    const step = vm === null ? "buy" : "deliver";
    const settled = { state: "settled", step, settledAt: now(), failingSince: null, wakeAt: now() + WATCH_MS } as const;
    return store.settlePayment(db, row, use, settled);
  }
  if (use.state === "unclear") return { waitSeconds: BLOCK_SECONDS };
  if (use.state === "cancelled") return abandon(context, row, "capture_refused");
  if (use.blockTimestamp >= row.validBefore) return abandon(context, row, "too_late");
  if (!isReady && row.state === "authorized") return abandon(context, row, vm?.failure ?? "machine_ended");
  const wallet = walletOf(context);
  if (vm !== null && row.state === "authorized") {
    const refusal = await wallet.simulate(transferOf(row));
    if (refusal === "would_fail") return abandon(context, row, "cannot_receive");
    if (refusal !== null) return { waitSeconds: WALLET_WAIT_SECONDS };
  }
  const taken = await wallet.order(await captureOf(context, row));
  if (taken.state !== "waiting") {
    if (taken.state === "reverted") return refuseCapture(context, row, 0);
    const mined = taken.state === "sent" ? taken.mined : null;
    if (mined?.status === "reverted") return refuseCapture(context, row, mined.blockNumber);
    if (row.state === "authorized") {
      return store.movePayment(db, row, { state: "settling", settleTx: taken.hash, wakeAt: now() + WATCH_MS });
    }
    return { waitSeconds: BLOCK_SECONDS / 2 };
  }
  if (taken.why !== "would_fail") {
    tellOfWait("capture_waits", row, taken.why);
    return { waitSeconds: WALLET_WAIT_SECONDS };
  }
  if (await isCoinShut(context)) {
    tellOfWait("capture_waits", row, "coin_shut");
    return { waitSeconds: WALLET_WAIT_SECONDS };
  }
  return refuseCapture(context, row, null);
}

/**
 * Held against the payer, unless a stranger's transaction with it has come between our two looks: that has paid us as well,
 * and may be seen before its logs are. `failedAt`: the block in which ours has failed; null where it would fail.
 */
async function refuseCapture(context: Context, row: store.Payment, failedAt: number | null): Promise<Turn> {
  const { db, now } = context;
  const use = await useOf(context, row, "newest");
  if (use.state === "paid" || use.state === "unclear") return { waitSeconds: BLOCK_SECONDS };
  // Two nodes don't have yet what came before ours.
  if (use.blockNumber < (failedAt ?? 0)) return { waitSeconds: BLOCK_SECONDS };
  // The payer has moved its money; or its contract says no, or burns gas: a minute of that is enough (hard cases 35 and 36).
  const isShort = use.state === "unused" && use.balance < BigInt(row.amount);
  const isRefused = row.failingSince !== null && now() - row.failingSince >= REFUSED_MS;
  if (failedAt !== null || use.state === "cancelled" || isShort || isRefused)
    return abandon(context, row, (await isCoinShut(context)) ? "coin_shut" : "capture_refused");
  if (row.failingSince === null) return store.movePayment(db, row, { failingSince: now() });
  return { waitSeconds: WALLET_WAIT_SECONDS };
}

/** The coin is paused, or has blocked us: it takes nothing for us from anybody, and that is no payer's doing. */
async function isCoinShut(context: Context): Promise<boolean> {
  const to = operatorOf(context);
  if (to === null) return false;
  return (await walletOf(context).simulate({ kind: "pay", id: "", to, amount: "0", owed: {} })) === "would_fail";
}

async function captureOf({ config }: Context, row: store.Payment): Promise<WalletOrder> {
  const { value, ...authorization } = authorizationOf(row);
  const signature = await signatureForCoin(coinOf(config), { ...authorization, value });
  return { kind: "capture", id: `capture/${row.id}`, ...authorization, value: String(value), signature };
}

async function isConfirmed({ chain, config }: Context, blockNumber: number): Promise<boolean> {
  return askTwo(chain, async (node) => (await readHead(node)).number >= blockNumber + config.CONFIRMATIONS);
}

const WAITING = { state: "waiting", why: "unproven" } as const;

/** The payment is ours: the token goes to the payer, without waiting for final history (hard case 16). */
export async function deliver(context: Context, row: store.Payment, vm: Vm | null): Promise<Turn> {
  const { db, now } = context;
  if (vm === null || row.tokenId === null) return abandon(context, row, "purchase_gone");
  const isLost = vm.status === "failed" || vm.status === "terminated";
  const isWithPayer = isTheirs(row, vm);
  if (row.transferTx === null && isLost && !isWithPayer) return abandon(context, row, vm.failure ?? "machine_ended");
  // While a reorg has its purchase, that token may be somebody else's.
  const mustWait = row.transferTx === null && !vm.current;
  const moved = mustWait ? WAITING : await walletOf(context).order(transferOf(row));
  if (isWithPayer && (moved.state === "waiting" || moved.state === "reverted")) return toClose(context, row);
  const isOverdue = now() > (row.failingSince ?? now()) + DELIVER_MS;
  if (moved.state === "waiting" && (moved.why === "paused" || !(isNotOurs(moved.why) || isOverdue))) {
    // From the first no: it may have been charged long before there was a machine. A pause is none, and the count is over.
    const failingSince = moved.why === "paused" ? null : (row.failingSince ?? now());
    if (failingSince === row.failingSince) return { waitSeconds: WALLET_WAIT_SECONDS };
    return store.movePayment(db, row, { failingSince });
  }
  if (moved.state === "waiting" || moved.state === "reverted") {
    log("page", "token_not_delivered", { payment: row.id, tokenId: row.tokenId });
    return abandon(context, row, "not_delivered");
  }
  if (row.transferTx === null) {
    return store.movePayment(db, row, { transferTx: moved.hash, failingSince: null, wakeAt: now() + WATCH_MS });
  }
  if (moved.state === "sent" && moved.mined?.status !== "success") return { waitSeconds: BLOCK_SECONDS / 2 };
  allClear("token_not_delivered");
  log("info", "token_delivered", { payment: row.id, tokenId: row.tokenId, txHash: moved.hash });
  const delivered = { transferTx: moved.hash, servedAt: row.servedAt ?? now() };
  return store.movePayment(db, row, { ...delivered, step: "close", wakeAt: now() + WATCH_MS });
}

/**
 * Nothing is delivered. The machine ends and the token stays ours, for the next order of its tier; what was not taken is
 * released, what was goes back.
 */
async function abandon(context: Context, row: store.Payment, reason: string): Promise<Turn> {
  const { db, now } = context;
  log("warn", "order_abandoned", { payment: row.id, reason, state: row.state });
  const vm = await machineOf(context, row);
  // Nobody's while a reorg has its purchase: whoever gets it back must not find a machine running for nobody.
  if (vm?.current && isNobodys(context, vm)) await endMachine(context, vm);
  const money =
    row.state === "settled"
      ? ({ state: "refund_due", step: "refund" } as const)
      : ({ state: "releasing", step: "release" } as const);
  const token = vm === null ? {} : linkTo(vm);
  return store.movePayment(db, row, { ...money, ...token, reason, held: vm !== null, wakeAt: now() });
}

async function endMachine({ db, config, now }: Context, vm: Vm): Promise<void> {
  const queued = await orderEnd(db, vm.tokenId, now());
  if (queued !== null) await config.JOBS.send({ kind: "advance", ...queued });
  for (const kind of ["late", "failed"] as const) {
    const owed = { incarnation: vm.incarnation, kind };
    await moveRefund(db, owed, ["recorded", "waiting", "due", "held"], { state: "cancelled", wakeAt: null });
  }
}

/** A purchase that was to be retired stands after all: its order may have been given up meanwhile, and could not end it. */
export async function endIfOver(context: Context, vm: Vm): Promise<void> {
  if (isNobodys(context, vm) && (await linkOrder(context, vm)).kind === "over") await endMachine(context, vm);
}

/** Before the books of an order that came to nothing close: what a crash kept from ending, or a purchase that stands again. */
export async function endLeft(context: Context, row: store.Payment): Promise<void> {
  const vm = row.held ? await machineOf(context, row) : null;
  if (vm?.current && isNobodys(context, vm)) await endMachine(context, vm);
}

const isNobodys = (context: Context, vm: Vm): boolean => isOurs(context, vm) || vm.owner === "";

type Linked =
  /** The order that a purchase of ours is for, and that still wants it. */
  | { kind: "open"; row: store.Payment }
  | { kind: "unlinked" }
  /** Its order has come to nothing meanwhile, or has a token: this one stays ours. */
  | { kind: "over" };

/** The order behind a purchase by the operator wallet. The first look writes the link into the order (hard case 20). */
export async function linkOrder(context: Context, vm: Vm): Promise<Linked> {
  const { db } = context;
  const row = (await store.paymentOfPurchase(db, vm.incarnation)) ?? (await store.linkedPayment(db, vm.txHash));
  if (row === null) return { kind: "unlinked" };
  const isOver = ["releasing", "released", "refund_due", "refunding", "refunded", "held"].includes(row.state);
  // After a reorg, the token that its transaction has now.
  if (isOver && row.incarnation !== vm.incarnation) await store.movePayment(db, row, { ...linkTo(vm), held: true });
  if (isOver) return { kind: "over" };
  // Waiting for it, or paid: a machine that is lost while its token is on its way is replaced.
  if (row.incarnation === vm.incarnation) return { kind: "open", row };
  if (row.cost === null || row.step === "idle") return { kind: "unlinked" };
  const first = row.incarnation === null ? null : await loadVm(db, row.incarnation);
  // Bought twice, with a key that is used elsewhere too: one token is enough.
  if (first?.current && first.owner !== "" && first.txHash !== vm.txHash) return { kind: "over" };
  // First seen, or a reorg has given it another token.
  const linked = await follow(context, row, vm);
  return linked === null ? { kind: "unlinked" } : { kind: "open", row: linked };
}
