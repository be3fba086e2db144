// The contract's logs: fetched and decoded.
import { type AbiEvent, type Address, decodeEventLog, type Hex, type Log } from "viem";
import { errorFields, log } from "../log.ts";
import type { Node } from "./client.ts";
import { eventAbi, purchaseLayouts, salesTopics, transferTopic } from "./contract.ts";
import { isAtItsEnd } from "./log-ranges.ts";
import { type LogFilter, LogsRefused, type Piece, readPiece, readSome } from "./logs.ts";

type At = { blockNumber: number; blockHash: Hex; logIndex: number };

export type Purchase = At & {
  tokenId: number;
  txHash: Hex;
  /** Position among the purchase events of the transaction. */
  ordinal: number;
  buyer: Address;
  tier: number;
  durationDays: number;
  /** Unix seconds, chain time. */
  purchaseDate: number;
  /** 10^-6 USDC. */
  totalCost: bigint;
};
export type Transfer = At & { tokenId: number; sender: Address; recipient: Address };
type Renewal = At & { tokenId: number; newExpiry: number };
type Termination = At & { tokenId: number };

export type ChainEvents = {
  purchases: Purchase[];
  transfers: Transfer[];
  renewals: Renewal[];
  terminations: Termination[];
};

export type Source = { contract: Address; purchaseEvent: AbiEvent };

/** Events up to block `to`, which may be below the end of the range that was asked for. */
export type FoundEvents = ChainEvents & {
  to: number;
  /** Some transfers could not be read: the tokens' owners have to be read from the contract. */
  transfersMissing: boolean;
};

/** Limits of one call of `fetchEvents`. */
export const MAX_REQUESTS = 25;
const MAX_LOGS = 5_000;

/**
 * The contract's events from block `from` on. Reading stops at block `to`, after `MAX_REQUESTS` requests or `MAX_LOGS` logs, or
 * at the time `until` (unix milliseconds). Throws when the node gives no block of the range.
 *
 * One request asks for all events. When a node refuses it, purchases and renewals are read first, and transfers in requests of
 * their own, block by block if necessary: a storm of transfers costs a few dollars and must not delay a purchase
 * (hard case 31).
 */
export async function fetchEvents(
  node: Node,
  source: Source,
  from: number,
  to: number,
  until: number,
): Promise<FoundEvents> {
  const found: Log[] = [];
  let transfersMissing = false;
  let at = from;
  for (let requests = 0; at <= to && requests < MAX_REQUESTS && found.length < MAX_LOGS; requests++) {
    try {
      const piece = await readAll(node, source, at, to, until);
      found.push(...piece.logs);
      transfersMissing ||= piece.transfersMissing;
      at = piece.to + 1;
    } catch (error) {
      const mayShrink = error instanceof LogsRefused && error.blocks > 1 && Date.now() < until;
      if (mayShrink) continue;
      if (at === from) throw error;
      break;
    }
    if (Date.now() >= until) break;
  }
  return { ...decodeEvents(found, source), to: at - 1, transfersMissing };
}

/** Purchases, renewals and early ends from block `from` on, as far as one request reaches. */
export async function fetchSales(node: Node, source: Source, from: number, to: number) {
  const piece = await readSome(node, "sales", salesFilter(source), from, to);
  return { ...decodeEvents(piece.logs, source), to: piece.to };
}

const salesFilter = ({ contract, purchaseEvent }: Source): LogFilter => ({
  address: contract,
  topics: [salesTopics(purchaseEvent)],
});

async function readAll(
  node: Node,
  source: Source,
  from: number,
  to: number,
  until: number,
): Promise<Piece & { transfersMissing: boolean }> {
  const { contract: address, purchaseEvent } = source;
  if (isAtItsEnd(node.spans.transfers, Date.now())) {
    return { ...(await readPiece(node, "sales", salesFilter(source), from, to)), transfersMissing: true };
  }
  const everything = { address, topics: [[...salesTopics(purchaseEvent), transferTopic]] };
  try {
    return { ...(await readPiece(node, "transfers", everything, from, to)), transfersMissing: false };
  } catch (error) {
    if (!(error instanceof LogsRefused) || error.byRange) throw error;
    const sales = await readPiece(node, "sales", salesFilter(source), from, error.to);
    const transfers = error.blocks === 1 ? null : await readTransfers(node, address, from, sales.to, until);
    return { ...sales, logs: [...sales.logs, ...(transfers ?? [])], transfersMissing: transfers === null };
  }
}

/** All transfers of a range; null when some can't be read. */
async function readTransfers(
  node: Node,
  address: Address,
  from: number,
  to: number,
  until: number,
): Promise<Log[] | null> {
  const found: Log[] = [];
  for (let at = from; at <= to; ) {
    if (Date.now() >= until) return null;
    try {
      const piece = await readPiece(node, "transfers", { address, topics: [transferTopic] }, at, to);
      found.push(...piece.logs);
      at = piece.to + 1;
    } catch (error) {
      if (error instanceof LogsRefused && error.blocks > 1) continue;
      log("warn", "transfers_not_read", { node: node.name, block: at, ...errorFields(error) });
      return null;
    }
  }
  return found;
}

/** Decodes the logs of blocks or receipts. Logs of other contracts, removed logs and pending logs are left out. */
export function decodeEvents(logs: readonly Log[], source: Source): ChainEvents {
  const layouts = purchaseLayouts(source.purchaseEvent);
  const [purchaseTopic] = salesTopics(source.purchaseEvent);
  const events: ChainEvents = { purchases: [], transfers: [], renewals: [], terminations: [] };
  const ordinals = new Map<Hex, number>();
  // A log that a node repeats must not become a second purchase.
  const distinct = new Map(logs.map((entry) => [`${entry.blockHash}/${entry.logIndex}`, entry]));
  const ordered = [...distinct.values()].sort(
    (a, b) => Number((a.blockNumber ?? 0n) - (b.blockNumber ?? 0n)) || (a.logIndex ?? 0) - (b.logIndex ?? 0),
  );
  for (const entry of ordered) {
    const { blockNumber, blockHash, logIndex, transactionHash } = entry;
    if (entry.address.toLowerCase() !== source.contract.toLowerCase() || entry.removed) continue;
    if (blockNumber === null || blockHash === null || logIndex === null || transactionHash === null) continue;
    const at = { blockNumber: Number(blockNumber), blockHash, logIndex };
    const args = decodeLog(entry, purchaseTopic, layouts);
    if (args === null) continue;
    const tokenId = toTokenId(args["tokenId"]);
    if (tokenId === null) {
      log("page", "token_id_beyond_range", { txHash: transactionHash, logIndex });
      continue;
    }
    if (entry.topics[0] === purchaseTopic) {
      const ordinal = ordinals.get(transactionHash) ?? 0;
      ordinals.set(transactionHash, ordinal + 1);
      events.purchases.push({
        ...at,
        tokenId,
        txHash: transactionHash,
        ordinal,
        buyer: args["buyer"] as Address,
        tier: Number(args["tier"]),
        durationDays: Number(args["durationDays"]),
        purchaseDate: Number(args["purchaseDate"]),
        totalCost: BigInt(args["totalCost"] as bigint),
      });
    } else if ("to" in args) {
      events.transfers.push({ ...at, tokenId, sender: args["from"] as Address, recipient: args["to"] as Address });
    } else if ("newExpiry" in args) {
      events.renewals.push({ ...at, tokenId, newExpiry: Number(args["newExpiry"]) });
    } else {
      events.terminations.push({ ...at, tokenId });
    }
  }
  return events;
}

function decodeLog(
  entry: Log,
  purchaseTopic: Hex | undefined,
  layouts: ReadonlyMap<number, AbiEvent>,
): Record<string, unknown> | null {
  const layout = layouts.get(entry.topics.length);
  const abi = entry.topics[0] === purchaseTopic ? (layout === undefined ? [] : [layout]) : eventAbi;
  try {
    const decoded = decodeEventLog({ abi: abi as readonly AbiEvent[], topics: entry.topics, data: entry.data });
    return { ...decoded.args };
  } catch {
    // A purchase that can't be decoded is money without a machine: it pages an operator.
    const level = entry.topics[0] === purchaseTopic ? "page" : "warn";
    log(level, "log_not_understood", { txHash: entry.transactionHash, topics: entry.topics.length });
    return null;
  }
}

function toTokenId(value: unknown): number | null {
  const id = Number(value);
  return typeof value === "bigint" && Number.isSafeInteger(id) ? id : null;
}
