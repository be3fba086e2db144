// Whether an order is taken, and as what: nothing is written for one that can't be, and none is refused whose payment has
// been taken already.

import { readBalance, type Settlement } from "../../../chain/authorization.ts";
import type { Offer } from "../../../chain/offers.ts";
import * as store from "../../../db/payments.ts";
import { AppError } from "../../../errors.ts";
import { log } from "../../../log.ts";
import { formatPorts, sortPorts } from "../../../model/ports.ts";
import { requireRoom } from "../../access/admission.ts";
import type { App } from "../../http.ts";
import {
  asClaimed,
  type Checked,
  checkPayment,
  claim,
  findClaim,
  giveUp,
  isLeft,
  namesOf,
  refuseStray,
  requestHash,
  requireSameRequest,
  requireWindow,
  takeUp,
  verify,
} from "../../payments/gate.ts";
import { chargedOf, lookForUse, refusal } from "../../payments/use.ts";
import { type Demand, type Payment, paymentRequired, type Till } from "../../payments/wire.ts";
import { isCapturedFirst, RETRY_SECONDS, requireSaleable, uncapturedRoom } from "./offer.ts";

const WAKE_MS = 60_000;
const AGAIN_SECONDS = 5;
/** How soon a client signs again that has taken a 202 for a failure (hard case 59). */
const SAME_ORDER_MS = 60_000;

type Services = App["Variables"];
type Asked = {
  till: Till;
  payment: Payment;
  order: {
    tier: number;
    durationDays: number;
    sshPublicKey?: string | undefined;
    region?: string | undefined;
    ports?: readonly number[] | undefined;
  };
  offer: Offer;
  demandAt: (pricePerDay: bigint) => Demand;
  /** Throws where the payer has not signed for what is in the body. */
  requireBody: (checked: Checked) => Promise<void>;
  now: number;
};
type Found = {
  /** What is taken: where a claim is taken up, that one's authorization. */
  checked: Checked;
  /** What the payment, or its identifier, was claimed for before, and may be taken up. */
  known: store.Payment | null;
  what: Parameters<typeof claim>[2];
  /** The order that it would repeat, if there were one. */
  unless: Parameters<typeof claim>[5];
};

/** The order as it stands now: taken, or made before by the same payment, or by another for the same. */
export async function acceptOrder(services: Services, asked: Asked): Promise<store.Payment> {
  const { payment, now } = asked;
  const names = namesOf(services.config, payment);
  const known = await findClaim(services, { ...names, payment });
  if (known !== null && !isLeft(known, { payment }, now)) {
    await shown(services, asked, names.id, known, [known.amount]);
    return known;
  }
  const { checked, request, quotedBlock } = await shown(services, asked, names.id, known, []);
  const { tier, durationDays, sshPublicKey = null, region = null } = asked.order;
  const ports = formatPorts(sortPorts(asked.order.ports ?? []));
  const what = { kind: "compute", request, tier, durationDays, sshPublicKey, region, ports, quotedBlock } as const;
  if (known !== null)
    return take(services, asked, { checked: asClaimed(known, checked), known, what, unless: undefined });
  const unless = { payer: checked.payer, request, since: now - SAME_ORDER_MS };
  return take(services, asked, { checked, known, what, unless: payment.identifier === null ? unless : undefined });
}

/** The payment, held against the order: at today's price, at one that still holds, or at one of these amounts. */
async function shown(
  services: Services,
  { till, payment, order, offer, demandAt, requireBody, now }: Asked,
  id: string,
  known: store.Payment | null,
  amounts: readonly string[],
) {
  const { config, db } = services;
  const quoted = await store.quotedSince(db, order.tier, now - config.QUOTE_SECONDS * 1_000);
  const kept = quoted
    .filter(({ pricePerDay }) => BigInt(pricePerDay) !== offer.pricePerDay)
    .map(({ pricePerDay, blockNumber }) => ({ ...demandAt(BigInt(pricePerDay)), blockNumber }));
  const today = demandAt(offer.pricePerDay);
  const before = amounts.map((amount) => ({ ...today, amount: BigInt(amount) }));
  try {
    const checked = await checkPayment(services, till, payment, [today, ...kept, ...before]);
    await requireBody(checked);
    const request = requestOf(order);
    if (known !== null) requireSameRequest(known, checked, request);
    const quotedBlock = kept.find(({ amount }) => amount === checked.demand.amount)?.blockNumber ?? offer.blockNumber;
    return { checked, request, quotedBlock };
  } catch (error) {
    if (!(error instanceof AppError)) throw error;
    if (known?.id === id) error.charged = chargedOf(known);
    else if (error.code === "payment_required")
      throw await refuseStray(services, till, payment, today, async () => offer, error, now);
    throw error;
  }
}

/** What the payment is for. Ports are left out where there are none: so it was before there were any. */
function requestOf({ tier, durationDays, sshPublicKey, region, ports = [] }: Asked["order"]): string {
  const wish = [
    "compute",
    tier,
    durationDays,
    sshPublicKey ?? null,
    region ?? null,
    ...(ports.length === 0 ? [] : [sortPorts(ports)]),
  ];
  return requestHash(JSON.stringify(wish));
}

async function take(services: Services, asked: Asked, found: Found): Promise<store.Payment> {
  const sameOrder = async () => (found.unless === undefined ? null : await store.sameOrder(services.db, found.unless));
  const terms = (await sameOrder()) ?? (await termsOf(services, asked, found));
  if ("balance" in terms) return takeUnpaid(services, asked, found, terms);
  await requireRoom(services, "looks");
  const balanceSeen = "why" in terms ? terms.balanceSeen : undefined;
  const use = await lookForUse(services, asked.till, found.checked, asked.offer, balanceSeen);
  if (typeof use !== "string") return takePaid(services, asked, found, use);
  if (use === "used") return takeUsed(services, asked, found);
  // What is open may be this very order, made at the same instant.
  if (!("why" in terms)) return terms;
  const same = await sameOrder();
  if (same !== null) return same;
  throw refusal(terms.why, use);
}

type Terms = { captureFirst: boolean; balance: bigint };
/** `balanceSeen`: what its payer had, of an order that is beyond a limit. */
type Refused = { why: AppError; balanceSeen?: bigint };

/** On which terms an order would be taken, or why not; nothing is written for it. */
async function termsOf(services: Services, asked: Asked, found: Found): Promise<Terms | Refused> {
  const { config, chain, db } = services;
  const { till, order, offer, now } = asked;
  const { checked } = found;
  try {
    await requireWindow(services, till, checked, offer.blockTimestamp, now);
    const market = await store.readMarket(db, now);
    const { value } = checked.payment.authorization;
    requireSaleable(config, offer, { ...order, paid: value }, market, now);
    const balance = await readBalance(chain, till.coin.address, checked.payment.authorization.from);
    const captureFirst = isCapturedFirst(config, order.tier, value, market.unpaid);
    const row = { ...checked, amount: String(value) };
    const terms = await withinLimits(services, asked, row, { captureFirst, balance }, "all");
    if (typeof terms === "string") {
      return { why: await limitError(services, till, checked, terms), balanceSeen: balance };
    }
    // Its payer has signed it and has the money: it would be written.
    if (found.known === null) await requireRoom(services, "x402");
    return terms;
  } catch (error) {
    if (error instanceof AppError) return { why: error };
    throw error;
  }
}

type Exceeded = Exclude<store.Exceeded, "uncaptured">;

/** The terms, charged first where too much is open by now; or the limit that the payer is at, or we are. */
async function withinLimits(
  { config, db }: Services,
  { offer, now }: Asked,
  row: Pick<store.Payment, "id" | "payer" | "amount">,
  terms: Terms,
  rows: "all" | "earlier",
): Promise<Terms | Exceeded> {
  const { captureFirst, balance } = terms;
  const limits = { balance, float: offer.usdc6, uncaptured: uncapturedRoom(config) };
  const { id, payer, amount } = row;
  const exceeded = await store.exceededLimit(db, { id, payer, amount, captureFirst }, limits, now, rows);
  if (exceeded === null) return terms;
  if (exceeded === "uncaptured") return { ...terms, captureFirst: true };
  log("warn", "order_refused", { payer, why: exceeded });
  return exceeded;
}

/** Nobody gets an option on our money (hard case 18). */
async function limitError(
  { config }: Pick<Services, "config">,
  till: Till,
  { demand, payer }: Checked,
  exceeded: Exceeded,
): Promise<AppError> {
  const again = { retryAfterSeconds: RETRY_SECONDS };
  switch (exceeded) {
    case "payer_refused":
      return new AppError(
        exceeded,
        "An earlier order of this payer could not be paid when its machine was ready; buy on the contract instead.",
      );
    case "order_open":
      return new AppError(
        exceeded,
        "One order at a time until the first is paid: wait for the one that is open.",
        again,
      );
    case "float":
      return new AppError(
        "orders_full",
        "Too many orders are open at the moment; try again later, or buy on the contract.",
        again,
      );
    case "balance": {
      const sentence = "The payer's USDC balance does not cover this and its other open orders.";
      return paymentRequired(till, config, demand, sentence, {
        payer,
        refusal: "insufficient_funds",
        charged: "unknown",
      });
    }
  }
}

/** Limits are looked at before there is a row, and again once there is: of many at once the first one passes. */
async function takeUnpaid(services: Services, asked: Asked, found: Found, terms: Terms): Promise<store.Payment> {
  const { till, offer, now } = asked;
  const { checked, known } = found;
  const row = await write(services, asked, { ...found, what: { ...found.what, captureFirst: terms.captureFirst } });
  if (row === null) return madeMeanwhile(services, found);
  // A row that was there before counts all others: they may have come since.
  const latest = await withinLimits(services, asked, row, terms, known === null ? "earlier" : "all");
  if (typeof latest === "string") {
    const use = await lookForUse(services, till, checked, offer, terms.balance);
    if (typeof use !== "string") return settle(services, row, use, now);
    if (use === "used") return proceed(services, row, { state: "authorized" }, now);
    await giveUp(services, row, latest);
    throw refusal(await limitError(services, till, checked, latest), use);
  }
  const verified = await verify(services, till, row, checked);
  if (verified.verdict === "paid") return settle(services, row, verified, now);
  // What it was used for, where that is unclear, the provisioner's own look finds out.
  return proceed(services, row, { state: "authorized", captureFirst: latest.captureFirst }, now);
}

/** It is charged: what can't be delivered for it is paid back, by the provisioner. */
async function takePaid(services: Services, asked: Asked, found: Found, use: Settlement): Promise<store.Payment> {
  const row = await write(services, asked, { ...found, unless: undefined });
  return row === null ? madeMeanwhile(services, found) : settle(services, row, use, asked.now);
}

/** It is used up, and most likely by us: the order stands, and the provisioner's own look finds out (hard cases 28 and 60). */
async function takeUsed(services: Services, asked: Asked, found: Found): Promise<store.Payment> {
  const what = { ...found.what, captureFirst: true };
  const row = await write(services, asked, { ...found, what, unless: undefined });
  return row === null ? madeMeanwhile(services, found) : proceed(services, row, { state: "authorized" }, asked.now);
}

const write = (services: Services, { offer, now }: Asked, { checked, known, what, unless }: Found) =>
  known === null ? claim(services, checked, what, offer, now, unless) : takeUp(services, known, checked, now);

const settle = (services: Services, row: store.Payment, transfer: Settlement, now: number) =>
  proceed(services, row, { state: "settled", settledAt: now }, now, transfer);

/** From here on the provisioner is at it. */
async function proceed(
  { db, config }: Services,
  row: store.Payment,
  to: Parameters<typeof store.movePayment>[2],
  now: number,
  transfer?: Settlement,
): Promise<store.Payment> {
  const next = { ...to, step: "check", wakeAt: now + WAKE_MS } as const;
  const accepted = await (transfer === undefined
    ? store.movePayment(db, row, next)
    : store.settlePayment(db, row, transfer, next));
  if (accepted === null) return (await store.loadPayment(db, row.id)) ?? row;
  await config.JOBS.send({ kind: "payment", payment: row.id, generation: accepted.generation });
  const { id: payment, payer, tier, durationDays, state } = accepted;
  log("info", "order_accepted", { payment, payer, tier, durationDays, state });
  return accepted;
}

/** Another request has made it in between. */
async function madeMeanwhile(services: Services, { checked, what, unless }: Found): Promise<store.Payment> {
  const other = await findClaim(services, checked);
  if (other !== null) {
    requireSameRequest(other, checked, what.request);
    return other;
  }
  const same = unless === undefined ? null : await store.sameOrder(services.db, unless);
  if (same !== null) return same;
  throw new AppError("order_open", "Another payment for this order has just been refused: send it again.", {
    retryAfterSeconds: AGAIN_SECONDS,
    charged: "unknown",
  });
}
