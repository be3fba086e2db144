// Our books of payments against the chain's, transfer by transfer (hard case 27): every transfer of USDC to or from the
// operator wallet has a row that says what it was for, nothing is paid back that did not come in, and every row that says
// that money moved has a transfer of its own.
import type { Address, Hex } from "viem";
import { outcomeIn } from "../chain/authorization.ts";
import type { Chain } from "../chain/client.ts";
import { type CoinTransfer, firstReadable, readCoinTransfers } from "../chain/coin-transfers.ts";
import { type Receipt, readReceipt } from "../chain/witness.ts";
import type { Database } from "../db/client.ts";
import { HELD_TOKEN_COST } from "../db/orders.ts";
import { movedSince, type Payment, paymentsOfTransactions } from "../db/payments.ts";
import { refundsOfTransactions } from "../db/refunds.ts";
import { authorizationOf } from "../model/payment.ts";

/** Sums in 10^-6 USDC. */
export type Side = { transfers: number; sum: bigint; explained: bigint; unexplained: CoinTransfer[] };
export type Reconciliation = {
  /** Later than the first that was asked for, where nodes give few blocks a request. */
  fromBlock: number;
  incoming: Side;
  outgoing: Side;
  /** Rows that say settled, and the chain does not. */
  missing: Payment[];
};

type Books = { db: Database; chain: Chain; coin: Address; operator: Address };

export async function reconcile(
  { db, chain, coin, operator }: Books,
  firstBlock: number,
  toBlock: number,
): Promise<Reconciliation> {
  const fromBlock = await firstReadable(chain, coin, operator, firstBlock, toBlock);
  const transfers = await readCoinTransfers(chain, coin, operator, fromBlock, toBlock);
  const hashes = [...new Set(transfers.map(({ txHash }) => txHash))];
  const known = await paymentsOfTransactions(db, hashes);
  const moved = await movedSince(db, fromBlock, toBlock);
  const rows = [...new Map([...known, ...moved].map((row) => [row.id, row])).values()];
  // One receipt may have the transfers of many payments: each is one payment's.
  const paidAt = await transfersOf({ chain, coin }, rows);
  const paid = new Set(paidAt.values());
  const isIn = ({ to }: CoinTransfer) => to === operator;
  const explainsIn = (transfer: CoinTransfer) => paidAt.has(placeOf(transfer));
  const refunds = await refundsOfTransactions(db, hashes);
  // What a held token cost is in the row of the order that it was bought for.
  const buyers = known.filter(({ cost }) => cost !== HELD_TOKEN_COST);
  const bought = new Map(buyers.map((row) => [row.purchaseTx, row.cost]));
  const explainsOut = ({ txHash, amount, to }: CoinTransfer) => {
    const payment = known.find((row) => row.refundTx === txHash);
    if (payment !== undefined) {
      return paid.has(payment.id) && payment.payer === to.toLowerCase() && amount <= BigInt(payment.amount);
    }
    const refund = refunds.find((row) => row.txHash === txHash);
    if (refund !== undefined) return refund.amount === String(amount) && BigInt(refund.total) <= BigInt(refund.paidFor);
    return bought.get(txHash) === String(amount);
  };
  return {
    fromBlock,
    incoming: sideOf(transfers.filter(isIn), explainsIn),
    outgoing: sideOf(
      transfers.filter((transfer) => !isIn(transfer)),
      explainsOut,
    ),
    missing: moved.filter(({ id }) => !paid.has(id)),
  };
}

const placeOf = ({ txHash, logIndex }: Pick<CoinTransfer, "txHash" | "logIndex">): string => `${txHash}/${logIndex}`;

function sideOf(transfers: readonly CoinTransfer[], isExplained: (transfer: CoinTransfer) => boolean): Side {
  const sumOf = (list: readonly CoinTransfer[]) => list.reduce((sum, { amount }) => sum + amount, 0n);
  const unexplained = transfers.filter((transfer) => !isExplained(transfer));
  const sum = sumOf(transfers);
  return { transfers: transfers.length, sum, explained: sum - sumOf(unexplained), unexplained };
}

/** The transfer that paid for each row, by the receipt of its settlement: place of the transfer -> id of the row. */
async function transfersOf(
  { chain, coin }: Pick<Books, "chain" | "coin">,
  rows: readonly Payment[],
): Promise<Map<string, string>> {
  const receipts = new Map<string, Receipt | null>();
  const found = new Map<string, string>();
  for (const row of rows) {
    const { settleTx } = row;
    if (settleTx === null) continue;
    const receipt = receipts.get(settleTx) ?? (await readReceipt(chain, settleTx as Hex));
    receipts.set(settleTx, receipt);
    const outcome = receipt === null ? null : outcomeIn(receipt, coin, authorizationOf(row));
    if (outcome === null || outcome === "cancelled") continue;
    const place = placeOf({ txHash: settleTx as Hex, logIndex: outcome.logIndex });
    if (!found.has(place)) found.set(place, row.id);
  }
  return found;
}
