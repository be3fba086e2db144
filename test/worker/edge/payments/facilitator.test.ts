// What Coinbase's CDP asks of each call: a JWT by an Ed25519 key, for one path, good for two minutes.
import { ed25519 } from "@noble/curves/ed25519.js";
import { decodeProtectedHeader, importJWK, jwtVerify } from "jose";
import { expect, test } from "vitest";
import { cdpHeaders } from "../../../../src/edge/payments/facilitator.ts";

const KEY_ID = "organizations/1/apiKeys/2";
const URL_OF_CDP = "https://api.cdp.example/platform/v2/x402";
const { secretKey, publicKey } = ed25519.keygen();
const settings = {
  CDP_API_KEY_ID: KEY_ID,
  CDP_API_KEY_SECRET: Buffer.concat([secretKey, publicKey]).toString("base64"),
};
const verifying = () =>
  importJWK({ kty: "OKP", crv: "Ed25519", x: Buffer.from(publicKey).toString("base64url") }, "EdDSA");
const tokenOf = ({ Authorization }: { Authorization: string }) => Authorization.replace(/^Bearer /, "");

test.each(["verify", "settle"] as const)(
  "the JWT for %s is signed by the key, and for that call alone",
  async (call) => {
    const headers = await cdpHeaders(settings, `${URL_OF_CDP}/`);
    const { payload, protectedHeader } = await jwtVerify(tokenOf(headers[call]), await verifying(), {
      issuer: "cdp",
      subject: KEY_ID,
      algorithms: ["EdDSA"],
    });
    expect(payload["uris"]).toEqual([`POST api.cdp.example/platform/v2/x402/${call}`]);
    expect(Number(payload.exp) - Number(payload.nbf)).toBe(120);
    expect(payload.iat).toBe(payload.nbf);
    expect(protectedHeader).toEqual({
      alg: "EdDSA",
      kid: KEY_ID,
      typ: "JWT",
      nonce: expect.stringMatching(/^[0-9a-f]{32}$/),
    });
  },
);

test("no two JWTs have the same nonce, and another key's does not verify", async () => {
  const [first, second] = [await cdpHeaders(settings, URL_OF_CDP), await cdpHeaders(settings, URL_OF_CDP)];
  const nonces = [first.verify, first.settle, second.verify, second.settle].map(
    (headers) => decodeProtectedHeader(tokenOf(headers))["nonce"],
  );
  expect(new Set(nonces).size).toBe(4);
  const other = ed25519.keygen();
  const CDP_API_KEY_SECRET = Buffer.concat([other.secretKey, other.publicKey]).toString("base64");
  const forged = await cdpHeaders({ ...settings, CDP_API_KEY_SECRET }, URL_OF_CDP);
  await expect(jwtVerify(tokenOf(forged.verify), await verifying())).rejects.toThrow("signature");
});
