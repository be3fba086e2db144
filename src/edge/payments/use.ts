// What became of a payment that was shown, before anything is said of it: the chain may know more than our rows.
import { type AuthorizationUse, isUsedUp, readAuthorizationUse, type Settlement } from "../../chain/authorization.ts";
import type { Chain } from "../../chain/client.ts";
import type { Payment as Row } from "../../db/payments.ts";
import { AppError, type Charged, STATUS_OF } from "../../errors.ts";
import { SIGNING_SECONDS } from "../../model/payment.ts";
import { paymentStates } from "../../model/payment-life.ts";
import type { Demand, Payment, Till } from "./wire.ts";

/** Nobody shows now what was submitted longer ago: the look for it has an end. */
const LOOK_BACK_SECONDS = 3_600;
const AGAIN_SECONDS = 5;

/** Of the payment that a row is of. While it is open, or only given up, anybody may have submitted it. */
export const chargedOf = ({ state }: Pick<Row, "state">): Charged => paymentStates[state].charged;

/** The chain as it was read for a request. */
export type Head = { blockNumber: number; blockTimestamp: number };

/**
 * Whether a payment that is about to be refused has been taken for us already: anybody may submit it (hard case 60). With the
 * transaction it goes on as paid; `used`: it is used up, and no two nodes show by what yet; otherwise what its refusal has to
 * say. `seen`: its payer's balance, where that is what it is refused for; a look that finds more is of an older block, and
 * says nothing. Throws 409 where it was used so long ago that nobody looks for it.
 */
export async function lookForUse(
  { chain }: { chain: Chain },
  { coin }: Pick<Till, "coin">,
  { payment, demand }: { payment: Pick<Payment, "authorization">; demand: Pick<Demand, "seconds"> },
  head: Head,
  seen?: bigint,
): Promise<Settlement | "used" | "none" | "unknown"> {
  const { authorization } = payment;
  const fromBlock = firstBlockOf(authorization, demand.seconds, head);
  try {
    if (head.blockNumber - fromBlock > blocksIn(LOOK_BACK_SECONDS)) {
      if (await isUsedUp(chain, coin.address, authorization)) throw usedLongAgo();
      return "none";
    }
    const use = await readAuthorizationUse(chain, coin.address, authorization, fromBlock, "newest");
    if (use.state === "paid") return { txHash: use.txHash, logIndex: use.logIndex };
    if (use.state === "unused" && seen !== undefined && use.balance > seen) return "unknown";
    // Used before the first block that was looked at, as far as anybody can see.
    if (use.state === "cancelled" && isSignedForLonger(authorization, demand.seconds, head)) throw usedLongAgo();
    return isNever(use) ? "none" : "used";
  } catch (error) {
    if (error instanceof AppError && STATUS_OF[error.code] >= 500) return "unknown";
    throw error;
  }
}

/** While nobody can say whether a payment was taken, no demand tells its payer to sign another one. */
export function refusal(why: AppError, charged: "none" | "unknown"): AppError {
  if (charged === "unknown" && why.code === "payment_required") {
    return new AppError(
      "chain_unavailable",
      "Whether the payment was taken can't be seen right now: send the same request with the same payment again.",
      { cause: why, retryAfterSeconds: AGAIN_SECONDS, charged },
    );
  }
  why.charged = charged;
  return why;
}

const usedLongAgo = () =>
  new AppError("payment_used", "This payment was used up long ago: its transaction on the chain says by whom.", {
    charged: "unknown",
  });

type Signed = Pick<Payment["authorization"], "validBefore">;

/** Than it was asked to be, so that its time does not tell when: such a payment is taken only where it has been submitted. */
const isSignedForLonger = ({ validBefore }: Signed, seconds: number, { blockTimestamp }: Head): boolean =>
  validBefore > blockTimestamp + seconds + SIGNING_SECONDS;

/** The block below which it can't have been used: clients sign for as long as they are asked to. */
export function firstBlockOf(authorization: Signed, seconds: number, head: Head): number {
  const { blockNumber, blockTimestamp } = head;
  if (isSignedForLonger(authorization, seconds, head)) return Math.max(0, blockNumber - blocksIn(LOOK_BACK_SECONDS));
  const age = Math.max(0, blockTimestamp - (authorization.validBefore - seconds));
  return Math.max(0, blockNumber - blocksIn(age + 2 * SIGNING_SECONDS));
}

/** More than Base makes. */
const blocksIn = (seconds: number): number => seconds;

/** Two nodes know that it has moved nothing. */
export const isNever = ({ state }: AuthorizationUse): boolean => state === "unused" || state === "cancelled";
