// The ABIs of the contract, the coin and Multicall3. No other folder holds an ABI.
import { type AbiEvent, type Address, type Hex, parseAbi, parseAbiItem, toEventSelector } from "viem";

export const MULTICALL3 = "0xcA11bde05977b3631167028862bE2a173976CA11" satisfies Address;

export const contractAbi = parseAbi([
  "function isTokenValid(uint256 tokenId) view returns (bool)",
  "function ownerOf(uint256 tokenId) view returns (address)",
  "function getTierConfig(uint8 tier) view returns (uint256 pricePerDay, bool active, string name)",
  "function purchaseVM(uint8 tier, uint16 durationDays)",
  "function transferFrom(address from, address to, uint256 tokenId)",
]);

/** The coin's ABI: ERC-20, EIP-3009, and FiatToken v2.2's overload that takes signatures of contracts. */
export const coinAbi = parseAbi([
  "function transfer(address to, uint256 amount) returns (bool)",
  "function approve(address spender, uint256 amount) returns (bool)",
  "function balanceOf(address account) view returns (uint256)",
  "function authorizationState(address authorizer, bytes32 nonce) view returns (bool)",
  "function transferWithAuthorization(address from, address to, uint256 value, uint256 validAfter, uint256 validBefore, bytes32 nonce, uint8 v, bytes32 r, bytes32 s)",
  "function transferWithAuthorization(address from, address to, uint256 value, uint256 validAfter, uint256 validBefore, bytes32 nonce, bytes signature)",
  "event AuthorizationUsed(address indexed authorizer, bytes32 indexed nonce)",
  "event Transfer(address indexed from, address indexed to, uint256 value)",
]);

export const multicallAbi = parseAbi([
  "function getBlockNumber() view returns (uint256)",
  "function getCurrentBlockTimestamp() view returns (uint256)",
  "function getEthBalance(address addr) view returns (uint256 balance)",
]);

export const eventAbi = parseAbi([
  "event Transfer(address indexed from, address indexed to, uint256 indexed tokenId)",
  "event VMRenewed(uint256 indexed tokenId, uint16 additionalDays, uint256 newExpiry, uint256 totalCost)",
  "event VMTerminated(uint256 indexed tokenId)",
]);

export const SECONDS_PER_DAY = 86_400;

/**
 * The layouts of the purchase event, by number of topics. No document says which fields are indexed. The first topic is the
 * same in all layouts, so the number of topics tells them apart: no indexed field, tokenId, or tokenId and buyer.
 */
export function purchaseLayouts(event: AbiEvent): ReadonlyMap<number, AbiEvent> {
  const withIndexed = (names: readonly string[]): AbiEvent => ({
    ...event,
    inputs: event.inputs.map(({ indexed: _, ...input }) =>
      names.includes(input.name ?? "") ? { ...input, indexed: true } : input,
    ),
  });
  return new Map([
    [1, withIndexed([])],
    [2, withIndexed(["tokenId"])],
    [3, withIndexed(["tokenId", "buyer"])],
  ]);
}

/** First topics of purchases, renewals and early ends. Transfers are apart, since their number has no bound (hard case 31). */
export const salesTopics = (purchaseEvent: AbiEvent): Hex[] =>
  [purchaseEvent, ...eventAbi.filter(({ name }) => name !== "Transfer")].map((event) => toEventSelector(event));
export const transferTopic: Hex = toEventSelector("event Transfer(address indexed, address indexed, uint256 indexed)");

/** An amount in 10^-6 USDC as a decimal string of USDC, with two decimals or more: "0.50", "1.234567". */
export function formatUsdc(usdc6: bigint): string {
  const whole = usdc6 / 1_000_000n;
  const fraction = (usdc6 % 1_000_000n).toString().padStart(6, "0");
  return `${whole}.${fraction.replace(/0{1,4}$/, "")}`;
}

/** Parses PURCHASE_EVENT; null when it is not an event signature or lacks a field of a purchase. */
export function parsePurchaseEvent(signature: string): AbiEvent | null {
  try {
    const event = parseAbiItem(`event ${signature.replace(/^event\s+/, "")}`) as AbiEvent;
    const names = event.inputs.map((input) => input.name);
    const needed = ["tokenId", "buyer", "tier", "durationDays", "purchaseDate", "totalCost"];
    return needed.every((name) => names.includes(name)) ? event : null;
  } catch {
    return null;
  }
}
