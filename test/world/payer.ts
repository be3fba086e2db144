// What a paying agent does by hand: sign a payment, put it into x402's headers, read a quote, race the facilitator to the
// chain, take a payment back. Runs in Node and in workerd, and shares no code with the x402 packages: only their types.
import type { PaymentRequired, PaymentRequirements, ResourceInfo } from "@x402/core/types";
import {
  type Address,
  bytesToHex,
  encodeFunctionData,
  type Hex,
  multicall3Abi,
  parseAbi,
  parseSignature,
  size,
  type TransactionReceipt,
  zeroAddress,
} from "viem";
import type { LocalAccount } from "viem/accounts";
import { MULTICALL3_ADDRESS } from "./addresses.ts";
import type { Clients } from "./agent.ts";

const usdcAbi = parseAbi([
  "function transferWithAuthorization(address from, address to, uint256 value, uint256 validAfter, uint256 validBefore, bytes32 nonce, uint8 v, bytes32 r, bytes32 s)",
  "function transferWithAuthorization(address from, address to, uint256 value, uint256 validAfter, uint256 validBefore, bytes32 nonce, bytes signature)",
  "function cancelAuthorization(address authorizer, bytes32 nonce, uint8 v, bytes32 r, bytes32 s)",
]);
const TRANSFER_TYPES = {
  TransferWithAuthorization: [
    { name: "from", type: "address" },
    { name: "to", type: "address" },
    { name: "value", type: "uint256" },
    { name: "validAfter", type: "uint256" },
    { name: "validBefore", type: "uint256" },
    { name: "nonce", type: "bytes32" },
  ],
} as const;
const CANCEL_TYPES = {
  CancelAuthorization: [
    { name: "authorizer", type: "address" },
    { name: "nonce", type: "bytes32" },
  ],
} as const;
const ECDSA_BYTES = 65;
const DELEGATION_GAS = 100_000n;

/** As on the wire: whole numbers are decimal strings, `value` in millionths of a dollar, times in unix seconds. */
export type Authorization = {
  from: Address;
  to: Address;
  value: string;
  validAfter: string;
  validBefore: string;
  nonce: Hex;
};
export type SignedPayment = { authorization: Authorization; signature: Hex };
/** Whoever signs payments; with `from` overridden, the keeper of a smart wallet. */
export type Payer = Pick<LocalAccount, "address" | "signTypedData">;

/** Signs what the requirement asks for, good from ever until its `maxTimeoutSeconds` from now. */
export async function authorize(
  account: Payer,
  requirement: PaymentRequirements,
  overrides: Partial<Authorization> = {},
): Promise<SignedPayment> {
  const authorization: Authorization = {
    from: account.address,
    to: requirement.payTo as Address,
    value: requirement.amount,
    validAfter: "0",
    validBefore: String(Math.floor(Date.now() / 1_000) + requirement.maxTimeoutSeconds),
    nonce: randomNonce(),
    ...overrides,
  };
  const signature = await account.signTypedData({
    domain: {
      name: String(requirement.extra["name"]),
      version: String(requirement.extra["version"]),
      chainId: Number(requirement.network.split(":")[1]),
      verifyingContract: requirement.asset as Address,
    },
    types: TRANSFER_TYPES,
    primaryType: "TransferWithAuthorization",
    message: inNumbers(authorization),
  });
  return { authorization, signature };
}

/** The value of `PAYMENT-SIGNATURE`. */
export function paymentHeaderV2(
  requirement: PaymentRequirements,
  signed: SignedPayment,
  more: { resource?: ResourceInfo; extensions?: Record<string, unknown> } = {},
): string {
  return toBase64({ x402Version: 2, ...more, accepted: requirement, payload: signed });
}

/** The value of `X-PAYMENT`. */
export function paymentHeaderV1(
  requirement: Pick<PaymentRequirements, "scheme">,
  signed: SignedPayment,
  networkName = "base",
): string {
  return toBase64({ x402Version: 1, scheme: requirement.scheme, network: networkName, payload: signed });
}

/** What a 402 asks for, out of its `PAYMENT-REQUIRED`. */
export function readQuote(response: Pick<Response, "status" | "headers">): PaymentRequired {
  const header = response.headers.get("payment-required");
  if (header === null) throw new Error(`an answer ${response.status} without PAYMENT-REQUIRED`);
  return fromBase64(header) as PaymentRequired;
}

/** Settles a payment past the facilitator, from any account. Resolves once it is mined. */
export async function submit(
  chain: Clients,
  submitter: LocalAccount,
  { authorization, signature }: SignedPayment,
  usdc: Address,
): Promise<Hex> {
  const hash = await chain
    .wallet(submitter)
    .sendTransaction({ to: usdc, data: transferData({ authorization, signature }) });
  await chain.reader.waitForTransactionReceipt({ hash });
  return hash;
}

/** Settles several in one transaction, in this order, as a busy facilitator may, and a thief. Resolves once it is mined. */
export async function submitTogether(
  chain: Clients,
  submitter: LocalAccount,
  payments: readonly SignedPayment[],
  usdc: Address,
): Promise<TransactionReceipt> {
  const calls = payments.map((payment) => ({ target: usdc, allowFailure: false, callData: transferData(payment) }));
  const hash = await chain.wallet(submitter).writeContract({
    address: MULTICALL3_ADDRESS,
    abi: multicall3Abi,
    functionName: "aggregate3",
    args: [calls],
  });
  return chain.reader.waitForTransactionReceipt({ hash });
}

/** The coin's call that moves a signed payment. */
export function transferData({ authorization, signature }: SignedPayment): Hex {
  const { from, to, value, validAfter, validBefore, nonce } = inNumbers(authorization);
  const transfer = [from, to, value, validAfter, validBefore, nonce] as const;
  const call = { abi: usdcAbi, functionName: "transferWithAuthorization" } as const;
  return size(signature) === ECDSA_BYTES
    ? encodeFunctionData({ ...call, args: [...transfer, ...inParts(signature)] })
    : encodeFunctionData({ ...call, args: [...transfer, signature] });
}

/** Gives an account the code of a contract (EIP-7702): its key's signatures count no more, the code's word does. */
export async function delegate(chain: Clients, account: LocalAccount, contractAddress: Address): Promise<void> {
  const wallet = chain.wallet(account);
  const authorization = await wallet.signAuthorization({ contractAddress, executor: "self" });
  // To nobody: the new code need not take a call without data.
  const hash = await wallet.sendTransaction({
    to: zeroAddress,
    authorizationList: [authorization],
    gas: DELEGATION_GAS,
  });
  await chain.reader.waitForTransactionReceipt({ hash });
}

/** Makes it a plain account again. */
export const undelegate = (chain: Clients, account: LocalAccount): Promise<void> =>
  delegate(chain, account, zeroAddress);

/** Makes a signed payment worthless, as its payer may; the nonce reads as used from then on. Resolves once it is mined. */
export async function cancel(
  chain: Clients,
  account: LocalAccount,
  { authorization: { from, nonce } }: SignedPayment,
  usdc: Address,
): Promise<Hex> {
  const wallet = chain.wallet(account);
  const signature = await account.signTypedData({
    domain: { name: "USD Coin", version: "2", chainId: wallet.chain.id, verifyingContract: usdc },
    types: CANCEL_TYPES,
    primaryType: "CancelAuthorization",
    message: { authorizer: from, nonce },
  });
  const hash = await wallet.writeContract({
    address: usdc,
    abi: usdcAbi,
    functionName: "cancelAuthorization",
    args: [from, nonce, ...inParts(signature)],
  });
  await chain.reader.waitForTransactionReceipt({ hash });
  return hash;
}

const inNumbers = (authorization: Authorization) => ({
  ...authorization,
  value: BigInt(authorization.value),
  validAfter: BigInt(authorization.validAfter),
  validBefore: BigInt(authorization.validBefore),
});

function inParts(signature: Hex): [v: number, r: Hex, s: Hex] {
  const { r, s, yParity } = parseSignature(signature);
  return [27 + yParity, r, s];
}

const randomNonce = () => bytesToHex(crypto.getRandomValues(new Uint8Array(32)));

// Quotes may hold more than ASCII.
const toBase64 = (value: unknown) => btoa(String.fromCharCode(...new TextEncoder().encode(JSON.stringify(value))));
const fromBase64 = (text: string): unknown =>
  JSON.parse(new TextDecoder().decode(Uint8Array.from(atob(text), (character) => character.charCodeAt(0))));
