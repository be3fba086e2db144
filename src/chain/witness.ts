// Reads that two nodes have to agree on. A single node may lag, follow a fork, leave logs out or lie (hard cases 7 and 29): an
// answer that decides about money, keys or machines has to come from two nodes, equal in every field that is used afterwards.
// An `ask` therefore returns exactly the fields that its caller uses, and whole answers are compared.
import { type Address, type Hex, type Log, TransactionReceiptNotFoundError } from "viem";
import { AppError } from "../errors.ts";
import { errorFields, log } from "../log.ts";
import {
  type BlockChoice,
  type BlockView,
  type Chain,
  ChainUnavailable,
  type Head,
  type Node,
  readAtOneBlock,
  readHead,
  type TokenView,
  tokenCalls,
  toTokenView,
} from "./client.ts";

/**
 * The first accepted answer; the nodes are asked in turn. Throws `ChainUnavailable` when no node gives one, or
 * `chain_answered_nonsense` when the last error was that.
 */
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

/**
 * The first answer that is not null. Null is a refusal, and counts only when two nodes give it: one wrong node must not refuse
 * a call that others accept.
 */
export function unlessTwoRefuse<T>(chain: Chain, ask: (node: Node) => Promise<T | null>): Promise<T | null> {
  let refusals = 0;
  return askFirst(chain, ask, (answer) => answer !== null || ++refusals >= witnessesOf(chain));
}

/** The error when no node answered: 502 if the last node's answer was malformed, 503 otherwise. */
const unanswered = (cause: unknown): AppError =>
  cause instanceof AppError && cause.code === "chain_answered_nonsense" ? cause : new ChainUnavailable({ cause });

/** The number of nodes that have to agree: two, or one when a single node is configured. */
export const witnessesOf = ({ nodes }: Chain): number => Math.min(2, nodes.length);

type Asked<T> = { agreed: T | null; answers: T[]; cause: unknown };

/** The answer that enough nodes give; null when too few agree. */
function agreedAmong<T>(chain: Chain, answers: readonly T[]): T | null {
  const counts = new Map<string, number>();
  for (const answer of answers) {
    const text = textOf(answer);
    const count = (counts.get(text) ?? 0) + 1;
    counts.set(text, count);
    if (count >= witnessesOf(chain)) return answer;
  }
  return null;
}

/** Asks all nodes at once until `isEnough`, by default until enough of them agree: a node that hangs costs no time. */
async function askAll<T>(
  chain: Chain,
  ask: (node: Node) => Promise<T>,
  isEnough = (answers: readonly T[]): boolean => agreedAmong(chain, answers) !== null,
): Promise<Asked<T>> {
  const answers: T[] = [];
  let cause: unknown;
  return new Promise((resolve) => {
    let pending = chain.nodes.length;
    const end = () => resolve({ agreed: agreedAmong(chain, answers), answers, cause });
    for (const node of chain.nodes) {
      ask(node)
        .then((answer) => {
          answers.push(answer);
          if (isEnough(answers)) end();
        })
        .catch((error: unknown) => {
          cause = error;
          log("warn", "rpc_failed", { node: node.name, ...errorFields(error) });
        })
        .finally(() => {
          pending -= 1;
          if (pending === 0) end();
        });
    }
  });
}

const textOf = (answer: unknown): string =>
  JSON.stringify(answer, (_key, value: unknown) => (typeof value === "bigint" ? `${value}n` : value)) ?? "nothing";

/** The answer that two nodes agree on. Throws `ChainUnavailable` when no two agree. */
export async function askTwo<T>(chain: Chain, ask: (node: Node) => Promise<T>): Promise<T> {
  const { agreed, answers, cause } = await askAll(chain, ask);
  if (agreed !== null) return agreed;
  if (answers.length > 1) log("security", "rpc_sources_disagree", { answers: answers.length });
  throw answers.length === 0 ? unanswered(cause) : new ChainUnavailable({ cause });
}

/** Within a factor of two: nodes a few blocks apart differ by less. */
const isNear = (a: bigint, b: bigint): boolean => a <= 2n * b && b <= 2n * a;

/**
 * The answers of two nodes whose numbers are near each other, the lower number first: a value that changes with each block is
 * seldom equal at two nodes. Throws `ChainUnavailable` when no two are near each other.
 */
export async function askNear<T>(
  chain: Chain,
  ask: (node: Node) => Promise<T>,
  numberOf: (answer: T) => bigint,
): Promise<readonly [T, T]> {
  const pairOf = (answers: readonly T[]): readonly [T, T] | null => {
    const sorted = [...answers].sort((a, b) => (numberOf(a) < numberOf(b) ? -1 : 1));
    if (witnessesOf(chain) === 1) return sorted[0] === undefined ? null : [sorted[0], sorted[0]];
    for (const [i, answer] of sorted.entries()) {
      const next = sorted[i + 1];
      if (next !== undefined && isNear(numberOf(answer), numberOf(next))) return [answer, next];
    }
    return null;
  };
  const { answers, cause } = await askAll(chain, ask, (some) => pairOf(some) !== null);
  const pair = pairOf(answers);
  if (pair !== null) return pair;
  if (answers.length > 1) log("security", "rpc_sources_disagree", { answers: answers.length });
  throw answers.length === 0 ? unanswered(cause) : new ChainUnavailable({ cause });
}

/** The object that two nodes show; null when no two nodes show the same one. Throws `ChainUnavailable` when no node answers. */
export async function shownByTwo<T extends object>(
  chain: Chain,
  ask: (node: Node) => Promise<T | null>,
): Promise<T | null> {
  const shown: T[] = [];
  const { agreed, answers, cause } = await askAll(chain, async (node) => {
    const answer = await ask(node);
    if (answer !== null) shown.push(answer);
    // Two nodes that show nothing do not count as agreement: a third may have the object before them.
    return answer ?? { nothingAt: node.name };
  });
  if (answers.length === 0) throw unanswered(cause);
  return agreed !== null && shown.some((one) => one === agreed) ? (agreed as T) : null;
}

/**
 * Whether a node is on a fork: two other nodes agree on another hash at the block's number. A node without that block does not
 * count. The result is false as soon as one other node shows the same block.
 */
export function isOnFork({ nodes }: Chain, node: Node, { number, hash }: Head): Promise<boolean> {
  const others = nodes.length < 3 ? [] : nodes.filter((one) => one !== node);
  const shown = new Set<Hex>();
  const look = async (other: Node): Promise<boolean | null> => {
    const block = await readHead(other, number).catch(() => null);
    if (block === null) return null;
    if (block.hash === hash) return false;
    if (shown.has(block.hash)) return true;
    shown.add(block.hash);
    return null;
  };
  return new Promise((resolve) => {
    const looks = others.map((other) => look(other).then((isOther) => void (isOther !== null && resolve(isOther))));
    void Promise.all(looks).then(() => resolve(false));
  });
}

/** The highest block that two nodes call final: the lower of two that differ. */
export const readFinalNumber = async (chain: Chain): Promise<number> => (await readFinals(chain)).number;

/** Like `readFinalNumber`, with each node's own final block number. */
async function readFinals(chain: Chain): Promise<{ number: number; of: (node: Node) => Promise<number> }> {
  const told = new Map<Node, Promise<number>>();
  const { answers } = await askAll(chain, (node) => {
    const number = readFinalOf(node);
    told.set(node, number);
    return number;
  });
  const number = answers.sort((a, b) => b - a)[witnessesOf(chain) - 1];
  if (number === undefined) throw new ChainUnavailable();
  return { number, of: (node) => told.get(node) ?? readFinalOf(node) };
}

export const readFinalOf = async (node: Node): Promise<number> => (await readHead(node, "finalized")).number;

/**
 * The results of calls at the highest block that two nodes call final, from nodes that call this block final themselves. A node
 * on a fork has another block at that number and never calls it final; with one lying node it would otherwise make two.
 */
async function readFinalView(chain: Chain, calls: Calls): Promise<BlockView> {
  const { number, of } = await readFinals(chain);
  return askTwo(chain, async (node) => {
    if ((await of(node)) < number) throw new ChainUnavailable();
    return readAtOneBlock(node, calls, number);
  });
}

type Calls = readonly { target: Address; callData: Hex }[];

/** Two nodes within this distance follow the same head: no third node has to be asked. */
const NEIGHBOUR_BLOCKS = 3;

/**
 * `latest`: the highest block that both of the first two nodes to answer have; it may be a few blocks old. `newest`: the
 * highest block that any two nodes have. It waits for every node, so it is for decisions against a payer or an owner.
 */
export type AgreedBlock = BlockChoice | "newest";

/** The results of calls at one block, as two nodes agree. Throws `ChainUnavailable` when no two nodes agree. */
export async function readAgreedView(chain: Chain, calls: Calls, block: AgreedBlock = "latest"): Promise<BlockView> {
  const at = (number: number) => askTwo(chain, (node) => readAtOneBlock(node, calls, number));
  if (block === "finalized") return readFinalView(chain, calls);
  if (block !== "latest" && block !== "newest") return at(block);
  const areNeighbours = ([one, other]: readonly BlockView[]) =>
    one !== undefined &&
    other !== undefined &&
    one.blockNumber !== other.blockNumber &&
    Math.abs(one.blockNumber - other.blockNumber) <= NEIGHBOUR_BLOCKS;
  const isEnough = (some: readonly BlockView[]) =>
    block === "latest" && (agreedAmong(chain, some) !== null || areNeighbours(some));
  const { agreed, answers, cause } = await askAll(chain, (node) => readAtOneBlock(node, calls), isEnough);
  if (block === "latest" && agreed !== null) return agreed;
  const numbers = answers.map(({ blockNumber }) => blockNumber).sort((a, b) => b - a);
  const [highest, second] = [numbers[0], numbers[witnessesOf(chain) - 1]];
  if (highest === undefined || second === undefined) throw unanswered(cause);
  const alike = agreedAmong(
    chain,
    answers.filter(({ blockNumber }) => blockNumber === second),
  );
  if (alike !== null) return alike;
  // Different answers at the same block: a node lies or is on a fork.
  if (highest === second) log("security", "rpc_sources_disagree", { answers: answers.length });
  return at(second);
}

/** A token's owner and validity at one block, as two nodes agree. */
export const readAgreedToken = async (
  chain: Chain,
  tokenId: number,
  blockTag: "latest" | "finalized" = "latest",
): Promise<TokenView> => toTokenView(await readAgreedView(chain, tokenCalls(chain, BigInt(tokenId)), blockTag));

export const readFinalToken = (chain: Chain, tokenId: number): Promise<TokenView> =>
  readAgreedToken(chain, tokenId, "finalized");

/** Like `readAgreedToken`, for several tokens at one block in one call. */
export async function readAgreedTokens(
  chain: Chain,
  tokenIds: readonly number[],
  blockTag: "latest" | "finalized",
): Promise<TokenView[]> {
  const calls = tokenIds.map((tokenId) => tokenCalls(chain, BigInt(tokenId)));
  const view = await readAgreedView(chain, calls.flat(), blockTag);
  return calls.map(({ length }, i) =>
    toTokenView({ ...view, results: view.results.slice(i * length, (i + 1) * length) }),
  );
}

/** The fields of a receipt that decisions use. `logs` are in chain order. */
export type Receipt = {
  status: "success" | "reverted";
  blockNumber: number;
  blockHash: Hex;
  logs: readonly Log<bigint, number, false>[];
};

/** A transaction's receipt, as two nodes agree; null when two nodes have none. Throws `ChainUnavailable` when no two agree. */
export async function readReceipt(chain: Chain, hash: Hex): Promise<Receipt | null> {
  const { receipt } = await askTwo(chain, async (node) => ({ receipt: await readReceiptAt(node, hash) }));
  return receipt;
}

/**
 * A transaction's receipt, by two nodes that each call its block final; null where two have none there. A node on a fork does not
 * call it final, and a liar beside that node would make two.
 */
export async function readFinalReceipt(chain: Chain, hash: Hex): Promise<Receipt | null> {
  const { receipt } = await askTwo(chain, async (node) => {
    const final = await readFinalOf(node);
    const receipt = await readReceiptAt(node, hash);
    return { receipt: receipt !== null && receipt.blockNumber <= final ? receipt : null };
  });
  return receipt;
}

/** A transaction's receipt from one node; null when the node has none. */
export async function readReceiptAt({ client }: Node, hash: Hex): Promise<Receipt | null> {
  try {
    const { status, blockNumber, blockHash, logs } = await client.getTransactionReceipt({ hash });
    const inOrder = [...logs].sort((a, b) => a.logIndex - b.logIndex).map(ofReceipt);
    return { status, blockNumber: Number(blockNumber), blockHash, logs: inOrder };
  } catch (error) {
    if (error instanceof TransactionReceiptNotFoundError) return null;
    throw error;
  }
}

/** A log with the standard fields only: some nodes add fields, like a block time, and others do not. */
const ofReceipt = (entry: Log<bigint, number, false>): Log<bigint, number, false> => {
  const { address, topics, data, blockNumber, blockHash, logIndex, transactionHash, transactionIndex } = entry;
  const lower = address.toLowerCase() as Address;
  return {
    address: lower,
    topics,
    data,
    blockNumber,
    blockHash,
    logIndex,
    transactionHash,
    transactionIndex,
    removed: false,
  };
};

/**
 * Whether every node says that it has no receipt of a transaction. Two nodes are not enough: one may lag while another lies,
 * and a transaction that was mined must not be sent again.
 */
export async function isUnknown(chain: Chain, hash: Hex): Promise<boolean> {
  const answers = await Promise.allSettled(chain.nodes.map(({ client }) => client.getTransactionReceipt({ hash })));
  return answers.every(
    (answer) => answer.status === "rejected" && answer.reason instanceof TransactionReceiptNotFoundError,
  );
}
