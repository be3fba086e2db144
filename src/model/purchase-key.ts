import type { Address, Hex } from "viem";
import { GiveUp } from "../errors.ts";

/** What tells one purchase from any other, across reorgs and deployments (hard case 5). */
export type Incarnation = {
  deploymentId: string;
  contract: Address;
  tokenId: number;
  txHash: Hex;
  ordinal: number;
};

/** `<deployment>/<contract>/<token id>/<tx hash>/<ordinal>`, lower case: the key of every row of a purchase. */
export const incarnationKey = (of: Incarnation): string =>
  [of.deploymentId, of.contract, of.tokenId, of.txHash, of.ordinal].join("/").toLowerCase();

/** Reads a key back. Throws `GiveUp` on anything that `incarnationKey` did not make: a purchase has one key, not `07` beside `7`. */
export function parseIncarnation(key: string): Incarnation {
  const match = /^([a-z0-9-]{1,16})\/(0x[0-9a-f]{40})\/(\d+)\/(0x[0-9a-f]{64})\/(\d+)$/.exec(key);
  const [, deploymentId = "", contract, tokenId, txHash, ordinal] = match ?? [];
  const of = {
    deploymentId,
    contract: contract as Address,
    tokenId: Number(tokenId),
    txHash: txHash as Hex,
    ordinal: Number(ordinal),
  };
  if (incarnationKey(of) !== key) throw new GiveUp("purchase_mismatch", `"${key}" names no incarnation`);
  return of;
}

/** What the names of an incarnation's machines begin with. */
export function labelFamily(key: string): string {
  const { deploymentId, tokenId, txHash, ordinal } = parseIncarnation(key);
  return `clawcloud-${deploymentId}-${tokenId}-${txHash.slice(2, 10)}-${ordinal}-`;
}

/** A machine's name at the vendor: `clawcloud-<deployment>-<token id>-<tx8>-<ordinal>-<attempt>`. */
export const machineLabel = (key: string, attempt: number): string => `${labelFamily(key)}${attempt}`;

/** The token that a machine of this deployment is for, by its name; null for any other machine. */
export function tokenOfLabel(deploymentId: string, label: string): number | null {
  const prefix = `clawcloud-${deploymentId}-`;
  if (!label.startsWith(prefix)) return null;
  const [, tokenId] = /^(\d+)-[0-9a-f]{8}-\d+-\d+$/.exec(label.slice(prefix.length)) ?? [];
  return tokenId === undefined ? null : Number(tokenId);
}

/** The same, read off the name of one of them. */
export const familyOfLabel = (label: string): string => label.replace(/\d+$/, "");
