// The operators' keys: `claw_`, 32 random bytes and a checksum, so that a mistyped or invented key is told from a real one
// before anything is asked (hard case 23).
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

/** The key of a request: `X-API-Key`, or a Bearer token. Null where there is none. */
export function readKey(headers: Headers): string | null {
  return headers.get("x-api-key") ?? /^Bearer\s+(\S+)$/i.exec(headers.get("authorization") ?? "")?.[1] ?? null;
}

/** Whether it can be a key at all. Costs one hash and asks nobody. */
export function isWellFormedKey(key: string | null): key is string {
  const [, secret, digits] = KEY.exec(key ?? "") ?? [];
  return secret !== undefined && checksum(secret) === digits;
}

/** What is stored of a key. 256 random bits need no salt. */
export const hashKey = (key: string): string => bytesToHex(sha256(utf8ToBytes(key)));

const checksum = (secret: string): string => bytesToHex(sha256(utf8ToBytes(PREFIX + secret))).slice(0, CHECKSUM_DIGITS);
