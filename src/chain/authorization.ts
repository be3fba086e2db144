// EIP-3009 authorizations: their signers and their use. Only the chain proves a payment (hard case 2): an authorization has
// paid us when one receipt has its `AuthorizationUsed` event and the transfer that it authorizes. The transaction's sender may
// be anybody.
import {
  type Address,
  decodeFunctionResult,
  encodeFunctionData,
  getAddress,
  type Hex,
  hashTypedData,
  isAddressEqual,
  pad,
  parseEventLogs,
  recoverPublicKey,
  toEventSelector,
} from "viem";
import { publicKeyToAddress } from "viem/accounts";
import type { Chain, Node } from "./client.ts";
import { coinAbi } from "./contract.ts";
import { isContractSignature } from "./contract-signature.ts";
import { readLogs } from "./logs.ts";
import { isOtherTwin, PLAIN_SIGNATURE_CHARS } from "./plain-signature.ts";
import {
  type AgreedBlock,
  askFirst,
  type Receipt,
  readAgreedView,
  readFinalReceipt,
  readReceipt,
  shownByTwo,
} from "./witness.ts";

/** A signed `TransferWithAuthorization`. Times are chain time in unix seconds; `value` is in 10^-6 USDC. */
export type Authorization = {
  from: Address;
  to: Address;
  value: bigint;
  validAfter: number;
  validBefore: number;
  nonce: Hex;
  signature: Hex;
};

/** The coin's EIP-712 domain. */
export type Coin = { address: Address; name: string; version: string; chainId: number };

const TYPES = {
  TransferWithAuthorization: [
    { name: "from", type: "address" },
    { name: "to", type: "address" },
    { name: "value", type: "uint256" },
    { name: "validAfter", type: "uint256" },
    { name: "validBefore", type: "uint256" },
    { name: "nonce", type: "bytes32" },
  ],
} as const;

/** The EIP-712 hash that a payer signs. */
const authorizationHash = (coin: Coin, { from, to, value, validAfter, validBefore, nonce }: Authorization): Hex =>
  hashTypedData({
    domain: { name: coin.name, version: coin.version, chainId: coin.chainId, verifyingContract: coin.address },
    types: TYPES,
    primaryType: "TransferWithAuthorization",
    message: { from, to, value, validAfter: BigInt(validAfter), validBefore: BigInt(validBefore), nonce },
  });

/**
 * Verifies an authorization's signature; null when the payer did not sign it. A plain account is verified by recovery, which
 * needs no node and gives the payer's public key (65 bytes, hex); a deployed contract by ERC-1271, which two nodes have to
 * confirm and which gives no public key. `beforeAsking` is awaited before the first call to a node.
 */
export async function authorizationSigner(
  chain: Chain,
  coin: Coin,
  authorization: Authorization,
  beforeAsking: () => Promise<void> = async () => undefined,
): Promise<{ publicKey: Hex | null } | null> {
  const hash = authorizationHash(coin, authorization);
  const { signature, from } = authorization;
  if (signature.length === PLAIN_SIGNATURE_CHARS) {
    const publicKey = await recover(hash, signature);
    if (publicKey !== null && publicKeyToAddress(publicKey) === getAddress(from)) return { publicKey };
  }
  await beforeAsking();
  const isContracts = await isContractSignature(chain, getAddress(from), { hash, signature });
  return isContracts ? { publicKey: null } : null;
}

/**
 * The signature in the form that the coin accepts. Some software ends a plain account's signature in 0 or 1, where the coin
 * expects 27 or 28. A contract's signature stays as it is: the contract reads it byte by byte.
 */
export async function signatureForCoin(coin: Coin, authorization: Authorization): Promise<Hex> {
  const { signature, from } = authorization;
  if (signature.length !== PLAIN_SIGNATURE_CHARS || !/0[01]$/.test(signature)) return signature;
  const publicKey = await recover(authorizationHash(coin, authorization), signature);
  if (publicKey === null || publicKeyToAddress(publicKey) !== getAddress(from)) return signature;
  return `${signature.slice(0, -2)}${signature.endsWith("0") ? "1b" : "1c"}` as Hex;
}

/** The signer's public key; null for an invalid signature, and for a malleable one (high `s`), which the coin refuses. */
async function recover(hash: Hex, signature: Hex): Promise<Hex | null> {
  if (isOtherTwin(signature)) return null;
  try {
    return await recoverPublicKey({ hash, signature });
  } catch {
    return null;
  }
}

export type AuthorizationUse =
  /** The authorization is unused at that block. `balance`: the payer's, in 10^-6 USDC. */
  | { state: "unused"; balance: bigint; blockNumber: number; blockTimestamp: number }
  | ({ state: "paid"; blockNumber: number } & Settlement)
  /** The authorization is used up and did not pay us: the payer cancelled it, or used its nonce for another transfer. */
  | { state: "cancelled"; blockNumber: number; blockTimestamp: number }
  /** The authorization is used up, and no two nodes show the transaction that used it yet: ask again (hard case 28). */
  | { state: "unclear" };

/** The transfer that paid. A transfer belongs to one payment, for ever. */
export type Settlement = {
  txHash: Hex;
  /** The transfer's log index in its block. */
  logIndex: number;
};

type Sought = Pick<Authorization, "from" | "to" | "value" | "nonce" | "validBefore">;

const USED = toEventSelector("event AuthorizationUsed(address indexed authorizer, bytes32 indexed nonce)");
const CANCELLED = toEventSelector("event AuthorizationCanceled(address indexed authorizer, bytes32 indexed nonce)");

/**
 * The use of an authorization, as two nodes report it at one block. `fromBlock` is the first block to search for the
 * transaction that used it. Pass `newest` before a payer is refused: the reason for the refusal may have been seen at a newer
 * block than `latest` shows. Throws `ChainUnavailable` when no two nodes agree.
 */
export async function readAuthorizationUse(
  chain: Chain,
  coin: Address,
  sought: Sought,
  fromBlock: number,
  blockTag: "latest" | "newest" | "finalized" = "latest",
): Promise<AuthorizationUse> {
  const { used, balance, ...block } = await readState(chain, coin, sought, blockTag);
  if (!used) return { state: "unused", balance, ...block };
  const found = await shownByTwo(chain, (node) => findUse(node, coin, sought, fromBlock, block.blockNumber));
  if (found === null) {
    // An authorization that was used before `fromBlock` can't have paid us.
    const before = fromBlock === 0 ? null : await readState(chain, coin, sought, fromBlock - 1).catch(() => null);
    return before?.used === true ? { state: "cancelled", ...block } : { state: "unclear" };
  }
  const receipt = await (blockTag === "finalized" ? readFinalReceipt : readReceipt)(chain, found.txHash);
  const outcome = receipt === null ? null : outcomeIn(receipt, coin, sought);
  if (receipt === null || outcome === null) return { state: "unclear" };
  if (outcome === "cancelled") return { state: "cancelled", ...block };
  return { state: "paid", txHash: found.txHash, logIndex: outcome.logIndex, blockNumber: receipt.blockNumber };
}

/** Whether an authorization is used up at the newest block that two nodes have. */
export const isUsedUp = async (chain: Chain, coin: Address, authorization: Sought): Promise<boolean> =>
  (await readState(chain, coin, authorization, "newest")).used;

/** An authorization's use and its payer's balance, at one block: the money of a used authorization is already off it. */
async function readState(chain: Chain, coin: Address, { from, nonce }: Sought, block: AgreedBlock) {
  const calls = [
    encodeFunctionData({ abi: coinAbi, functionName: "authorizationState", args: [from, nonce] }),
    encodeFunctionData({ abi: coinAbi, functionName: "balanceOf", args: [from] }),
  ].map((callData) => ({ target: coin, callData }));
  const { results, ...at } = await readAgreedView(chain, calls, block);
  const [use, balance] = results;
  if (use?.success !== true || balance?.success !== true)
    throw new Error("the coin contract lacks a function of ERC-20 or EIP-3009");
  const used = decodeFunctionResult({ abi: coinAbi, functionName: "authorizationState", data: use.returnData });
  return { used, balance: BigInt(balance.returnData), ...at };
}

/** An account's USDC balance at a block, as two nodes report it, in 10^-6 USDC. */
export async function readBalanceAt(
  chain: Chain,
  coin: Address,
  account: Address,
  block: AgreedBlock,
): Promise<bigint> {
  const callData = encodeFunctionData({ abi: coinAbi, functionName: "balanceOf", args: [account] });
  const { results } = await readAgreedView(chain, [{ target: coin, callData }], block);
  return BigInt(results[0]?.returnData ?? "0x");
}

/** The indexed topics that both events have: authorizer and nonce. */
const aboutOf = ({ from, nonce }: Pick<Sought, "from" | "nonce">) =>
  [pad(from).toLowerCase() as Hex, nonce.toLowerCase() as Hex] as const;

/** The transaction that used or cancelled an authorization, from one node's logs; null when the logs show none. */
async function findUse(
  node: Node,
  coin: Address,
  { from, nonce }: Sought,
  fromBlock: number,
  toBlock: number,
): Promise<{ txHash: Hex } | null> {
  const filter = { address: coin, topics: [[USED, CANCELLED], ...aboutOf({ from, nonce })] };
  for await (const [entry] of readLogs(node, "uses", filter, fromBlock, toBlock)) {
    if (entry?.transactionHash != null) return { txHash: entry.transactionHash };
  }
  return null;
}

/**
 * The outcome of an authorization in one receipt: the paying transfer's log index, or `cancelled`; null when the logs do not
 * show it. FiatTokenV2 emits `AuthorizationUsed` and, as its next log, the transfer of that authorization. One transaction may
 * use many authorizations, and EIP-3009 binds a nonce to no message, so no other transfer counts (hard case 27).
 */
export function outcomeIn(
  { status, logs }: Pick<Receipt, "status" | "logs">,
  coin: Address,
  { from, to, value, nonce }: Pick<Sought, "from" | "to" | "value" | "nonce">,
): { logIndex: number } | "cancelled" | null {
  if (status !== "success") return null;
  const coins = logs.filter((entry) => isAddressEqual(entry.address, coin));
  const [payer, used] = aboutOf({ from, nonce });
  const isAbout = ({ topics }: Receipt["logs"][number]) => topics[1] === payer && topics[2] === used;
  const at = coins.findIndex((entry) => isAbout(entry) && (entry.topics[0] === USED || entry.topics[0] === CANCELLED));
  const [use, next] = at === -1 ? [] : coins.slice(at, at + 2);
  if (use?.topics[0] === CANCELLED) return "cancelled";
  const [transfer] = next === undefined ? [] : parseEventLogs({ abi: coinAbi, eventName: "Transfer", logs: [next] });
  if (transfer === undefined || !isAddressEqual(transfer.args.from, from)) return null;
  const { args, logIndex } = transfer;
  return isAddressEqual(args.to, to) && args.value === value ? { logIndex } : "cancelled";
}

/** An account's USDC balance from the first node that answers, in 10^-6 USDC. */
export const readBalance = (chain: Chain, coin: Address, account: Address): Promise<bigint> =>
  askFirst(chain, ({ client }) =>
    client.readContract({ address: coin, abi: coinAbi, functionName: "balanceOf", args: [account] }),
  );
