// The operators' keys: `claw_`, 32 random bytes and a checksum, so that a mistyped or invented key is told from a real one
// before anything is asked (hard case 23).
import { sha256 } from "@noble/hashes/sha2.js";
import { bytesToHex, randomBytes, utf8ToBytes } from "@noble/hashes/utils.js";

const PREFIX = "claw_";
const SECRET_BYTES = 32;
const CHECKSUM_DIGITS = 8;

/** A new key: `claw_<64 hex digits>_<8 hex digits>`. */
export function makeAdminKey(): string {
  const secret = bytesToHex(randomBytes(SECRET_BYTES));
  return `${PREFIX}${secret}_${checksum(secret)}`;
}

const checksum = (secret: string): string => bytesToHex(sha256(utf8ToBytes(PREFIX + secret))).slice(0, CHECKSUM_DIGITS);
