// Hard case 8: data keys change, and nothing that was sealed is lost or comes back.
import { createExecutionContext, createMessageBatch, getQueueResult, waitOnExecutionContext } from "cloudflare:test";
import { secp256k1 } from "@noble/curves/secp256k1.js";
import { bytesToHex } from "@noble/hashes/utils.js";
import { expect, test } from "vitest";
import { dataKeyId } from "../../../src/credentials/ecies.ts";
import { keyRing } from "../../../src/credentials/key-ring.ts";
import { reencrypt } from "../../../src/credentials/reencrypt.ts";
import { countSealed, publishDataKeys, publishedKeys } from "../../../src/db/data-keys.ts";
import type { Vm } from "../../../src/db/schema.ts";
import { loadVm } from "../../../src/db/vms.ts";
import { edgeConfig } from "../../../src/edge/config.ts";
import { deliverKey } from "../../../src/edge/delivery.ts";
import { sendLogs } from "../../../src/log.ts";
import { requireDataKey } from "../../../src/provisioner/context.ts";
import provisioner from "../../../src/provisioner/index.ts";
import { type Credentials, fixedHeaders, freshHeaders } from "../../world/agent.ts";
import { agent, chain } from "../chain.ts";
import { buyAndRun, type Deployment, deploy } from "../deployment.ts";
import { operator } from "../edge/routes/admin/operator.ts";

type Progress = { reencrypted: number; skipped: number; unreadable: number; next: string | null; remaining: number };

/** The same deployment after its operator has put a new data key in and kept the old one as retired. */
function rotate(world: Deployment) {
  const { secretKey, publicKey } = secp256k1.keygen();
  const raw = {
    ...world.edgeVariables,
    DATA_PRIVATE_KEY: bytesToHex(secretKey),
    RETIRED_DATA_KEYS: bytesToHex(world.edge.DATA_PRIVATE_KEY),
  };
  const edge = edgeConfig(raw);
  return { edge, id: dataKeyId(publicKey), ring: keyRing(edge), app: world.appOf(edge) };
}

test("a provisioner whose key the edge can't open refuses to start, and its messages stay (hard case 8)", async () => {
  const world = await deploy();
  const stranger = bytesToHex(secp256k1.keygen().publicKey);
  const batch = createMessageBatch("clawcloud-jobs", [
    { id: "1", timestamp: new Date(), attempts: 1, body: { kind: "reap" } },
  ]);
  const context = createExecutionContext();
  await provisioner.queue(
    batch as never,
    { ...world.provisionerVariables, DATA_PUBLIC_KEY: stranger } as never,
    context,
  );
  const result = await getQueueResult(batch, context);
  expect(result.explicitAcks).toEqual([]);
  expect(result.retryBatch.retry).toBe(true);
  // The page is in the book already: a refusal is what a person has to hear of.
  await waitOnExecutionContext(context);
  const book = world.edge.LOG_BOOK.get(world.edge.LOG_BOOK.idFromName("book"));
  expect(String(await book.read("error", 0))).toMatch(/"level":"page","event":"batch_refused".*the edge does not hold/);
  await requireDataKey(world.context);
});

test("a key that the edge holds as retired still seals, until the provisioner gets the new one", async () => {
  const world = await deploy();
  const { ring } = rotate(world);
  await publishDataKeys(world.db, ring, Date.now());
  expect((await publishedKeys(world.db)).sort()).toEqual([...ring.ids].sort());
  await requireDataKey(world.context);
});

test("after a change of keys credentials open as before, wallets too", async () => {
  const world = await deploy();
  const tokenId = await buyAndRun(world, 0);
  const { app } = rotate(world);
  const headers = { "cf-connecting-ip": "203.0.113.70", ...(await fixedHeaders(agent(0), tokenId)) };
  const answer = await app.request(`https://api.example/credentials/${tokenId}`, { headers });
  expect(((await answer.json()) as Credentials).ssh.privateKey).toContain("PRIVATE KEY");
});

test("re-encryption goes on where it stopped, is counted, and a key retires at 0 (hard case 8)", async () => {
  const world = await deploy();
  for (let count = 0; count < 3; count++) await buyAndRun(world, 0);
  const pending = await world.buy(1);
  await world.scan();
  await world.drain(async () => (await world.rows("SELECT 1 FROM attempts WHERE private_key IS NOT NULL")).length > 0);
  for (const agentId of ["agent-1", "agent-2"]) {
    await world.request("/agents/generate-wallet", {
      method: "POST",
      body: JSON.stringify({ agentId }),
      headers: { "content-type": "application/json" },
    });
  }
  const oldId = keyRing(world.edge).current;
  const { app, edge, id } = rotate(world);
  const ask = operator(
    { request: (path: string, init?: RequestInit) => app.request(`https://api.example${path}`, init) } as Deployment,
    await world.operatorKey(),
  );
  type Keys = { keys: { id: string; current: boolean; held: boolean; secrets: Record<string, number> }[] };
  const keys = async () => (await ask<Keys>("GET", "/admin/data-keys")).body.keys;
  expect(await keys()).toEqual(
    expect.arrayContaining([
      { id, current: true, held: true, secrets: { vms: 0, attempts: 0, wallets: 0 } },
      { id: oldId, current: false, held: true, secrets: { vms: 3, attempts: 1, wallets: 2 } },
    ]),
  );
  const batches: Progress[] = [];
  let after: string | null = null;
  do {
    const { body }: { body: Progress } = await ask<Progress>("POST", "/admin/data-keys/reencrypt", {
      limit: 2,
      ...(after === null ? {} : { after }),
    });
    batches.push(body);
    after = body.next;
  } while (after !== null);
  expect(batches.map(({ reencrypted, remaining }) => [reencrypted, remaining])).toEqual([
    [2, 4],
    [2, 2],
    [2, 0],
    [0, 0],
  ]);
  expect((await countSealed(world.db)).every(({ keyId }) => keyId === id)).toBe(true);
  expect((await keys()).find((one) => one.id === oldId)?.secrets).toEqual({ vms: 0, attempts: 0, wallets: 0 });
  // Without the old key everything opens.
  const alone = keyRing({ DATA_PRIVATE_KEY: edge.DATA_PRIVATE_KEY, RETIRED_DATA_KEYS: [] });
  for (const row of await world.rows(
    "SELECT incarnation, attempt, ssh_private_key, key_id FROM vms WHERE ssh_private_key IS NOT NULL",
  )) {
    const context = { kind: "ssh", subject: row["incarnation"], attempt: row["attempt"] } as const;
    expect((await alone.open(context, row["ssh_private_key"], row["key_id"])).secret.length).toBe(48);
  }
  // A machine in the making goes on with the key that its attempt has now.
  await world.drain();
  expect(await world.vm(pending.tokenId)).toMatchObject({ status: "running", key_id: id });
});

test("a key that its owner had erased meanwhile does not come back (hard case 8)", async () => {
  const world = await deploy();
  const tokenId = await buyAndRun(world, 0);
  const request = (headers: Record<string, string>, path = "") =>
    world.request(`/credentials/${tokenId}${path}`, { headers, ...(path === "" ? {} : { method: "POST" }) });
  expect((await request(await fixedHeaders(agent(0), tokenId))).status).toBe(200);
  const { ring } = rotate(world);
  // The acknowledgement lands between the read and the write.
  const slow = {
    ...ring,
    seal: async (...args: Parameters<typeof ring.seal>) => {
      const ack = await request(await freshHeaders("https://api.example", agent(0), tokenId, "/ack"), "/ack");
      expect(ack.status).toBe(200);
      return ring.seal(...args);
    },
  };
  expect(await reencrypt(world.db, slow, { after: undefined, limit: 10 })).toMatchObject({
    reencrypted: 0,
    skipped: 1,
  });
  expect(await world.vm(tokenId)).toMatchObject({ ssh_private_key: null });
});

test("a key that is sealed anew between the read and the mark is delivered all the same (hard case 8)", async () => {
  const world = await deploy();
  const tokenId = await buyAndRun(world, 0);
  const { edge, ring } = rotate(world);
  const vm = (await loadVm(world.db, String((await world.vm(tokenId))?.["incarnation"]))) as Vm;
  expect(await reencrypt(world.db, ring, { after: undefined, limit: 10 })).toMatchObject({ reencrypted: 1 });
  const owner = agent(0).address.toLowerCase();
  const delivered = await deliverKey(vm, { db: world.db, config: edge, owner, fresh: false, now: Date.now() });
  expect(delivered.privateKey).toContain("PRIVATE KEY");
});

/** What the audit and the pages say of stored secrets since the last look. */
async function told(world: Deployment) {
  await sendLogs(world.edge.LOG_BOOK);
  const book = world.edge.LOG_BOOK.get(world.edge.LOG_BOOK.idFromName("book"));
  const lines = async (stream: "security" | "error") =>
    (await book.read(stream, 0))?.split("\n").filter((line) => line.includes('"secret_')) ?? [];
  return [...(await lines("security")), ...(await lines("error"))].map((line) => {
    const { level, event, incarnation, agentId } = JSON.parse(line) as Record<string, string>;
    return `${level} ${event} ${incarnation ?? agentId}`;
  });
}

test("a secret of another row is refused, audited and paged wherever it is found: delivery, re-encryption, a wallet (hard case 6)", async () => {
  const world = await deploy();
  const [hers, others] = [await buyAndRun(world, 0), await buyAndRun(world, 1)];
  for (const agentId of ["agent-1", "agent-2"]) {
    await world.request("/agents/generate-wallet", {
      method: "POST",
      body: JSON.stringify({ agentId }),
      headers: { "content-type": "application/json" },
    });
  }
  const copied = "(SELECT ssh_private_key FROM vms WHERE token_id = ?)";
  await world.sql.prepare(`UPDATE vms SET ssh_private_key = ${copied} WHERE token_id = ?`).bind(others, hers).run();
  await world.sql
    .prepare(
      "UPDATE agent_wallets SET private_key = (SELECT private_key FROM agent_wallets WHERE agent_id = 'agent-2')",
    )
    .run();
  const incarnation = (await world.vm(hers))?.["incarnation"];
  await told(world);
  const answer = await world.request(`/credentials/${hers}`, { headers: await fixedHeaders(agent(0), hers) });
  expect(answer.status).toBe(500);
  expect(await answer.json()).toMatchObject({
    code: "key_unreadable",
    error: expect.stringContaining(`/credentials/${hers}/rotate`),
  });
  const ofVm = [`security secret_of_another_row ${incarnation}`, `page secret_of_another_row ${incarnation}`];
  expect(await told(world)).toEqual(ofVm);
  // Its owner has spent nothing.
  expect(await world.vm(hers)).toMatchObject({ delivered_at: null });
  const { ring } = rotate(world);
  expect(await reencrypt(world.db, ring, { after: undefined, limit: 10 })).toMatchObject({ unreadable: 2, next: null });
  const all = await told(world);
  expect(all.filter((line) => line.endsWith(incarnation))).toHaveLength(4);
  expect(all.filter((line) => line.endsWith("agent-1"))).toEqual([
    "security secret_of_another_row agent-1",
    "page secret_of_another_row agent-1",
  ]);
  // The key id that stands beside a copy may be any: it is found by what the copy says of itself.
  await world.sql.prepare("UPDATE vms SET key_id = 'feedfeedfeedfeed' WHERE token_id = ?").bind(hers).run();
  expect(await reencrypt(world.db, ring, { after: undefined, limit: 10 })).toMatchObject({ unreadable: 2 });
  expect((await told(world)).filter((line) => line === ofVm[1])).toHaveLength(3);
});

test("what no key opens is counted and passed over, not rewritten", async () => {
  const world = await deploy();
  const tokenId = await buyAndRun(world, 0);
  await buyAndRun(world, 1);
  await world.sql.prepare("UPDATE vms SET key_id = 'feedfeedfeedfeed' WHERE token_id = ?").bind(tokenId).run();
  const before = (await world.vm(tokenId))?.["ssh_private_key"];
  await told(world);
  const { ring } = rotate(world);
  expect(await reencrypt(world.db, ring, { after: undefined, limit: 10 })).toEqual({
    reencrypted: 1,
    skipped: 0,
    unreadable: 1,
    next: null,
  });
  expect((await world.vm(tokenId))?.["ssh_private_key"]).toBe(before);
  // For the audit, and nobody is woken: it is a data key that is missing here.
  const incarnation = (await world.vm(tokenId))?.["incarnation"];
  expect(await told(world)).toEqual([`security secret_unreadable ${incarnation}`]);
  await chain.mine(1);
});
