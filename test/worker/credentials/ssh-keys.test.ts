import { ed25519 } from "@noble/curves/ed25519.js";
import { p256, p384, p521 } from "@noble/curves/nist.js";
import { concatBytes, hexToBytes, utf8ToBytes } from "@noble/hashes/utils.js";
import { expect, test } from "vitest";
import {
  fingerprint,
  formatPrivateKey,
  generateHostKey,
  generateSshKeyPair,
  knownHostsLine,
  parsePublicKey,
} from "../../../src/credentials/ssh-keys.ts";

// A public key and its fingerprint as `ssh-keygen -l` prints it.
const KNOWN_KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIOMqqnkVzrm0SdG6UOoqKLsabgH5C9okWi0dh2l9GKJl";
const KNOWN_FINGERPRINT = "SHA256:+DiY3wvvV6TuJJhbpZisF/zLDA0zPMSvHdkr4UvCOqU";

test("an RSA key has 4096 bits, an authorized_keys line and a PKCS#1 text", async () => {
  const pair = await generateSshKeyPair("rsa-4096");
  expect(pair.publicKey).toMatch(/^ssh-rsa AAAAB3NzaC1yc2EAAAADAQABAAACAQ[A-Za-z0-9+/]+=*$/);
  const pem = formatPrivateKey(pair.privateKey);
  expect(pem).toMatch(/^-----BEGIN RSA PRIVATE KEY-----\n/);
  const der = Buffer.from(pem.replace(/-----[^-]+-----|\n/g, ""), "base64");
  // SEQUENCE, version 0, then the modulus: 513 bytes, the first of them zero.
  expect([...der.subarray(4, 12)]).toEqual([0x02, 0x01, 0x00, 0x02, 0x82, 0x02, 0x01, 0x00]);
  expect(der.readUInt16BE(2)).toBe(der.length - 4);
});

test("an Ed25519 key is delivered in OpenSSH's own format", async () => {
  const pair = await generateSshKeyPair("ed25519");
  expect(pair.publicKey).toMatch(/^ssh-ed25519 [A-Za-z0-9+/]{68}$/);
  expect(formatPrivateKey(pair.privateKey)).toMatch(/^-----BEGIN OPENSSH PRIVATE KEY-----/);
});

test("a key that is no DER is text of the time before and stays as it is", () => {
  const text = "-----BEGIN RSA PRIVATE KEY-----\nMIIE\n";
  expect(formatPrivateKey(new TextEncoder().encode(text))).toBe(text);
});

test("a DER key of an unknown algorithm is refused, not cut at a guess", () => {
  expect(() => formatPrivateKey(Uint8Array.from([0x30, 0x82, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12]))).toThrow(
    "unknown type",
  );
});

test("a fingerprint is what ssh-keygen prints", () => {
  expect(fingerprint(KNOWN_KEY)).toBe(KNOWN_FINGERPRINT);
});

test("a known_hosts line names the port unless it is 22", () => {
  expect(knownHostsLine("198.51.100.7", 22, KNOWN_KEY)).toBe(`198.51.100.7 ${KNOWN_KEY}`);
  expect(knownHostsLine("198.51.100.7", 40_022, KNOWN_KEY)).toBe(`[198.51.100.7]:40022 ${KNOWN_KEY}`);
});

test("host keys differ", () => {
  expect(generateHostKey().publicKey).not.toBe(generateHostKey().publicKey);
});

// As ssh-keygen makes them.
const LOGIN_KEYS = [
  KNOWN_KEY,
  "ecdsa-sha2-nistp256 AAAAE2VjZHNhLXNoYTItbmlzdHAyNTYAAAAIbmlzdHAyNTYAAABBBI4CXZWiX+1fZvkk2vyMh82QPI6rxwekP+29VhPIM/jxGX/+K3qfjYTx3y/R/Crwg01S3d8IZt/0ozGHfFJ0NIE=",
  "ecdsa-sha2-nistp384 AAAAE2VjZHNhLXNoYTItbmlzdHAzODQAAAAIbmlzdHAzODQAAABhBEbctTIy9Fj7uIv04hZeExYlQoQUVmLEIX3dL0muuiAKUaVeC7x59t2DAZf0+C99P3zzexzNUC1vkSQj6x10TWFFn/OpATmLNiKWdzLAoKRsMAXET6S+QQJc9dYviCBvFg==",
  "ecdsa-sha2-nistp521 AAAAE2VjZHNhLXNoYTItbmlzdHA1MjEAAAAIbmlzdHA1MjEAAACFBAF0qufA5iRG5PVopszDffvASpZcVXkdEn0en9PN50QUUoM59N22wsT4BUygSzsA+Kuis2nOy9It8q8J/EQrbRFcrwG5KkzwJGTMzuul+a+lg1W6IhNcvE9tWdML5DgNOrH/TK+3rjprt9UbG/jcvpy5gK7YLRE1ScyJ3RNLgt6E7Vu7Dw==",
  "ssh-rsa AAAAB3NzaC1yc2EAAAADAQABAAABAQDiFf5Mv4L3FwAL1buzJrJ5ZNYBoDF7YiAJ45uSbCTtg61sVKy1bySK5B1k0+9AdVMmXxGW+590W54qxVhwS//aASHurSpRy+yaYg7UgSPX94LuwDCO9vQS+WVI7mMFsw2oLvgFeJsTsAmmtAk8erdNIEV0p74qh39vCGQ0nRu8pCbkj4PebS4XsxnblKDzG3XO/gbSi8PtyUy2+4Jzkj9hwYeRiYYUF0CXs8oE/6/+055Cav+DqnXiu+QUchOFHnWl52lzuBTgBCUAkrJjFl0N3maNEd6uOc4ZLlAe5gWQff4W8y1UuAVAdItXrjEN3Ff8Fm7ogIdfCy+e58IMrwFV",
];
const WEAK_RSA_KEY =
  "ssh-rsa AAAAB3NzaC1yc2EAAAADAQABAAAAgQC/wavFqpyyQVA1GPXJJajHWWPgMaQnAO4o3fAkxk/5U//ZLgMhJYyI/UJr+xOHfy5cUWsT3a5WLA38+PFW4+2Jw8jEu5UbX23fw4BlVIdYUguyJOUaYGwnIXYhvJoGsBoqemobt865EzxacGOVOg464zDIzf7XQ2EIW6sJBfngpQ==";

const wire = (...fields: Uint8Array[]) =>
  concatBytes(...fields.flatMap((field) => [new Uint8Array([0, 0, field.length >> 8, field.length & 255]), field]));
const text = utf8ToBytes;
const line = (type: string, ...fields: Uint8Array[]) =>
  `${type} ${Buffer.from(wire(text(type), ...fields)).toString("base64")}`;
const problemOf = (key: string) => {
  const parsed = parsePublicKey(key);
  return "problem" in parsed ? parsed.problem : null;
};
const hex = (number: bigint, bytes: number) => hexToBytes(number.toString(16).padStart(bytes * 2, "0"));
/** With the zero in front that keeps the high bit from being a sign. */
const modulus = (bits: number, number = 2n ** BigInt(bits - 1) + 1n) => {
  const bytes = hex(number, Math.ceil(bits / 8));
  return bits % 8 === 0 ? concatBytes(Uint8Array.of(0), bytes) : bytes;
};
const E = Uint8Array.of(1, 0, 1);

test("every login key that ssh-keygen makes is taken, and a comment and space around it are taken off", async () => {
  const made = [await generateSshKeyPair("rsa-4096"), await generateSshKeyPair("ed25519")];
  for (const key of [...LOGIN_KEYS, ...made.map(({ publicKey }) => publicKey)]) {
    expect(parsePublicKey(key)).toEqual({ line: key });
    expect(parsePublicKey(`  ${key} me@laptop\n`)).toEqual({ line: key });
  }
  for (const bits of [2_048, 2_049, 16_384]) expect(problemOf(line("ssh-rsa", E, modulus(bits))), `${bits}`).toBeNull();
});

test("hard case 57: a key that lacks anything of itself, or has more, is refused wherever it is cut", () => {
  for (const key of LOGIN_KEYS) {
    const [type = "", blob = ""] = key.split(" ");
    // Padding carries nothing: without it a key is whole.
    const bare = blob.replace(/=+$/, "");
    expect(parsePublicKey(`${type} ${bare}`)).toEqual({ line: key });
    for (let cut = 1; cut < bare.length; cut++)
      expect(problemOf(`${type} ${bare.slice(0, -cut)}`), `${type}, cut by ${cut}`).not.toBeNull();
    const whole = Buffer.from(blob, "base64");
    const longer = (bytes: number) => `${type} ${Buffer.concat([whole, Buffer.alloc(bytes)]).toString("base64")}`;
    for (const bytes of [1, 4, 100]) expect(problemOf(longer(bytes))).toBe("has trailing bytes");
    expect(problemOf(key.slice(0, -6))).toBe("is cut short");
  }
});

test("hard case 57: what is no point of its curve is refused", () => {
  const ed = (bytes: Uint8Array) => problemOf(line("ssh-ed25519", bytes));
  const isNone = "is not a point of Ed25519's group";
  expect(ed(new Uint8Array(31).fill(1))).toBe("must hold an Ed25519 key of 32 bytes");
  expect(ed(new Uint8Array(33).fill(1))).toBe("must hold an Ed25519 key of 32 bytes");
  const { BASE, CURVE } = ed25519.Point;
  const order8 = ed25519.Point.fromHex("c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac037a");
  const bad = {
    "off the curve": hex(2n ** 248n * 2n, 32),
    "the identity": hex(2n ** 248n, 32),
    "of order 2": hexToBytes(`ec${"ff".repeat(30)}7f`),
    "of order 8": order8.toBytes(),
    "of a mixed order": BASE.add(order8).toBytes(),
    "y beyond the field": hexToBytes(`f0${"ff".repeat(30)}7f`),
  };
  expect(CURVE().h).toBe(8n);
  for (const [what, bytes] of Object.entries(bad)) expect(ed(bytes), what).toBe(isNone);
  expect(ed(BASE.toBytes())).toBeNull();

  for (const [name, { Point }] of Object.entries({ nistp256: p256, nistp384: p384, nistp521: p521 })) {
    const of = (point: Uint8Array, inner = name) => problemOf(line(`ecdsa-sha2-${name}`, text(inner), point));
    const point = Point.BASE.toBytes(false);
    expect(of(point)).toBeNull();
    const moved = point.slice();
    moved[moved.length - 1] = (moved.at(-1) ?? 0) ^ 1;
    const isNoPoint = `must have an uncompressed point of ${name}`;
    for (const wrong of [
      moved,
      Point.BASE.toBytes(true),
      Uint8Array.of(0),
      new Uint8Array(point.length),
      point.slice(1),
    ])
      expect(of(wrong)).toBe(isNoPoint);
    expect(of(point, "nistp224")).toBe("names a curve that differs from its type");
  }
  // A point of one curve under another one's name, inside and out.
  expect(problemOf(line("ecdsa-sha2-nistp384", text("nistp256"), p256.Point.BASE.toBytes(false)))).not.toBeNull();
  expect(problemOf(line("ecdsa-sha2-nistp384", text("nistp384"), p256.Point.BASE.toBytes(false)))).not.toBeNull();
});

test("hard case 57: RSA is taken from 2,048 to 16,384 bits, its numbers as RFC 4251 writes them", () => {
  const rsa = (e: Uint8Array, n: Uint8Array) => problemOf(line("ssh-rsa", e, n));
  const n = modulus(2_048);
  expect(problemOf(WEAK_RSA_KEY)).toBe("has an RSA modulus of 1024 bits: 2048 to 16384 are accepted");
  for (const bits of [2_047, 16_385])
    expect(rsa(E, modulus(bits)), `${bits}`).toContain(`has an RSA modulus of ${bits} bits`);
  const isUnwritten = "has an integer that is not encoded as in RFC 4251";
  const negative = modulus(2_048).slice(1);
  for (const wrong of [negative, concatBytes(Uint8Array.of(0), n), new Uint8Array(257)])
    expect(rsa(E, wrong)).toBe(isUnwritten);
  for (const wrong of [Uint8Array.of(0, 1, 0, 1), Uint8Array.of(0x81), new Uint8Array(0), Uint8Array.of(0)])
    expect(rsa(wrong, n)).toBe(isUnwritten);
  const isUnusable = "has an invalid RSA exponent or modulus";
  const tooLong = concatBytes(Uint8Array.of(1), new Uint8Array(7), Uint8Array.of(1));
  for (const wrong of [Uint8Array.of(1), Uint8Array.of(2), Uint8Array.of(1, 0, 0), tooLong])
    expect(rsa(wrong, n)).toBe(isUnusable);
  expect(rsa(E, modulus(2_048, 2n ** 2_047n))).toBe(isUnusable);
  // e and n in the wrong order.
  expect(rsa(n, E)).not.toBeNull();
});

test("what is no single login key is refused: options, two lines, another type than it says, types of no login", () => {
  const [type = "", blob = ""] = KNOWN_KEY.split(" ");
  expect(problemOf(`ssh-rsa ${blob}`)).toBe("names the type ssh-rsa but holds a key of another type");
  for (const key of [
    `command="x" ${KNOWN_KEY}`,
    `${KNOWN_KEY}\n${KNOWN_KEY}`,
    `${KNOWN_KEY} me\rssh-rsa`,
    "key",
    "",
    type,
    `${type} AAAA`,
    `${type} ${blob.replace(/.$/, "*")}`,
  ])
    expect(problemOf(key), key).toBe("must be one SSH public key, `type base64`");
  for (const other of ["ssh-dss", "ssh-ed25519-cert-v01@openssh.com", "sk-ssh-ed25519@openssh.com", "__proto__"])
    expect(problemOf(line(other, new Uint8Array(64)))).toContain("must be a key of one of the types ssh-ed25519,");
});
