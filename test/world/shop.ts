// A small shop for benches and fuzzing: a chain with some sales, bare Workers that have scanned them, and rows as the provisioner
// would have left them.
import { secp256k1 } from "@noble/curves/secp256k1.js";
import { eq } from "drizzle-orm";
import { sealSecret } from "../../src/credentials/ecies.ts";
import { generateSshKeyPair } from "../../src/credentials/ssh-keys.ts";
import { openDatabase } from "../../src/db/client.ts";
import { attempts, vms } from "../../src/db/schema.ts";
import { LIMITS } from "../../src/edge/access/limits.ts";
import { attemptRow, insertRows } from "../rows.ts";
import { CONTRACT_ADDRESS } from "./addresses.ts";
import { buy } from "./agent.ts";
import { type BareWorkers, startBareWorkers, type WorkerSource } from "./bare-workers.ts";
import { startChain } from "./chain.ts";
import { startFacilitator } from "./facilitator.ts";
import { freePort } from "./ports.ts";

export const TOKENS = 20;

export const EDGE_UNDER_LOAD: WorkerSource = {
  name: "edge",
  config: "wrangler.toml",
  variables: {
    DEPLOYMENT_ID: "bench",
    CHAIN_ID: "8453",
    CONTRACT_ADDRESS,
    START_BLOCK: "0",
    CONFIRMATIONS: "0",
    SCAN_RUN_SECONDS: "1",
    RATE_LIMITS: Object.keys(LIMITS)
      // What all clients share is not what is measured.
      .map((route) => `${route}=${/_(block|all)$/.test(route) ? 1_000_000 : 5_000}/60`)
      .join(","),
  },
  objects: { IP_GUARD: { className: "IpGuard" }, LOG_BOOK: { className: "LogBook" } },
};

/**
 * The objects on an isolate of their own, as they are at Cloudflare: neither a route nor its floor shares a thread with
 * them. Workers that are compared reach them by `of`.
 */
export const OBJECTS_APART: WorkerSource = { ...EDGE_UNDER_LOAD, name: "objects" };
export const EDGE_APART: WorkerSource = {
  ...EDGE_UNDER_LOAD,
  objects: { IP_GUARD: { className: "IpGuard", of: "objects" }, LOG_BOOK: { className: "LogBook", of: "objects" } },
};
export const FLOOR_APART: WorkerSource = {
  name: "floor",
  config: "test/bench/floor.toml",
  variables: {},
  objects: { IP_GUARD: { className: "IpGuard", of: "objects" } },
};

/**
 * Every Worker gets PUBLIC_URLS (where the edge is), RPC_URLS, RPC_URL and DATA_PRIVATE_KEY beside its own variables; `more`
 * knows the first token.
 */
export async function openShop(
  sources: readonly WorkerSource[],
  more: (tokenId: number) => Record<string, string> = () => ({}),
) {
  const chain = await startChain({ blockTimeSeconds: 0 });
  const [owner] = chain.agents;
  if (owner === undefined) throw new Error("the chain has no accounts");
  const dataKey = secp256k1.keygen();
  const { tokenId } = await buy(chain, owner, 0, 1);
  for (let count = 1; count < TOKENS; count++) await buy(chain, owner, 0, 1);
  // From here on blocks come by themselves: a chain that stands still is not believed.
  await chain.node.setIntervalMining({ interval: 1 });
  const facilitator = await startFacilitator(chain);
  const port = await freePort();
  const publicUrl = `http://127.0.0.1:${port}`;
  const given = {
    PUBLIC_URLS: publicUrl,
    RPC_URLS: chain.url,
    X402_PAY_TO: chain.operator.address,
    FACILITATOR_URL: facilitator.url,
    RPC_URL: chain.url,
    DATA_PRIVATE_KEY: Buffer.from(dataKey.secretKey).toString("hex"),
    ...more(tokenId),
  };
  const workers = await startBareWorkers(
    sources.map((source) => ({
      ...source,
      variables: { ...source.variables, ...given },
      ...(source.name === "edge" ? { port } : {}),
    })),
  );
  const scan = async () => {
    const edge = await workers.miniflare.getWorker("edge");
    await edge.scheduled({ cron: "* * * * *" });
  };
  await scan();
  await setRunning(workers, dataKey.publicKey);
  return {
    workers,
    owner,
    tokenId,
    scan,
    chain,
    publicUrl,
    close: async () => {
      await workers.stop();
      await facilitator.stop();
      await chain.stop();
    },
  };
}

/** Gives every scanned token a machine. */
async function setRunning({ database }: BareWorkers, dataKey: Uint8Array): Promise<void> {
  const { publicKey, privateKey } = await generateSshKeyPair("rsa-4096");
  const db = openDatabase(database as unknown as D1Database);
  const found = await db.select({ incarnation: vms.incarnation }).from(vms);
  if (found.length < TOKENS) throw new Error(`the scan found ${found.length} of ${TOKENS} purchases`);
  for (const { incarnation } of found) {
    const sealed = await sealSecret(dataKey, { kind: "ssh", subject: incarnation, attempt: 1 }, privateKey);
    const attempt = attemptRow({ incarnation, publicKey, hostPublicKey: publicKey, instanceId: incarnation });
    await insertRows(database, attempts, [attempt]);
    const { provider, region, plan, instanceId } = attempt;
    const reached = { sshHost: "203.0.113.9", sshPort: 22, sshPrivateKey: sealed, runningAt: Date.now() };
    await db
      .update(vms)
      .set({
        status: "running",
        step: "idle",
        wakeAt: null,
        attempt: 1,
        provider,
        region,
        plan,
        instanceId,
        ...reached,
      })
      .where(eq(vms.incarnation, incarnation));
  }
}
