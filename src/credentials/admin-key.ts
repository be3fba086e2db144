// The operators' API keys: `claw_`, 32 random bytes and a checksum. The checksum rejects a mistyped or invented key before any
// call to the database (hard case 23).
import { sha256 } from "@noble/hashes/sha2.js";
import { bytesToHex, randomBytes, utf8ToBytes } from "@noble/hashes/utils.js";

const PREFIX = "claw_";
const SECRET_BYTES = 32;
const CHECKSUM_DIGITS = 8;
const KEY = /^claw_([0-9a-f]{64})_([0-9a-f]{8})$/;

/** A new key: `claw_<64 hex digits>_<8 hex digits>`. */
export function makeAdminKey(): string {
  const secret = bytesToHex(randomBytes(SECRET_BYTES));
  return `${PREFIX}${secret}_${checksum(secret)}`;
}

/** A request's API key, from `X-API-Key` or a Bearer token; null without either. */
export function readKey(headers: Headers): string | null {
  return headers.get("x-api-key") ?? /^Bearer\s+(\S+)$/i.exec(headers.get("authorization") ?? "")?.[1] ?? null;
}

/** Whether a key has the right form and checksum. Costs one hash and no call. */
export function isWellFormedKey(key: string | null): key is string {
  const [, secret, digits] = KEY.exec(key ?? "") ?? [];
  return secret !== undefined && checksum(secret) === digits;
}

/** The stored form of a key: its SHA-256 in hex. 256 random bits need no salt. */
export const hashKey = (key: string): string => bytesToHex(sha256(utf8ToBytes(key)));

const checksum = (secret: string): string => bytesToHex(sha256(utf8ToBytes(PREFIX + secret))).slice(0, CHECKSUM_DIGITS);
