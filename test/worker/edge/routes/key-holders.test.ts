// Who knows a machine's key beside the owner of its token, and how long we do (hard case 41).

import { sha256 } from "@noble/hashes/sha2.js";
import { bytesToHex, utf8ToBytes } from "@noble/hashes/utils.js";
import { beforeEach, expect, test } from "vitest";
import { generateSshKeyPair } from "../../../../src/credentials/ssh-keys.ts";
import { type Credentials, fixedHeaders, freshHeaders, transfer } from "../../../world/agent.ts";
import { agent, chain } from "../../chain.ts";
import { buyAndRun, type Deployment, deploy } from "../../deployment.ts";
import { ask as pay, prepare, unseal } from "./x402/paid-credentials.ts";
import { computeBody, playUntil, signPurchaseOf } from "./x402/till.ts";

const API = "https://api.example";
const SELLER = 0;
const BUYER = 1;
let world: Deployment;
beforeEach(async () => {
  world = await deploy();
});

type Answer = Credentials & { code?: string; sealedPrivateKey: string | null };
async function ask(index: number, tokenId: number, action: "" | "/ack" | "/rotate" = "") {
  const response = await world.request(`/credentials/${tokenId}${action}`, {
    method: action === "" ? "GET" : "POST",
    headers: await freshHeaders(API, agent(index), tokenId, action),
  });
  return { status: response.status, body: (await response.json()) as Answer };
}
const isKnown = async (index: number, tokenId: number) => (await ask(index, tokenId)).body.ssh.knownToFormerOwner;
async function buySealed(index: number, tokenId: number): Promise<string> {
  const answer = await pay(world, tokenId, (await prepare(world, tokenId, index)).headers);
  expect(answer.status, answer.text).toBe(200);
  return unseal(index, answer.body["sealedPrivateKey"]);
}
async function sell(from: number, to: number, tokenId: number): Promise<void> {
  await transfer(chain, agent(from), agent(to).address, tokenId);
  await chain.mine(1);
  await world.scan();
}
const rotated = async (index: number, tokenId: number) => {
  expect((await ask(index, tokenId, "/rotate")).status).toBe(202);
  await world.drain();
  await chain.mine(1);
};
const holders = () =>
  world.rows(
    "SELECT attempt, address, clear_at IS NOT NULL AS clear, sealed IS NOT NULL AS kept FROM key_holders ORDER BY 1, 2",
  );
const lower = (index: number) => agent(index).address.toLowerCase();

test("hard case 41: a seller who bought the key sealed knows it, until the buyer has it replaced", async () => {
  const tokenId = await buyAndRun(world, SELLER);
  const sealed = await buySealed(SELLER, tokenId);
  expect(await holders()).toEqual([{ attempt: 1, address: lower(SELLER), clear: 0, kept: 1 }]);
  await sell(SELLER, BUYER, tokenId);
  const { body } = await ask(BUYER, tokenId);
  expect(body).toMatchObject({ sealedPrivateKey: null, ssh: { privateKey: sealed, knownToFormerOwner: true } });
  await rotated(BUYER, tokenId);
  expect(await isKnown(BUYER, tokenId)).toBe(false);
  // The copies of what opens nothing any more are gone, and who had them is not.
  expect(await holders()).toEqual(
    [
      { attempt: 1, address: lower(SELLER), clear: 0, kept: 0 },
      { attempt: 1, address: lower(BUYER), clear: 1, kept: 0 },
      { attempt: 2, address: lower(BUYER), clear: 1, kept: 0 },
    ].sort((a, b) => a.attempt - b.attempt || (a.address < b.address ? -1 : 1)),
  );
  // What the buyer has bought sealed himself is nobody else's to know.
  await buySealed(BUYER, tokenId);
  expect(await isKnown(BUYER, tokenId)).toBe(false);
});

test("hard case 41: a seller who brought a key of his own knows it, until the buyer has it replaced", async () => {
  const { publicKey } = await generateSshKeyPair("ed25519");
  const text = JSON.stringify(computeBody({ sshPublicKey: publicKey }));
  const signed = await signPurchaseOf(world, agent(SELLER));
  const message = `ClawCloud Purchase: ${bytesToHex(sha256(utf8ToBytes(text)))}`;
  const ordered = await world.request("/x402/purchase-compute", {
    method: "POST",
    body: text,
    headers: {
      "content-type": "application/json",
      ...signed.headers,
      "x-body-signature": await agent(SELLER).signMessage({ message }),
    },
  });
  const { purchaseId } = (await ordered.json()) as { purchaseId: string };
  const done = await playUntil(world, purchaseId, ({ state, step }) => state === "settled" && step === "close");
  await chain.mine(2);
  await world.scan();
  const tokenId = Number(done["token_id"]);
  const own = await ask(SELLER, tokenId);
  expect(own.body.ssh).toMatchObject({ publicKey, privateKey: null, knownToFormerOwner: false });
  // There is none to sell him, and he is not charged for it.
  const refused = await pay(world, tokenId, (await prepare(world, tokenId, SELLER)).headers);
  expect([refused.status, refused.body["code"]]).toEqual([409, "key_brought"]);
  await sell(SELLER, BUYER, tokenId);
  expect((await ask(BUYER, tokenId)).body.ssh).toMatchObject({ publicKey, knownToFormerOwner: true });
  await rotated(BUYER, tokenId);
  expect((await ask(BUYER, tokenId)).body.ssh).toMatchObject({
    privateKey: expect.stringContaining("PRIVATE KEY"),
    knownToFormerOwner: false,
  });
  expect(await world.rows("SELECT brought_by FROM attempts ORDER BY number")).toEqual([
    { brought_by: lower(SELLER) },
    { brought_by: null },
  ]);
});

test("hard case 41: a token that moved on and came back: whoever had it meanwhile counts if he was given the key", async () => {
  const tokenId = await buyAndRun(world, SELLER);
  await buySealed(SELLER, tokenId);
  await sell(SELLER, BUYER, tokenId);
  await sell(BUYER, SELLER, tokenId);
  expect(await isKnown(SELLER, tokenId)).toBe(false);
  await sell(SELLER, BUYER, tokenId);
  expect((await ask(BUYER, tokenId)).status).toBe(200);
  await sell(BUYER, SELLER, tokenId);
  expect(await isKnown(SELLER, tokenId)).toBe(true);
  await rotated(SELLER, tokenId);
  expect(await isKnown(SELLER, tokenId)).toBe(false);
});

test("hard case 41: a key that was only sold sealed is erased after the grace, and its owner still has it sealed", async () => {
  const tokenId = await buyAndRun(world, SELLER);
  const untouched = await buyAndRun(world, SELLER);
  const key = await buySealed(SELLER, tokenId);
  const grace = world.edge.KEY_GRACE_SECONDS * 1_000;
  await world.sweep(Date.now() + grace - 60_000);
  expect(await world.vm(tokenId)).toMatchObject({ ssh_private_key: expect.any(String) });
  await world.sweep(Date.now() + grace + 60_000);
  expect(await world.vm(tokenId)).toMatchObject({ ssh_private_key: null });
  expect(await world.vm(untouched)).toMatchObject({ ssh_private_key: expect.any(String) });
  const { body } = await ask(SELLER, tokenId);
  expect(body.ssh.privateKey).toBeNull();
  expect(unseal(SELLER, body.sealedPrivateKey ?? "")).toBe(key);
  // The next owner can't open it and is not given it.
  await sell(SELLER, BUYER, tokenId);
  expect((await ask(BUYER, tokenId)).body).toMatchObject({
    sealedPrivateKey: null,
    ssh: { privateKey: null, knownToFormerOwner: true },
  });
});

test("a sale to somebody's wallet does not shorten the grace of a delivery in clear (hard case 1)", async () => {
  const tokenId = await buyAndRun(world, SELLER);
  const key = await buySealed(SELLER, tokenId);
  const grace = world.edge.KEY_GRACE_SECONDS * 1_000;
  // As if it had been sold a day before.
  await world.sql
    .prepare("UPDATE vms SET sealed_at = sealed_at - ?")
    .bind(grace - 60_000)
    .run();
  const fixed = await world.request(`/credentials/${tokenId}`, { headers: await fixedHeaders(agent(SELLER), tokenId) });
  expect(((await fixed.json()) as Answer).ssh.privateKey).toBe(key);
  await world.sweep(Date.now() + 120_000);
  expect((await ask(SELLER, tokenId)).body.ssh.privateKey).toBe(key);
});

test("the owner acknowledges what came sealed, and a new one can't acknowledge it (hard case 41)", async () => {
  const [tokenId, sold] = [await buyAndRun(world, SELLER), await buyAndRun(world, SELLER)];
  expect(await ask(SELLER, tokenId, "/ack")).toMatchObject({ status: 409, body: { code: "not_delivered" } });
  await buySealed(SELLER, tokenId);
  await buySealed(SELLER, sold);
  expect((await ask(SELLER, tokenId, "/ack")).status).toBe(200);
  expect(await world.vm(tokenId)).toMatchObject({ ssh_private_key: null, acknowledged_at: expect.any(Number) });
  expect((await ask(SELLER, tokenId)).body).toMatchObject({ sealedPrivateKey: null, ssh: { privateKey: null } });
  // Twice is as good as once.
  expect((await ask(SELLER, tokenId, "/ack")).status).toBe(200);
  await sell(SELLER, BUYER, sold);
  expect(await ask(BUYER, sold, "/ack")).toMatchObject({ status: 409, body: { code: "not_delivered" } });
  expect((await ask(BUYER, sold)).body.ssh.privateKey).toContain("PRIVATE KEY");
});
