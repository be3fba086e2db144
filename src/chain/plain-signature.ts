// Signatures of plain accounts (EIP-191 and EIP-712 alike): r, s and v in 65 bytes, or 64 bytes in the compact form (EIP-2098).
import { secp256k1 } from "@noble/curves/secp256k1.js";
import type { Hex } from "viem";

/** `0x` and 65 bytes. Only a contract can verify a signature of another length. */
export const PLAIN_SIGNATURE_CHARS = 2 + 65 * 2;
export const COMPACT_SIGNATURE_CHARS = 2 + 64 * 2;
const HALF_ORDER = secp256k1.Point.CURVE().n / 2n;

/**
 * Each signature has a twin with `n - s`, which recovers to the same key. Only the form with the low `s` is accepted (EIP-2).
 */
export const isOtherTwin = (signature: Hex): boolean =>
  BigInt(`0x${signature.slice(66, PLAIN_SIGNATURE_CHARS - 2)}`) > HALF_ORDER;

/**
 * A plain account's signature as 65 bytes, from either form; null for a signature of another length, which only a contract can
 * verify. Any 64 or 65 bytes convert, unlike with viem: viem throws for an r or s outside the curve, and a contract may accept
 * such bytes.
 */
export function plainSignatureOf(signature: Hex): Hex | null {
  if (signature.length === PLAIN_SIGNATURE_CHARS) return signature;
  if (signature.length !== COMPACT_SIGNATURE_CHARS) return null;
  const yParityAndS = BigInt(`0x${signature.slice(66)}`);
  const s = BigInt.asUintN(255, yParityAndS).toString(16).padStart(64, "0");
  return `${signature.slice(0, 66)}${s}${yParityAndS >> 255n === 0n ? "1b" : "1c"}` as Hex;
}
