// Whose key made which signature (see hooks.ts).
import { secp256k1 } from "@noble/curves/secp256k1.js";
import { bytesToHex, hexToBytes } from "@noble/hashes/utils.js";

/** Enough for a world. */
const MOST = 10_000;
const signers = new Map<string, string>();
const publicKeys = new Map<string, string>();

/** Hex without 0x; `signed` is the hash, the signature and its recovery bit. */
export function remember(signed: string, privateKey: string): void {
  if (signers.size >= MOST) signers.clear();
  signers.set(signed, privateKey);
}

/** Of 65 bytes, in hex without 0x. */
export function signerOf(signed: string): string | undefined {
  const privateKey = signers.get(signed);
  if (privateKey === undefined) return undefined;
  const known = publicKeys.get(privateKey) ?? bytesToHex(secp256k1.getPublicKey(hexToBytes(privateKey), false));
  publicKeys.set(privateKey, known);
  return known;
}
