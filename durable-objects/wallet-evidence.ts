// An order's evidence on chain, by two nodes: the operator wallet does not trust the database (hard case 34). Write access to
// the database is enough to place an order, but the money that came in on chain limits how much leaves for it.
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
import { askTwo, readAgreedToken, readFinalNumber, readFinalReceipt, readFinalToken } from "../src/chain/witness.ts";
import { GiveUp } from "../src/errors.ts";
import { heldTolerance, MAX_RISE, paymentId } from "../src/model/payment.ts";
import type { ProvisionerConfig } from "../src/provisioner/config.ts";
import { purchaseOf } from "../src/provisioner/machines/verify.ts";

type Services = { chain: Chain; config: ProvisionerConfig; operator: Address };

/**
 * `account`: the payment or the purchase that the money came in for. `most`: the most that may be paid out for it in all, in
 * 10^-6 USDC. `sold`: for the refund of a token that we sold, the token's id; the token must have been transferred for that
 * payment.
 */
export type Evidence = { account: string; most: bigint; sold?: number };
/** `unproven`: the chain does not show it yet, finally and by two nodes. `not_owed`: the chain shows the opposite. */
export type NoEvidence = "unproven" | "not_owed";

const NO_LIMIT = 2n ** 128n;
/** A quote's maximum age: a day of Base's blocks. */
const QUOTED_BLOCKS = 43_200;

export async function readEvidence(services: Services, order: WalletOrder): Promise<Evidence | NoEvidence> {
  try {
    return await evidenceOf(services, order);
  } catch (error) {
    // The incarnation's key names another contract's purchase, or is malformed.
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

/** The wallet spends no gas on a payment to another address. */
async function evidenceOfCapture(
  { operator, config }: Services,
  { from, to, nonce }: WalletOrder & { kind: "capture" },
): Promise<Evidence | NoEvidence> {
  return isAddressEqual(to, operator) ? { account: paymentId(config.CHAIN_ID, from, nonce), most: 0n } : "not_owed";
}

/** A refund needs final history, goes to the recipient that the chain names, and is at most the amount that was paid. */
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
  const purchase = await purchaseOf(chain, config, incarnation, readFinalReceipt);
  if (purchase === null) return "unproven";
  const { owner, blockNumber } = await readFinalToken(chain, purchase.tokenId);
  if (purchase.blockNumber > blockNumber) return "unproven";
  if (owner === null || !isAddressEqual(owner, to)) return "not_owed";
  // The operator wallet bought the token for a payment, so the payment is the money that came in.
  if (isAddressEqual(purchase.buyer, operator)) {
    const arrived = payment === undefined ? "not_owed" : await paidFor(services, payment, "finalized");
    return typeof arrived === "string" ? arrived : { ...arrived, sold: purchase.tokenId };
  }
  // Without the deployment's id: two deployments' rows of one purchase share one account.
  return { account: incarnation.slice(incarnation.indexOf("/") + 1), most: purchase.totalCost };
}

/** A token is bought for a payment that has arrived, or that its payer has signed and can cover. */
async function evidenceOfSale(
  services: Services,
  { paid, cost, tier, durationDays }: WalletOrder & { kind: "purchase" },
): Promise<Evidence | NoEvidence> {
  const { chain, config } = services;
  const authorization = signed(paid);
  if (BigInt(cost) > authorization.value * MAX_RISE) return "not_owed";
  // The payment must be the price of this tier and these days: the database may name others.
  const isPrice = (pricePerDay: bigint) => pricePerDay * BigInt(durationDays) === authorization.value;
  if (!(await hadPrice(chain, tier, paid, isPrice))) return "not_owed";
  const use = await useOf(services, paid, "latest");
  if (use === null) return "not_owed";
  if (use.state !== "unused") return evidenceIn(services, paid, use);
  // The authorization can't be used any more, or not yet.
  const { validAfter, validBefore } = authorization;
  if (use.blockTimestamp >= validBefore || use.blockTimestamp < validAfter) return "not_owed";
  const signer = await authorizationSigner(chain, coinOf(config), authorization);
  if (signer === null) return "not_owed";
  return use.balance < authorization.value ? "unproven" : { account: accountOf(services, paid), most: NO_LIMIT };
}

/**
 * Whether a tier's price passes a test, now or at the block of the payment's quote. The contract's price may have changed
 * between the two; both are valid.
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

/** A token goes to a payer whose payment covers the token's remaining time. */
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
  // A held token may last longer than the order, within the tolerance (hard case 33).
  const isWorth = (pricePerDay: bigint) => {
    const ordered = Number((arrived.most * BigInt(SECONDS_PER_DAY)) / pricePerDay);
    return left <= ordered + heldTolerance(ordered);
  };
  return (await hadPrice(chain, purchase.tier, paid, isWorth)) ? arrived : "not_owed";
}

/** Evidence that a payment has arrived, with its amount. */
async function paidFor(
  services: Services,
  payment: SignedPayment,
  block: "latest" | "finalized",
): Promise<Evidence | NoEvidence> {
  const use = await useOf(services, payment, block);
  return use === null ? "not_owed" : evidenceIn(services, payment, use);
}

/** The use of a payment's authorization; null when its recipient is not the operator wallet. */
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
