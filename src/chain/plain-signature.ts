// Signatures of plain accounts: r, s and v (EIP-191 and EIP-712 alike).
import { secp256k1 } from "@noble/curves/secp256k1.js";
import type { Hex } from "viem";

/** `0x` and 65 bytes; of any other length it is for a contract to read. */
export const PLAIN_SIGNATURE_CHARS = 2 + 65 * 2;
const HALF_ORDER = secp256k1.Point.CURVE().n / 2n;

/** Of each signature there is a twin with the other half of the curve's order (EIP-2): only one of them is taken. */
export const isOtherTwin = (signature: Hex): boolean =>
  BigInt(`0x${signature.slice(66, PLAIN_SIGNATURE_CHARS - 2)}`) > HALF_ORDER;
