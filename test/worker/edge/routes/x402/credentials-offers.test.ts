// What would be handed out is decided before anything is charged; what was charged is handed out or paid back (hard case 58).
import { runDurableObjectAlarm } from "cloudflare:test";
import { beforeEach, expect, test } from "vitest";
import { giveSealed } from "../../../../../src/db/delivery.ts";
import { USDC_ADDRESS } from "../../../../world/addresses.ts";
import { fixedHeaders, freshHeaders, transfer } from "../../../../world/agent.ts";
import { submit } from "../../../../world/payer.ts";
import { agent, chain } from "../../../chain.ts";
import { buyAndRun, type Deployment, deploy, PATIENCE_MS } from "../../../deployment.ts";
import { addFacilitatorFault, addRpcFault } from "../../../faults.ts";
import { ask, PRICE, prepare, unseal } from "./paid-credentials.ts";
import { usdcOf } from "./till.ts";

const API = "https://api.example";
const owner = agent(0);
let world: Deployment;
let tokenId: number;
let before: bigint;
beforeEach(async () => {
  world = await deploy();
  tokenId = await buyAndRun(world, 0);
  before = await usdcOf(owner.address);
});

const charged = async () => before - (await usdcOf(owner.address));
const change = (columns: string) =>
  world.sql.prepare(`UPDATE vms SET ${columns} WHERE token_id = ?`).bind(tokenId).run();
const post = async (action: "/ack" | "/rotate") =>
  world.request(`/credentials/${tokenId}${action}`, {
    method: "POST",
    headers: await freshHeaders(API, owner, tokenId, action),
  });
const fixed = () => fixedHeaders(owner, tokenId);
const fresh = () => freshHeaders(API, owner, tokenId);
/** Pays, with the owner's signature beside the payment or without one. */
async function pay(signature: Record<string, string> = {}) {
  const { headers } = await prepare(world, tokenId);
  return ask(world, tokenId, { ...headers, ...signature });
}
const codeOf = ({ status, body }: Awaited<ReturnType<typeof pay>>) => [status, body["code"] ?? body["status"]];
async function expectFree() {
  expect(await charged()).toBe(0n);
  expect(await world.payments()).toEqual([]);
}

test("hard case 58: a key that was acknowledged is not sold again, signature or none", async () => {
  expect((await world.request(`/credentials/${tokenId}`, { headers: await fixed() })).status).toBe(200);
  expect((await post("/ack")).status).toBe(200);
  for (const signature of [{}, await fixed(), await fresh()])
    expect(codeOf(await pay(signature))).toEqual([409, "key_erased"]);
  await expectFree();
});

test("hard case 58: the fixed form pays for nothing where only the fresh form gets the key, and the fresh one pays for it", async () => {
  expect((await world.request(`/credentials/${tokenId}`, { headers: await fixed() })).status).toBe(200);
  expect(codeOf(await pay(await fixed()))).toEqual([401, "fresh_signature_required"]);
  await expectFree();
  const again = await pay(await fresh());
  expect(again).toMatchObject({ status: 200, body: { privateKey: expect.stringContaining("PRIVATE KEY") } });
  expect(await charged()).toBe(PRICE);
});

test("hard case 58: once the grace is over nothing is sold, although the sweep has not been there yet", async () => {
  expect((await world.request(`/credentials/${tokenId}`, { headers: await fixed() })).status).toBe(200);
  await change(`delivered_at = delivered_at - ${world.edge.KEY_GRACE_SECONDS * 1_000}`);
  for (const signature of [{}, await fixed(), await fresh()])
    expect(codeOf(await pay(signature))).toEqual([409, "key_erased"]);
  await expectFree();
});

test("hard case 58: a signature that was used up, a rotation, a key that can't be read: each is known before the charge", async () => {
  const used = await fresh();
  expect((await world.request(`/credentials/${tokenId}`, { headers: used })).status).toBe(200);
  expect(codeOf(await pay(used))).toEqual([401, "nonce_used"]);
  await change("key_id = 'feedfeedfeedfeed'");
  for (const signature of [{}, await fresh()]) expect(codeOf(await pay(signature))).toEqual([500, "key_unreadable"]);
  expect((await post("/rotate")).status).toBe(202);
  for (const signature of [{}, await fixed(), await fresh()])
    expect(codeOf(await pay(signature))).toEqual([202, "provisioning"]);
  await expectFree();
});

test("hard case 58: without a second witness nothing is charged (hard case 7)", async () => {
  const doubtful = await deploy({ edge: { RPC_URLS: world.edge.RPC_URLS.slice(0, 2).join(",") } });
  world = doubtful;
  tokenId = await buyAndRun(world, 0);
  before = await usdcOf(owner.address);
  const { headers } = await prepare(world, tokenId);
  await addRpcFault({ kind: "down" });
  for (const signature of [{}, await fixed(), await fresh()])
    expect(codeOf(await ask(world, tokenId, { ...headers, ...signature }))).toEqual([503, "chain_unavailable"]);
  await expectFree();
});

/** Asks with a payment; runs `meanwhile` while it is being taken, and then lets it be taken. */
async function payAnd(meanwhile: () => Promise<unknown>, signature: Record<string, string> = {}) {
  const { headers, signed } = await prepare(world, tokenId);
  const reason = "invalid_exact_evm_nonce_already_used";
  await addFacilitatorFault({ call: "settle", times: 1, kind: "refuse", reason, afterUse: true });
  const asked = ask(world, tokenId, { ...headers, ...signature });
  const states = async () => (await world.payments()).map(({ state }) => state as string);
  await expect.poll(states, { timeout: PATIENCE_MS, interval: 20 }).toEqual(["settling"]);
  await meanwhile();
  await submit(chain, agent(1), signed, USDC_ADDRESS);
  return { headers, answer: await asked };
}
async function payBack(): Promise<void> {
  for (let round = 0; round < 3; round++) {
    await chain.mine(4);
    await runDurableObjectAlarm(world.wallet);
    for (const table of ["payments", "refunds"]) {
      await world.sql.prepare(`UPDATE ${table} SET wake_at = 0 WHERE wake_at IS NOT NULL`).run();
    }
    world.sent.length = 0;
    await world.sweep();
    await world.drain();
  }
}

const GONE: [string, string][] = [
  ["the key is erased", "ssh_private_key = NULL"],
  ["the machine ends", "status = 'terminated', ssh_private_key = NULL, ssh_host = NULL"],
  ["another machine takes its place", "attempt = attempt + 1"],
  ["the token is sold", `owner = '${agent(1).address.toLowerCase()}'`],
  ["another purchase has the token", "current = 0"],
];
test.each(GONE)(
  "hard case 58: %s while the payment is taken: no key leaves, and the payment goes back",
  async (_, columns) => {
    const { answer } = await payAnd(() => change(columns));
    const [row] = await world.payments();
    expect(answer).toMatchObject({ status: 409, body: { code: "key_gone", details: [{ purchaseId: row?.["id"] }] } });
    expect(answer.text).not.toContain("ecc:");
    expect(row).toMatchObject({ state: "refund_due", step: "refund", reason: "not_served", served_at: null });
    expect(await world.rows("SELECT * FROM key_holders")).toEqual([]);
    await payBack();
    expect(await world.payments()).toMatchObject([{ state: "refunded" }]);
    expect(await charged()).toBe(0n);
  },
);

test("hard case 58: a key that is handed out meanwhile: the same payment gets it by another form, and is charged once", async () => {
  const deliver = async () => world.request(`/credentials/${tokenId}`, { headers: await fixed() });
  const { headers, answer } = await payAnd(deliver, await fixed());
  expect(codeOf(answer)).toEqual([401, "fresh_signature_required"]);
  expect(await world.payments()).toMatchObject([{ state: "settled", served_at: null }]);
  await world.sql.prepare("UPDATE payments SET settled_at = settled_at - 15000").run();
  const sealed = await ask(world, tokenId, headers);
  expect(unseal(0, sealed.body["sealedPrivateKey"])).toContain("PRIVATE KEY");
  expect(await charged()).toBe(PRICE);
});

test("a key that is sealed anew under another data key meanwhile is handed out all the same (hard case 8)", async () => {
  const { answer } = await payAnd(async () => change("ssh_private_key = ssh_private_key || ''"), await fixed());
  expect(answer).toMatchObject({ status: 200, body: { privateKey: expect.stringContaining("PRIVATE KEY") } });
});

test("hard case 58: an answer in clear that was lost comes again by a new signature, for the same payment", async () => {
  const { headers } = await prepare(world, tokenId);
  const first = await ask(world, tokenId, { ...headers, ...(await fresh()) });
  expect(first.status).toBe(200);
  const again = await ask(world, tokenId, { ...headers, ...(await fresh()) });
  expect(again).toMatchObject({ status: 200, body: { privateKey: first.body["privateKey"] } });
  expect(await charged()).toBe(PRICE);
  expect(await world.payments()).toHaveLength(1);
});

test("hard case 58: a second request of a payment that was served gives what the first one gave, and nothing once that is acknowledged", async () => {
  const { headers } = await prepare(world, tokenId);
  const sealed = (await ask(world, tokenId, headers)).body["sealedPrivateKey"] as string;
  const [row] = await world.payments();
  const incarnation = (await world.vm(tokenId))?.["incarnation"] as string;
  // It was settled by then, and this one has sealed the key once more.
  const sale = {
    owner: owner.address.toLowerCase(),
    sealed: "ecc:other",
    payment: row?.["id"] as string,
    now: Date.now(),
  };
  expect(await giveSealed(world.db, { incarnation, attempt: 1 }, sale)).toBe(sealed);
  expect((await post("/ack")).status).toBe(200);
  expect(await giveSealed(world.db, { incarnation, attempt: 1 }, sale)).toBeNull();
  expect(await world.rows("SELECT sealed FROM key_holders")).toEqual([{ sealed: null }]);
});

test("hard case 58: a payment for a key that a rotation has replaced does not buy the new one", async () => {
  const { headers } = await prepare(world, tokenId);
  expect((await ask(world, tokenId, headers)).status).toBe(200);
  expect((await post("/rotate")).status).toBe(202);
  await world.drain();
  await chain.mine(1);
  expect(codeOf(await ask(world, tokenId, headers))).toEqual([409, "payment_used"]);
  const other = await pay();
  expect(unseal(0, other.body["sealedPrivateKey"])).toContain("PRIVATE KEY");
});

test("hard case 58: settled, cut off, and the token sold before the answer: nobody gets the key, and the payer his cent", async () => {
  const { headers } = await prepare(world, tokenId);
  expect((await ask(world, tokenId, headers)).status).toBe(200);
  await world.sql.prepare("DELETE FROM key_holders").run();
  await world.sql
    .prepare("UPDATE payments SET served_at = NULL, step = 'settle', settled_at = settled_at - 3600000")
    .run();
  await transfer(chain, owner, agent(1).address, tokenId);
  await chain.mine(1);
  await world.scan();
  expect(codeOf(await ask(world, tokenId, headers))).toEqual([403, "not_owner"]);
  await payBack();
  await payBack();
  expect(await world.payments()).toMatchObject([{ state: "refunded", reason: "not_served" }]);
  expect(await charged()).toBe(0n);
});
