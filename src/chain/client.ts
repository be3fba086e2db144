// Reads of the chain over several nodes, none of which is believed further than it must be.
import {
  type Address,
  BaseError,
  type Block,
  createPublicClient,
  decodeFunctionResult,
  defineChain,
  ExecutionRevertedError,
  encodeDeployData,
  encodeFunctionData,
  erc6492SignatureValidatorAbi,
  erc6492SignatureValidatorByteCode,
  type Hex,
  HttpRequestError,
  http,
  multicall3Abi,
  type PublicClient,
  RpcRequestError,
  TimeoutError,
  type TransactionReceipt,
  TransactionReceiptNotFoundError,
} from "viem";
import type { ChainConfig } from "../config.ts";
import { AppError } from "../errors.ts";
import { errorFields, log } from "../log.ts";
import { contractAbi, MULTICALL3, multicallAbi } from "./contract.ts";
import { PLAIN_SIGNATURE_CHARS } from "./plain-signature.ts";

export type Node = { name: string; client: PublicClient };
export type Chain = { nodes: readonly Node[]; contract: Address; timeoutMs: number };

/** A token as one node saw it at one block: ownership, validity, block number and time come from a single call. */
export type TokenView = {
  /** Checksummed; null when the contract knows no such token. */
  owner: Address | null;
  valid: boolean;
  blockNumber: number;
  /** Unix seconds. */
  blockTimestamp: number;
};

/** No node gave an answer. */
export class ChainUnavailable extends AppError {
  constructor(options?: ErrorOptions) {
    super("chain_unavailable", "The chain can't be asked right now; try again in a few seconds.", {
      ...options,
      retryAfterSeconds: 3,
    });
  }
}

/** One viem client per node: failover is ours, since who answered matters. */
export function connectChain(config: ChainConfig): Chain {
  const chain = defineChain({
    id: config.CHAIN_ID,
    name: "Base",
    nativeCurrency: { name: "Ether", symbol: "ETH", decimals: 18 },
    rpcUrls: { default: { http: config.RPC_URLS } },
  });
  const nodes = config.RPC_URLS.map((url, index) => ({
    name: `rpc-${index}`,
    client: createPublicClient({
      chain,
      cacheTime: 0,
      transport: http(url, { retryCount: 0, timeout: config.RPC_TIMEOUT_MS }),
    }) as PublicClient,
  }));
  return { nodes, contract: config.CONTRACT_ADDRESS, timeoutMs: config.RPC_TIMEOUT_MS };
}

/** Asks the nodes in turn until one answers. Throws `ChainUnavailable` when none does. */
export async function askFirst<T>(
  chain: Chain,
  ask: (node: Node) => Promise<T>,
  accept: (answer: T) => boolean = () => true,
): Promise<T> {
  let cause: unknown;
  for (const node of chain.nodes) {
    try {
      const answer = await ask(node);
      if (accept(answer)) return answer;
    } catch (error) {
      cause = error;
      log("warn", "rpc_failed", { node: node.name, ...errorFields(error) });
    }
  }
  throw unanswered(cause);
}

/** 502 where the last node answered nonsense, 503 where none answered. */
const unanswered = (cause: unknown): AppError =>
  cause instanceof AppError && cause.code === "chain_answered_nonsense" ? cause : new ChainUnavailable({ cause });

/**
 * Asks all nodes and returns the first answer that two of them give alike (`key` says what has to be alike). With a
 * single node configured its answer stands. Throws `ChainUnavailable` when no two agree.
 */
export async function askTwo<T extends object>(
  chain: Chain,
  ask: (node: Node) => Promise<T>,
  key: (answer: T) => string,
): Promise<T> {
  if (chain.nodes.length === 1) return askFirst(chain, ask);
  const seen = new Set<string>();
  let cause: unknown;
  // Settles as soon as any two agree, so that a node that hangs costs nothing.
  const agreed = await new Promise<T | null>((resolve) => {
    let pending = chain.nodes.length;
    for (const node of chain.nodes) {
      ask(node)
        .then((answer) => {
          if (seen.has(key(answer))) resolve(answer);
          seen.add(key(answer));
        })
        .catch((error: unknown) => {
          cause = error;
          log("warn", "rpc_failed", { node: node.name, ...errorFields(error) });
        })
        .finally(() => {
          pending -= 1;
          if (pending === 0) resolve(null);
        });
    }
  });
  if (agreed !== null) return agreed;
  if (seen.size > 1) log("security", "rpc_sources_disagree", { answers: seen.size });
  throw new ChainUnavailable({ cause });
}

const BLOCK_CALLS = [
  encodeFunctionData({ abi: multicallAbi, functionName: "getBlockNumber" }),
  encodeFunctionData({ abi: multicallAbi, functionName: "getCurrentBlockTimestamp" }),
];

/** Answers of calls that may fail, at one block, with its number and time (unix seconds). */
export async function readAtOneBlock(
  node: Node,
  calls: readonly { target: Address; callData: Hex }[],
  blockTag: "latest" | "finalized" = "latest",
): Promise<{ results: readonly InnerResult[]; blockNumber: number; blockTimestamp: number }> {
  const all: InnerCall[] = [
    ...calls.map((call) => ({ ...call, allowFailure: true })),
    ...BLOCK_CALLS.map((callData): InnerCall => ({ target: MULTICALL3, callData, allowFailure: false })),
  ];
  const results = await aggregate(node, all, blockTag);
  const [number, timestamp] = results.slice(calls.length);
  if (number === undefined || timestamp === undefined) {
    throw new AppError("chain_answered_nonsense", "An RPC node answered a multicall with too few results.");
  }
  return {
    results: results.slice(0, calls.length),
    blockNumber: Number(BigInt(number.returnData)),
    blockTimestamp: Number(BigInt(timestamp.returnData)),
  };
}

type InnerCall = { target: Address; allowFailure: boolean; callData: Hex };
type InnerResult = { success: boolean; returnData: Hex };

/** Several calls at one block, by Multicall3. */
async function aggregate(
  node: Node,
  calls: readonly InnerCall[],
  blockTag: "latest" | "finalized",
): Promise<readonly InnerResult[]> {
  const call = { abi: multicall3Abi, functionName: "aggregate3" } as const;
  const data = encodeFunctionData({ ...call, args: [calls] });
  const answer = await node.client.request({ method: "eth_call", params: [{ to: MULTICALL3, data }, blockTag] });
  return decodeFunctionResult({ ...call, data: answer });
}

const toOwner = ({ success, returnData }: InnerResult): Address | null =>
  success ? decodeFunctionResult({ abi: contractAbi, functionName: "ownerOf", data: returnData }) : null;

/** Owner, validity, block number and block time of a token in one call (hard case 7). */
export async function readToken(
  chain: Chain,
  node: Node,
  tokenId: bigint,
  blockTag: "latest" | "finalized" = "latest",
): Promise<TokenView> {
  const calls = (["ownerOf", "isTokenValid"] as const).map((functionName) => ({
    target: chain.contract,
    callData: encodeFunctionData({ abi: contractAbi, functionName, args: [tokenId] }),
  }));
  const { results, ...block } = await readAtOneBlock(node, calls, blockTag);
  const [owner, valid] = results;
  if (owner === undefined || valid === undefined) {
    throw new AppError("chain_answered_nonsense", "An RPC node answered a multicall with too few results.");
  }
  return {
    owner: toOwner(owner),
    valid:
      valid.success && decodeFunctionResult({ abi: contractAbi, functionName: "isTokenValid", data: valid.returnData }),
    ...block,
  };
}

/** Owners of tokens as one node sees them now, in one call; null for a token that the contract does not know. */
export async function readOwners(chain: Chain, node: Node, tokenIds: readonly number[]): Promise<(Address | null)[]> {
  const calls = tokenIds.map((tokenId) => ({
    target: chain.contract,
    allowFailure: true,
    callData: encodeFunctionData({ abi: contractAbi, functionName: "ownerOf", args: [BigInt(tokenId)] }),
  }));
  return (await aggregate(node, calls, "latest")).map(toOwner);
}

/** Price per day in 10^-6 USDC, activity and name of a tier, at a block or now. */
export async function readTier(chain: Chain, node: Node, tier: number, blockNumber?: bigint) {
  const [pricePerDay, active, name] = await node.client.readContract({
    address: chain.contract,
    abi: contractAbi,
    functionName: "getTierConfig",
    args: [tier],
    ...(blockNumber === undefined ? {} : { blockNumber }),
  });
  return { pricePerDay, active, name };
}

/** A transaction's receipt as two nodes know it; null where both know none. */
export async function readReceipt(chain: Chain, hash: Hex): Promise<TransactionReceipt | null> {
  const read = async (node: Node) => {
    try {
      return { receipt: await node.client.getTransactionReceipt({ hash }) };
    } catch (error) {
      if (error instanceof TransactionReceiptNotFoundError) return { receipt: null };
      throw error;
    }
  };
  return (await askTwo(chain, read, ({ receipt }) => receipt?.blockHash ?? "none")).receipt;
}

/** Whether every node says that it has no receipt: one may lag while another lies, and what was mined is paid for once. */
export async function isUnknown(chain: Chain, hash: Hex): Promise<boolean> {
  const answers = await Promise.allSettled(chain.nodes.map(({ client }) => client.getTransactionReceipt({ hash })));
  return answers.every(
    (answer) => answer.status === "rejected" && answer.reason instanceof TransactionReceiptNotFoundError,
  );
}

/** A token as two nodes agree on owner and validity. */
export const readAgreedToken = (
  chain: Chain,
  tokenId: number,
  blockTag: "latest" | "finalized" = "latest",
): Promise<TokenView> =>
  askTwo(
    chain,
    (node) => readToken(chain, node, BigInt(tokenId), blockTag),
    (view) => `${view.owner}/${view.valid}`,
  );

export const readFinalToken = (chain: Chain, tokenId: number): Promise<TokenView> =>
  readAgreedToken(chain, tokenId, "finalized");

/**
 * Whether a contract takes a signature for its own: one that is deployed (ERC-1271), or one that the signature itself says
 * how to deploy (ERC-6492). Two nodes have to say the same. A plain account has none: `plain` saves asking for one.
 */
export async function isContractSignature(
  chain: Chain,
  signer: Address,
  { hash, signature, plain }: { hash: Hex; signature: Hex; plain: boolean },
): Promise<boolean> {
  if (plain && !(await isDeployed(chain, signer))) return false;
  const data = encodeDeployData({
    abi: erc6492SignatureValidatorAbi,
    bytecode: erc6492SignatureValidatorByteCode,
    args: [signer, hash, signature],
  });
  const ask = async ({ client }: Node) => {
    try {
      return { valid: Number((await client.call({ data })).data ?? "0x0") === 1 };
    } catch (error) {
      // A contract that reverts says no; a node that does not answer says nothing.
      if (error instanceof BaseError && error.walk((e) => e instanceof ExecutionRevertedError) !== null)
        return { valid: false };
      throw error;
    }
  };
  return (await askTwo(chain, ask, ({ valid }) => String(valid))).valid;
}

/** Whether an account has code, as the first node that answers has it. */
const isDeployed = async (chain: Chain, account: Address): Promise<boolean> =>
  (await askFirst(chain, async ({ client }) => (await client.getCode({ address: account })) ?? "0x")) !== "0x";

/**
 * Why an account did not sign, from a sentence that says it did not: a smart wallet that is not deployed can't be asked, and
 * the coin takes nothing from it.
 */
export async function whyNotSigned(chain: Chain, signer: Address, signature: Hex, sentence: string): Promise<string> {
  if (await isDeployed(chain, signer)) return sentence;
  return signature.length === PLAIN_SIGNATURE_CHARS
    ? `${sentence} A smart wallet has to be deployed first.`
    : `There is no contract at ${signer} on this chain: deploy the smart wallet first.`;
}

export type Head = { number: number; hash: Hex; timestamp: number };

const toHead = (block: Block): Head => {
  if (block.number === null || block.hash === null) {
    throw new AppError("chain_answered_nonsense", "An RPC node answered with a pending block.");
  }
  return { number: Number(block.number), hash: block.hash, timestamp: Number(block.timestamp) };
};

/** The latest block, or the one with that number. */
export const readHead = async (node: Node, blockNumber?: number): Promise<Head> =>
  toHead(await node.client.getBlock(blockNumber === undefined ? {} : { blockNumber: BigInt(blockNumber) }));

/** The highest block that two nodes call final (or the only one does). */
export async function readFinalNumber(chain: Chain): Promise<number> {
  const answers = await Promise.allSettled(
    chain.nodes.map(async ({ client }) => toHead(await client.getBlock({ blockTag: "finalized" })).number),
  );
  const numbers = answers.flatMap((answer) => (answer.status === "fulfilled" ? [answer.value] : []));
  const agreed = numbers.sort((a, b) => b - a)[Math.min(1, chain.nodes.length - 1)];
  if (agreed === undefined) throw new ChainUnavailable();
  return agreed;
}

/** Whether the node itself did not answer, as against answering that the request is wrong or too large. */
export const nodeIsDown = (error: unknown): boolean =>
  error instanceof BaseError &&
  error.walk((e) => e instanceof HttpRequestError || e instanceof TimeoutError) !== null &&
  error.walk((e) => e instanceof RpcRequestError) === null;
