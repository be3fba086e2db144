// What a paying agent does by hand: sign a payment, put it into x402's headers, read a quote, race the facilitator to the
// chain, take a payment back. Runs in Node and in workerd, and shares no code with the x402 packages: only their types.
import type { PaymentRequired, PaymentRequirements, ResourceInfo } from "@x402/core/types";
import { type Address, bytesToHex, type Hex, parseAbi, parseSignature, size } from "viem";
import type { LocalAccount } from "viem/accounts";
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
  const { from, to, value, validAfter, validBefore, nonce } = inNumbers(authorization);
  const transfer = [from, to, value, validAfter, validBefore, nonce] as const;
  const call = { address: usdc, abi: usdcAbi, functionName: "transferWithAuthorization" } as const;
  const wallet = chain.wallet(submitter);
  const hash =
    size(signature) === ECDSA_BYTES
      ? await wallet.writeContract({ ...call, args: [...transfer, ...inParts(signature)] })
      : await wallet.writeContract({ ...call, args: [...transfer, signature] });
  await chain.reader.waitForTransactionReceipt({ hash });
  return hash;
}

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
