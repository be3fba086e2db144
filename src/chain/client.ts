// RPC nodes, and reads from a single node: blocks, tokens, tiers. Reads that two nodes have to agree on are in witness.ts.
import {
  type Address,
  type Block,
  createPublicClient,
  decodeFunctionResult,
  defineChain,
  encodeFunctionData,
  type Hex,
  hexToNumber,
  http,
  multicall3Abi,
  numberToHex,
  type PublicClient,
  type Transport,
  zeroAddress,
} from "viem";
import type { ChainConfig } from "../config.ts";
import { AppError } from "../errors.ts";
import { allClear, log } from "../log.ts";
import { inTurn } from "../outbound.ts";
import { contractAbi, MULTICALL3, multicallAbi } from "./contract.ts";
import type { Spans } from "./log-ranges.ts";

export type Node = {
  name: string;
  client: PublicClient;
  /** How far a block's time may be ahead of our clock, in seconds. */
  maxAheadSeconds: number;
  /** The configured maximum of blocks per eth_getLogs. */
  maxRange: number;
  /** The ranges that this node has answered and refused. */
  spans: Spans;
};
export type Chain = { nodes: readonly Node[]; contract: Address; timeoutMs: number };

/** Base's block time. */
export const SECONDS_PER_BLOCK = 2;

/** A token at one block, from one node: owner, validity, block number and block time come from a single call. */
export type TokenView = {
  /** Checksummed address; null when the contract has no such token. */
  owner: Address | null;
  valid: boolean;
  blockNumber: number;
  /** Unix seconds. */
  blockTimestamp: number;
};

/** No node answered, or too few nodes agreed. */
export class ChainUnavailable extends AppError {
  constructor(options?: ErrorOptions) {
    super("chain_unavailable", "The chain can't be asked right now; try again in a few seconds.", {
      ...options,
      retryAfterSeconds: 3,
    });
  }
}

/** One viem client per node. Failover is our own, since the callers need to know which node gave an answer. */
export function connectChain(config: ChainConfig): Chain {
  const chain = defineChain({
    id: config.CHAIN_ID,
    name: "Base",
    nativeCurrency: { name: "Ether", symbol: "ETH", decimals: 18 },
    rpcUrls: { default: { http: config.RPC_URLS } },
  });
  const known: Memory = memoryOf.get(config) ?? { chainIds: new Map(), spans: new Map() };
  memoryOf.set(config, known);
  const nodes = config.RPC_URLS.map((url, index) => {
    const name = `rpc-${index}`;
    const transport = http(url, { retryCount: 0, timeout: config.RPC_TIMEOUT_MS });
    const spans = known.spans.get(name) ?? {};
    known.spans.set(name, spans);
    return {
      name,
      client: createPublicClient({
        chain,
        cacheTime: 0,
        transport: ofChain(transport, name, known.chainIds),
      }) as PublicClient,
      maxAheadSeconds: config.CHAIN_MAX_AHEAD_SECONDS,
      maxRange: config.SCAN_MAX_RANGE,
      spans,
    };
  });
  return { nodes, contract: config.CONTRACT_ADDRESS, timeoutMs: config.RPC_TIMEOUT_MS };
}

const ASK_AGAIN_MS = 60_000;
/** Each node's last answer to eth_chainId, with its time in unix milliseconds. */
type ChainIds = Map<string, { id: number; at: number }>;
/** State of the isolate about the nodes of one configuration. */
type Memory = { chainIds: ChainIds; spans: Map<string, Spans> };
const memoryOf = new WeakMap<ChainConfig, Memory>();

/** A transport that accepts answers only from a node of the configured chain. The first call also requests eth_chainId. */
const ofChain =
  (transport: Transport, name: string, chainIds: ChainIds): Transport =>
  (options) => {
    const inner = transport(options);
    const send: typeof inner.request = (call) => inTurn(() => inner.request(call));
    const expected = options.chain?.id;
    const chainId = async (): Promise<number> => {
      const told = chainIds.get(name);
      if (told !== undefined && (told.id === expected || Date.now() - told.at < ASK_AGAIN_MS)) return told.id;
      const id = hexToNumber((await send({ method: "eth_chainId" })) as Hex);
      if (id === expected) allClear("rpc_of_another_chain", name);
      else log("page", "rpc_of_another_chain", { about: name, chainId: id, expected });
      chainIds.set(name, { id, at: Date.now() });
      return id;
    };
    const request = async (call: Parameters<typeof inner.request>[0]) => {
      const [answer, id] = await Promise.all([send(call), chainId()]);
      if (id === expected) return answer;
      throw new AppError("chain_answered_nonsense", `The RPC node ${name} serves chain ${id}, not chain ${expected}.`);
    };
    return { ...inner, request: request as typeof inner.request };
  };

const BLOCK_CALLS = [
  encodeFunctionData({ abi: multicallAbi, functionName: "getBlockNumber" }),
  encodeFunctionData({ abi: multicallAbi, functionName: "getCurrentBlockTimestamp" }),
];

/** The results of calls at one block, with the block's number and time. A call that reverts has `success: false`. */
export async function readAtOneBlock(
  node: Node,
  calls: readonly { target: Address; callData: Hex }[],
  block: BlockChoice = "latest",
): Promise<BlockView> {
  const all: InnerCall[] = [
    ...calls.map((call) => ({ ...call, allowFailure: true })),
    ...BLOCK_CALLS.map((callData): InnerCall => ({ target: MULTICALL3, callData, allowFailure: false })),
  ];
  const results = await aggregate(node, all, block);
  const [number, timestamp] = results.slice(calls.length);
  if (number === undefined || timestamp === undefined) {
    throw new AppError("chain_answered_nonsense", "An RPC node returned too few results for a multicall.");
  }
  const blockTimestamp = Number(BigInt(timestamp.returnData));
  requirePresent(node, blockTimestamp);
  return { results: results.slice(0, calls.length), blockNumber: Number(BigInt(number.returnData)), blockTimestamp };
}

type InnerCall = { target: Address; allowFailure: boolean; callData: Hex };
export type InnerResult = { success: boolean; returnData: Hex };
export type BlockChoice = "latest" | "finalized" | number;
/** Results of calls at one block. `blockTimestamp` is in unix seconds. */
export type BlockView = { results: readonly InnerResult[]; blockNumber: number; blockTimestamp: number };

/**
 * Refuses a block time too far ahead of our clock: deadlines follow block time, and one node must not move them (hard case 29).
 */
function requirePresent({ name, maxAheadSeconds }: Node, timestamp: number): void {
  if (timestamp <= Date.now() / 1_000 + maxAheadSeconds) return;
  throw new AppError("chain_answered_nonsense", `The RPC node ${name} returned a block whose time is in the future.`);
}

/** Several calls at one block, through Multicall3. */
async function aggregate(node: Node, calls: readonly InnerCall[], block: BlockChoice): Promise<readonly InnerResult[]> {
  const call = { abi: multicall3Abi, functionName: "aggregate3" } as const;
  const data = encodeFunctionData({ ...call, args: [calls] });
  const at = typeof block === "number" ? numberToHex(block) : block;
  const answer = await node.client.request({ method: "eth_call", params: [{ to: MULTICALL3, data }, at] });
  return decodeFunctionResult({ ...call, data: answer });
}

/** For an unknown token a contract reverts or returns the zero address. */
function toOwner({ success, returnData }: InnerResult): Address | null {
  if (!success) return null;
  const owner = decodeFunctionResult({ abi: contractAbi, functionName: "ownerOf", data: returnData });
  return owner === zeroAddress ? null : owner;
}

/** A token's owner and validity, with the block's number and time, in one call (hard case 7). */
export const readToken = async (chain: Chain, node: Node, tokenId: bigint): Promise<TokenView> =>
  toTokenView(await readAtOneBlock(node, tokenCalls(chain, tokenId)));

export const tokenCalls = (chain: Chain, tokenId: bigint) =>
  (["ownerOf", "isTokenValid"] as const).map((functionName) => ({
    target: chain.contract,
    callData: encodeFunctionData({ abi: contractAbi, functionName, args: [tokenId] }),
  }));

/** The results of the two calls of `tokenCalls`. */
export function toTokenView({ results, ...block }: BlockView): TokenView {
  const [owner, valid] = results;
  if (owner === undefined || valid === undefined) {
    throw new AppError("chain_answered_nonsense", "An RPC node returned too few results for a multicall.");
  }
  return {
    owner: toOwner(owner),
    valid:
      valid.success && decodeFunctionResult({ abi: contractAbi, functionName: "isTokenValid", data: valid.returnData }),
    ...block,
  };
}

/** The owners of tokens, from one node in one call; null for a token that the contract does not have. */
export async function readOwners(
  chain: Chain,
  node: Node,
  tokenIds: readonly number[],
  block: BlockChoice = "latest",
): Promise<(Address | null)[]> {
  const calls = tokenIds.map((tokenId) => ({
    target: chain.contract,
    allowFailure: true,
    callData: encodeFunctionData({ abi: contractAbi, functionName: "ownerOf", args: [BigInt(tokenId)] }),
  }));
  return (await aggregate(node, calls, block)).map(toOwner);
}

/** A tier's price per day (10^-6 USDC), name and whether it is active, at a block or now. */
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

export type Head = { number: number; hash: Hex; timestamp: number };

const toHead = (node: Node, block: Block): Head => {
  if (block.number === null || block.hash === null) {
    throw new AppError("chain_answered_nonsense", "An RPC node returned a pending block.");
  }
  const timestamp = Number(block.timestamp);
  requirePresent(node, timestamp);
  return { number: Number(block.number), hash: block.hash, timestamp };
};

/** The latest block, the latest final block, or the block with a given number. */
export const readHead = async (node: Node, block: BlockChoice = "latest"): Promise<Head> =>
  toHead(
    node,
    await node.client.getBlock(typeof block === "number" ? { blockNumber: BigInt(block) } : { blockTag: block }),
  );
