// The buyer of the smoke test: a wallet that pays the contract as any agent does.
import {
  type Address,
  createPublicClient,
  encodeFunctionData,
  fallback,
  type Hex,
  http,
  keccak256,
  type TransactionReceipt,
} from "viem";
import { type PrivateKeyAccount, privateKeyToAccount, privateKeyToAddress } from "viem/accounts";
import { type Chain, connectChain, readTier } from "../../chain/client.ts";
import { coinAbi, contractAbi } from "../../chain/contract.ts";
import { decodeEvents } from "../../chain/events.ts";
import { askTwo } from "../../chain/witness.ts";
import type { EdgeConfig } from "../../edge/config.ts";
import { missing } from "../doctor/finding.ts";
import type { Settings } from "../settings.ts";

const GAS_MARGIN_PERCENT = 130n;
/** More than an approval and a purchase take, as far as that can be said before. */
const GAS_OF_BOTH = 500_000n;
const RECEIPT_MS = 120_000;
const POLL_MS = 1_000;
const DAYS = 1;

export type Offer = { tier: number; name: string; cost: bigint; gasWei: bigint };
export type Buyer = { account: PrivateKeyAccount; config: EdgeConfig; chain: Chain };
/** What has left the wallet, as far as it is known; kept while it happens, so that a failure can tell. */
export type Paid = {
  approval: Hex | null;
  purchase: Hex | null;
  /** Of the purchase. `sent`: it may be mined, or may be yet. */
  state: "none" | "sent" | "mined" | "reverted";
  /** 10^-6 USDC. */
  cost: bigint;
  feesWei: bigint;
};

export const KEY_VARIABLE = "SMOKE_PRIVATE_KEY";

/** Throws, with what to do, where this wallet must not or can't be used. */
export function openBuyer(settings: Settings): Buyer {
  const { edge, provisioner } = settings;
  const key = process.env[KEY_VARIABLE]?.replace(/^0x/, "") ?? "";
  if (!/^[0-9a-f]{64}$/i.test(key)) {
    throw new Error(`Set ${KEY_VARIABLE} to the private key of a wallet with some USDC and ether, 64 hex digits.`);
  }
  const account = privateKeyToAccount(`0x${key}`);
  for (const name of ["RPC_URLS", "CONTRACT_ADDRESS", "CHAIN_ID", "USDC_ADDRESS", "PURCHASE_EVENT"]) {
    const absent = missing(settings, "edge", name);
    if (absent !== null) throw new Error(absent.todo);
  }
  const operator = provisioner.wrong.has("OPERATOR_PRIVATE_KEY") ? undefined : provisioner.config.OPERATOR_PRIVATE_KEY;
  if (operator !== undefined && privateKeyToAddress(operator) === account.address) {
    throw new Error(
      `Give ${KEY_VARIABLE} another wallet than the operator's: the provisioner gives out that wallet's nonces.`,
    );
  }
  return { account, config: edge.config, chain: connectChain(edge.config) };
}

/** Price by two nodes. Throws where the tier is not sold or the wallet can't pay. */
export async function readOffer({ account, config, chain }: Buyer, tier: number): Promise<Offer> {
  const { pricePerDay, active, name } = await askTwo(chain, (node) => readTier(chain, node, tier));
  if (!active) throw new Error(`The contract does not sell tier ${tier}.`);
  const cost = pricePerDay * BigInt(DAYS);
  const client = connect({ config });
  const [usdc, wei, { maxFeePerGas }] = await Promise.all([
    client.readContract({
      address: config.USDC_ADDRESS,
      abi: coinAbi,
      functionName: "balanceOf",
      args: [account.address],
    }),
    client.getBalance({ address: account.address }),
    client.estimateFeesPerGas(),
  ]);
  const gasWei = maxFeePerGas * GAS_OF_BOTH;
  if (usdc < cost)
    throw new Error(`Send USDC to ${account.address}: it has less than the price of a day of tier ${tier}.`);
  if (wei < gasWei) throw new Error(`Send ether to ${account.address}: it has less than two transactions may cost.`);
  return { tier, name, cost, gasWei };
}

/** Approves exactly the price and buys a day. `paid` is filled in as it happens. Resolves with the token. */
export async function buy(buyer: Buyer, offer: Offer, paid: Paid): Promise<number> {
  const { config } = buyer;
  const approval = encodeFunctionData({
    abi: coinAbi,
    functionName: "approve",
    args: [config.CONTRACT_ADDRESS, offer.cost],
  });
  const approving = await sign(buyer, config.USDC_ADDRESS, approval, (hash) => {
    paid.approval = hash;
  });
  const approved = await awaitReceipt(buyer, approving, paid);
  if (approved.status !== "success") throw new Error("the coin refused the approval");
  const purchase = encodeFunctionData({ abi: contractAbi, functionName: "purchaseVM", args: [offer.tier, DAYS] });
  const hash = await sign(buyer, config.CONTRACT_ADDRESS, purchase, (signed) => {
    paid.purchase = signed;
    paid.state = "sent";
  });
  return awaitPurchase(buyer, offer, paid, hash);
}

/** Waits until it is mined. Resolves with the token. */
export async function awaitPurchase(buyer: Buyer, offer: Offer, paid: Paid, hash: Hex): Promise<number> {
  const { config } = buyer;
  const receipt = await awaitReceipt(buyer, hash, paid);
  paid.state = receipt.status === "success" ? "mined" : "reverted";
  if (paid.state === "reverted") throw new Error("the contract refused the purchase");
  paid.cost = offer.cost;
  const source = { contract: config.CONTRACT_ADDRESS, purchaseEvent: config.PURCHASE_EVENT };
  const [bought] = decodeEvents(receipt.logs, source).purchases;
  if (bought === undefined) throw new Error("The purchase is mined, and its receipt has no event that can be read.");
  return bought.tokenId;
}

/** The hash is known, and told, before anything is sent: an answer may be lost. */
async function sign(buyer: Buyer, to: Address, data: Hex, onHash: (hash: Hex) => void): Promise<Hex> {
  const { account, config } = buyer;
  const client = connect(buyer);
  const [estimate, nonce, fees] = await Promise.all([
    client.estimateGas({ account, to, data }),
    client.getTransactionCount({ address: account.address, blockTag: "pending" }),
    client.estimateFeesPerGas(),
  ]);
  const gas = (estimate * GAS_MARGIN_PERCENT) / 100n;
  const { maxFeePerGas, maxPriorityFeePerGas } = fees;
  const serializedTransaction = await account.signTransaction({
    type: "eip1559",
    chainId: config.CHAIN_ID,
    ...{ to, data, gas, nonce, maxFeePerGas, maxPriorityFeePerGas },
  });
  const hash = keccak256(serializedTransaction);
  onHash(hash);
  await client.sendRawTransaction({ serializedTransaction });
  return hash;
}

async function awaitReceipt(buyer: Buyer, hash: Hex, paid: Paid): Promise<TransactionReceipt> {
  const receipt = await connect(buyer).waitForTransactionReceipt({ hash, timeout: RECEIPT_MS });
  paid.feesWei += receipt.gasUsed * receipt.effectiveGasPrice + l1FeeOf(receipt);
  return receipt;
}

/** What the OP stack takes beside gas stands in receipts of its own kind. */
function l1FeeOf(receipt: object): bigint {
  const fee = "l1Fee" in receipt ? receipt.l1Fee : undefined;
  return typeof fee === "string" || typeof fee === "bigint" ? BigInt(fee) : 0n;
}

const connect = ({ config }: Pick<Buyer, "config">) =>
  createPublicClient({
    transport: fallback(config.RPC_URLS.map((url) => http(url, { retryCount: 1, timeout: config.RPC_TIMEOUT_MS }))),
    cacheTime: 0,
    pollingInterval: POLL_MS,
  });
