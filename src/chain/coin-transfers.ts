// The coin's transfers to and from an account.
import { type Address, encodeEventTopics, type Hex, parseEventLogs } from "viem";
import { errorFields, log } from "../log.ts";
import { type Chain, ChainUnavailable, type Node } from "./client.ts";
import { coinAbi } from "./contract.ts";
import { type LogFilter, rangeOf, readLogs, readSome } from "./logs.ts";
import { askTwo, witnessesOf } from "./witness.ts";

/** The most requests to a node per direction: at one block per request, ten thousand blocks would take minutes. */
const MAX_REQUESTS = 200;

/** `amount`: 10^-6 USDC. */
export type CoinTransfer = {
  txHash: Hex;
  /** The log's index in its block. */
  logIndex: number;
  from: Address;
  to: Address;
  amount: bigint;
  blockNumber: number;
};

/**
 * Transfers to and from an account, in chain order, as two nodes report them. Throws `ChainUnavailable` when no two nodes
 * agree, or when the range needs too many requests (see `firstReadable`).
 */
export async function readCoinTransfers(
  chain: Chain,
  coin: Address,
  account: Address,
  fromBlock: number,
  toBlock: number,
): Promise<CoinTransfer[]> {
  return askTwo(chain, (node) => transfersOn(node, coin, account, fromBlock, toBlock));
}

/** The first block from which `readCoinTransfers` can read up to `toBlock` in one call, at the ranges that two nodes allow. */
export async function firstReadable(
  { nodes, ...chain }: Chain,
  coin: Address,
  account: Address,
  fromBlock: number,
  toBlock: number,
): Promise<number> {
  const filter = filterOf(coin, { to: account });
  const ranges = await Promise.all(
    nodes.map(async (node) => {
      try {
        await readSome(node, "coin", filter, fromBlock, toBlock);
        return rangeOf(node, "coin");
      } catch (error) {
        log("warn", "rpc_failed", { node: node.name, ...errorFields(error) });
        return 1;
      }
    }),
  );
  const range = ranges.sort((a, b) => b - a)[witnessesOf({ nodes, ...chain }) - 1] ?? 1;
  return Math.max(fromBlock, toBlock - range * MAX_REQUESTS + 1);
}

const filterOf = (address: Address, args: { from: Address } | { to: Address }): LogFilter => ({
  address,
  topics: encodeEventTopics({ abi: coinAbi, eventName: "Transfer", args }) as (Hex | null)[],
});

async function transfersOn(node: Node, coin: Address, account: Address, fromBlock: number, toBlock: number) {
  if (toBlock - fromBlock >= MAX_REQUESTS * rangeOf(node, "coin")) throw new ChainUnavailable();
  const found: CoinTransfer[] = [];
  for (const args of [{ to: account }, { from: account }]) {
    for await (const logs of readLogs(node, "coin", filterOf(coin, args), fromBlock, toBlock)) {
      for (const { args: moved, ...entry } of parseEventLogs({ abi: coinAbi, eventName: "Transfer", logs })) {
        const { transactionHash: txHash, logIndex, blockNumber } = entry;
        if (txHash === null || logIndex === null || (moved.from === moved.to && "from" in args)) continue;
        const { from, to, value: amount } = moved;
        found.push({ txHash, from, to, amount, blockNumber: Number(blockNumber), logIndex });
      }
    }
  }
  return found.sort((a, b) => a.blockNumber - b.blockNumber || a.logIndex - b.logIndex);
}
