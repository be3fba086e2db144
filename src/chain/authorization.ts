// EIP-3009 authorizations: who signed one, and what became of it. The chain is the only witness of money (hard case 2):
// an authorization paid us where one receipt has its AuthorizationUsed and the transfer that it names, whoever sent it.
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
import { type AgreedBlock, askFirst, type Receipt, readAgreedView, readReceipt, shownByTwo } from "./witness.ts";

/** `TransferWithAuthorization`; times in unix seconds of the chain, `value` in 10^-6 USDC. */
export type Authorization = {
  from: Address;
  to: Address;
  value: bigint;
  validAfter: number;
  validBefore: number;
  nonce: Hex;
  signature: Hex;
};

/** The coin's EIP-712 domain, but for its chain. */
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

/** What a payer signs. */
const authorizationHash = (coin: Coin, { from, to, value, validAfter, validBefore, nonce }: Authorization): Hex =>
  hashTypedData({
    domain: { name: coin.name, version: coin.version, chainId: coin.chainId, verifyingContract: coin.address },
    types: TYPES,
    primaryType: "TransferWithAuthorization",
    message: { from, to, value, validAfter: BigInt(validAfter), validBefore: BigInt(validBefore), nonce },
  });

/**
 * Whether the payer signed it: a plain account by recovery, which asks nobody and gives its public key (65 bytes, hex); a
 * deployed contract by ERC-1271, which two nodes have to confirm. Null where it is neither's signature. `beforeAsking` is
 * awaited before any node is asked.
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
 * The signature as the coin takes it: of a plain account it ends in 27 or 28, whatever the account's software writes there. A
 * contract reads its own, byte by byte.
 */
export async function signatureForCoin(coin: Coin, authorization: Authorization): Promise<Hex> {
  const { signature, from } = authorization;
  if (signature.length !== PLAIN_SIGNATURE_CHARS || !/0[01]$/.test(signature)) return signature;
  const publicKey = await recover(authorizationHash(coin, authorization), signature);
  if (publicKey === null || publicKeyToAddress(publicKey) !== getAddress(from)) return signature;
  return `${signature.slice(0, -2)}${signature.endsWith("0") ? "1b" : "1c"}` as Hex;
}

/** Null for what is no signature, and for the twin of one, which the coin refuses. */
async function recover(hash: Hex, signature: Hex): Promise<Hex | null> {
  if (isOtherTwin(signature)) return null;
  try {
    return await recoverPublicKey({ hash, signature });
  } catch {
    return null;
  }
}

export type AuthorizationUse =
  /** At that block nobody had used it, and its payer had `balance`, 10^-6 USDC. */
  | { state: "unused"; balance: bigint; blockNumber: number; blockTimestamp: number }
  | ({ state: "paid"; blockNumber: number } & Settlement)
  /** It is used up, and its money went nowhere: the payer took it back, or used its nonce for something else. */
  | { state: "cancelled"; blockNumber: number; blockTimestamp: number }
  /** It is used up, and no two nodes show by what: to be asked again (hard case 28). */
  | { state: "unclear" };

/** The transfer that paid. A transfer is one payment's, for ever. */
export type Settlement = {
  txHash: Hex;
  /** Of the transfer, in its block. */
  logIndex: number;
};

type Sought = Pick<Authorization, "from" | "to" | "value" | "nonce" | "validBefore">;

const USED = toEventSelector("event AuthorizationUsed(address indexed authorizer, bytes32 indexed nonce)");
const CANCELLED = toEventSelector("event AuthorizationCanceled(address indexed authorizer, bytes32 indexed nonce)");

/**
 * What became of an authorization, as two nodes tell it at one block. `fromBlock`: where to look from for what used it.
 * `newest` before its payer is refused: what a refusal is for may have been seen at a newer block than `latest` is of.
 * Throws `ChainUnavailable` where no two agree.
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
    // Before anybody could have signed it for us?
    const before = fromBlock === 0 ? null : await readState(chain, coin, sought, fromBlock - 1).catch(() => null);
    return before?.used === true ? { state: "cancelled", ...block } : { state: "unclear" };
  }
  const receipt = await readReceipt(chain, found.txHash);
  const outcome = receipt === null ? null : outcomeIn(receipt, coin, sought);
  if (receipt === null || outcome === null) return { state: "unclear" };
  if (outcome === "cancelled") return { state: "cancelled", ...block };
  return { state: "paid", txHash: found.txHash, logIndex: outcome.logIndex, blockNumber: receipt.blockNumber };
}

/** Whether it is used up, as two nodes tell it at the newest block that two have. */
export const isUsedUp = async (chain: Chain, coin: Address, authorization: Sought): Promise<boolean> =>
  (await readState(chain, coin, authorization, "newest")).used;

/** Its use and its payer's balance at one block: what has paid us has left that balance. */
async function readState(chain: Chain, coin: Address, { from, nonce }: Sought, block: AgreedBlock) {
  const calls = [
    encodeFunctionData({ abi: coinAbi, functionName: "authorizationState", args: [from, nonce] }),
    encodeFunctionData({ abi: coinAbi, functionName: "balanceOf", args: [from] }),
  ].map((callData) => ({ target: coin, callData }));
  const { results, ...at } = await readAgreedView(chain, calls, block);
  const [use, balance] = results;
  if (use?.success !== true || balance?.success !== true)
    throw new Error("the coin does not know a function of ERC-20 and EIP-3009");
  const used = decodeFunctionResult({ abi: coinAbi, functionName: "authorizationState", data: use.returnData });
  return { used, balance: BigInt(balance.returnData), ...at };
}

/** USDC of an account at a block, as two nodes tell it, in 10^-6 USDC. */
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

/** The indexed fields of both events. */
const aboutOf = ({ from, nonce }: Pick<Sought, "from" | "nonce">) =>
  [pad(from).toLowerCase() as Hex, nonce.toLowerCase() as Hex] as const;

/** The transaction that used it up or took it back, by one node's logs; null where they show none. */
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
 * What a transaction did with an authorization; null where its logs don't say. FiatTokenV2 emits `AuthorizationUsed` and,
 * as its next log, the transfer that belongs to it: a transaction may use up many, and a nonce is bound to no message, so
 * no other transfer counts (hard case 27).
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

/** USDC of an account by the first node that answers, in 10^-6 USDC. */
export const readBalance = (chain: Chain, coin: Address, account: Address): Promise<bigint> =>
  askFirst(chain, ({ client }) =>
    client.readContract({ address: coin, abi: coinAbi, functionName: "balanceOf", args: [account] }),
  );
