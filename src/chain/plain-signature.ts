// Signatures of plain accounts: r, s and v (EIP-191 and EIP-712 alike), in 65 bytes or, compact, in 64 (EIP-2098).
import { secp256k1 } from "@noble/curves/secp256k1.js";
import type { Hex } from "viem";

/** `0x` and 65 bytes; of any other length it is for a contract to read. */
export const PLAIN_SIGNATURE_CHARS = 2 + 65 * 2;
export const COMPACT_SIGNATURE_CHARS = 2 + 64 * 2;
const HALF_ORDER = secp256k1.Point.CURVE().n / 2n;

/** Of each signature there is a twin with the other half of the curve's order (EIP-2): only one of them is taken. */
export const isOtherTwin = (signature: Hex): boolean =>
  BigInt(`0x${signature.slice(66, PLAIN_SIGNATURE_CHARS - 2)}`) > HALF_ORDER;

/**
 * The 65 bytes of a plain account's signature of either form; null for what is for a contract to read. Any bytes have some:
 * viem's reading of the compact form throws where r and s are none of the curve's, which a contract may take all the same.
 */
export function plainSignatureOf(signature: Hex): Hex | null {
  if (signature.length === PLAIN_SIGNATURE_CHARS) return signature;
  if (signature.length !== COMPACT_SIGNATURE_CHARS) return null;
  const yParityAndS = BigInt(`0x${signature.slice(66)}`);
  const s = BigInt.asUintN(255, yParityAndS).toString(16).padStart(64, "0");
  return `${signature.slice(0, 66)}${s}${yParityAndS >> 255n === 0n ? "1b" : "1c"}` as Hex;
}
