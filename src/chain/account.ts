// What nodes say of the operator's account, and of the fees of the moment.
import { type Address, BaseError, encodeFunctionData, RpcRequestError } from "viem";
import type { Chain, Node } from "./client.ts";
import { coinAbi, MULTICALL3, multicallAbi } from "./contract.ts";
import { askNear, askTwo, readAgreedView } from "./witness.ts";

/** Wei per gas. */
export type Fees = { maxFee: bigint; priorityFee: bigint; baseFee: bigint };
/** USDC (10^-6) and used nonces at one block, whose balance what it has mined has left already; and gas money. */
export type Funds = { balance: bigint; count: number; wei: bigint };

/** A wallet with ether for fewer of its own transactions than that needs more. */
export const LOW_TRANSACTIONS = 100n;
export const GAS_PER_TRANSACTION = 200_000n;

const FALLBACK_PRIORITY_FEE = 1_000_000n;
/** A hundred times what Base is used to; what waits for more is replaced. One node must not burn our gas money. */
const MAX_PRIORITY_FEE = 1_000_000_000n;

/** At one block, as two nodes tell it: one that is wrong must not stop what waits for funds. */
export async function readFunds(chain: Chain, coin: Address, account: Address): Promise<Funds> {
  const args = [account] as const;
  const { results, blockNumber } = await readAgreedView(chain, [
    { target: coin, callData: encodeFunctionData({ abi: coinAbi, functionName: "balanceOf", args }) },
    { target: MULTICALL3, callData: encodeFunctionData({ abi: multicallAbi, functionName: "getEthBalance", args }) },
  ]);
  const [usdc, ether] = results;
  if (usdc?.success !== true || ether?.success !== true) throw new Error("the coin does not know a function of ERC-20");
  const count = await askTwo(chain, ({ client }) =>
    client.getTransactionCount({ address: account, blockNumber: BigInt(blockNumber) }),
  );
  return { balance: BigInt(usdc.returnData), count, wei: BigInt(ether.returnData) };
}

/** As two nodes tell it: the higher base fee, and the lower tip. */
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

// A node that has it already, or one like it at a higher fee, or a later one, has answered as well: it was not the content.
// Nor is it where our gas money has run out, or the fee is below the moment's: what would take its place needs both as well.
const NOT_FOR_CONTENT =
  /already|nonce too low|underpriced|known transaction|insufficient ?funds|enough funds|base ?fee|fee ?too ?low/i;

/** Whether a node's answer to a transaction says that it takes none like it. */
export const refusesContent = (error: unknown): boolean =>
  error instanceof BaseError &&
  error.walk((e) => e instanceof RpcRequestError) !== null &&
  !NOT_FOR_CONTENT.test(error.details);
