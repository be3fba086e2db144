// What a payment is: its identity, its times, what was signed, and what the public API says of it.
import { sha256 } from "@noble/hashes/sha2.js";
import { bytesToHex, utf8ToBytes } from "@noble/hashes/utils.js";
import { getAddress, type Hex } from "viem";
import type { Authorization } from "../chain/authorization.ts";
import { formatUsdc, SECONDS_PER_DAY } from "../chain/contract.ts";
import type { SignedPayment } from "../chain/orders.ts";
import type { Payment } from "../db/payments.ts";
import { paymentLife, paymentStageOf, paymentStates } from "./payment-life.ts";
import { readPorts } from "./ports.ts";
import { TIERS } from "./tiers.ts";

/** How long an authorization has to be good for, so that a machine can be had and the money taken: seconds. */
const ORDER_SECONDS = { vm: 1_200, gpu: 1_800 } as const;
export const CREDENTIALS_SECONDS = 120;
/** What may pass between signing and its arrival here, and between the payer's clock and the chain's. */
export const SIGNING_SECONDS = 60;
/** Of the authorization's time, left for taking the money once the machine answers. */
const CAPTURE_SECONDS = 120;
/** How long a held token's machine may take, of a payment that was taken first. */
export const HELD_DEADLINE_SECONDS = CAPTURE_SECONDS * 10;

/** By which time of the chain the machine has to run, so that the payment can still be taken. */
export const captureDeadline = (row: Pick<Payment, "validBefore">): number => row.validBefore - CAPTURE_SECONDS;

/** The order's payment can't be taken any more, once a machine is there. `chainTime`: unix seconds of the chain. */
export const isPastCapture = (row: Pick<Payment, "state" | "validBefore">, chainTime: number): boolean =>
  row.state !== "settled" && chainTime > captureDeadline(row);

/** What a token may cost us of what it was sold for, where the price has risen since its quote: the loss that we take. */
export const MAX_RISE = 2n;

/** How far what is left of a held token may be from what was ordered (hard case 33): seconds, or a share if that is more. */
const HELD_TOLERANCE = { seconds: 7_200, share: 0.05 } as const;

export const heldTolerance = (seconds: number): number =>
  Math.max(HELD_TOLERANCE.seconds, seconds * HELD_TOLERANCE.share);

/** Between which times of the chain a held token has to end that serves an order now. */
export function heldTokenEnds(chainTime: number, durationDays: number): { least: number; most: number } {
  const seconds = durationDays * SECONDS_PER_DAY;
  const tolerance = heldTolerance(seconds);
  return { least: chainTime + seconds - tolerance, most: chainTime + seconds + tolerance };
}

export const orderSeconds = (tier: number): number => ORDER_SECONDS[TIERS[tier]?.type ?? "vm"];

/** The same authorization is the same payment, for ever and on every deployment. */
export const paymentId = (chainId: number, payer: string, nonce: string): string =>
  bytesToHex(sha256(utf8ToBytes(`${chainId}/${payer}/${nonce}`.toLowerCase()))).slice(0, 32);

/** What was signed, as the row keeps it. */
export const authorizationOf = (row: Payment): Authorization => ({
  from: getAddress(row.payer),
  to: getAddress(row.payTo),
  value: BigInt(row.amount),
  validAfter: row.validAfter,
  validBefore: row.validBefore,
  nonce: row.nonce as Hex,
  signature: row.signature as Hex,
});

/** The same for the wallet, with where to look for its use. */
export const signedPaymentOf = (row: Payment): SignedPayment => {
  const { value, ...authorization } = authorizationOf(row);
  const quoted = row.quotedBlock === null ? {} : { quotedBlock: row.quotedBlock };
  return { ...authorization, value: String(value), fromBlock: row.fromBlock, ...quoted };
};

/** Whether money has moved, and not come back. */
export const isCharged = ({ state }: Pick<Payment, "state">): boolean => paymentStates[state].charged === "yes";

export const wirePayment = (payment: Payment) => ({
  purchaseId: payment.id,
  kind: payment.kind,
  status: paymentStates[payment.state].wire,
  // Its refund is in the ledger, and under way.
  step: payment.state === "refund_due" ? "refund" : payment.step,
  charged: isCharged(payment),
  chargedFirst: payment.captureFirst,
  message: sentenceOf(payment),
  reason: payment.reason,
  payer: payment.payer,
  amount: formatUsdc(BigInt(payment.amount)),
  tier: payment.tier,
  durationDays: payment.durationDays,
  ports: readPorts(payment.ports),
  tokenId: payment.tokenId === null ? null : String(payment.tokenId),
  validBefore: new Date(payment.validBefore * 1_000).toISOString(),
  transactions: {
    purchase: payment.purchaseTx,
    settlement: payment.settleTx,
    transfer: payment.transferTx,
    refund: payment.refundTx,
  },
});

function sentenceOf(payment: Payment): string {
  const stage = paymentStageOf(payment);
  return paymentLife[stage ?? "held/idle"].sentence;
}
