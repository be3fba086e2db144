// What became of a payment that was shown, before anything is said of it: the chain may know more than our rows.
import { type AuthorizationUse, readAuthorizationUse, type Settlement } from "../chain/authorization.ts";
import type { Chain } from "../chain/client.ts";
import type { Payment as Row } from "../db/payments.ts";
import { AppError, type Charged } from "../errors.ts";
import { isCharged, SIGNING_SECONDS } from "../vms/payments.ts";
import type { Demand, Payment, Till } from "./payment-wire.ts";

/** Nobody shows now what was submitted longer ago: the look for it has an end. */
const LOOK_BACK_SECONDS = 3_600;

/** Logs are behind their state for seconds. */
const UNCLEAR_RETRY_SECONDS = 5;

/** Of the payment that a row is of. */
export const chargedOf = (row: Row): Charged =>
  isCharged(row) ? "yes" : row.state === "settling" || row.state === "held" ? "unknown" : "none";

/** The chain as it was read for a request. */
export type Head = { blockNumber: number; blockTimestamp: number };

/**
 * Whether a payment that is about to be refused has been taken for us already: anybody may submit it (hard case 60). With the
 * transaction it goes on as paid; otherwise what its refusal has to say. Throws 503 where it is used up and nobody shows by what.
 */
export async function lookForUse(
  { chain }: { chain: Chain },
  { coin }: Pick<Till, "coin">,
  { payment, demand }: { payment: Pick<Payment, "authorization">; demand: Pick<Demand, "seconds"> },
  head: Head,
): Promise<Settlement | Charged> {
  const { authorization } = payment;
  const fromBlock = firstBlockOf(authorization, demand.seconds, head);
  try {
    if (head.blockNumber - fromBlock > blocksIn(LOOK_BACK_SECONDS)) return "unknown";
    const use = await readAuthorizationUse(chain, coin.address, authorization, fromBlock);
    if (use.state === "paid") return { txHash: use.txHash, logIndex: use.logIndex };
    if (isNever(use)) return "none";
  } catch (error) {
    if (error instanceof AppError) return "unknown";
    throw error;
  }
  // It has moved, and may have paid us: whoever is told to sign another one would pay twice.
  throw new AppError(
    "chain_unavailable",
    "The payment is used up, and no two nodes show by what yet: send the same one again, and don't sign another one.",
    { retryAfterSeconds: UNCLEAR_RETRY_SECONDS, charged: "unknown" },
  );
}

/** The block below which it can't have been used: clients sign for as long as they are asked to. */
export function firstBlockOf(
  { validBefore }: Payment["authorization"],
  seconds: number,
  { blockNumber, blockTimestamp }: Head,
): number {
  const age = Math.max(0, blockTimestamp - (validBefore - seconds));
  return Math.max(0, blockNumber - blocksIn(age + 2 * SIGNING_SECONDS));
}

/** More than Base makes. */
const blocksIn = (seconds: number): number => seconds;

/** Two nodes know that it has moved nothing. */
export const isNever = ({ state }: AuthorizationUse): boolean => state === "unused" || state === "cancelled";
