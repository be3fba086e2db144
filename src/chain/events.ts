// Logs of the contract, fetched and decoded.
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

/** `to`: the last block that was read. */
export type FoundEvents = ChainEvents & {
  to: number;
  /** Not all transfers could be had: who owns what is to be asked of the contract. */
  transfersMissing: boolean;
};

/** What one call of `fetchEvents` asks and keeps at most. */
export const MAX_REQUESTS = 25;
const MAX_LOGS = 5_000;

/**
 * What the contract logged in a range of blocks, from its beginning as far as some requests, logs, and the time until
 * `until` (unix milliseconds) go. Throws where the node gives nothing of it.
 *
 * One request asks for everything. Where it is refused, purchases and renewals come first, and transfers in requests of
 * their own, by single blocks if need be: a storm of transfers costs a few dollars, and must not hold up a purchase
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

/** Purchases, renewals and early ends alone, from the beginning of a range on: as much as one request gives. */
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

/** All of them; null where some can't be had. */
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

/** Decodes logs of blocks or receipts; those of other contracts and pending ones are left out. */
export function decodeEvents(logs: readonly Log[], source: Source): ChainEvents {
  const layouts = purchaseLayouts(source.purchaseEvent);
  const [purchaseTopic] = salesTopics(source.purchaseEvent);
  const events: ChainEvents = { purchases: [], transfers: [], renewals: [], terminations: [] };
  const ordinals = new Map<Hex, number>();
  // A node that repeats a log must not make a second purchase of it.
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
    // A purchase that can't be read is money without a machine: a person has to look.
    const level = entry.topics[0] === purchaseTopic ? "page" : "warn";
    log(level, "log_not_understood", { txHash: entry.transactionHash, topics: entry.topics.length });
    return null;
  }
}

function toTokenId(value: unknown): number | null {
  const id = Number(value);
  return typeof value === "bigint" && Number.isSafeInteger(id) ? id : null;
}
