// What nodes say of the operator's account, and of the fees of the moment.
import { type Address, BaseError, RpcRequestError } from "viem";
import { balanceOf } from "./authorization.ts";
import type { Chain } from "./client.ts";
import { askFirst } from "./witness.ts";

/** Wei per gas. */
export type Fees = { maxFee: bigint; priorityFee: bigint; baseFee: bigint };
/** USDC (10^-6) and used nonces at one block, whose balance what it has mined has left already; and gas money. */
export type Funds = { balance: bigint; count: number; wei: bigint };

const FALLBACK_PRIORITY_FEE = 1_000_000n;
/** A hundred times what Base is used to; what waits for more is replaced. One node must not burn our gas money. */
const MAX_PRIORITY_FEE = 1_000_000_000n;

/** By the first node that answers. */
export const readFunds = (chain: Chain, coin: Address, account: Address): Promise<Funds> =>
  askFirst(chain, async (node) => {
    const blockNumber = await node.client.getBlockNumber({ cacheTime: 0 });
    const [balance, count, wei] = await Promise.all([
      balanceOf(coin, account, blockNumber)(node),
      node.client.getTransactionCount({ address: account, blockNumber }),
      node.client.getBalance({ address: account }),
    ]);
    return { balance, count, wei };
  });

/** By the first node that answers. */
export const readFees = (chain: Chain): Promise<Fees> =>
  askFirst(chain, async ({ client }) => {
    const { baseFeePerGas } = await client.getBlock();
    const suggested = await client.estimateMaxPriorityFeePerGas().catch(() => FALLBACK_PRIORITY_FEE);
    const priorityFee = suggested < MAX_PRIORITY_FEE ? suggested : MAX_PRIORITY_FEE;
    const baseFee = baseFeePerGas ?? 0n;
    return { maxFee: 2n * baseFee + priorityFee, priorityFee, baseFee };
  });

// A node that has it already, or one like it at a higher fee, or a later one, has answered as well: it was not the content.
// Nor is it where our gas money has run out, or the fee is below the moment's: what would take its place needs both as well.
const NOT_FOR_CONTENT =
  /already|nonce too low|underpriced|known transaction|insufficient ?funds|enough funds|base ?fee|fee ?too ?low/i;

/** Whether a node's answer to a transaction says that it takes none like it. */
export const refusesContent = (error: unknown): boolean =>
  error instanceof BaseError &&
  error.walk((e) => e instanceof RpcRequestError) !== null &&
  !NOT_FOR_CONTENT.test(error.details);
