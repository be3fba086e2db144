// The provisioner's own look at a purchase. A row or a job may be forged and one node may lie (hard case 4): before
// anything is rented, the receipt is read from two nodes and compared with the row and with the price at its own block.
import { type Chain, type Node, readTier } from "../../chain/client.ts";
import { SECONDS_PER_DAY } from "../../chain/contract.ts";
import { decodeEvents, type Purchase } from "../../chain/events.ts";
import {
  askTwo,
  type Receipt,
  readAgreedToken,
  readFinalOf,
  readFinalReceipt,
  readReceipt,
  readReceiptAt,
  shownByTwo,
} from "../../chain/witness.ts";
import type { Vm } from "../../db/schema.ts";
import { scannedIn } from "../../db/vms.ts";
import { GiveUp } from "../../errors.ts";
import { parseIncarnation } from "../../model/purchase-key.ts";
import { TIERS } from "../../model/tiers.ts";
import type { ProvisionerConfig } from "../config.ts";
import type { Context } from "../context.ts";

/** The purchase that a row stands for, as the chain tells it; null where the chain has no such transaction (yet). */
export async function readPurchase(
  chain: Chain,
  config: ProvisionerConfig,
  { incarnation }: Pick<Vm, "incarnation">,
  read: typeof readReceipt = readReceipt,
): Promise<Purchase | null> {
  if (parseIncarnation(incarnation).deploymentId !== config.DEPLOYMENT_ID)
    throw new GiveUp("purchase_mismatch", "the row is of another deployment");
  return purchaseOf(chain, config, incarnation, read);
}

/** The same in final history. */
export const readFinalPurchase = (chain: Chain, config: ProvisionerConfig, vm: Pick<Vm, "incarnation">) =>
  readPurchase(chain, config, vm, readFinalReceipt);

/** The same, of whichever deployment. */
export async function purchaseOf(
  chain: Chain,
  config: ProvisionerConfig,
  incarnation: string,
  read: typeof readReceipt = readReceipt,
): Promise<Purchase | null> {
  const { txHash, tokenId, ordinal, contract } = parseIncarnation(incarnation);
  if (contract !== config.CONTRACT_ADDRESS.toLowerCase())
    throw new GiveUp("purchase_mismatch", "the row is of another contract");
  const receipt = await read(chain, txHash);
  return receipt === null ? null : findPurchase(receipt, config, tokenId, ordinal);
}

/**
 * Whether a purchase is gone for good, or has lost its token for good to the one that holds it: two nodes say so, each by
 * history that it calls final itself. Two may be on the same abandoned branch, where a transaction has sold another token.
 */
export async function isGone(chain: Chain, config: ProvisionerConfig, vm: Vm, holder: Vm | null): Promise<boolean> {
  const gone = await shownByTwo(chain, async (node) => {
    const final = await readFinalOf(node);
    const own = await purchaseAt(node, config, vm);
    if (final <= Math.max(vm.blockNumber, own.minedIn)) return null;
    const rival = holder === null ? null : await purchaseAt(node, config, holder);
    if (rival === null || rival.purchase === null) return own.purchase === null ? { gone: true } : null;
    return rival.minedIn <= final && rival.minedIn > (own.purchase?.blockNumber ?? 0) ? { gone: true } : null;
  });
  return gone !== null;
}

/** A row's purchase as one node has it, and the block of its transaction, 0 where there is none. */
async function purchaseAt(node: Node, config: ProvisionerConfig, { incarnation }: Pick<Vm, "incarnation">) {
  const { txHash, tokenId, ordinal } = parseIncarnation(incarnation);
  const receipt = await readReceiptAt(node, txHash);
  if (receipt === null) return { minedIn: 0, purchase: null };
  return { minedIn: receipt.blockNumber, purchase: findPurchase(receipt, config, tokenId, ordinal) };
}

function findPurchase(receipt: Receipt, config: ProvisionerConfig, tokenId: number, ordinal: number): Purchase | null {
  if (receipt.status !== "success") return null;
  const source = { contract: config.CONTRACT_ADDRESS, purchaseEvent: config.PURCHASE_EVENT };
  const { purchases } = decodeEvents(receipt.logs, source);
  return purchases.find((purchase) => purchase.ordinal === ordinal && purchase.tokenId === tokenId) ?? null;
}

/**
 * Holds a row against the chain. "missing": two nodes know no such purchase; "moved": a reorg has put it into another block
 * and the scan has yet to say so; both may pass. Throws `GiveUp` on a mismatch, which an operator has to look at: somebody
 * paid, or somebody wrote into our database.
 */
export async function verifyPurchase({ chain, config, db }: Context, vm: Vm): Promise<"stands" | "missing" | "moved"> {
  const purchase = await readPurchase(chain, config, vm);
  if (purchase === null) return "missing";
  const { tier, durationDays, totalCost, blockNumber, purchaseDate } = purchase;
  if (TIERS[tier] === undefined) throw new GiveUp("unknown_tier", `tier ${tier} is not sold here`);
  if (blockNumber !== vm.blockNumber) return "moved";
  if (
    tier !== vm.tier ||
    purchaseDate !== vm.createdAt ||
    vm.expiresAt < purchaseDate + durationDays * SECONDS_PER_DAY
  ) {
    // Another block of the same height has another time.
    if ((await scannedIn(db, vm.incarnation)) !== purchase.blockHash) return "moved";
    throw new GiveUp("purchase_mismatch", "the row says something else than the receipt");
  }
  // Two nodes, since what follows from a mismatch is final.
  const { pricePerDay } = await askTwo(chain, (node) => readTier(chain, node, tier, BigInt(blockNumber)));
  if (totalCost <= 0n || totalCost !== pricePerDay * BigInt(durationDays)) {
    throw new GiveUp("price_mismatch", `paid ${totalCost}, price ${pricePerDay} x ${durationDays} days at its block`);
  }
  const view = await readAgreedToken(chain, vm.tokenId);
  if (view.blockNumber < blockNumber) return "moved";
  if (!view.valid)
    throw new GiveUp("token_not_valid", "the token's time is over or it was given up before a machine ran");
  return "stands";
}
