// Signatures of plain accounts: r, s and v (EIP-191 and EIP-712 alike), in 65 bytes or, compact, in 64 (EIP-2098).
import { secp256k1 } from "@noble/curves/secp256k1.js";
import { compactSignatureToSignature, type Hex, parseCompactSignature, serializeSignature } from "viem";

/** `0x` and 65 bytes; of any other length it is for a contract to read. */
export const PLAIN_SIGNATURE_CHARS = 2 + 65 * 2;
export const COMPACT_SIGNATURE_CHARS = 2 + 64 * 2;
const HALF_ORDER = secp256k1.Point.CURVE().n / 2n;

/** Of each signature there is a twin with the other half of the curve's order (EIP-2): only one of them is taken. */
export const isOtherTwin = (signature: Hex): boolean =>
  BigInt(`0x${signature.slice(66, PLAIN_SIGNATURE_CHARS - 2)}`) > HALF_ORDER;

/** The 65 bytes of a plain account's signature of either form; null for what is for a contract to read. */
export function plainSignatureOf(signature: Hex): Hex | null {
  if (signature.length === PLAIN_SIGNATURE_CHARS) return signature;
  if (signature.length !== COMPACT_SIGNATURE_CHARS) return null;
  return serializeSignature(compactSignatureToSignature(parseCompactSignature(signature)));
}
