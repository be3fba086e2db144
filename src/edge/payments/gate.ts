// The gate of the paid routes. An authorization is claimed before anything happens by it, once per (chain, payer, nonce);
// what it pays for is bound by the claim, since the signature names neither URL nor body. Whatever a facilitator says, that
// money moved is read off the chain (hard case 2), and nobody is told to pay again while it may have.
import { sha256 } from "@noble/hashes/sha2.js";
import { bytesToHex, utf8ToBytes } from "@noble/hashes/utils.js";
import type { PaymentPayload, PaymentRequirements } from "@x402/core/types";
import { type Hex, isAddressEqual } from "viem";
import {
  authorizationSigner,
  readAuthorizationUse,
  type Settlement,
  signatureForCoin,
} from "../../chain/authorization.ts";
import { whyNotSigned } from "../../chain/contract-signature.ts";
import * as store from "../../db/payments.ts";
import { AppError } from "../../errors.ts";
import { log } from "../../log.ts";
import { authorizationOf, paymentId, SIGNING_SECONDS } from "../../model/payment.ts";
import { requireRoom } from "../access/admission.ts";
import type { App } from "../http.ts";
import { type Refusal, refusalSentence } from "./facilitator.ts";
import { chargedOf, firstBlockOf, type Head, isNever, lookForUse, refusal } from "./use.ts";
import {
  type Demand,
  matchPayment,
  type Payment,
  paymentRequired,
  requirementOf,
  signedOf,
  type Till,
} from "./wire.ts";

type Services = Pick<App["Variables"], "db" | "chain" | "config">;
type Counted = Services & Pick<App["Variables"], "client">;

/** How long the sweep leaves a claim alone that a request is working on. */
const CLAIM_MS = 60_000;
/** From when on another request may take over what one has left lying. */
const STALE_MS = 15_000;
const PENDING_SECONDS = 2;
/** What nodes are behind the one that the edge has asked: an authorization has to be good for each of them. */
const BEHIND_SECONDS = 10;
/** What final history is behind by. */
const FINAL_MS = 1_200_000;
const SETTLE_LOOKS = 8;
const SETTLE_LOOK_MS = 500;
/** Given up for a reason that may have passed. */
const RETRYABLE: ReadonlySet<string> = new Set([
  "facilitator",
  "never_moved",
  "insufficient_funds",
  "other",
  "order_open",
  "balance",
  "float",
]);

/** A payment that fits a demand and that its payer has signed. Nothing was written for it. */
export type Checked = {
  id: string;
  payment: Payment;
  payload: PaymentPayload;
  requirement: PaymentRequirements;
  demand: Demand;
  /** Lower case. */
  payer: string;
  /** 65 bytes; null where a contract signed. */
  publicKey: Hex | null;
};

/** What a payment is for: it can't be for anything else afterwards. */
export const requestHash = (what: string): string => bytesToHex(sha256(utf8ToBytes(what)));

/**
 * Holds a payment against what is demanded; the first demand is today's, others are those that still hold. Throws 402 with
 * today's demand where it fits none, and where its payer has not signed it.
 */
export async function checkPayment(
  services: Counted,
  till: Till,
  payment: Payment,
  demands: readonly [Demand, ...Demand[]],
): Promise<Checked> {
  const { chain, config } = services;
  const { authorization } = payment;
  const { payer } = namesOf(config, payment);
  for (const demand of demands) {
    const requirement = await requirementOf(till, demand);
    const payload = matchPayment(payment, requirement);
    if (payload === null) continue;
    const signer = await authorizationSigner(chain, till.coin, authorization, () => requireRoom(services, "looks"));
    if (signer === null) {
      const sentence = "The payment's signature is not its payer's.";
      const why = await whyNotSigned(chain, authorization.from, authorization.signature, sentence);
      const refused = { payer, refusal: "signature", charged: "none", code: "payment_invalid" } as const;
      throw await paymentRequired(till, config, demand, why, refused);
    }
    // Facilitators hand it to the coin as they get it.
    const signed = { ...authorization, signature: await signatureForCoin(till.coin, authorization) };
    return {
      ...namesOf(config, payment),
      payment: { ...payment, authorization: signed },
      payload: { ...payload, payload: signedOf(signed) },
      requirement,
      demand,
      publicKey: signer.publicKey,
    };
  }
  const refused = { payer, refusal: "requirement", charged: "none" } as const;
  throw await paymentRequired(till, config, demands[0], refusalSentence("requirement"), refused);
}

/** Who a payment is of, and which one it is; nobody has looked whether that is true. */
export function namesOf({ CHAIN_ID }: Pick<Services["config"], "CHAIN_ID">, { authorization }: Payment) {
  const payer = authorization.from.toLowerCase();
  return { id: paymentId(CHAIN_ID, payer, authorization.nonce), payer };
}

/** Before a payment is claimed; one that was claimed already is what it was then. `chainTime`: unix seconds. */
export async function requireWindow(
  { config }: Pick<Services, "config">,
  till: Till,
  { payment, payer, demand }: Checked,
  chainTime: number,
  now: number,
): Promise<void> {
  const clocks = { chainTime, now: Math.floor(now / 1_000) };
  const problem = windowProblem(payment.authorization, demand.seconds, clocks);
  if (problem === null) return;
  const [refusal, sentence] = problem;
  throw await paymentRequired(till, config, demand, sentence, { payer, refusal, charged: "unknown" });
}

/** x402's clients sign for as long as they are asked to; nobody else makes sure of it. */
function windowProblem(
  { validAfter, validBefore }: Payment["authorization"],
  seconds: number,
  { chainTime, now }: { chainTime: number; now: number },
): [Refusal, string] | null {
  if (validAfter > chainTime - BEHIND_SECONDS) {
    const sentence = `The authorization is not valid yet: sign one that is since ${BEHIND_SECONDS} seconds ago.`;
    return ["valid_after", sentence];
  }
  if (validBefore < chainTime + seconds - SIGNING_SECONDS)
    return ["valid_before", `The authorization has to be good for ${seconds} seconds: sign a new one.`];
  if (validBefore > Math.max(chainTime, now) + seconds + SIGNING_SECONDS)
    return ["valid_before", `The authorization may be good for ${seconds} seconds and no longer: sign a new one.`];
  return null;
}

/** The row that a payment has already, or the identifier that its payer gave it, unless nothing came of what it was given to. */
export async function findClaim(
  { db }: Pick<Services, "db">,
  checked: Pick<Checked, "id" | "payer" | "payment">,
): Promise<store.Payment | null> {
  const { identifier } = checked.payment;
  const named = identifier === null ? null : await store.paymentByIdentifier(db, checked.payer, identifier);
  if (named !== null && (named.id === checked.id || !cameToNothing(named))) return named;
  return store.loadPayment(db, checked.id);
}

/** Takes an identifier from an authorization of which nothing came, and which nothing is to come of any more. */
async function freeIdentifier({ db }: Pick<Services, "db">, { id, payer, payment }: Shown): Promise<void> {
  if (payment.identifier === null) return;
  const named = await store.paymentByIdentifier(db, payer, payment.identifier);
  if (named === null || named.id === id || !cameToNothing(named)) return;
  const reason = RETRYABLE.has(named.reason ?? "") ? "superseded" : named.reason;
  await store.movePayment(db, named, { identifier: null, reason });
}

/** Nothing was bought for it; were it submitted after all, it is paid back. */
const cameToNothing = ({ state, boughtAt }: store.Payment): boolean =>
  (state === "releasing" || state === "released") && boughtAt === null;

/** What was claimed for one request is good for no other. */
export function requireSameRequest(row: store.Payment, { id }: Pick<Checked, "id">, request: string): void {
  if (row.request === request) return;
  const charged = row.id === id ? chargedOf(row) : undefined;
  throw row.id === id
    ? new AppError(
        "payment_used",
        "This payment was made for another request; GET /x402/purchases/{id} says what became of it.",
        { details: [{ purchaseId: row.id }], charged },
      )
    : new AppError("identifier_used", "This payment identifier was used for another request.", {
        details: [{ purchaseId: row.id }],
      });
}

/** A payment, and how long it had to be signed for. */
type Shown = Pick<Checked, "id" | "payer" | "payment"> & { demand: Pick<Demand, "seconds"> };

/**
 * The answer to a payment that does not fit: anybody may have submitted it for us. What has come in by it gets a row, and is
 * paid back (hard case 60), unless that is less than we sell anything for; of any other the refusal says what the chain does.
 */
export async function refuseStray(
  services: Counted,
  till: Till,
  payment: Payment,
  demand: Pick<Demand, "seconds">,
  readHead: () => Promise<Head>,
  why: AppError,
  now: number,
): Promise<AppError> {
  const { authorization } = payment;
  if (!isAddressEqual(authorization.to, till.payTo)) return refusal(why, "none");
  await requireRoom(services, "looks");
  if ((await authorizationSigner(services.chain, till.coin, authorization)) === null) return refusal(why, "none");
  const names = namesOf(services.config, payment);
  const head = await readHead();
  const use = await lookForUse(services, till, { payment, demand }, head);
  if (typeof use === "string") return refusal(why, use === "used" ? "unknown" : use);
  if (authorization.value < services.config.CREDENTIALS_PRICE_USDC) {
    return new AppError("payment_used", "This payment was taken, and is too small to be paid back.", {
      details: [{ transaction: use.txHash }],
      charged: authorization.value === 0n ? "none" : "yes",
      cause: why,
    });
  }
  await requireRoom(services, "x402");
  // Its identifier is free for what fits.
  const shown = { ...names, payment: { ...payment, identifier: null }, demand };
  const row = await claim(services, shown, { kind: "compute", request: requestHash(`stray/${names.id}`) }, head, now);
  const owed = { state: "refund_due", step: "refund", reason: "no_demand", settledAt: now, wakeAt: now } as const;
  const booked = row === null ? null : await store.settlePayment(services.db, row, use, owed);
  if (booked !== null) log("warn", "stray_payment", { payment: names.id, txHash: use.txHash });
  return new AppError(
    "payment_used",
    "This payment was taken, and does not fit what is asked for: GET /x402/purchases/{id} says what becomes of it.",
    { details: [{ purchaseId: names.id }], charged: booked === null ? "unknown" : "yes", cause: why },
  );
}

type Claim = Pick<store.NewPayment, "kind" | "request"> &
  Partial<
    Pick<
      store.NewPayment,
      "tokenId" | "tier" | "durationDays" | "sshPublicKey" | "region" | "ports" | "quotedBlock" | "captureFirst"
    >
  >;

/**
 * Writes the claim; null where there is one by now, or the order that it must not be made beside. `head`: as it was read
 * for this request.
 */
export async function claim(
  services: Services,
  checked: Shown,
  what: Claim,
  head: Head,
  now: number,
  unless?: Parameters<typeof store.claimPayment>[2],
): Promise<store.Payment | null> {
  const { db, config } = services;
  const { id, payment, payer, demand } = checked;
  const { to, value, validAfter, validBefore, nonce, signature } = payment.authorization;
  const row: store.NewPayment = {
    id,
    ...what,
    chainId: config.CHAIN_ID,
    payer,
    nonce,
    identifier: payment.identifier,
    amount: String(value),
    payTo: to,
    validAfter,
    validBefore,
    signature,
    state: "claimed",
    step: "settle",
    // The authorization may have been submitted before it was shown to us.
    fromBlock: firstBlockOf(payment.authorization, demand.seconds, head),
    wakeAt: now + CLAIM_MS,
    createdAt: now,
  };
  await freeIdentifier(services, checked);
  return store.claimPayment(db, row, unless);
}

/** Whether the request that worked on it last must have ended. */
export function isStale(row: Pick<store.Payment, "state" | "settledAt" | "wakeAt">, now: number): boolean {
  const { state, settledAt, wakeAt } = row;
  // The sweep leaves what is settled alone for long; its payer need not wait for that.
  const began = state === "settled" ? settledAt : wakeAt && wakeAt - CLAIM_MS;
  return began === null || began + STALE_MS <= now;
}

/**
 * Whether what an earlier request left may be taken up: not while that one may still be at it, and not where its identifier
 * has gone over to another authorization.
 */
export function isLeft(row: store.Payment, { payment }: Pick<Checked, "payment">, now: number): boolean {
  if (payment.identifier !== null && row.identifier !== payment.identifier) return false;
  // A machine's payment is taken by the provisioner, which comes back to it by itself.
  const open = row.state === "claimed" || (row.state === "settling" && row.kind === "credentials");
  return open ? isStale(row, now) : isRetryable(row);
}

const isRetryable = ({ state, reason }: store.Payment): boolean => state === "releasing" && RETRYABLE.has(reason ?? "");

/** Takes that up, for exactly one caller; null for every other. */
export async function takeUp(
  { db }: Services,
  row: store.Payment,
  checked: Checked,
  now: number,
): Promise<store.Payment | null> {
  if (!isLeft(row, checked, now)) return null;
  const to = isRetryable(row) ? ({ state: "claimed", step: "settle", reason: null } as const) : {};
  return store.movePayment(db, row, { ...to, wakeAt: now + CLAIM_MS });
}

type Verified =
  | { verdict: "valid" }
  /** Somebody has submitted it already. */
  | ({ verdict: "paid" } & Settlement)
  /** It is used up, and the chain does not show by what yet. */
  | { verdict: "unclear" };

/**
 * Asks the facilitator. A refusal, or no answer, is held against the chain: an authorization that is used up is no refusal
 * if it paid us.
 * Throws 402 with the demand on a refusal, 503 or 502 without an answer; the claim is given up in both.
 */
export async function verify(services: Services, till: Till, row: store.Payment, shown: Checked): Promise<Verified> {
  const checked = asClaimed(row, shown);
  try {
    const answer = await till.facilitator.verify(checked.payload, checked.requirement);
    if (answer.valid) return { verdict: "valid" };
    const use = await useOf(services, till, row, checked, "newest");
    if (use.state === "paid") return { verdict: "paid", txHash: use.txHash, logIndex: use.logIndex };
    // It may have seen a block that two of our nodes have not.
    const isElsewhere = use.state === "unused" && answer.refusal === "nonce";
    if (use.state === "unclear" || isElsewhere) return { verdict: "unclear" };
    await giveUp(services, row, answer.refusal);
    throw await refusedBy(services, till, checked, answer.refusal);
  } catch (error) {
    if (error instanceof AppError && error.code === "payment_required") throw error;
    const use = await useOf(services, till, row, checked, "newest").catch(() => null);
    if (use?.state === "paid") return { verdict: "paid", txHash: use.txHash, logIndex: use.logIndex };
    if (use?.state === "unclear") return { verdict: "unclear" };
    await giveUp(services, row, "facilitator");
    if (error instanceof AppError) error.charged = use === null ? "unknown" : "none";
    throw error;
  }
}

/**
 * The authorization that the row was claimed by. Another one under the same identifier asks what became of the first: were it
 * submitted itself, the payer could be charged for both.
 */
export function asClaimed(row: store.Payment, shown: Checked): Checked {
  if (row.id === shown.id) return shown;
  const authorization = authorizationOf(row);
  const requirement = { ...shown.requirement, amount: row.amount, payTo: authorization.to };
  return {
    ...shown,
    id: row.id,
    payment: { ...shown.payment, authorization },
    payload: { x402Version: 2, accepted: requirement, payload: signedOf(authorization) },
    requirement,
  };
}

/** Nobody looks at it again until final history can be past its time, unless its payer comes again. */
export const giveUp = (
  { db }: Pick<Services, "db">,
  row: store.Payment,
  reason: Refusal | store.Exceeded | "facilitator",
) =>
  store.movePayment(db, row, {
    state: "releasing",
    step: "release",
    reason,
    wakeAt: row.validBefore * 1_000 + FINAL_MS,
  });

/** 402, once the chain has said that it did not move. */
const refusedBy = ({ config }: Services, till: Till, { payer, demand }: Checked, refusal: Refusal): Promise<AppError> =>
  paymentRequired(till, config, demand, refusalSentence(refusal), { payer, refusal, charged: "none" });

const useOf = (
  { chain }: Services,
  till: Till,
  row: Pick<store.Payment, "fromBlock">,
  { payment }: Checked,
  block: "latest" | "newest",
) => readAuthorizationUse(chain, till.coin.address, payment.authorization, row.fromBlock, block);

/**
 * Settles what was verified. Resolves with the settled row once one receipt shows it; null while only the chain knows: the
 * payer asks again with the same payment. Throws 402 where it is known not to have moved.
 */
export async function settle(
  services: Services,
  till: Till,
  row: store.Payment,
  shown: Checked,
  now: number,
): Promise<store.Payment | null> {
  const { db } = services;
  const checked = asClaimed(row, shown);
  const settling = await store.movePayment(db, row, { state: "settling", wakeAt: now + CLAIM_MS });
  if (settling === null) return null;
  // What a request before this one left may have arrived meanwhile.
  const before = row.state === "settling" ? await useOf(services, till, row, checked, "latest") : null;
  if (before?.state === "paid") return markSettled(services, settling, before, now);
  const answer = await till.facilitator.settle(checked.payload, checked.requirement);
  const [looks, block] = answer.outcome === "refused" ? ([1, "newest"] as const) : ([SETTLE_LOOKS, "latest"] as const);
  for (let look = 0; look < looks; look++) {
    if (look > 0) await new Promise((resolve) => setTimeout(resolve, SETTLE_LOOK_MS));
    const use = await useOf(services, till, row, checked, block).catch(() => null);
    if (use?.state === "paid") return markSettled(services, settling, use, now);
    // Without two nodes' word it may have moved, whatever the facilitator says.
    if (answer.outcome === "refused" && use !== null && isNever(use)) {
      await giveUp(services, settling, answer.refusal);
      throw await refusedBy(services, till, checked, answer.refusal);
    }
  }
  log("warn", "settlement_unknown", { payment: row.id, outcome: answer.outcome });
  return null;
}

/** The money is ours; what it was for is not delivered yet. */
export async function markSettled(
  { db }: Services,
  row: store.Payment,
  transfer: Settlement,
  now: number,
): Promise<store.Payment | null> {
  const settled = await store.settlePayment(db, row, transfer, { state: "settled", settledAt: now });
  const { txHash } = transfer;
  if (settled !== null) log("info", "payment_settled", { payment: row.id, kind: row.kind, amount: row.amount, txHash });
  return settled;
}

/** 202: not refused and not known to have arrived. */
export const pending = (row: Pick<store.Payment, "id">, config: Services["config"]) => ({
  purchaseId: row.id,
  status: "settling" as const,
  charged: "unknown" as const,
  message: "The payment is being settled. Send the same request with the same payment again; don't sign another one.",
  statusUrl: `${config.PUBLIC_URLS[0]}/x402/purchases/${row.id}`,
});
export const PENDING_RETRY_AFTER = String(PENDING_SECONDS);
