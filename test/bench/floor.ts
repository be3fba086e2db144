// The floor: what a request costs when a Worker does nothing but the binding calls that the edge makes for it. Same
// database, same guard object, same node; no validation, no headers, no error handling, no query builder.
import { secp256k1 } from "@noble/curves/secp256k1.js";
import { hkdf } from "@noble/hashes/hkdf.js";
import { sha256 } from "@noble/hashes/sha2.js";
import { keccak_256 } from "@noble/hashes/sha3.js";
import { bytesToHex, concatBytes, hexToBytes, utf8ToBytes } from "@noble/hashes/utils.js";
import { type Context, Hono } from "hono";
import type { IpGuard } from "../../durable-objects/ip-guard.ts";

type Env = {
  Bindings: {
    DB: D1Database;
    IP_GUARD: DurableObjectNamespace<IpGuard>;
    RPC_URL: string;
    /** The multicall's calldata without the token id's two words is not worth parsing: the bench sends it whole. */
    RPC_BODY: string;
    DATA_PRIVATE_KEY: string;
  };
};
const LIMIT = { requests: 5_000, windowSeconds: 60 };

const guard = (c: Context<Env>, route: string) =>
  c.env.IP_GUARD.get(c.env.IP_GUARD.idFromName(c.req.header("cf-connecting-ip") ?? "")).hit({
    bucket: route,
    limit: LIMIT,
    kept: false,
    counts: "each",
    evenIfBanned: false,
    now: Date.now(),
  });

const app = new Hono<Env>();

/** What no guard stands before. */
app.get("/bare", (c) => c.json({ status: "ok" }));

let health: { rows: unknown; at: number } | undefined;
app.get("/health", async (c) => {
  if (health !== undefined && Date.now() - health.at < 1_000) return c.json(health.rows);
  const rows = await c.env.DB.batch([
    c.env.DB.prepare("SELECT block_number, block_timestamp, scanned_at FROM cursors WHERE id = ?").bind(1),
    c.env.DB.prepare("SELECT value FROM counters WHERE name = ?").bind("pending"),
    c.env.DB.prepare(
      "SELECT created_at FROM vms WHERE current = 1 AND status = 'provisioning' ORDER BY created_at LIMIT ?",
    ).bind(1),
  ]);
  health = { rows: rows.map((row) => row.results), at: Date.now() };
  return c.json(health.rows);
});

let tiers: unknown;
app.get("/tiers", async (c) => {
  await guard(c, "tiers");
  tiers ??= await c.env.DB.prepare("SELECT tiers FROM catalogs WHERE id = ?").bind(1).first();
  return c.json(tiers);
});

app.get("/status/:tokenId", async (c) => {
  const [vm] = await Promise.all([
    c.env.DB.prepare("SELECT * FROM vms WHERE token_id = ? AND current = 1")
      .bind(Number(c.req.param("tokenId")))
      .first<{ incarnation: string; attempt: number; status: string; created_at: number; expires_at: number }>(),
    guard(c, "status"),
  ]);
  const { results } = await c.env.DB.prepare(
    "SELECT provider, region, started_at, ended_at, outcome FROM attempts WHERE incarnation = ? ORDER BY number LIMIT ?",
  )
    .bind(vm?.incarnation, vm?.attempt)
    .all();
  return c.json({ status: vm?.status, created: vm?.created_at, expires: vm?.expires_at, attempts: results });
});

app.get("/vms/:address", async (c) => {
  await guard(c, "vms");
  const owner = c.req.param("address").toLowerCase();
  const [rows, count] = await c.env.DB.batch([
    c.env.DB.prepare(
      "SELECT token_id, tier, vm_type, ssh_host, status, created_at, expires_at FROM vms WHERE owner = ? AND current = 1 ORDER BY token_id DESC LIMIT ?",
    ).bind(owner, 100),
    c.env.DB.prepare("SELECT count FROM owner_counts WHERE owner = ?").bind(owner),
  ]);
  return c.json({ vms: rows?.results, count: count?.results });
});

app.get("/credentials/:tokenId", async (c) => {
  await guard(c, "credentials");
  const message = Buffer.from(c.req.header("x-access-message") ?? "", "base64");
  const signer = recover(message, hexToBytes((c.req.header("authorization") ?? "").slice("Bearer 0x".length)));
  const [[door], answer] = await Promise.all([
    c.env.DB.batch<{ ssh_private_key: string }>([
      c.env.DB.prepare(
        "SELECT vms.*, attempts.public_key, attempts.host_public_key FROM vms LEFT JOIN attempts ON attempts.incarnation = vms.incarnation AND attempts.number = vms.attempt WHERE token_id = ? AND current = 1",
      ).bind(Number(c.req.param("tokenId"))),
      c.env.DB.prepare("SELECT block_number, block_timestamp, scanned_at FROM cursors WHERE id = ?").bind(1),
    ]),
    fetch(c.env.RPC_URL, { method: "POST", body: c.env.RPC_BODY, headers: { "content-type": "application/json" } }),
  ]);
  const { result } = await answer.json<{ result: string }>();
  const nonce = /Nonce: (\w+)/.exec(message.toString())?.[1];
  await c.env.DB.prepare("INSERT INTO nonces (address, nonce, expires_at) VALUES (?, ?, ?) ON CONFLICT DO NOTHING")
    .bind(signer, nonce, Date.now() + 360_000)
    .run();
  const { ssh_private_key: sealed = "", ...vm } = door?.results[0] ?? {};
  const secret = await open(hexToBytes(c.env.DATA_PRIVATE_KEY), sealed);
  return c.json({ ...vm, owned: result.includes(signer), privateKey: Buffer.from(secret).toString("base64") });
});

/** A demand for payment that somebody has written down once: the guard's call, and nothing to work out. */
const DEMAND = { "PAYMENT-REQUIRED": Buffer.from(JSON.stringify({ x402Version: 2, accepts: [] })).toString("base64") };
const demand = async (c: Context<Env>) => {
  await guard(c, "x402");
  return c.json({ x402Version: 1, accepts: [] }, 402, DEMAND);
};
app.get("/x402/vm-credentials", demand);
app.post("/x402/purchase-compute", async (c) => {
  await c.req.json();
  await c.env.DB.prepare("SELECT stock FROM catalogs WHERE id = ?").bind(1).first();
  return demand(c);
});

// EIP-191.
function recover(message: Uint8Array, signature: Uint8Array): string {
  const hash = keccak_256(concatBytes(utf8ToBytes(`\x19Ethereum Signed Message:\n${message.length}`), message));
  const recovered = concatBytes(Uint8Array.of((signature[64] ?? 27) - 27), signature.subarray(0, 64));
  const compressed = secp256k1.recoverPublicKey(recovered, hash, { prehash: false });
  const point = secp256k1.Point.fromBytes(compressed).toBytes(false);
  return bytesToHex(keccak_256(point.subarray(1)).subarray(12));
}

async function open(privateKey: Uint8Array, sealed: string): Promise<ArrayBuffer> {
  const [, key = "", iv = "", tag = "", text = ""] = sealed.split(":");
  const ephemeral = hexToBytes(key);
  const shared = secp256k1.getSharedSecret(privateKey, ephemeral, false);
  const material = hkdf(sha256, concatBytes(ephemeral, shared), undefined, undefined, 32);
  const aes = await crypto.subtle.importKey("raw", material as Uint8Array<ArrayBuffer>, "AES-GCM", false, ["decrypt"]);
  return crypto.subtle.decrypt(
    { name: "AES-GCM", iv: hexToBytes(iv) as Uint8Array<ArrayBuffer> },
    aes,
    hexToBytes(text + tag) as Uint8Array<ArrayBuffer>,
  );
}

export default app;
