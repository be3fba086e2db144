// What the chain says for an order, by two nodes: the operator wallet believes no row (hard case 34). Whoever writes the
// database may have an order given; what leaves for it is bounded by what came in for it, which the chain alone tells.
import { type Address, getAddress, isAddressEqual } from "viem";
import {
  type Authorization,
  type AuthorizationUse,
  authorizationSigner,
  readAuthorizationUse,
} from "../src/chain/authorization.ts";
import { type Chain, readTier } from "../src/chain/client.ts";
import { coinOf } from "../src/chain/coin.ts";
import { SECONDS_PER_DAY } from "../src/chain/contract.ts";
import type { SignedPayment, WalletOrder } from "../src/chain/orders.ts";
import { askTwo, readAgreedToken, readFinalNumber, readFinalToken } from "../src/chain/witness.ts";
import { GiveUp } from "../src/errors.ts";
import { heldTolerance, MAX_RISE, paymentId } from "../src/model/payment.ts";
import type { ProvisionerConfig } from "../src/provisioner/config.ts";
import { purchaseOf } from "../src/provisioner/machines/verify.ts";

type Services = { chain: Chain; config: ProvisionerConfig; operator: Address };

/**
 * `account`: the payment or the purchase that money came in by. `most`: what may leave for it in all, 10^-6 USDC. `sold`: the
 * token of ours that a refund is for, which has to have been handed over for that payment.
 */
export type Evidence = { account: string; most: bigint; sold?: number };
/** `unproven`: final history, or two nodes, may still show it. `not_owed`: the chain says no. */
export type NoEvidence = "unproven" | "not_owed";

const NO_LIMIT = 2n ** 128n;
/** A quote that is older than a day of Base's blocks is none. */
const QUOTED_BLOCKS = 43_200;

export async function readEvidence(services: Services, order: WalletOrder): Promise<Evidence | NoEvidence> {
  try {
    return await evidenceOf(services, order);
  } catch (error) {
    // A purchase of another contract, or a key that is none's.
    if (error instanceof GiveUp) return "not_owed";
    throw error;
  }
}

function evidenceOf(services: Services, order: WalletOrder): Promise<Evidence | NoEvidence> {
  switch (order.kind) {
    case "pay":
      return evidenceOfRefund(services, order);
    case "purchase":
      return evidenceOfSale(services, order);
    case "transfer":
      return evidenceOfDelivery(services, order);
    case "capture":
      return evidenceOfCapture(services, order);
  }
}

/** Somebody's own payment to somebody else is nothing that we spend gas on. */
async function evidenceOfCapture(
  { operator, config }: Services,
  { from, to, nonce }: WalletOrder & { kind: "capture" },
): Promise<Evidence | NoEvidence> {
  return isAddressEqual(to, operator) ? { account: paymentId(config.CHAIN_ID, from, nonce), most: 0n } : "not_owed";
}

/** A refund leaves on final history, to whom the chain names, and for no more than was paid. */
async function evidenceOfRefund(
  services: Services,
  { to, owed }: WalletOrder & { kind: "pay" },
): Promise<Evidence | NoEvidence> {
  const { chain, config, operator } = services;
  const { purchase: incarnation, payment } = owed;
  if (incarnation === undefined) {
    const isPayers = payment !== undefined && isAddressEqual(to, payment.from);
    return isPayers ? paidFor(services, payment, "finalized") : "not_owed";
  }
  const purchase = await purchaseOf(chain, config, incarnation);
  if (purchase === null) return "unproven";
  const { owner, blockNumber } = await readFinalToken(chain, purchase.tokenId);
  if (purchase.blockNumber > blockNumber) return "unproven";
  if (owner === null || !isAddressEqual(owner, to)) return "not_owed";
  // Bought by us, for somebody who has paid us: what came in is that.
  if (isAddressEqual(purchase.buyer, operator)) {
    const arrived = payment === undefined ? "not_owed" : await paidFor(services, payment, "finalized");
    return typeof arrived === "string" ? arrived : { ...arrived, sold: purchase.tokenId };
  }
  // A purchase is one, whichever deployment's row names it.
  return { account: incarnation.slice(incarnation.indexOf("/") + 1), most: purchase.totalCost };
}

/** A token is bought for a payment that has come in, or that its payer has signed and can make. */
async function evidenceOfSale(
  services: Services,
  { paid, cost, tier, durationDays }: WalletOrder & { kind: "purchase" },
): Promise<Evidence | NoEvidence> {
  const { chain, config } = services;
  const authorization = signed(paid);
  if (BigInt(cost) > authorization.value * MAX_RISE) return "not_owed";
  // What was paid is the price of these days of this tier: a row may name others.
  const isPrice = (pricePerDay: bigint) => pricePerDay * BigInt(durationDays) === authorization.value;
  if (!(await hadPrice(chain, tier, paid, isPrice))) return "not_owed";
  const use = await useOf(services, paid, "latest");
  if (use === null) return "not_owed";
  if (use.state !== "unused") return evidenceIn(services, paid, use);
  // Nobody can take it any more, or not before the machine's time is over.
  const { validAfter, validBefore } = authorization;
  if (use.blockTimestamp >= validBefore || use.blockTimestamp < validAfter) return "not_owed";
  const signer = await authorizationSigner(chain, coinOf(config), authorization);
  if (signer === null) return "not_owed";
  return use.balance < authorization.value ? "unproven" : { account: accountOf(services, paid), most: NO_LIMIT };
}

/**
 * Whether a tier's price is as it has to be: now, or at the block of the quote that the payment was signed for. The price may
 * rise or fall in between, and is the contract's at either time.
 */
async function hadPrice(
  chain: Chain,
  tier: number,
  { quotedBlock }: SignedPayment,
  isPrice: (pricePerDay: bigint) => boolean,
): Promise<boolean> {
  const isPriceAt = async (block?: bigint) => {
    const { pricePerDay } = await askTwo(chain, (node) => readTier(chain, node, tier, block));
    return pricePerDay > 0n && isPrice(pricePerDay);
  };
  if (await isPriceAt()) return true;
  if (quotedBlock === undefined || quotedBlock < (await readFinalNumber(chain)) - QUOTED_BLOCKS) return false;
  return isPriceAt(BigInt(quotedBlock));
}

/** A token goes to whoever has paid us for one of which as much is left. */
async function evidenceOfDelivery(
  services: Services,
  { to, tokenId, purchase: incarnation, paid }: WalletOrder & { kind: "transfer" },
): Promise<Evidence | NoEvidence> {
  const { chain, config, operator } = services;
  if (!isAddressEqual(to, paid.from)) return "not_owed";
  const arrived = await paidFor(services, paid, "latest");
  if (typeof arrived === "string") return arrived;
  const purchase = await purchaseOf(chain, config, incarnation);
  if (purchase === null) return "unproven";
  if (purchase.tokenId !== tokenId || !isAddressEqual(purchase.buyer, operator)) return "not_owed";
  const { blockTimestamp } = await readAgreedToken(chain, tokenId);
  const left = Math.max(0, purchase.purchaseDate + purchase.durationDays * SECONDS_PER_DAY - blockTimestamp);
  // What a held token may last longer than was ordered is handed over with it (hard case 33).
  const isWorth = (pricePerDay: bigint) => {
    const ordered = Number((arrived.most * BigInt(SECONDS_PER_DAY)) / pricePerDay);
    return left <= ordered + heldTolerance(ordered);
  };
  return (await hadPrice(chain, purchase.tier, paid, isWorth)) ? arrived : "not_owed";
}

/** That a payment has come in to us, and how much it was. */
async function paidFor(
  services: Services,
  payment: SignedPayment,
  block: "latest" | "finalized",
): Promise<Evidence | NoEvidence> {
  const use = await useOf(services, payment, block);
  return use === null ? "not_owed" : evidenceIn(services, payment, use);
}

/** What became of a payment; null where it is not to us. */
async function useOf(
  { chain, config, operator }: Services,
  payment: SignedPayment,
  block: "latest" | "finalized",
): Promise<AuthorizationUse | null> {
  const authorization = signed(payment);
  if (!isAddressEqual(authorization.to, operator)) return null;
  return readAuthorizationUse(chain, config.USDC_ADDRESS, authorization, payment.fromBlock, block);
}

function evidenceIn(services: Services, payment: SignedPayment, { state }: AuthorizationUse): Evidence | NoEvidence {
  if (state === "cancelled") return "not_owed";
  return state === "paid" ? { account: accountOf(services, payment), most: BigInt(payment.value) } : "unproven";
}

const signed = ({ value, fromBlock: _, quotedBlock: _block, ...rest }: SignedPayment): Authorization => ({
  ...rest,
  from: getAddress(rest.from),
  to: getAddress(rest.to),
  value: BigInt(value),
});

const accountOf = ({ config }: Services, { from, nonce }: SignedPayment): string =>
  paymentId(config.CHAIN_ID, from, nonce);
