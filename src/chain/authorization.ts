// EIP-3009 authorizations: who signed one, and what became of it. The chain is the only witness of money (hard case 2):
// an authorization paid us where one receipt has its AuthorizationUsed and the transfer that it names, whoever sent it.
import {
  type Address,
  decodeFunctionResult,
  encodeFunctionData,
  getAddress,
  type Hex,
  hashTypedData,
  parseEventLogs,
  recoverPublicKey,
} from "viem";
import { publicKeyToAddress } from "viem/accounts";
import {
  askFirst,
  askTwo,
  type Chain,
  ChainUnavailable,
  isContractSignature,
  type Node,
  readAtOneBlock,
  readReceipt,
} from "./client.ts";
import { coinAbi } from "./contract.ts";
import { rangesOf } from "./log-ranges.ts";
import { isOtherTwin, PLAIN_SIGNATURE_CHARS } from "./plain-signature.ts";

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
 * deployed contract by ERC-1271, which two nodes have to confirm. Null where it is neither's signature.
 */
export async function authorizationSigner(
  chain: Chain,
  coin: Coin,
  authorization: Authorization,
): Promise<{ publicKey: Hex | null } | null> {
  const hash = authorizationHash(coin, authorization);
  const { signature, from } = authorization;
  if (signature.length === PLAIN_SIGNATURE_CHARS) {
    const publicKey = await recover(hash, signature);
    if (publicKey !== null && publicKeyToAddress(publicKey) === getAddress(from)) return { publicKey };
  }
  const isContracts = await isContractSignature(chain, getAddress(from), { hash, signature, plain: true });
  return isContracts ? { publicKey: null } : null;
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
  /** At a block of that time nobody had used it. */
  | { state: "unused"; blockNumber: number; blockTimestamp: number }
  | { state: "paid"; txHash: Hex; blockNumber: number }
  /** The payer took it back: it never moves anything. */
  | { state: "cancelled"; blockNumber: number; blockTimestamp: number };

type Sought = Pick<Authorization, "from" | "to" | "value" | "nonce" | "validBefore">;

/**
 * What became of an authorization, by two nodes. `fromBlock`: a block before which it was not signed. Throws
 * `ChainUnavailable` where no two agree, as while one of them is behind.
 */
export async function readAuthorizationUse(
  chain: Chain,
  coin: Address,
  sought: Sought,
  fromBlock: number,
  blockTag: "latest" | "finalized" = "latest",
): Promise<AuthorizationUse> {
  const args = [sought.from, sought.nonce] as const;
  const callData = encodeFunctionData({ abi: coinAbi, functionName: "authorizationState", args });
  const view = await askTwo(
    chain,
    async (node) => {
      const { results, ...block } = await readAtOneBlock(node, [{ target: coin, callData }], blockTag);
      const [answer] = results;
      if (answer?.success !== true) throw new Error("the coin does not know EIP-3009");
      const data = answer.returnData;
      return { used: decodeFunctionResult({ abi: coinAbi, functionName: "authorizationState", data }), ...block };
    },
    // What follows from the block's time is final: it is agreed on as well.
    ({ used, blockTimestamp }) => `${used}/${blockTimestamp >= sought.validBefore}`,
  );
  const { used, ...block } = view;
  if (!used) return { state: "unused", ...block };
  const { txHash } = await askTwo(
    chain,
    async (node) => ({ txHash: await findUse(node, coin, sought, fromBlock, blockTag) }),
    (found) => found.txHash ?? "none",
  );
  if (txHash === null) return { state: "cancelled", ...block };
  const receipt = await readReceipt(chain, txHash);
  if (receipt === null) throw new ChainUnavailable();
  if (!hasPaid(receipt, coin, sought)) return { state: "cancelled", ...block };
  return { state: "paid", txHash, blockNumber: Number(receipt.blockNumber) };
}

async function findUse(
  { client }: Node,
  coin: Address,
  { from, nonce }: Sought,
  fromBlock: number,
  blockTag: "latest" | "finalized",
): Promise<Hex | null> {
  // Each by its own word: one that names too low a block hides what was used from nobody else.
  const toBlock = Number((await client.getBlock({ blockTag })).number);
  const event = { address: coin, abi: coinAbi, eventName: "AuthorizationUsed" } as const;
  for (const range of rangesOf(fromBlock, toBlock)) {
    const [entry] = await client.getContractEvents({ ...event, args: { authorizer: from, nonce }, ...range });
    if (entry?.transactionHash != null) return entry.transactionHash;
  }
  return null;
}

type Receipt = NonNullable<Awaited<ReturnType<typeof readReceipt>>>;

/** Both events, by the coin, in one receipt. */
export function hasPaid(receipt: Receipt, coin: Address, { from, to, value, nonce }: Sought): boolean {
  if (receipt.status !== "success") return false;
  const logs = receipt.logs.filter((entry) => entry.address.toLowerCase() === coin.toLowerCase());
  const same = (a: string, b: string) => a.toLowerCase() === b.toLowerCase();
  const used = parseEventLogs({ abi: coinAbi, eventName: "AuthorizationUsed", logs });
  const moved = parseEventLogs({ abi: coinAbi, eventName: "Transfer", logs });
  return (
    used.some(({ args }) => same(args.authorizer, from) && same(args.nonce, nonce)) &&
    moved.some(({ args }) => same(args.from, from) && same(args.to, to) && args.value === value)
  );
}

/** USDC of an account as a node has it, at its head or at a block; 10^-6 USDC. */
export const balanceOf =
  (coin: Address, account: Address, blockNumber?: bigint) =>
  ({ client }: Node): Promise<bigint> => {
    const at = blockNumber === undefined ? {} : { blockNumber };
    return client.readContract({ address: coin, abi: coinAbi, functionName: "balanceOf", args: [account], ...at });
  };

/** USDC of an account by the first node that answers, in 10^-6 USDC. */
export const readBalance = (chain: Chain, coin: Address, account: Address): Promise<bigint> =>
  askFirst(chain, balanceOf(coin, account));

/** The same as two nodes agree on it. */
export const readAgreedBalance = async (chain: Chain, coin: Address, account: Address): Promise<bigint> => {
  const read = balanceOf(coin, account);
  const ask = async (node: Node) => ({ usdc6: await read(node) });
  return (await askTwo(chain, ask, ({ usdc6 }) => String(usdc6))).usdc6;
};
