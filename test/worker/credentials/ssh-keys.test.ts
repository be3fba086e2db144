import { expect, test } from "vitest";
import {
  fingerprint,
  formatPrivateKey,
  generateHostKey,
  generateSshKeyPair,
  knownHostsLine,
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
