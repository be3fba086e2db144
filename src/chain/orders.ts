// The operator wallet's orders: their calls to the coin and the contract, and the simulation of these calls.
import {
  type Address,
  BaseError,
  ExecutionRevertedError,
  encodeFunctionData,
  type Hex,
  hexToBigInt,
  numberToHex,
  parseAbi,
  parseSignature,
  size,
  toEventSelector,
} from "viem";
import { AppError } from "../errors.ts";
import type { Authorization } from "./authorization.ts";
import type { Chain, Node } from "./client.ts";
import { coinAbi, contractAbi, eventAbi } from "./contract.ts";
import { PLAIN_SIGNATURE_CHARS } from "./plain-signature.ts";
import { askNear, unlessTwoRefuse } from "./witness.ts";

/**
 * An authorization as a payer signed it. `value`: 10^-6 USDC, as a decimal string. `fromBlock`: the first block to search for
 * its use. `quotedBlock`: for a machine, the block of the price.
 */
export type SignedPayment = Omit<Authorization, "value"> & { value: string; fromBlock: number; quotedBlock?: number };

/**
 * An order to the operator wallet. An `id` names one order for ever. Amounts are decimal strings of 10^-6 USDC; times are unix
 * seconds. The wallet checks `paid` and `owed` on chain before it signs (hard case 34); they are not part of the order's
 * identity.
 */
export type WalletOrder =
  /**
   * A refund in USDC of a payment, or of a purchase; with both set, of a purchase that we made for that payment. `approved`: an
   * operator has approved it, and may also refund a delivered order. `again`: sign the order anew if it has reverted.
   */
  | {
      kind: "pay";
      id: string;
      to: Address;
      amount: string;
      owed: { purchase?: string; payment?: SignedPayment; approved?: true };
      again?: boolean;
    }
  /** An approval of exactly the cost, then purchaseVM. `payment`: the id of the payment that the purchase is for. */
  | {
      kind: "purchase";
      id: string;
      payment: string;
      tier: number;
      durationDays: number;
      cost: string;
      paid: SignedPayment;
    }
  /** Submits a payer's authorization (EIP-3009). */
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
  /** Transfers the token to the payer, by `transferFrom`: a contract can refuse `safeTransferFrom` (hard case 19). */
  | { kind: "transfer"; id: string; to: Address; tokenId: number; purchase: string; paid: SignedPayment };
export type OrderKind = WalletOrder["kind"] | "approve";

/** Whether the order refunds a whole payment without a delivery: not a share of a purchase, and not an operator's approval. */
export const isRefundOfPayment = (order: WalletOrder): boolean =>
  order.kind === "pay" && order.owed.purchase === undefined && order.owed.approved !== true;

export type Call = { to: Address; data: Hex };
type WithoutProof<T> = T extends WalletOrder ? Omit<T, "paid" | "owed" | "purchase" | "again"> : never;
type CallOrder = WithoutProof<WalletOrder>;
type Addresses = { contract: Address; coin: Address; operator: Address };

const TRANSFER_TOPIC = toEventSelector(eventAbi[0]);
const NOBODY = numberToHex(0, { size: 32 });
const GAS_MARGIN_PERCENT = 130n;
/**
 * The gas limit's maximum per kind of transaction; a transaction that needs more is not sent. A payer's contract runs during a
 * capture, to verify its signature, and may burn any amount of gas (hard case 35). All caps are far below Base's limit for one
 * transaction (2^24, EIP-7825).
 */
const GAS_CAPS: Readonly<Record<OrderKind, bigint>> = {
  pay: 250_000n,
  approve: 250_000n,
  purchase: 900_000n,
  capture: 700_000n,
  transfer: 400_000n,
};
/**
 * Gas for two storage writes from zero, added to each estimate. An estimate does not see the pending transactions in front: an
 * allowance that it finds may be used up by then, and a write from zero costs 22,100 gas instead of 5,000 (EIP-2929, EIP-2200).
 */
const GAS_ROOM = 40_000n;

/** An order's identity, as JSON: its fields without the proof that it is owed. */
export const identityOf = (order: WalletOrder): string => {
  const { paid, owed, purchase, again, ...body } = { paid: null, owed: null, purchase: null, again: null, ...order };
  return JSON.stringify(body);
};

/** The calls of an order's transactions, in nonce order. */
export function callsOf(order: CallOrder, { contract, coin, operator }: Addresses): [Call, ...Call[]] {
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

/**
 * A plain account's signature (v = 27 or 28) goes as v, r, s, which every version of the coin accepts. A contract's signature
 * goes as bytes, unchanged.
 */
function captureData(order: CallOrder & { kind: "capture" }): Hex {
  const { from, to, validAfter, validBefore, nonce, signature } = order;
  const head = [from, to, BigInt(order.value), BigInt(validAfter), BigInt(validBefore), nonce] as const;
  const isPlain = signature.length === PLAIN_SIGNATURE_CHARS && /1[bc]$/i.test(signature);
  if (!isPlain) {
    return encodeFunctionData({ abi: coinAbi, functionName: "transferWithAuthorization", args: [...head, signature] });
  }
  const { r, s, yParity } = parseSignature(signature);
  const args = [...head, 27 + yParity, r, s] as const;
  return encodeFunctionData({ abi: coinAbi, functionName: "transferWithAuthorization", args });
}

type KindOfCall = Call & { kind: OrderKind };

/**
 * Gas limits for calls that build on each other, with a margin; null when two nodes say that a call would revert or exceed its
 * kind's cap.
 */
export const estimateGas = (chain: Chain, from: Address, calls: readonly KindOfCall[]): Promise<bigint[] | null> =>
  unlessTwoRefuse(chain, async (node) => {
    const [only] = calls;
    const isOne = calls.length === 1 && only !== undefined;
    const all = isOne ? [await estimateOne(node, from, only)] : (await simulate(node, from, calls)).map(gasOf);
    const limits = all.map((gas) => (gas === null ? null : (gas * GAS_MARGIN_PERCENT) / 100n + GAS_ROOM));
    return limits.every((limit, i) => limit !== null && limit <= capOf(calls[i])) ? (limits as bigint[]) : null;
  });

const capOf = (call: KindOfCall | undefined): bigint => (call === undefined ? 0n : GAS_CAPS[call.kind]);

const gasOf = ({ status, gasUsed }: Simulated): bigint | null =>
  hexToBigInt(status) === 1n ? hexToBigInt(gasUsed) : null;

/** The node gets the cap as well, so that its estimate stops there. */
async function estimateOne({ client }: Node, account: Address, { kind, ...call }: KindOfCall): Promise<bigint | null> {
  try {
    return await client.estimateGas({ account, ...call, gas: GAS_CAPS[kind] });
  } catch (error) {
    if (wouldFail(error)) return null;
    throw error;
  }
}

// Nodes report an estimate beyond the cap in text alone.
const OUT_OF_GAS = /gas required exceeds|out of gas|gas limit/i;
const wouldFail = (error: unknown): boolean =>
  error instanceof BaseError &&
  (error.walk((e) => e instanceof ExecutionRevertedError) !== null || OUT_OF_GAS.test(error.details));

export type Simulated = { status: Hex; gasUsed: Hex; logs?: readonly { address: Address; topics: readonly Hex[] }[] };

/** Simulates calls in sequence on top of a block (`eth_simulateV1`). */
export async function simulate(
  { client }: Node,
  from: Address,
  calls: readonly Call[],
  block: Hex | "latest" = "latest",
): Promise<readonly Simulated[]> {
  const request = client.request as (request: { method: string; params: unknown }) => Promise<unknown>;
  const blockStateCalls = [{ calls: calls.map(({ to, data }) => ({ from, to, data })) }];
  const answer = await request({ method: "eth_simulateV1", params: [{ blockStateCalls }, block] });
  const simulated = (answer as [{ calls?: readonly Simulated[] }?])[0]?.calls;
  if (simulated?.length !== calls.length) {
    throw new AppError("chain_answered_nonsense", "An RPC node returned too few results for a simulation.");
  }
  return simulated;
}

/**
 * Whether a token bought now could be transferred to its payer: simulates the purchase, then purchase and transfer of the
 * minted token (hard case 19). Both simulations use one block: a sale in between would change the token's id.
 */
export const canDeliver = async (
  chain: Chain,
  purchase: CallOrder & { kind: "purchase" },
  payer: Address,
  addresses: Addresses,
): Promise<boolean> =>
  (await unlessTwoRefuse(chain, async (node) => (await canDeliverOn(node, purchase, payer, addresses)) || null)) ===
  true;

async function canDeliverOn(
  node: Node,
  purchase: CallOrder & { kind: "purchase" },
  payer: Address,
  addresses: Addresses,
): Promise<boolean> {
  const block = numberToHex(await node.client.getBlockNumber({ cacheTime: 0 }));
  const calls = callsOf(purchase, addresses);
  const bought = (await simulate(node, addresses.operator, calls, block)).at(-1);
  const minted = bought?.logs?.find(
    ({ address, topics }) =>
      address.toLowerCase() === addresses.contract.toLowerCase() &&
      topics[0] === TRANSFER_TOPIC &&
      topics[1] === NOBODY,
  );
  const tokenId = minted?.topics[3];
  if (tokenId === undefined) return false;
  const transfer = { kind: "transfer", id: "", to: payer, tokenId: Number(hexToBigInt(tokenId)) } as const;
  const all = await simulate(node, addresses.operator, [...calls, ...callsOf(transfer, addresses)], block);
  return all.every(({ status }) => hexToBigInt(status) === 1n);
}

const GAS_PRICE_ORACLE = "0x420000000000000000000000000000000000000F";
/** The size of a signed transaction without its calldata: nonce, fees, addresses and signature. */
const ENVELOPE_BYTES = 150;
const l1FeeAbi = parseAbi(["function getL1FeeUpperBound(uint256 unsignedTxSize) view returns (uint256)"]);

/**
 * The OP Stack's L1 data fee for these transactions, in wei, beside their gas (GasPriceOracle, since Fjord). 0 on a chain
 * without that contract.
 */
export async function readL1Fee(chain: Chain, calls: readonly { data: Hex }[]): Promise<bigint> {
  const bytes = calls.reduce((sum, { data }) => sum + size(data) + ENVELOPE_BYTES, 0);
  const data = encodeFunctionData({ abi: l1FeeAbi, functionName: "getL1FeeUpperBound", args: [BigInt(bytes)] });
  const ask = async ({ client }: Node) => {
    try {
      const answer = await client.request({ method: "eth_call", params: [{ to: GAS_PRICE_ORACLE, data }, "latest"] });
      return answer === "0x" ? 0n : hexToBigInt(answer);
    } catch (error) {
      if (wouldFail(error)) return 0n;
      throw error;
    }
  };
  const [, fee] = await askNear(chain, ask, (answer) => answer);
  return fee;
}
