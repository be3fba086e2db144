// The contract's interface: the only place that knows it.
import { type AbiEvent, type Address, type Hex, parseAbi, parseAbiItem, toEventSelector } from "viem";

export const MULTICALL3 = "0xcA11bde05977b3631167028862bE2a173976CA11" satisfies Address;

export const contractAbi = parseAbi([
  "function isTokenValid(uint256 tokenId) view returns (bool)",
  "function ownerOf(uint256 tokenId) view returns (address)",
  "function getTierConfig(uint8 tier) view returns (uint256 pricePerDay, bool active, string name)",
  "function purchaseVM(uint8 tier, uint16 durationDays)",
  "function transferFrom(address from, address to, uint256 tokenId)",
]);

/** Of the coin that purchases are paid in, with EIP-3009 and, for signatures of contracts, FiatToken v2.2's overload. */
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
 * The layouts in which a purchase event may arrive, by how many topics it has. No document says which fields are
 * indexed; the first topic is the same in all, so the number of topics tells: none, tokenId, tokenId and buyer.
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

/** First topics of what the scan follows: purchases, renewals and early ends; and transfers, of which there may be very many. */
export const salesTopics = (purchaseEvent: AbiEvent): Hex[] =>
  [purchaseEvent, ...eventAbi.filter(({ name }) => name !== "Transfer")].map((event) => toEventSelector(event));
export const transferTopic: Hex = toEventSelector("event Transfer(address indexed, address indexed, uint256 indexed)");

/** 10^-6 USDC as a decimal string with two digits or more: "0.50", "1.234567". */
export function formatUsdc(usdc6: bigint): string {
  const whole = usdc6 / 1_000_000n;
  const fraction = (usdc6 % 1_000_000n).toString().padStart(6, "0");
  return `${whole}.${fraction.replace(/0{1,4}$/, "")}`;
}

/** Of `PURCHASE_EVENT`; null where that is no event with everything that a purchase has. */
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
