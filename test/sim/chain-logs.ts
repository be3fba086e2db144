import { type Hex, toEventSelector } from "viem";
import { CONTRACT_ADDRESS, USDC_ADDRESS } from "../world/addresses.ts";
import type { Sale } from "./contracts.ts";

export type LogEntry = { address: string; topics: Hex[]; data: Hex };

const CONTRACT = CONTRACT_ADDRESS.toLowerCase();
const COIN = USDC_ADDRESS.toLowerCase();
const TRANSFER = toEventSelector("event Transfer(address indexed from, address indexed to, uint256 indexed tokenId)");
const PURCHASE = toEventSelector(
  "event VMPurchased(uint256 tokenId, address buyer, uint8 tier, uint16 durationDays, uint256 purchaseDate, uint256 totalCost)",
);
const RENEWAL = toEventSelector(
  "event VMRenewed(uint256 tokenId, uint16 additionalDays, uint256 newExpiry, uint256 totalCost)",
);
const TERMINATION = toEventSelector("event VMTerminated(uint256 tokenId)");
const USED = toEventSelector("event AuthorizationUsed(address indexed authorizer, bytes32 indexed nonce)");
const CANCELLED = toEventSelector("event AuthorizationCanceled(address indexed authorizer, bytes32 indexed nonce)");

/** A value as a word of 32 bytes, without 0x. */
export const word = (value: number | bigint | string): string =>
  (typeof value === "string" ? value.replace(/^0x/, "").toLowerCase() : value.toString(16)).padStart(64, "0");

const topic = (value: number | string): Hex => `0x${word(value)}`;
const data = (...values: (number | bigint)[]): Hex => `0x${values.map(word).join("")}`;
const ours = (topics: Hex[], words: Hex): LogEntry => ({ address: CONTRACT, topics, data: words });
const coins = (topics: Hex[], words: Hex): LogEntry => ({ address: COIN, topics, data: words });

export const transferLog = (tokenId: number, from: string, to: string): LogEntry =>
  ours([TRANSFER, topic(from), topic(to), topic(tokenId)], "0x");

export const purchaseLog = ({ tokenId, buyer, tier, durationDays, purchaseDate, totalCost }: Sale): LogEntry =>
  ours([PURCHASE, topic(tokenId), topic(buyer)], data(tier, durationDays, purchaseDate, totalCost));

export const renewalLog = (tokenId: number, days: number, newExpiry: number): LogEntry =>
  ours([RENEWAL, topic(tokenId)], data(days, newExpiry, 1));

export const terminationLog = (tokenId: number): LogEntry => ours([TERMINATION, topic(tokenId)], "0x");

export const coinLog = (from: string, to: string, amount: bigint): LogEntry =>
  coins([TRANSFER, topic(from), topic(to)], data(amount));

export const usedLog = (payer: string, nonce: Hex): LogEntry => coins([USED, topic(payer), topic(nonce)], "0x");

export const cancelledLog = (payer: string, nonce: Hex): LogEntry =>
  coins([CANCELLED, topic(payer), topic(nonce)], "0x");
