// Logs of the contract, fetched and decoded.
import {
  type AbiEvent,
  type Address,
  decodeEventLog,
  formatLog,
  type Hex,
  type Log,
  numberToHex,
  type RpcLog,
} from "viem";
import { log } from "../log.ts";
import type { Node } from "./client.ts";
import { eventAbi, followedTopics, purchaseLayouts } from "./contract.ts";

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
export type Renewal = At & { tokenId: number; newExpiry: number };
export type Termination = At & { tokenId: number };

export type ChainEvents = {
  purchases: Purchase[];
  transfers: Transfer[];
  renewals: Renewal[];
  terminations: Termination[];
};

type Source = { contract: Address; purchaseEvent: AbiEvent };

/** Everything the contract logged from one block to another, both included. */
export async function fetchEvents(node: Node, source: Source, from: number, to: number): Promise<ChainEvents> {
  const logs = (await node.client.request({
    method: "eth_getLogs",
    params: [
      {
        address: source.contract,
        topics: [followedTopics(source.purchaseEvent)],
        fromBlock: numberToHex(from),
        toBlock: numberToHex(to),
      },
    ],
  })) as RpcLog[];
  return decodeEvents(
    logs.map((entry) => formatLog(entry)),
    source,
  );
}

/** Decodes logs of blocks or receipts; those of other contracts and pending ones are left out. */
export function decodeEvents(logs: readonly Log[], source: Source): ChainEvents {
  const layouts = purchaseLayouts(source.purchaseEvent);
  const [purchaseTopic] = followedTopics(source.purchaseEvent);
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
