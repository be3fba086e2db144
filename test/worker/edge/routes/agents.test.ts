import { bytesToHex, hexToBytes } from "@noble/hashes/utils.js";
import { decrypt as openByEciesjs, PrivateKey } from "eciesjs";
import { privateKeyToAddress } from "viem/accounts";
import { beforeEach, expect, test } from "vitest";
import { keyRing } from "../../../../src/credentials/key-ring.ts";
import { type Deployment, deploy } from "../../deployment.ts";

let world: Deployment;
beforeEach(async () => {
  world = await deploy();
});
let clients = 0;
type Body = {
  agentId: string;
  address: string;
  createdAt: string;
  privateKey?: `0x${string}`;
  sealedPrivateKey?: string;
  code?: string;
};
async function generate(body: object, address = `2001:db8:${(++clients).toString(16)}::1`) {
  const headers = { "cf-connecting-ip": address, "content-type": "application/json" };
  const answer = await world.request("/agents/generate-wallet", {
    method: "POST",
    headers,
    body: JSON.stringify(body),
  });
  return { status: answer.status, body: (await answer.json()) as Body, headers: answer.headers };
}
const unseal = (key: PrivateKey, sealed: string) =>
  `0x${bytesToHex(openByEciesjs(key.secret, hexToBytes(sealed.replace("ecc:", "").replaceAll(":", ""))))}` as const;

test("a wallet's key is shown once and stored sealed", async () => {
  const { status, body, headers } = await generate({ agentId: "agent-1" });
  expect(status).toBe(201);
  expect(Object.keys(body)).toEqual(["agentId", "address", "createdAt", "privateKey"]);
  expect(headers.get("cache-control")).toBe("no-store");
  expect(privateKeyToAddress(body.privateKey ?? "0x")).toBe(body.address);
  const [row] = await world.rows("SELECT * FROM agent_wallets");
  expect(row).toMatchObject({ agent_id: "agent-1", address: body.address, sealed_private_key: null });
  expect(JSON.stringify(row)).not.toContain(body.privateKey?.slice(2));
  const context = { kind: "wallet", subject: "agent-1", attempt: 0 } as const;
  const { secret } = await keyRing(world.edge).open(context, String(row?.["private_key"]), String(row?.["key_id"]));
  expect(`0x${bytesToHex(secret)}`).toBe(body.privateKey);
  expect(await generate({ agentId: "agent-1" })).toMatchObject({ status: 409, body: { code: "agent_exists" } });
});

test("a lost answer: the same public key gets the same sealed key again, nobody else does (hard case 23)", async () => {
  const key = new PrivateKey();
  const publicKey = key.publicKey.toHex();
  const first = await generate({ agentId: "agent-2", publicKey });
  expect(first.status).toBe(201);
  expect(Object.keys(first.body)).toEqual(["agentId", "address", "createdAt", "sealedPrivateKey"]);
  expect(privateKeyToAddress(unseal(key, first.body.sealedPrivateKey ?? ""))).toBe(first.body.address);
  // The other spelling of the same key.
  const uncompressed = `0x${bytesToHex(key.publicKey.toBytes(false)).toUpperCase()}`;
  expect((await generate({ agentId: "agent-2", publicKey: uncompressed })).body).toEqual(first.body);
  expect(await generate({ agentId: "agent-2" })).toMatchObject({ status: 409 });
  expect(await generate({ agentId: "agent-2", publicKey: new PrivateKey().publicKey.toHex() })).toMatchObject({
    status: 409,
  });
});

test("a wallet whose key was shown is not sealed to anybody afterwards", async () => {
  await generate({ agentId: "agent-3" });
  const publicKey = new PrivateKey().publicKey.toHex();
  expect(await generate({ agentId: "agent-3", publicKey })).toMatchObject({ status: 409 });
});

test("ten requests at once for one id make one wallet", async () => {
  const key = new PrivateKey();
  const answers = await Promise.all(
    Array.from({ length: 10 }, () => generate({ agentId: "agent-4", publicKey: key.publicKey.toHex() })),
  );
  expect(new Set(answers.map(({ body }) => body.sealedPrivateKey)).size).toBe(1);
  const shown = await Promise.all(Array.from({ length: 10 }, () => generate({ agentId: "agent-5" })));
  expect(shown.map(({ status }) => status).sort()).toEqual([201, ...Array.from({ length: 9 }, () => 409)]);
});

test.each([
  [{ agentId: "ab" }],
  [{ agentId: "-abc" }],
  [{ agentId: "a".repeat(65) }],
  [{ agentId: 7 }],
  [{}],
  [{ agentId: "agent", more: 1 }],
  [{ agentId: "agent", publicKey: `02${"f".repeat(64)}` }],
  [{ agentId: "agent", publicKey: "02ab" }],
  [[]],
])("%j is malformed", async (body) => {
  expect(await generate(body)).toMatchObject({ status: 400, body: { code: "invalid_request" } });
  expect(await world.rows("SELECT * FROM agent_wallets")).toEqual([]);
});

test("what a /48 is refused takes nothing from what everybody shares: once it locked all others out", async () => {
  world = await deploy({ edge: { RATE_LIMITS: "wallets_all=40/60" } });
  const statuses = [];
  for (let count = 0; count < 60; count++) {
    statuses.push((await generate({ agentId: `greedy-${count}` }, `2001:db8:aaaa:${count.toString(16)}::1`)).status);
  }
  expect(statuses).toEqual([...Array.from({ length: 30 }, () => 201), ...Array.from({ length: 30 }, () => 429)]);
  expect((await generate({ agentId: "honest" }, "2001:db8:bbbb::1")).status).toBe(201);
});

test("an empty body of a strange type is 415, once a 500 that the fuzzer found", async () => {
  const headers = { "cf-connecting-ip": "198.51.100.61", "content-type": "!" };
  const answer = await world.request("/agents/generate-wallet", { method: "POST", headers });
  expect([answer.status, ((await answer.json()) as Body).code]).toEqual([415, "unsupported_media_type"]);
});

test("a fourth wallet within a minute is refused, and so is the thirty-first of a /48 (hard case 22)", async () => {
  const address = "198.51.100.60";
  const statuses = [];
  for (let count = 0; count < 4; count++) statuses.push((await generate({ agentId: `one-${count}` }, address)).status);
  expect(statuses).toEqual([201, 201, 201, 429]);
  const block = [];
  for (let count = 0; count < 31; count++) {
    block.push((await generate({ agentId: `block-${count}` }, `2001:db8:ffff:${count.toString(16)}::1`)).status);
  }
  expect(block).toEqual([...Array.from({ length: 30 }, () => 201), 429]);
  // A neighbour's appetite is nobody's violation.
  expect((await generate({ agentId: "other-block" }, "2001:db8:fffe::1")).status).toBe(201);
});
