// The inputs of a sale over x402, from one node: the tier's price, the operator wallet's funds and the base fee.
import { type Address, decodeFunctionResult, encodeFunctionData } from "viem";
import { AppError } from "../errors.ts";
import { type Chain, readAtOneBlock } from "./client.ts";
import { coinAbi, contractAbi, MULTICALL3, multicallAbi } from "./contract.ts";
import { askFirst } from "./witness.ts";

export type Offer = {
  /** 10^-6 USDC. */
  pricePerDay: bigint;
  active: boolean;
  /** The operator wallet's balance, in 10^-6 USDC. */
  usdc6: bigint;
  /** The operator wallet's ether, in wei. */
  wei: bigint;
  /** Wei per gas. */
  baseFee: bigint;
  blockNumber: number;
  /** Unix seconds. */
  blockTimestamp: number;
};

/** The gas of an order's four transactions with a margin: approval, purchase, capture and transfer. */
const GAS_PER_ORDER = 900_000n;

/** Whether the operator wallet's ether covers the gas of one order. */
export const hasGas = ({ wei, baseFee }: Pick<Offer, "wei" | "baseFee">): boolean =>
  wei >= GAS_PER_ORDER * 2n * baseFee;

export const readOffer = (chain: Chain, tier: number, coin: Address, operator: Address): Promise<Offer> =>
  askFirst(chain, async (node) => {
    const calls = [
      {
        target: chain.contract,
        callData: encodeFunctionData({ abi: contractAbi, functionName: "getTierConfig", args: [tier] }),
      },
      { target: coin, callData: encodeFunctionData({ abi: coinAbi, functionName: "balanceOf", args: [operator] }) },
      {
        target: MULTICALL3 as Address,
        callData: encodeFunctionData({ abi: multicallAbi, functionName: "getEthBalance", args: [operator] }),
      },
    ];
    const [{ results, blockNumber, blockTimestamp }, { baseFeePerGas }] = await Promise.all([
      readAtOneBlock(node, calls),
      node.client.getBlock(),
    ]);
    const [tierConfig, usdc, ether] = results;
    if (tierConfig?.success !== true || usdc?.success !== true || ether?.success !== true) {
      throw new AppError("chain_answered_nonsense", "An RPC node returned too few results for a multicall.");
    }
    const [pricePerDay, active] = decodeFunctionResult({
      abi: contractAbi,
      functionName: "getTierConfig",
      data: tierConfig.returnData,
    });
    return {
      pricePerDay,
      active,
      usdc6: BigInt(usdc.returnData),
      wei: BigInt(ether.returnData),
      baseFee: baseFeePerGas ?? 0n,
      blockNumber,
      blockTimestamp,
    };
  });
