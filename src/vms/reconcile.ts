// Our books of payments against the chain's: every transfer of USDC to or from the operator wallet has a row that says what
// it was for, and every row that says that money moved has its transfer.
import type { Address, Hex } from "viem";
import { hasPaid } from "../chain/authorization.ts";
import { type Chain, readReceipt } from "../chain/client.ts";
import { type CoinTransfer, readCoinTransfers } from "../chain/coin-transfers.ts";
import type { Database } from "../db/client.ts";
import { movedSince, type Payment, paymentsOfTransactions } from "../db/payments.ts";
import { refundsOfTransactions } from "../db/refunds.ts";
import { authorizationOf } from "./payments.ts";

/** Sums in 10^-6 USDC. */
export type Side = { transfers: number; sum: bigint; explained: bigint; unexplained: CoinTransfer[] };
export type Reconciliation = {
  incoming: Side;
  outgoing: Side;
  /** Rows that say settled, and the chain does not. */
  missing: Payment[];
};

type Books = { db: Database; chain: Chain; coin: Address; operator: Address };

export async function reconcile(
  { db, chain, coin, operator }: Books,
  fromBlock: number,
  toBlock: number,
): Promise<Reconciliation> {
  const transfers = await readCoinTransfers(chain, coin, operator, fromBlock, toBlock);
  const hashes = [...new Set(transfers.map(({ txHash }) => txHash))];
  const known = await paymentsOfTransactions(db, hashes);
  const settled = new Map(known.map((row) => [row.settleTx, row]));
  const refunds = new Set([
    ...known.map((row) => row.refundTx),
    ...(await refundsOfTransactions(db, hashes)).map((row) => row.txHash),
  ]);
  const bought = new Map(known.map((row) => [row.purchaseTx, row.cost]));
  const isIn = ({ to }: CoinTransfer) => to === operator;
  const explainsIn = ({ txHash, amount, from }: CoinTransfer) => {
    const row = settled.get(txHash);
    return row !== undefined && BigInt(row.amount) === amount && row.payer === from.toLowerCase();
  };
  const explainsOut = ({ txHash, amount }: CoinTransfer) =>
    refunds.has(txHash) || bought.get(txHash) === String(amount);
  return {
    incoming: sideOf(transfers.filter(isIn), explainsIn),
    outgoing: sideOf(
      transfers.filter((transfer) => !isIn(transfer)),
      explainsOut,
    ),
    missing: await missingOf({ chain, coin }, await movedSince(db, fromBlock, toBlock)),
  };
}

function sideOf(transfers: readonly CoinTransfer[], isExplained: (transfer: CoinTransfer) => boolean): Side {
  const sumOf = (list: readonly CoinTransfer[]) => list.reduce((sum, { amount }) => sum + amount, 0n);
  const unexplained = transfers.filter((transfer) => !isExplained(transfer));
  const sum = sumOf(transfers);
  return { transfers: transfers.length, sum, explained: sum - sumOf(unexplained), unexplained };
}

async function missingOf({ chain, coin }: Pick<Books, "chain" | "coin">, rows: readonly Payment[]): Promise<Payment[]> {
  const missing: Payment[] = [];
  for (const row of rows) {
    const receipt = row.settleTx === null ? null : await readReceipt(chain, row.settleTx as Hex);
    if (receipt === null || !hasPaid(receipt, coin, authorizationOf(row))) missing.push(row);
  }
  return missing;
}
