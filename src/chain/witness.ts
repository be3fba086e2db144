// What two nodes say alike. One of them may lag, follow a fork, leave logs out or lie (hard cases 7 and 29): where money,
// keys or machines follow from an answer, two nodes have to give the same one, in every field that is used afterwards.
// So an `ask` returns exactly what its caller uses, and whole answers are compared.
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

/**
 * The first answer that is not null. Null is a no, and counts only where two nodes give it: one that is wrong must not stop
 * what others would do.
 */
export function unlessTwoRefuse<T>(chain: Chain, ask: (node: Node) => Promise<T | null>): Promise<T | null> {
  let refusals = 0;
  return askFirst(chain, ask, (answer) => answer !== null || ++refusals >= witnessesOf(chain));
}

/** 502 where the last node answered nonsense, 503 where none answered. */
const unanswered = (cause: unknown): AppError =>
  cause instanceof AppError && cause.code === "chain_answered_nonsense" ? cause : new ChainUnavailable({ cause });

/** How many nodes have to say the same: with a single node configured, its answer stands. */
export const witnessesOf = ({ nodes }: Chain): number => Math.min(2, nodes.length);

type Asked<T> = { agreed: T | null; answers: T[]; cause: unknown };

/** What enough of the answers say alike; null where too few do. */
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

/** Asks all nodes, until they have said enough: unless told otherwise until enough agree, so that one that hangs costs nothing. */
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

/** The answer that two nodes give alike. Throws `ChainUnavailable` where no two do. */
export async function askTwo<T>(chain: Chain, ask: (node: Node) => Promise<T>): Promise<T> {
  const { agreed, answers, cause } = await askAll(chain, ask);
  if (agreed !== null) return agreed;
  if (answers.length > 1) log("security", "rpc_sources_disagree", { answers: answers.length });
  throw answers.length === 0 ? unanswered(cause) : new ChainUnavailable({ cause });
}

/** Nodes a few blocks apart differ by less. */
const isNear = (a: bigint, b: bigint): boolean => a <= 2n * b && b <= 2n * a;

/**
 * The answers of two nodes whose numbers are near each other, the lower first: what moves from block to block is seldom the
 * same at two. Throws `ChainUnavailable` where no two are.
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

/** What two nodes show alike; null where no two do, of those that show anything. Throws `ChainUnavailable` where none answers. */
export async function shownByTwo<T extends object>(
  chain: Chain,
  ask: (node: Node) => Promise<T | null>,
): Promise<T | null> {
  const shown: T[] = [];
  const { agreed, answers, cause } = await askAll(chain, async (node) => {
    const answer = await ask(node);
    if (answer !== null) shown.push(answer);
    // Two that show nothing agree on nothing: a third may show what both have not got yet.
    return answer ?? { nothingAt: node.name };
  });
  if (answers.length === 0) throw unanswered(cause);
  return agreed !== null && shown.some((one) => one === agreed) ? (agreed as T) : null;
}

/**
 * Whether two other nodes show another block in a node's block's place, the same one: it is on a fork. What they don't have
 * yet, or can't tell, says nothing, and nobody waits for it once one of them shows the same block.
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

/** The highest block that two nodes call final: of two that differ, the lower. */
export const readFinalNumber = async (chain: Chain): Promise<number> => (await readFinals(chain)).number;

/** The same, and the number that each node gave for it. */
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
 * Calls at the highest block that two nodes call final, by nodes that call it so: one on a fork has another block there, and
 * never calls it final. A liar beside it would make two.
 */
async function readFinalView(chain: Chain, calls: Calls): Promise<BlockView> {
  const { number, of } = await readFinals(chain);
  return askTwo(chain, async (node) => {
    if ((await of(node)) < number) throw new ChainUnavailable();
    return readAtOneBlock(node, calls, number);
  });
}

type Calls = readonly { target: Address; callData: Hex }[];

/** Nodes this far apart are on their way to the same head: there is no need to hear what a third one says. */
const NEIGHBOUR_BLOCKS = 3;

/**
 * `latest`: the highest block that the first two nodes to answer have both, which may be some behind. `newest`: the highest
 * that any two have; every node is heard for it, so it is for the moment before something is held against somebody.
 */
export type AgreedBlock = BlockChoice | "newest";

/** Calls at one block that two nodes have, answered alike by both. */
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
  // The same block, and another answer: somebody lies, or is on a fork.
  if (highest === second) log("security", "rpc_sources_disagree", { answers: answers.length });
  return at(second);
}

/** A token's owner and validity, with the block that shows both. */
export const readAgreedToken = async (
  chain: Chain,
  tokenId: number,
  blockTag: "latest" | "finalized" = "latest",
): Promise<TokenView> => toTokenView(await readAgreedView(chain, tokenCalls(chain, BigInt(tokenId)), blockTag));

export const readFinalToken = (chain: Chain, tokenId: number): Promise<TokenView> =>
  readAgreedToken(chain, tokenId, "finalized");

/** Several tokens at one block, in one call. */
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

/** A receipt, as far as anything is concluded from it; logs in the order of the chain. */
export type Receipt = {
  status: "success" | "reverted";
  blockNumber: number;
  blockHash: Hex;
  logs: readonly Log<bigint, number, false>[];
};

/** A transaction's receipt as two nodes have it; null where two have none. */
export async function readReceipt(chain: Chain, hash: Hex): Promise<Receipt | null> {
  const { receipt } = await askTwo(chain, async (node) => ({ receipt: await readReceiptAt(node, hash) }));
  return receipt;
}

/** The same as one node has it. */
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

/** Without what nodes add of their own, like a block's time. */
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

/** Whether every node says that it has no receipt: one may lag while another lies, and what was mined is paid for once. */
export async function isUnknown(chain: Chain, hash: Hex): Promise<boolean> {
  const answers = await Promise.allSettled(chain.nodes.map(({ client }) => client.getTransactionReceipt({ hash })));
  return answers.every(
    (answer) => answer.status === "rejected" && answer.reason instanceof TransactionReceiptNotFoundError,
  );
}
