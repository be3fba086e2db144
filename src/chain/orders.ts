// What the operator wallet sends: calls of the coin and of the contract, and their dry runs.
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
 * What a payer signed, the block from which its use is looked for, and, for a machine, the one where the price was read.
 * `value`: 10^-6 USDC, decimal.
 */
export type SignedPayment = Omit<Authorization, "value"> & { value: string; fromBlock: number; quotedBlock?: number };

/**
 * `id`: one order for ever. Amounts in 10^-6 USDC, decimal; times in unix seconds. `paid` and `owed` are what the wallet
 * asks the chain about before it signs (hard case 34); they are no part of what the order is.
 */
export type WalletOrder =
  /**
   * USDC to somebody: refunds. Of a payment, or of a purchase, which was itself paid for over x402 where `payment` is set.
   * `approved`: by an operator, who may also pay back what was delivered. `again`: where it has reverted, it is signed anew.
   */
  | {
      kind: "pay";
      id: string;
      to: Address;
      amount: string;
      owed: { purchase?: string; payment?: SignedPayment; approved?: true };
      again?: boolean;
    }
  /** Approval of exactly the cost, then purchaseVM. `payment`: whose purchase it is. */
  | {
      kind: "purchase";
      id: string;
      payment: string;
      tier: number;
      durationDays: number;
      cost: string;
      paid: SignedPayment;
    }
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
  | { kind: "transfer"; id: string; to: Address; tokenId: number; purchase: string; paid: SignedPayment };
export type OrderKind = WalletOrder["kind"] | "approve";

/** A whole payment goes back, for which nothing was delivered; not a share of what was, nor what an operator allows. */
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
 * The most gas that a transaction of a kind may be given; what needs more would fail. Code of strangers runs in two of
 * them: a payer's contract says whether a signature is its own, and may burn what it likes (hard case 35). All are far below
 * what Base takes in one transaction (2^24, EIP-7825).
 */
const GAS_CAPS: Readonly<Record<OrderKind, bigint>> = {
  pay: 250_000n,
  approve: 250_000n,
  purchase: 900_000n,
  capture: 700_000n,
  transfer: 400_000n,
};
/**
 * An estimate does not see what the transactions in front of it will do: an allowance that it finds in place may be used up
 * by then, and a write that turns a slot from zero costs 22,100 gas instead of 5,000 (EIP-2929, EIP-2200). Room for two.
 */
const GAS_ROOM = 40_000n;

/** An order's identity: what it was given with, less what proves that it is owed. */
export const identityOf = (order: WalletOrder): string => {
  const { paid, owed, purchase, again, ...body } = { paid: null, owed: null, purchase: null, again: null, ...order };
  return JSON.stringify(body);
};

/** The order's transactions, in their order. */
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

/** What ends in 27 or 28 goes in three parts, as every version of the coin takes it; the rest is a contract's, and goes byte by byte. */
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

/** Gas for calls that build on each other, with room; null where two nodes say that one would revert, or needs more than its kind may. */
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

/** The node is told the cap as well, so that it computes no longer than that. */
async function estimateOne({ client }: Node, account: Address, { kind, ...call }: KindOfCall): Promise<bigint | null> {
  try {
    return await client.estimateGas({ account, ...call, gas: GAS_CAPS[kind] });
  } catch (error) {
    if (wouldFail(error)) return null;
    throw error;
  }
}

// A node that gives up at the cap says so in words alone.
const OUT_OF_GAS = /gas required exceeds|out of gas|gas limit/i;
const wouldFail = (error: unknown): boolean =>
  error instanceof BaseError &&
  (error.walk((e) => e instanceof ExecutionRevertedError) !== null || OUT_OF_GAS.test(error.details));

export type Simulated = { status: Hex; gasUsed: Hex; logs?: readonly { address: Address; topics: readonly Hex[] }[] };

/** Calls one after the other on top of a block (`eth_simulateV1`). */
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
    throw new AppError("chain_answered_nonsense", "An RPC node answered a simulation with too few results.");
  }
  return simulated;
}

/**
 * Whether a token bought now could be handed over: the purchase is played, then the transfer of what it minted (hard case 19).
 * Both on one block: a sale in between would give the second another token than the first.
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
/** A signed transaction beside its calldata: nonce, fees, addresses and signature. */
const ENVELOPE_BYTES = 150;
const l1FeeAbi = parseAbi(["function getL1FeeUpperBound(uint256 unsignedTxSize) view returns (uint256)"]);

/**
 * What the OP stack takes for bringing transactions to Ethereum, beside their gas (GasPriceOracle, since Fjord): wei. Nothing
 * where the chain has no such contract.
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
