import { type Hex, toEventSelector } from "viem";
import type { Sale } from "./chain.ts";

export type LogEntry = { topics: Hex[]; data: Hex };

const TRANSFER = toEventSelector("event Transfer(address indexed from, address indexed to, uint256 indexed tokenId)");
const PURCHASE = toEventSelector(
  "event VMPurchased(uint256 tokenId, address buyer, uint8 tier, uint16 durationDays, uint256 purchaseDate, uint256 totalCost)",
);
const RENEWAL = toEventSelector(
  "event VMRenewed(uint256 tokenId, uint16 additionalDays, uint256 newExpiry, uint256 totalCost)",
);
const TERMINATION = toEventSelector("event VMTerminated(uint256 tokenId)");

/** A value as a word of 32 bytes, without 0x. */
export const word = (value: number | bigint | string): string =>
  (typeof value === "string" ? value.replace(/^0x/, "").toLowerCase() : value.toString(16)).padStart(64, "0");

const topic = (value: number | string): Hex => `0x${word(value)}`;
const data = (...values: (number | bigint)[]): Hex => `0x${values.map(word).join("")}`;

export const transferLog = (tokenId: number, from: string, to: string): LogEntry => ({
  topics: [TRANSFER, topic(from), topic(to), topic(tokenId)],
  data: "0x",
});

export const purchaseLog = ({ tokenId, buyer, tier, durationDays, purchaseDate, totalCost }: Sale): LogEntry => ({
  topics: [PURCHASE, topic(tokenId), topic(buyer)],
  data: data(tier, durationDays, purchaseDate, totalCost),
});

export const renewalLog = (tokenId: number, days: number, newExpiry: number): LogEntry => ({
  topics: [RENEWAL, topic(tokenId)],
  data: data(days, newExpiry, 1),
});

export const terminationLog = (tokenId: number): LogEntry => ({ topics: [TERMINATION, topic(tokenId)], data: "0x" });
