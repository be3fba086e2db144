// What the chain says for an order, by two nodes: the operator wallet believes no row (hard case 34). Whoever writes the
// database may have an order given; what leaves for it is bounded by what came in for it, which the chain alone tells.
import { type Address, getAddress, isAddressEqual } from "viem";
import {
  type Authorization,
  authorizationSigner,
  readAgreedBalance,
  readAuthorizationUse,
} from "../src/chain/authorization.ts";
import type { Chain } from "../src/chain/client.ts";
import { coinOf } from "../src/chain/coin.ts";
import { SECONDS_PER_DAY } from "../src/chain/contract.ts";
import type { SignedPayment, WalletOrder } from "../src/chain/orders.ts";
import { readAgreedToken, readFinalToken } from "../src/chain/witness.ts";
import type { ProvisionerConfig } from "../src/config.ts";
import { GiveUp } from "../src/errors.ts";
import { purchaseOf } from "../src/provisioner/verify.ts";
import { MAX_RISE, paymentId } from "../src/vms/payments.ts";

type Services = { chain: Chain; config: ProvisionerConfig; operator: Address };

/**
 * `account`: the payment or the purchase that money came in by. `most`: what may leave for it in all, 10^-6 USDC. `sold`: the
 * token of ours that a refund is for, which has to have been handed over for that payment.
 */
export type Evidence = { account: string; most: bigint; sold?: number };
/** `unproven`: final history, or two nodes, may still show it. `not_owed`: the chain says no. */
export type NoEvidence = "unproven" | "not_owed";

const NO_LIMIT = 2n ** 128n;

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
  { paid, cost }: WalletOrder & { kind: "purchase" },
): Promise<Evidence | NoEvidence> {
  const { chain, config } = services;
  const authorization = signed(paid);
  if (BigInt(cost) > authorization.value * MAX_RISE) return "not_owed";
  const arrived = await paidFor(services, paid, "latest");
  if (arrived !== "unproven") return arrived;
  const signer = await authorizationSigner(chain, coinOf(config), authorization);
  if (signer === null) return "not_owed";
  const balance = await readAgreedBalance(chain, config.USDC_ADDRESS, authorization.from);
  return balance < authorization.value ? "unproven" : { account: accountOf(services, paid), most: NO_LIMIT };
}

/** A token goes to whoever has paid us for one that was worth no more. */
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
  const { totalCost, durationDays, purchaseDate } = purchase;
  const seconds = BigInt(durationDays * SECONDS_PER_DAY);
  const left = BigInt(Math.max(0, purchaseDate + Number(seconds) - blockTimestamp));
  return (totalCost * left) / seconds > arrived.most * MAX_RISE ? "not_owed" : arrived;
}

/** That a payment has come in to us, and how much it was. */
async function paidFor(
  services: Services,
  payment: SignedPayment,
  block: "latest" | "finalized",
): Promise<Evidence | NoEvidence> {
  const { chain, config, operator } = services;
  const authorization = signed(payment);
  if (!isAddressEqual(authorization.to, operator)) return "not_owed";
  const use = await readAuthorizationUse(chain, config.USDC_ADDRESS, authorization, payment.fromBlock, block);
  if (use.state === "cancelled") return "not_owed";
  return use.state === "paid" ? { account: accountOf(services, payment), most: authorization.value } : "unproven";
}

const signed = ({ value, fromBlock: _, ...rest }: SignedPayment): Authorization => ({
  ...rest,
  from: getAddress(rest.from),
  to: getAddress(rest.to),
  value: BigInt(value),
});

const accountOf = ({ config }: Services, { from, nonce }: SignedPayment): string =>
  paymentId(config.CHAIN_ID, from, nonce);
