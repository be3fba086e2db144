// What the operator wallet sends: calls of the coin and of the contract, and their dry runs.
import {
  type Address,
  BaseError,
  ExecutionRevertedError,
  encodeFunctionData,
  type Hex,
  hexToBigInt,
  numberToHex,
  parseSignature,
  toEventSelector,
} from "viem";
import { AppError } from "../errors.ts";
import type { Chain } from "./client.ts";
import { coinAbi, contractAbi, eventAbi } from "./contract.ts";
import { PLAIN_SIGNATURE_CHARS } from "./plain-signature.ts";
import { askFirst } from "./witness.ts";

/** `id`: one order for ever. Amounts in 10^-6 USDC, decimal; times in unix seconds. */
export type WalletOrder =
  /** USDC to somebody: refunds. */
  | { kind: "pay"; id: string; to: Address; amount: string }
  /** Approval of exactly the cost, then purchaseVM. `payment`: whose purchase it is. */
  | { kind: "purchase"; id: string; payment: string; tier: number; durationDays: number; cost: string }
  /** Takes what a payer has signed (EIP-3009). */
  | {
      kind: "capture";
      id: string;
      from: Address;
      to: Address;
      value: string;
      validAfter: number;
      validBefore: number;
      nonce: Hex;
      signature: Hex;
    }
  /** The token to its payer: not the safe form, which a contract could refuse (hard case 19). */
  | { kind: "transfer"; id: string; to: Address; tokenId: number };

export type Call = { to: Address; data: Hex };
type Addresses = { contract: Address; coin: Address; operator: Address };

const TRANSFER_TOPIC = toEventSelector(eventAbi[0]);
const NOBODY = numberToHex(0, { size: 32 });
const GAS_MARGIN_PERCENT = 130n;
/**
 * An estimate does not see what the transactions in front of it will do: an allowance that it finds in place may be used up
 * by then, and a write that turns a slot from zero costs 22,100 gas instead of 5,000 (EIP-2929, EIP-2200). Room for two.
 */
const GAS_ROOM = 40_000n;

/** The order's transactions, in their order. */
export function callsOf(order: WalletOrder, { contract, coin, operator }: Addresses): [Call, ...Call[]] {
  switch (order.kind) {
    case "pay":
      return [{ to: coin, data: encode("transfer", [order.to, BigInt(order.amount)]) }];
    case "purchase": {
      const args = [order.tier, order.durationDays] as const;
      return [
        { to: coin, data: encode("approve", [contract, BigInt(order.cost)]) },
        { to: contract, data: encodeFunctionData({ abi: contractAbi, functionName: "purchaseVM", args }) },
      ];
    }
    case "capture":
      return [{ to: coin, data: captureData(order) }];
    case "transfer": {
      const args = [operator, order.to, BigInt(order.tokenId)] as const;
      return [{ to: contract, data: encodeFunctionData({ abi: contractAbi, functionName: "transferFrom", args }) }];
    }
  }
}

const encode = (functionName: "transfer" | "approve", args: readonly [Address, bigint]): Hex =>
  encodeFunctionData({ abi: coinAbi, functionName, args });

/** A plain account's signature goes in three parts, as every version of the coin takes it; a contract's as bytes. */
function captureData(order: WalletOrder & { kind: "capture" }): Hex {
  const { from, to, validAfter, validBefore, nonce, signature } = order;
  const head = [from, to, BigInt(order.value), BigInt(validAfter), BigInt(validBefore), nonce] as const;
  // A contract's signature may be as long as a plain one, and end in what is no recovery bit.
  const isPlain =
    signature.length === PLAIN_SIGNATURE_CHARS && [0, 1, 27, 28].includes(Number(`0x${signature.slice(-2)}`));
  if (!isPlain) {
    return encodeFunctionData({ abi: coinAbi, functionName: "transferWithAuthorization", args: [...head, signature] });
  }
  const { r, s, yParity } = parseSignature(signature);
  const args = [...head, 27 + yParity, r, s] as const;
  return encodeFunctionData({ abi: coinAbi, functionName: "transferWithAuthorization", args });
}

/** Gas that a call may use, with a margin; null where it would revert. */
export const estimateGas = (chain: Chain, account: Address, call: Call): Promise<bigint | null> =>
  askFirst(chain, async ({ client }) => {
    try {
      return withMargin(await client.estimateGas({ account, ...call }));
    } catch (error) {
      if (error instanceof BaseError && error.walk((e) => e instanceof ExecutionRevertedError) !== null) return null;
      throw error;
    }
  });

const withMargin = (gas: bigint): bigint => (gas * GAS_MARGIN_PERCENT) / 100n + GAS_ROOM;

type Simulated = { status: Hex; gasUsed: Hex; logs?: readonly { address: Address; topics: readonly Hex[] }[] };

/** Calls one after the other on top of the latest block (`eth_simulateV1`); a node that can't is passed over. */
const simulate = (chain: Chain, from: Address, calls: readonly Call[]): Promise<readonly Simulated[]> =>
  askFirst(chain, async ({ client }) => {
    const request = client.request as (request: { method: string; params: unknown }) => Promise<unknown>;
    const blockStateCalls = [{ calls: calls.map((call) => ({ from, ...call })) }];
    const answer = await request({ method: "eth_simulateV1", params: [{ blockStateCalls }, "latest"] });
    const simulated = (answer as [{ calls?: readonly Simulated[] }?])[0]?.calls;
    if (simulated?.length !== calls.length) {
      throw new AppError("chain_answered_nonsense", "An RPC node answered a simulation with too few results.");
    }
    return simulated;
  });

/** Gas of calls that build on each other, each with a margin; null where one would revert. */
export async function estimateGasTogether(
  chain: Chain,
  from: Address,
  calls: readonly Call[],
): Promise<bigint[] | null> {
  const simulated = await simulate(chain, from, calls);
  if (simulated.some(({ status }) => hexToBigInt(status) !== 1n)) return null;
  return simulated.map(({ gasUsed }) => withMargin(hexToBigInt(gasUsed)));
}

/** Whether a token bought now could be handed over: the purchase is played, then the transfer of what it minted (hard case 19). */
export async function canDeliver(
  chain: Chain,
  purchase: WalletOrder & { kind: "purchase" },
  payer: Address,
  addresses: Addresses,
): Promise<boolean> {
  const calls = callsOf(purchase, addresses);
  const bought = (await simulate(chain, addresses.operator, calls)).at(-1);
  const minted = bought?.logs?.find(
    ({ address, topics }) =>
      address.toLowerCase() === addresses.contract.toLowerCase() &&
      topics[0] === TRANSFER_TOPIC &&
      topics[1] === NOBODY,
  );
  const tokenId = minted?.topics[3];
  if (tokenId === undefined) return false;
  const transfer = { kind: "transfer", id: "", to: payer, tokenId: Number(hexToBigInt(tokenId)) } as const;
  const all = await simulate(chain, addresses.operator, [...calls, ...callsOf(transfer, addresses)]);
  return all.every(({ status }) => hexToBigInt(status) === 1n);
}
