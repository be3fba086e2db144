// The operator account's balances and nonce, and the current fees, as the nodes report them.
import { type Address, BaseError, encodeFunctionData, RpcRequestError } from "viem";
import type { Chain, Node } from "./client.ts";
import { coinAbi, MULTICALL3, multicallAbi } from "./contract.ts";
import { askNear, askTwo, readAgreedView } from "./witness.ts";

/** Wei per gas. */
export type Fees = { maxFee: bigint; priorityFee: bigint; baseFee: bigint };
/**
 * The account at one block: `balance` in 10^-6 USDC, `count` of used nonces, ether in `wei`. The spending of the first `count`
 * transactions is already off `balance`.
 */
export type Funds = { balance: bigint; count: number; wei: bigint };

/** A page tells operators when the wallet's ether covers fewer transactions than this. */
export const LOW_TRANSACTIONS = 100n;
export const GAS_PER_TRANSACTION = 200_000n;

const FALLBACK_PRIORITY_FEE = 1_000_000n;
/**
 * A hundred times Base's usual priority fee: one node must not make the wallet burn its ether. A transaction that stays pending
 * at this fee is replaced at a higher one.
 */
const MAX_PRIORITY_FEE = 1_000_000_000n;

/** Two nodes must agree: one wrong node must not stop the orders that wait for funds. Throws `ChainUnavailable` otherwise. */
export async function readFunds(chain: Chain, coin: Address, account: Address): Promise<Funds> {
  const args = [account] as const;
  const { results, blockNumber } = await readAgreedView(chain, [
    { target: coin, callData: encodeFunctionData({ abi: coinAbi, functionName: "balanceOf", args }) },
    { target: MULTICALL3, callData: encodeFunctionData({ abi: multicallAbi, functionName: "getEthBalance", args }) },
  ]);
  const [usdc, ether] = results;
  if (usdc?.success !== true || ether?.success !== true) throw new Error("the coin contract lacks an ERC-20 function");
  const count = await askTwo(chain, ({ client }) =>
    client.getTransactionCount({ address: account, blockNumber: BigInt(blockNumber) }),
  );
  return { balance: BigInt(usdc.returnData), count, wei: BigInt(ether.returnData) };
}

/** The higher base fee and the lower priority fee of two nodes whose base fees are near each other. */
export async function readFees(chain: Chain): Promise<Fees> {
  const ask = async ({ client }: Node) => {
    const { baseFeePerGas } = await client.getBlock();
    const priorityFee = await client.estimateMaxPriorityFeePerGas().catch(() => FALLBACK_PRIORITY_FEE);
    return { baseFee: baseFeePerGas ?? 0n, priorityFee };
  };
  const [one, { baseFee, ...other }] = await askNear(chain, ask, (answer) => answer.baseFee);
  const priorityFee = least(one.priorityFee, other.priorityFee, MAX_PRIORITY_FEE);
  return { maxFee: 2n * baseFee + priorityFee, priorityFee, baseFee };
}

const least = (...fees: [bigint, ...bigint[]]): bigint => fees.reduce((a, b) => (a < b ? a : b));

// Errors that say nothing about the transaction's content. The node already has the transaction, another one at its nonce with
// a higher fee, or a mined one at its nonce; or the wallet's ether or the fee is too low, which a replacement would need as
// well.
const NOT_FOR_CONTENT =
  /already|nonce too low|underpriced|known transaction|insufficient ?funds|enough funds|base ?fee|fee ?too ?low/i;

/** Whether a node refused a transaction for its content, so that it would refuse the same call at any fee. */
export const refusesContent = (error: unknown): boolean =>
  error instanceof BaseError &&
  error.walk((e) => e instanceof RpcRequestError) !== null &&
  !NOT_FOR_CONTENT.test(error.details);
