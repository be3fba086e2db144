// The machines' SSH keys. A private key is stored as PKCS#8 DER, which keeps the ciphertext small, and delivered as text that
// OpenSSH reads.
import { ed25519 } from "@noble/curves/ed25519.js";
import { p256, p384, p521 } from "@noble/curves/nist.js";
import { sha256 } from "@noble/hashes/sha2.js";
import { bytesToHex, concatBytes, randomBytes } from "@noble/hashes/utils.js";
import { formatPublicKey, getKeys, SSHBuf, SSHString } from "micro-key-producer/ssh.js";

export const SSH_KEY_ALGORITHMS = ["rsa-4096", "ed25519"] as const;
export type SshKeyAlgorithm = (typeof SSH_KEY_ALGORITHMS)[number];

export type SshKeyPair = {
  /** PKCS#8 DER. */
  privateKey: Uint8Array;
  /** One line of authorized_keys (RFC 4253, section 6.6), without a comment. */
  publicKey: string;
};

// RFC 8410, section 7: a PKCS#8 Ed25519 key is this header and the 32-byte seed.
const ED25519_PKCS8_HEADER = Uint8Array.from([
  0x30, 0x2e, 0x02, 0x01, 0x00, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x04, 0x22, 0x04, 0x20,
]);

// A PKCS#8 RSA key of this size: SEQUENCE with a two-byte length, version 0, then this AlgorithmIdentifier (RFC 8017, A.1).
const RSA_ALGORITHM_AT = 7;
const RSA_ALGORITHM = Uint8Array.from([
  0x30, 0x0d, 0x06, 0x09, 0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x01, 0x01, 0x05, 0x00,
]);

/** Generates a login key pair. RSA-4096 costs 0.3 to 1.4 s of CPU; Ed25519 costs next to nothing. */
export async function generateSshKeyPair(algorithm: SshKeyAlgorithm): Promise<SshKeyPair> {
  if (algorithm === "ed25519") {
    const seed = randomBytes(32);
    return { privateKey: concatBytes(ED25519_PKCS8_HEADER, seed), publicKey: getKeys(seed).publicKey };
  }
  const pair = (await crypto.subtle.generateKey(
    { name: "RSASSA-PKCS1-v1_5", modulusLength: 4096, publicExponent: Uint8Array.from([1, 0, 1]), hash: "SHA-256" },
    true,
    ["sign", "verify"],
  )) as CryptoKeyPair;
  const der = (await crypto.subtle.exportKey("pkcs8", pair.privateKey)) as ArrayBuffer;
  const jwk = (await crypto.subtle.exportKey("jwk", pair.publicKey)) as JsonWebKey;
  const blob = concatBytes(SSHString.encode("ssh-rsa"), mpint(jwk.e ?? ""), mpint(jwk.n ?? ""));
  return { privateKey: new Uint8Array(der), publicKey: `ssh-rsa ${Buffer.from(blob).toString("base64")}` };
}

/**
 * A stored private key as text that both OpenSSH and SSH libraries read: PKCS#1 PEM for RSA (several libraries don't read
 * PKCS#8), OpenSSH's own format for Ed25519 (OpenSSH reads no other). A stored key that is not DER is text from before this
 * format, and is returned unchanged. Throws for a key of another type.
 */
export function formatPrivateKey(stored: Uint8Array): string {
  if (stored[0] !== 0x30) return new TextDecoder().decode(stored);
  if (startsWith(stored, ED25519_PKCS8_HEADER)) {
    // The format's check bytes matter for encrypted keys only. They are fixed, so that a key has the same text each time.
    return getKeys(stored.slice(ED25519_PKCS8_HEADER.length), "", new Uint8Array(4)).privateKey;
  }
  if (!startsWith(stored.subarray(RSA_ALGORITHM_AT), RSA_ALGORITHM))
    throw new Error("a stored key is of an unknown type");
  // RFC 5958: one OCTET STRING with a two-byte length follows the algorithm; it holds the PKCS#1 key (RFC 8017, A.1.2).
  const pkcs1 = stored.subarray(RSA_ALGORITHM_AT + RSA_ALGORITHM.length + 4);
  const lines =
    Buffer.from(pkcs1)
      .toString("base64")
      .match(/.{1,64}/g) ?? [];
  return `-----BEGIN RSA PRIVATE KEY-----\n${lines.join("\n")}\n-----END RSA PRIVATE KEY-----\n`;
}

/** `line`: the key as one line of authorized_keys. `problem`: the predicate of an error sentence, like "is cut short". */
export type ParsedPublicKey = { line: string } | { problem: string };

const RSA_BITS = { least: 2_048, most: 16_384 };
// OpenSSL accepts no larger exponent with a long modulus.
const RSA_MOST_EXPONENT = 2n ** 64n;
const ECDSA_CURVES: Readonly<Record<string, typeof p256>> = { nistp256: p256, nistp384: p384, nistp521: p521 };

type Check = (fields: WireReader) => string | null;
/** Checks of a key's fields, by type. A check returns the problem, or null for a valid key. */
const LOGIN_KEYS: ReadonlyMap<string, Check> = new Map([
  ["ssh-ed25519", checkEd25519],
  ["ssh-rsa", checkRsa],
  ...Object.keys(ECDSA_CURVES).map((curve): [string, Check] => [
    `ecdsa-sha2-${curve}`,
    (fields) => checkEcdsa(fields, curve),
  ]),
]);

/**
 * Parses a client's public key into `type base64`. Options are refused and a comment is dropped: a stranger must not write
 * either into authorized_keys. The key is parsed to its last byte, since a machine with a broken key is useless to its buyer
 * (hard case 57).
 */
export function parsePublicKey(text: string): ParsedPublicKey {
  const [, type = "", blob = ""] = /^(\S+) ([A-Za-z0-9+/]{40,2800}={0,2})(?: [^\r\n]*)?$/.exec(text.trim()) ?? [];
  if (type === "") return { problem: "must be one SSH public key, `type base64`" };
  const check = LOGIN_KEYS.get(type);
  if (check === undefined) return { problem: `must be a key of one of the types ${[...LOGIN_KEYS.keys()].join(", ")}` };
  const bytes = new Uint8Array(Buffer.from(blob, "base64"));
  const fields = new WireReader(bytes);
  try {
    if (latin1(fields.string()) !== type) return { problem: `names the type ${type} but holds a key of another type` };
    const problem = check(fields) ?? (fields.isAtEnd ? null : "has trailing bytes");
    return problem === null ? { line: `${type} ${Buffer.from(bytes).toString("base64")}` } : { problem };
  } catch (error) {
    if (error instanceof CutShort) return { problem: "is cut short" };
    throw error;
  }
}

/** RFC 8709, section 4. A point outside the base point's subgroup has no private key. */
function checkEd25519(fields: WireReader): string | null {
  const bytes = fields.string();
  if (bytes.length !== 32) return "must hold an Ed25519 key of 32 bytes";
  const point = pointOf(ed25519.Point, bytes);
  return point !== null && !point.is0() && point.isTorsionFree() ? null : "is not a point of Ed25519's group";
}

/** RFC 4253, section 6.6. */
function checkRsa(fields: WireReader): string | null {
  const [e, n] = [fields.positive(), fields.positive()];
  if (e === null || n === null) return "has an integer that is not encoded as in RFC 4251";
  const bits = n.toString(2).length;
  if (bits < RSA_BITS.least || bits > RSA_BITS.most)
    return `has an RSA modulus of ${bits} bits: ${RSA_BITS.least} to ${RSA_BITS.most} are accepted`;
  const isUsable = n % 2n === 1n && e % 2n === 1n && e >= 3n && e < RSA_MOST_EXPONENT;
  return isUsable ? null : "has an invalid RSA exponent or modulus";
}

/** RFC 5656, section 3.1. Points are in SEC 1's uncompressed form. */
function checkEcdsa(fields: WireReader, name: string): string | null {
  if (latin1(fields.string()) !== name) return "names a curve that differs from its type";
  const curve = ECDSA_CURVES[name];
  const bytes = fields.string();
  return bytes[0] === 4 && curve !== undefined && pointOf(curve.Point, bytes) !== null
    ? null
    : `must have an uncompressed point of ${name}`;
}

function pointOf<P>(curve: { fromBytes(bytes: Uint8Array): P }, bytes: Uint8Array): P | null {
  try {
    return curve.fromBytes(bytes);
  } catch {
    return null;
  }
}

class CutShort extends Error {}

/** Reads a sequence of fields (RFC 4251, section 5). Throws `CutShort` at a field that ends beyond the bytes. */
class WireReader {
  readonly #bytes: Uint8Array;
  #at = 0;

  constructor(bytes: Uint8Array) {
    this.#bytes = bytes;
  }

  get isAtEnd(): boolean {
    return this.#at === this.#bytes.length;
  }

  string(): Uint8Array {
    const length = Buffer.from(this.#take(4)).readUInt32BE();
    return this.#take(length);
  }

  /** An mpint above zero in its shortest encoding; null for any other. */
  positive(): bigint | null {
    const bytes = this.string();
    const [first = 0, second = 0] = bytes;
    if (bytes.length === 0 || first >= 0x80 || (first === 0 && second < 0x80)) return null;
    return BigInt(`0x${bytesToHex(bytes)}`);
  }

  #take(length: number): Uint8Array {
    const end = this.#at + length;
    if (end > this.#bytes.length) throw new CutShort();
    const taken = this.#bytes.subarray(this.#at, end);
    this.#at = end;
    return taken;
  }
}

const latin1 = (bytes: Uint8Array): string => Buffer.from(bytes).toString("latin1");

/** `SHA256:…` as `ssh-keygen -l` prints it. */
export function fingerprint(publicKey: string): string {
  const blob = Buffer.from(publicKey.split(" ")[1] ?? "", "base64");
  return `SHA256:${Buffer.from(sha256(blob)).toString("base64").replace(/=+$/, "")}`;
}

/** An Ed25519 host key: the private half in OpenSSH's format for sshd, the public half for known_hosts. */
export function generateHostKey(): { privateKey: string; publicKey: string } {
  const keys = getKeys(randomBytes(32));
  return { privateKey: keys.privateKey, publicKey: formatPublicKey(keys.publicKeyBytes) };
}

/** A known_hosts line; a port other than 22 goes in brackets (sshd(8), "SSH_KNOWN_HOSTS FILE FORMAT"). */
export const knownHostsLine = (host: string, port: number, publicKey: string): string =>
  `${port === 22 ? host : `[${host}]:${port}`} ${publicKey}`;

const startsWith = (bytes: Uint8Array, prefix: Uint8Array): boolean => prefix.every((byte, i) => bytes[i] === byte);

/** A JWK number as an RFC 4251 mpint: big-endian, with a leading zero byte where the high bit is set. */
function mpint(base64url: string): Uint8Array {
  const bytes = Buffer.from(base64url, "base64url");
  return SSHBuf.encode((bytes[0] ?? 0) & 0x80 ? concatBytes(Uint8Array.of(0), bytes) : new Uint8Array(bytes));
}
