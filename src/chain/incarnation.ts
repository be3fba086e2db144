import type { Address, Hex } from "viem";

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

/** Of a number one spelling alone: a purchase that had several names was paid back once for each. */
const NUMBER = "(0|[1-9]\\d*)";
const KEY = new RegExp(`^([a-z0-9-]{1,16})/(0x[0-9a-f]{40})/${NUMBER}/(0x[0-9a-f]{64})/${NUMBER}$`);

/** Reads a key back. Throws on anything that `incarnationKey` did not make. */
export function parseIncarnation(key: string): Incarnation {
  const match = KEY.exec(key);
  if (match === null) throw new Error(`"${key}" names no incarnation`);
  const [, deploymentId = "", contract, tokenId, txHash, ordinal] = match;
  return {
    deploymentId,
    contract: contract as Address,
    tokenId: Number(tokenId),
    txHash: txHash as Hex,
    ordinal: Number(ordinal),
  };
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
