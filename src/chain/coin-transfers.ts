// The coin's transfers to and from an account, for the books.
import { type Address, encodeEventTopics, type Hex, parseEventLogs } from "viem";
import type { Chain, Node } from "./client.ts";
import { coinAbi } from "./contract.ts";
import { readLogs } from "./logs.ts";
import { askTwo } from "./witness.ts";

/** `amount`: 10^-6 USDC. */
export type CoinTransfer = {
  txHash: Hex;
  /** In its block. */
  logIndex: number;
  from: Address;
  to: Address;
  amount: bigint;
  blockNumber: number;
};

/** Both ways, in the order of the chain, as two nodes tell them. */
export async function readCoinTransfers(
  chain: Chain,
  coin: Address,
  account: Address,
  fromBlock: number,
  toBlock: number,
): Promise<CoinTransfer[]> {
  return askTwo(chain, (node) => transfersOn(node, coin, account, fromBlock, toBlock));
}

async function transfersOn(node: Node, coin: Address, account: Address, fromBlock: number, toBlock: number) {
  const found: CoinTransfer[] = [];
  for (const args of [{ to: account }, { from: account }]) {
    const topics = encodeEventTopics({ abi: coinAbi, eventName: "Transfer", args }) as (Hex | null)[];
    for await (const logs of readLogs(node, "coin", { address: coin, topics }, fromBlock, toBlock)) {
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
