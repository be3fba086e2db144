// Whose key made which signature (see hooks.ts).
import { bytesToHex } from "@noble/hashes/utils.js";

const MOST = 10_000;
const signers = new Map<string, string>();
const publicKeys = new Map<string, string>();

/**
 * Hex without 0x; `signed` is the hash, the signature and its recovery bit. `publicKeyOf` is that of the library that signs:
 * the newer one draws a number, and a run would depend on the runs before it.
 */
export function remember(
  signed: string,
  privateKey: string,
  publicKeyOf: (privateKey: string, isCompressed: boolean) => Uint8Array,
): void {
  const publicKey = publicKeys.get(privateKey) ?? bytesToHex(publicKeyOf(privateKey, false));
  publicKeys.set(privateKey, publicKey);
  if (signers.size >= MOST) signers.clear();
  signers.set(signed, publicKey);
}

/** 65 bytes, in hex without 0x. */
export const signerOf = (signed: string): string | undefined => signers.get(signed);
