// The coin's transfers to and from an account, for the books.
import type { Address, Hex } from "viem";
import type { Chain, Node } from "./client.ts";
import { coinAbi } from "./contract.ts";
import { rangesOf } from "./log-ranges.ts";
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

async function transfersOn({ client }: Node, coin: Address, account: Address, fromBlock: number, toBlock: number) {
  const found: CoinTransfer[] = [];
  for (const range of rangesOf(fromBlock, toBlock)) {
    for (const args of [{ to: account }, { from: account }]) {
      const event = { address: coin, abi: coinAbi, eventName: "Transfer", args } as const;
      for (const { args: moved, ...entry } of await client.getContractEvents({ ...event, ...range, strict: true })) {
        if (moved.from === moved.to && "from" in args) continue;
        const { from, to, value: amount } = moved;
        const { transactionHash: txHash, logIndex } = entry;
        found.push({ txHash, from, to, amount, blockNumber: Number(entry.blockNumber), logIndex });
      }
    }
  }
  return found.sort((a, b) => a.blockNumber - b.blockNumber || a.logIndex - b.logIndex);
}
