// ECIES over secp256k1, in the layout of version 1.3.0 of the API, with the parameters of eciesjs 0.5:
// HKDF-SHA256 (no salt, no info) over ephemeral key || shared point, both uncompressed; AES-256-GCM with a 16-byte nonce.
// The parts joined as key | iv | tag | ciphertext are the input of `eciesjs.decrypt`.
import { secp256k1 } from "@noble/curves/secp256k1.js";
import { hkdf } from "@noble/hashes/hkdf.js";
import { sha256 } from "@noble/hashes/sha2.js";
import { bytesToHex, concatBytes, hexToBytes, randomBytes, utf8ToBytes } from "@noble/hashes/utils.js";
import { AppError } from "../errors.ts";

const PREFIX = "ecc:";
const KEY_BYTES = 65;
const IV_BYTES = 16;
const TAG_BYTES = 16;
const CONTEXT_VERSION = 1;
const CONTEXT_END = 0x0a;

/**
 * The row that a stored secret belongs to. The context is part of the plaintext, so a ciphertext copied into another row does
 * not open there: write access to the database is not enough to make the edge give one owner's key to another (hard case 6).
 */
export type SecretContext = {
  kind: "ssh" | "wallet" | "legacy";
  /** The token's incarnation; for a wallet, the agent id. */
  subject: string;
  attempt: number;
};

/** Encrypts bytes to a secp256k1 public key (33 or 65 bytes). Returns `ecc:<key>:<iv>:<tag>:<ciphertext>`, lower-case hex. */
export async function encrypt(publicKey: Uint8Array, plaintext: Uint8Array): Promise<string> {
  const ephemeral = secp256k1.utils.randomSecretKey();
  const ephemeralPublic = secp256k1.getPublicKey(ephemeral, false);
  const iv = randomBytes(IV_BYTES);
  const key = await aesKey(ephemeralPublic, secp256k1.getSharedSecret(ephemeral, publicKey, false), "encrypt");
  const sealed = new Uint8Array(await crypto.subtle.encrypt({ name: "AES-GCM", iv }, key, plain(plaintext)));
  const ciphertext = sealed.subarray(0, sealed.length - TAG_BYTES);
  const tag = sealed.subarray(sealed.length - TAG_BYTES);
  return PREFIX + [ephemeralPublic, iv, tag, ciphertext].map(bytesToHex).join(":");
}

/** Decrypts a value of `encrypt`. Throws `SecretUnreadable` when the value is malformed or was encrypted to another key. */
export async function decrypt(privateKey: Uint8Array, value: string): Promise<Uint8Array> {
  try {
    const parts = value.slice(PREFIX.length).split(":").map(hexToBytes);
    const [ephemeralPublic, iv, tag, ciphertext] = parts;
    if (!isEncrypted(value) || parts.length !== 4) throw new Error("not four parts behind ecc:");
    if (ephemeralPublic?.length !== KEY_BYTES || iv?.length !== IV_BYTES || tag?.length !== TAG_BYTES) {
      throw new Error("a part has the wrong length");
    }
    const shared = secp256k1.getSharedSecret(privateKey, ephemeralPublic, false);
    const key = await aesKey(ephemeralPublic, shared, "decrypt");
    const sealed = concatBytes(ciphertext ?? new Uint8Array(), tag);
    return new Uint8Array(await crypto.subtle.decrypt({ name: "AES-GCM", iv: plain(iv) }, key, plain(sealed)));
  } catch (cause) {
    throw new SecretUnreadable("it does not open with this data key", { cause });
  }
}

/** Encrypts a secret for storage, together with its context. Returns the same form as `encrypt`. */
export function sealSecret(publicKey: Uint8Array, context: SecretContext, secret: Uint8Array): Promise<string> {
  const header = utf8ToBytes(`${JSON.stringify({ v: CONTEXT_VERSION, ...context })}\n`);
  return encrypt(publicKey, concatBytes(header, secret));
}

/**
 * Opens a stored secret. A value without the `ecc:` prefix is a plaintext from before encryption: it is returned unchanged,
 * with `legacy: true`, and the caller encrypts it at once. Throws `SecretOfAnotherRow` when the secret's context is another
 * row's, and `SecretUnreadable` when it does not decrypt.
 */
export async function openSecret(
  privateKey: Uint8Array,
  context: SecretContext,
  stored: string,
): Promise<{ secret: Uint8Array; legacy: boolean }> {
  if (!isEncrypted(stored)) return { secret: utf8ToBytes(stored), legacy: true };
  const plaintext = await decrypt(privateKey, stored);
  const end = plaintext.indexOf(CONTEXT_END);
  const header = new TextDecoder().decode(plaintext.subarray(0, Math.max(end, 0)));
  const wanted = (kind: string) => JSON.stringify({ v: CONTEXT_VERSION, ...context, kind });
  if (header !== wanted(context.kind) && header !== wanted("legacy")) {
    throw new SecretOfAnotherRow();
  }
  return { secret: plaintext.subarray(end + 1), legacy: false };
}

export const isEncrypted = (stored: string): boolean => stored.startsWith(PREFIX);

/**
 * A data key's id: 16 hex digits of the public key's hash. It is stored beside each ciphertext, so that key changes can be
 * tracked.
 */
export const dataKeyId = (publicKey: Uint8Array): string =>
  bytesToHex(sha256(secp256k1.Point.fromBytes(publicKey).toBytes(true))).slice(0, 16);

export class SecretUnreadable extends AppError {
  constructor(reason: string, options?: ErrorOptions) {
    super("internal_error", `A stored secret can't be used: ${reason}.`, options);
  }
}

/** The secret decrypts, and its context is another row's: somebody has written into the database. */
export class SecretOfAnotherRow extends SecretUnreadable {
  constructor() {
    super("it was sealed for another row");
  }
}

function aesKey(ephemeralPublic: Uint8Array, shared: Uint8Array, usage: "encrypt" | "decrypt"): Promise<CryptoKey> {
  const material = hkdf(sha256, concatBytes(ephemeralPublic, shared), undefined, undefined, 32);
  return crypto.subtle.importKey("raw", plain(material), "AES-GCM", false, [usage]);
}

// WebCrypto's types require bytes over a plain ArrayBuffer; the bytes here are never over a SharedArrayBuffer.
const plain = (bytes: Uint8Array) => bytes as Uint8Array<ArrayBuffer>;
