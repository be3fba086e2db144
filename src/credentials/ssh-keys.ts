// Login keys of the machines. Stored as PKCS#8 DER (small before encryption), delivered as text that OpenSSH takes.
import { sha256 } from "@noble/hashes/sha2.js";
import { concatBytes, randomBytes } from "@noble/hashes/utils.js";
import { formatPublicKey, getKeys, SSHBuf, SSHString } from "micro-key-producer/ssh.js";

export const SSH_KEY_ALGORITHMS = ["rsa-4096", "ed25519"] as const;
export type SshKeyAlgorithm = (typeof SSH_KEY_ALGORITHMS)[number];

export type SshKeyPair = {
  /** PKCS#8 DER. */
  privateKey: Uint8Array;
  /** One line as in authorized_keys (RFC 4253, section 6.6), no comment. */
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

/** RSA-4096 costs 0.3 to 1.4 s of CPU; Ed25519 next to nothing. */
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
 * A private key as text that OpenSSH and the SSH libraries take alike: PKCS#1 PEM for RSA (several libraries don't read
 * PKCS#8), OpenSSH's own format for Ed25519 (OpenSSH reads no other). What is no DER is a key of the time before this
 * format and is returned as the text it was.
 */
export function formatPrivateKey(stored: Uint8Array): string {
  if (stored[0] !== 0x30) return new TextDecoder().decode(stored);
  if (startsWith(stored, ED25519_PKCS8_HEADER)) {
    // The format's check bytes only guard a decryption; fixed, the same key has the same text each time.
    return getKeys(stored.slice(ED25519_PKCS8_HEADER.length), "", new Uint8Array(4)).privateKey;
  }
  if (!startsWith(stored.subarray(RSA_ALGORITHM_AT), RSA_ALGORITHM))
    throw new Error("a stored key is of an unknown type");
  // RFC 5958: behind the algorithm comes one OCTET STRING with a two-byte length, the PKCS#1 key (RFC 8017, A.1.2).
  const pkcs1 = stored.subarray(RSA_ALGORITHM_AT + RSA_ALGORITHM.length + 4);
  const lines =
    Buffer.from(pkcs1)
      .toString("base64")
      .match(/.{1,64}/g) ?? [];
  return `-----BEGIN RSA PRIVATE KEY-----\n${lines.join("\n")}\n-----END RSA PRIVATE KEY-----\n`;
}

const LOGIN_KEY_TYPES: ReadonlySet<string> = new Set([
  "ssh-ed25519",
  "ssh-rsa",
  "ecdsa-sha2-nistp256",
  "ecdsa-sha2-nistp384",
  "ecdsa-sha2-nistp521",
]);

/**
 * Somebody's public key, as `type base64` and nothing else: options and comments would be lines in authorized_keys that a
 * stranger writes. Null for what is no login key, or names another type than it is of (RFC 4253, section 6.6).
 */
export function parsePublicKey(text: string): string | null {
  const [, type = "", blob = ""] = /^(\S+) ([A-Za-z0-9+/]{40,1400}={0,2})(?: [^\r\n]*)?$/.exec(text.trim()) ?? [];
  const bytes = Buffer.from(blob, "base64");
  const named = bytes.subarray(4, 4 + type.length).toString("latin1");
  const isWhole = bytes.length > 4 + type.length && bytes.readUInt32BE(0) === type.length && named === type;
  return LOGIN_KEY_TYPES.has(type) && isWhole ? `${type} ${bytes.toString("base64")}` : null;
}

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

/** RFC 4251's mpint of a JWK number: big-endian, a zero in front where the high bit is set. */
function mpint(base64url: string): Uint8Array {
  const bytes = Buffer.from(base64url, "base64url");
  return SSHBuf.encode((bytes[0] ?? 0) & 0x80 ? concatBytes(Uint8Array.of(0), bytes) : new Uint8Array(bytes));
}
