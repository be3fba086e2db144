import { secp256k1 } from "@noble/curves/secp256k1.js";
import { bytesToHex, hexToBytes, utf8ToBytes } from "@noble/hashes/utils.js";
import { decrypt as theirDecrypt, encrypt as theirEncrypt } from "eciesjs";
import { expect, test } from "vitest";
import {
  dataKeyId,
  decrypt,
  encrypt,
  openSecret,
  type SecretContext,
  sealSecret,
} from "../../../src/credentials/ecies.ts";

const keys = secp256k1.keygen();
const text = utf8ToBytes("a secret, with ümlauts");
const context: SecretContext = { kind: "ssh", subject: "local/0xabc/42/0xdef/0", attempt: 3 };

test("the parts of an encrypted value, joined, open with eciesjs", async () => {
  const value = await encrypt(keys.publicKey, text);
  expect(value).toMatch(/^ecc:04[0-9a-f]{128}:[0-9a-f]{32}:[0-9a-f]{32}:[0-9a-f]+$/);
  const joined = hexToBytes(value.split(":").slice(1).join(""));
  expect(new Uint8Array(theirDecrypt(keys.secretKey, joined))).toEqual(text);
});

test("what eciesjs encrypted opens here once it is cut into parts", async () => {
  const hex = bytesToHex(new Uint8Array(theirEncrypt(keys.publicKey, text)));
  const cuts = [0, 130, 162, 194, hex.length];
  const parts = cuts.slice(0, -1).map((from, i) => hex.slice(from, cuts[i + 1]));
  expect(await decrypt(keys.secretKey, `ecc:${parts.join(":")}`)).toEqual(text);
});

test("both forms of a public key, compressed and not, work", async () => {
  const uncompressed = secp256k1.getPublicKey(keys.secretKey, false);
  expect(await decrypt(keys.secretKey, await encrypt(uncompressed, text))).toEqual(text);
  expect(dataKeyId(uncompressed)).toBe(dataKeyId(keys.publicKey));
});

test("two encryptions of one text share nothing", async () => {
  const [a, b] = await Promise.all([encrypt(keys.publicKey, text), encrypt(keys.publicKey, text)]);
  expect(a.split(":")[1]).not.toBe(b.split(":")[1]);
  expect(a.split(":")[4]).not.toBe(b.split(":")[4]);
});

test.each([
  ["another key", async (value: string) => ({ value, key: secp256k1.keygen().secretKey })],
  ["a flipped bit", async (value: string) => ({ value: flipLast(value), key: keys.secretKey })],
  ["a missing part", async (value: string) => ({ value: value.slice(0, value.lastIndexOf(":")), key: keys.secretKey })],
  ["a part that is no hex", async (value: string) => ({ value: `${value}zz`, key: keys.secretKey })],
  [
    "a point off the curve",
    // One point in 256 begins with 00 already: the other byte makes it another one for sure.
    async (value: string) => ({
      value: value.replace(/^ecc:04(..)/, (_, first) => `ecc:04${first === "00" ? "01" : "00"}`),
      key: keys.secretKey,
    }),
  ],
])("%s is refused with an error that shows nothing of it", async (_, spoil) => {
  const { value, key } = await spoil(await encrypt(keys.publicKey, text));
  const error = await decrypt(key, value).catch((thrown: unknown) => thrown);
  expect(error).toMatchObject({ code: "internal_error" });
  expect(String(error)).not.toContain(value.slice(10, 40));
});

const flipLast = (value: string) => value.slice(0, -1) + (value.endsWith("0") ? "1" : "0");

test("a stored secret opens for the row that it was sealed for", async () => {
  const stored = await sealSecret(keys.publicKey, context, text);
  expect(await openSecret(keys.secretKey, context, stored)).toEqual({ secret: text, legacy: false });
});

test.each([
  ["token", { ...context, subject: "local/0xabc/8/0xdef/0" }],
  ["attempt", { ...context, attempt: 4 }],
  ["kind", { ...context, kind: "wallet" as const }],
])("a ciphertext copied to the row of another %s does not open there (hard case 6)", async (_, other) => {
  const stored = await sealSecret(keys.publicKey, context, text);
  const error = await openSecret(keys.secretKey, other, stored).catch((thrown: unknown) => thrown);
  expect(error).toMatchObject({ message: "A stored secret can't be used: it was sealed for another row." });
});

test("a sealed secret still opens with eciesjs, its context in front", async () => {
  const stored = await sealSecret(keys.publicKey, context, text);
  const plain = theirDecrypt(keys.secretKey, hexToBytes(stored.split(":").slice(1).join("")));
  const [header, body] = new TextDecoder().decode(plain).split("\n");
  expect(JSON.parse(header ?? "")).toEqual({ v: 1, ...context });
  expect(body).toBe("a secret, with ümlauts");
});

test("a value without the prefix is a legacy plaintext, readable and marked", async () => {
  const opened = await openSecret(keys.secretKey, context, "-----BEGIN OPENSSH PRIVATE KEY-----\nabc");
  expect(opened.legacy).toBe(true);
  expect(new TextDecoder().decode(opened.secret)).toContain("BEGIN OPENSSH");
});

test("a value of kind legacy, as an import writes it, opens for its subject only", async () => {
  const stored = await sealSecret(keys.publicKey, { ...context, kind: "legacy" }, text);
  expect((await openSecret(keys.secretKey, context, stored)).secret).toEqual(text);
  const other = openSecret(keys.secretKey, { ...context, subject: "x" }, stored).catch(() => "refused");
  expect(await other).toBe("refused");
});
