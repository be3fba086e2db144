import { encodeFunctionData, type Hex, parseAbi } from "viem";
import { beforeEach, expect, test } from "vitest";
import { CONTRACT_ADDRESS, MULTICALL3_ADDRESS } from "../../../world/addresses.ts";
import { buy, type Credentials, fixedHeaders, freshHeaders, transfer } from "../../../world/agent.ts";
import { agent, chain } from "../../chain.ts";
import { type Deployment, deploy } from "../../deployment.ts";
import { addRpcFault, clearRpcFaults } from "../../faults.ts";

const API = "https://api.example";
const multicall = parseAbi([
  "function aggregate3((address target, bool allowFailure, bytes callData)[] calls) payable returns ((bool success, bytes returnData)[])",
  "function ownerOf(uint256)",
  "function isTokenValid(uint256)",
  "function getBlockNumber()",
  "function getCurrentBlockTimestamp()",
]);
/** The read of a token that the edge makes. */
function multicallOf(id: number) {
  const call = (functionName: "ownerOf" | "isTokenValid") => ({
    target: CONTRACT_ADDRESS as Hex,
    allowFailure: true,
    callData: encodeFunctionData({ abi: multicall, functionName, args: [BigInt(id)] }),
  });
  const block = (functionName: "getBlockNumber" | "getCurrentBlockTimestamp") => ({
    target: MULTICALL3_ADDRESS as Hex,
    allowFailure: false,
    callData: encodeFunctionData({ abi: multicall, functionName }),
  });
  const calls = [call("ownerOf"), call("isTokenValid"), block("getBlockNumber"), block("getCurrentBlockTimestamp")];
  return {
    to: MULTICALL3_ADDRESS as Hex,
    data: encodeFunctionData({ abi: multicall, functionName: "aggregate3", args: [calls] }),
  };
}
let world: Deployment;
let tokenId: number;

beforeEach(async () => {
  world = await deploy();
  ({ tokenId } = await buy(chain, agent(0), 0, 1));
  await world.scan();
  await world.drain();
  await chain.mine(1);
});

async function ask(headers: Record<string, string>, path = `/credentials/${tokenId}`, method = "GET") {
  const response = await world.request(path, { method, headers });
  const body = (await response.json()) as Credentials & { code?: string; error?: string };
  return { status: response.status, body, headers: response.headers };
}
const fresh = (index = 0, fields: Record<string, string> = {}, action: "" | "/ack" = "") =>
  freshHeaders(API, agent(index), tokenId, action, fields);
const key = async (headers: Record<string, string>) => (await ask(headers)).body.ssh?.privateKey ?? null;

test("the fields are those of version 1.3.0 of the API, the ports, and the rest under ssh", async () => {
  const { status, body, headers } = await ask(await fixedHeaders(agent(0), tokenId));
  expect(status).toBe(200);
  expect(Object.keys(body)).toEqual([
    "tokenId",
    "host",
    "username",
    "privateKey",
    "sealedPrivateKey",
    "tier",
    "type",
    "expiresAt",
    "instructions",
    "ports",
    "ssh",
  ]);
  expect(Object.keys(body.ssh)).toEqual([
    "port",
    "privateKey",
    "publicKey",
    "fingerprint",
    "knownHosts",
    "deliveredAt",
    "knownToFormerOwner",
  ]);
  expect(body).toMatchObject({ tokenId: String(tokenId), username: "root", tier: 0, type: "gcp" });
  expect(body.instructions).toContain(`-p ${body.ssh.port} root@${body.host}`);
  expect(new Date(body.expiresAt).toISOString()).toBe(body.expiresAt);
  expect(headers.get("cache-control")).toBe("no-store");
});

test("the first delivery may use the fixed form; after it only the fresh form brings the key again (hard case 21)", async () => {
  const first = await key(await fixedHeaders(agent(0), tokenId));
  expect(first).toContain("PRIVATE KEY");
  expect(await key(await fixedHeaders(agent(0), tokenId))).toBeNull();
  expect(await key(await fresh())).toBe(first);
});

test("ten first requests at once by the fixed form hand the key out once", async () => {
  const headers = await fixedHeaders(agent(0), tokenId);
  const keys = await Promise.all(Array.from({ length: 10 }, () => key(headers)));
  expect(keys.filter((one) => one !== null)).toHaveLength(1);
});

test("whoever used the fresh form once gets keys only by it", async () => {
  const early = await deploy();
  const bought = await buy(chain, agent(1), 0, 1);
  await early.scan();
  const path = `/credentials/${bought.tokenId}`;
  const pending = await early.request(path, { headers: await freshHeaders(API, agent(1), bought.tokenId) });
  expect(pending.status).toBe(202);
  await early.drain();
  await chain.mine(1);
  const fixed = await early.request(path, { headers: await fixedHeaders(agent(1), bought.tokenId) });
  expect(((await fixed.json()) as Credentials).ssh).toMatchObject({ privateKey: null, deliveredAt: null });
  const again = await early.request(path, { headers: await freshHeaders(API, agent(1), bought.tokenId) });
  expect(((await again.json()) as Credentials).ssh.privateKey).toContain("PRIVATE KEY");
});

test("a fresh signature works once; another signature over the same nonce works no more (hard case 21)", async () => {
  const nonce = "abcdefgh12345678";
  expect((await ask(await fresh(0, { Nonce: nonce }))).status).toBe(200);
  const replays = [
    await fresh(0, { Nonce: nonce }),
    await fresh(0, { Nonce: nonce, "Issued At": new Date(Date.now() - 5_000).toISOString() }),
  ];
  for (const headers of replays) {
    const { status, body } = await ask(headers);
    expect([status, body.code]).toEqual([401, "nonce_used"]);
  }
  expect((await ask(await fresh(0, { Nonce: nonce.toUpperCase() }))).status).toBe(200);
});

test("an acknowledgement takes the fresh form that names it, and erases the key for good (hard case 25)", async () => {
  const path = `/credentials/${tokenId}/ack`;
  const early = await ask(await fresh(0, {}, "/ack"), path, "POST");
  expect([early.status, early.body.code]).toEqual([409, "not_delivered"]);
  expect(await key(await fresh())).toContain("PRIVATE KEY");
  const fixed = await ask(await fixedHeaders(agent(0), tokenId), path, "POST");
  expect([fixed.status, fixed.body.code]).toEqual([401, "fresh_signature_required"]);
  const other = await ask(await fresh(), path, "POST");
  expect([other.status, other.body.code]).toEqual([401, "signature_invalid"]);
  const forAck = await fresh(0, {}, "/ack");
  expect((await ask(forAck)).status).toBe(401);
  expect((await ask(forAck, path, "POST")).status).toBe(200);
  expect((await ask(forAck, path, "POST")).body.code).toBe("nonce_used");
  expect(await world.rows("SELECT ssh_private_key FROM vms")).toEqual([{ ssh_private_key: null }]);
  expect((await ask(await fresh())).body.ssh).toMatchObject({ privateKey: null, deliveredAt: expect.any(String) });
});

test("when the grace ends the key is erased, and the answer says when it was delivered", async () => {
  await key(await fixedHeaders(agent(0), tokenId));
  await world.sql.prepare("UPDATE vms SET delivered_at = delivered_at - 86400001").run();
  expect(await key(await fresh())).toBeNull();
  await world.sweep();
  expect(await world.rows("SELECT ssh_private_key FROM vms")).toEqual([{ ssh_private_key: null }]);
});

test("a grace of 0 means strictly once: the key goes with the answer", async () => {
  const strict = await deploy({ edge: { KEY_GRACE_SECONDS: "0" } });
  const bought = await buy(chain, agent(1), 0, 1);
  await strict.scan();
  await strict.drain();
  await chain.mine(1);
  const path = `/credentials/${bought.tokenId}`;
  const first = await strict.request(path, { headers: await freshHeaders(API, agent(1), bought.tokenId) });
  expect(((await first.json()) as Credentials).ssh.privateKey).toContain("PRIVATE KEY");
  expect(await strict.rows("SELECT ssh_private_key FROM vms")).toEqual([{ ssh_private_key: null }]);
});

test("a new owner gets a key that is still there by the fresh form, and can't acknowledge what the former one got", async () => {
  await key(await fixedHeaders(agent(0), tokenId));
  await transfer(chain, agent(0), agent(1).address, tokenId);
  await world.scan();
  expect((await ask(await fixedHeaders(agent(0), tokenId))).body.code).toBe("not_owner");
  const ack = await ask(await fresh(1, {}, "/ack"), `/credentials/${tokenId}/ack`, "POST");
  expect([ack.status, ack.body.code]).toEqual([409, "not_delivered"]);
  expect(await key(await fixedHeaders(agent(1), tokenId))).toBeNull();
  expect(await key(await fresh(1))).toContain("PRIVATE KEY");
});

test("a legacy plaintext key is handed out and encrypted on the spot", async () => {
  const legacy = "-----BEGIN OPENSSH PRIVATE KEY-----\nlegacy\n-----END OPENSSH PRIVATE KEY-----\n";
  await world.sql.prepare("UPDATE vms SET ssh_private_key = ?").bind(legacy).run();
  expect(await key(await fixedHeaders(agent(0), tokenId))).toBe(legacy);
  const [row] = await world.rows("SELECT ssh_private_key AS k FROM vms");
  expect(row?.["k"]).toMatch(/^ecc:/);
  expect(await key(await fresh())).toBe(legacy);
});

test("a key copied from another token's row is not handed out, and neither is another token's whole row (hard case 6)", async () => {
  const other = await buy(chain, agent(1), 0, 1);
  await world.scan();
  await world.drain();
  await chain.mine(1);
  await world.sql
    .prepare(
      "UPDATE vms SET ssh_private_key = (SELECT ssh_private_key FROM vms WHERE token_id = ?1) WHERE token_id = ?2",
    )
    .bind(tokenId, other.tokenId)
    .run();
  const path = `/credentials/${other.tokenId}`;
  const copied = await ask(await fixedHeaders(agent(1), other.tokenId), path);
  expect([copied.status, copied.body.code]).toEqual([500, "key_unreadable"]);
  expect(JSON.stringify(copied.body)).not.toContain("PRIVATE KEY");

  await world.sql.prepare("UPDATE vms SET current = 0 WHERE token_id = ?").bind(other.tokenId).run();
  await world.sql
    .prepare("UPDATE vms SET token_id = ?1, owner = ?2 WHERE token_id = ?3")
    .bind(other.tokenId, agent(1).address.toLowerCase(), tokenId)
    .run();
  const moved = await ask(await fixedHeaders(agent(1), other.tokenId), path);
  expect([moved.status, moved.body.code]).toEqual([500, "internal_error"]);
  expect(JSON.stringify(moved.body)).not.toContain("PRIVATE KEY");
});

test("a node that lags behind a sale does not give the seller the key (hard case 7)", async () => {
  await transfer(chain, agent(0), agent(1).address, tokenId);
  await chain.mine(2);
  await world.scan();
  await addRpcFault({ kind: "lag", blocks: 4 });
  const { status, body } = await ask(await fixedHeaders(agent(0), tokenId));
  expect([status, body.code]).toEqual([403, "not_owner"]);
});

test("a sale that we have not scanned yet gives the key to neither side (hard case 7)", async () => {
  await transfer(chain, agent(0), agent(1).address, tokenId);
  const buyer = await ask(await fixedHeaders(agent(1), tokenId));
  expect([buyer.status, buyer.body.code, buyer.headers.get("retry-after")]).toEqual([503, "ownership_settling", "3"]);
  expect((await ask(await fixedHeaders(agent(0), tokenId))).status).toBe(403);
});

test("a first delivery takes two nodes: one that lies about the owner gets nobody the key (hard case 7)", async () => {
  const { tokenId: stolen } = await buy(chain, agent(1), 0, 1);
  await world.scan();
  await world.drain();
  await chain.mine(1);
  // The lying node answers about token `stolen` what it says of the thief's own; our index is wrong as well.
  const own = await chain.reader.request({ method: "eth_call", params: [multicallOf(tokenId), "latest"] });
  await world.sql
    .prepare("UPDATE vms SET owner = ?1 WHERE token_id = ?2")
    .bind(agent(0).address.toLowerCase(), stolen)
    .run();
  await addRpcFault({ kind: "rewrite", method: "eth_call", result: own });
  const { status, body } = await ask(await fixedHeaders(agent(0), stolen), `/credentials/${stolen}`);
  expect([status, body.code]).toEqual([503, "ownership_settling"]);
  expect(await world.rows("SELECT delivered_at FROM vms WHERE token_id = ?", stolen)).toEqual([{ delivered_at: null }]);
});

test.each(["another token's owner", "no token"])(
  "a first node that tells of %s turns the owner away from nothing",
  async (what) => {
    const other = await buy(chain, agent(1), 0, 1);
    await world.scan();
    const asked = multicallOf(what === "no token" ? 999_999 : other.tokenId);
    const result = await chain.reader.request({ method: "eth_call", params: [asked, "latest"] });
    await addRpcFault({ kind: "rewrite", method: "eth_call", result });
    expect((await ask(await fixedHeaders(agent(0), tokenId))).status).toBe(200);
    // Nor does it let anybody else in.
    expect((await ask(await fixedHeaders(agent(1), tokenId))).status).toBe(403);
  },
);

test("503 when no node answers, and when all of them stand still", async () => {
  const alone = await deploy({ edge: { RPC_URLS: world.edge.RPC_URLS[0] ?? "" } });
  const bought = await buy(chain, agent(2), 0, 1);
  await alone.scan();
  await addRpcFault({ kind: "down" });
  const headers = await fixedHeaders(agent(2), bought.tokenId);
  const down = await alone.request(`/credentials/${bought.tokenId}`, { headers });
  expect([down.status, down.headers.get("retry-after"), ((await down.json()) as { code: string }).code]).toEqual([
    503,
    "3",
    "chain_unavailable",
  ]);
  await clearRpcFaults();
  const impatient = await deploy({ edge: { CHAIN_MAX_AGE_SECONDS: "1" } });
  const last = await buy(chain, agent(2), 0, 1);
  await impatient.scan();
  await new Promise((resolve) => setTimeout(resolve, 2_500));
  const { timestamp } = await chain.reader.getBlock();
  if (Number(timestamp) < Date.now() / 1_000 - 1) {
    const stale = await impatient.request(`/credentials/${last.tokenId}`, {
      headers: await fixedHeaders(agent(2), last.tokenId),
    });
    expect(stale.status).toBe(503);
  }
});

test("202 with Retry-After while the machine is made, also for a token that only the chain knows yet", async () => {
  const early = await deploy();
  const bought = await buy(chain, agent(3), 0, 1);
  const headers = await fixedHeaders(agent(3), bought.tokenId);
  for (const scanned of [false, true]) {
    if (scanned) await early.scan();
    const response = await early.request(`/credentials/${bought.tokenId}`, { headers });
    expect([response.status, response.headers.get("retry-after")]).toEqual([202, "10"]);
    expect(await response.json()).toMatchObject({
      tokenId: String(bought.tokenId),
      status: "provisioning",
      attempts: 0,
    });
  }
});

test("checks come in order: 400, 401, 404, 403", async () => {
  const stranger = await fixedHeaders(agent(4), tokenId);
  expect((await ask({}, "/credentials/x")).body.code).toBe("invalid_request");
  expect((await ask({})).body.code).toBe("signature_missing");
  expect((await ask({ authorization: "Bearer 0x1234" })).body.code).toBe("signature_invalid");
  const unknown = 9_007_199_254_740_991;
  const headers = await fixedHeaders(agent(4), unknown);
  expect((await ask(headers, `/credentials/${unknown}`)).body.code).toBe("token_not_found");
  expect((await ask(stranger)).body.code).toBe("not_owner");
});

test("HEAD is refused and spends no delivery", async () => {
  const head = await world.request(`/credentials/${tokenId}`, {
    method: "HEAD",
    headers: await fixedHeaders(agent(0), tokenId),
  });
  expect(head.status).toBe(405);
  expect(await key(await fixedHeaders(agent(0), tokenId))).toContain("PRIVATE KEY");
});
