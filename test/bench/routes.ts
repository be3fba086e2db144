// Each route of the edge against its floor (floor.ts): the same binding calls in the same workerd, in turns.
import { secp256k1 } from "@noble/curves/secp256k1.js";
import autocannon from "autocannon";
import { encodeFunctionData, multicall3Abi } from "viem";
import { contractAbi, MULTICALL3, multicallAbi } from "../../src/chain/contract.ts";
import { sealSecret } from "../../src/credentials/ecies.ts";
import { generateSshKeyPair } from "../../src/credentials/ssh-keys.ts";
import { CONTRACT_ADDRESS } from "../world/addresses.ts";
import { buy, freshHeaders } from "../world/agent.ts";
import { type BareWorkers, startBareWorkers } from "../world/bare-workers.ts";
import { startChain } from "../world/chain.ts";
import { median, percentile, table } from "./figures.ts";

const CONNECTIONS = 16;
const CLIENTS = 64;
const TOKENS = 20;
const PUBLIC_URL = "https://api.example";
const UNLIMITED = ["tiers", "credentials", "vms", "status"].map((route) => `${route}=1000000000/60`).join(",");

type Request = { path: string; headers: Record<string, string> };
type Side = { perSecond: number; p50: number; p99: number };

/** Prints requests per second, p50 and p99 of both sides and their ratio, median over the rounds. */
export async function benchRoutes(rounds: number): Promise<void> {
  const chain = await startChain({ blockTimeSeconds: 0 });
  const [owner] = chain.agents;
  if (owner === undefined) throw new Error("the chain has no accounts");
  const dataKey = secp256k1.keygen();
  const privateKey = Buffer.from(dataKey.secretKey).toString("hex");
  const tokenId = (await buy(chain, owner, 0, 1)).tokenId;
  for (let count = 1; count < TOKENS; count++) await buy(chain, owner, 0, 1);
  // From here on blocks come by themselves: a chain that stands still is not believed.
  await chain.node.setIntervalMining({ interval: 1 });
  const workers = await startBareWorkers([
    {
      name: "edge",
      config: "wrangler.toml",
      variables: {
        DEPLOYMENT_ID: "bench",
        CHAIN_ID: "8453",
        CONTRACT_ADDRESS,
        RPC_URLS: chain.url,
        START_BLOCK: "0",
        CONFIRMATIONS: "0",
        SCAN_RUN_SECONDS: "1",
        PUBLIC_URLS: PUBLIC_URL,
        DATA_PRIVATE_KEY: privateKey,
        RATE_LIMITS: UNLIMITED,
      },
      objects: { IP_GUARD: { className: "IpGuard" } },
    },
    {
      name: "floor",
      config: "test/bench/floor.toml",
      variables: { RPC_URL: chain.url, RPC_BODY: multicallBody(tokenId), DATA_PRIVATE_KEY: privateKey },
      objects: { IP_GUARD: { className: "IpGuard", of: "edge" } },
    },
  ]);
  try {
    await scanOnce(workers);
    await setRunning(workers, dataKey.publicKey, owner.address);
    const path = (route: string) => (client: number) => ({ path: route, headers: address(client) });
    const fresh = async (client: number) => ({
      path: `/credentials/${tokenId}`,
      headers: { ...address(client), ...(await freshHeaders(PUBLIC_URL, owner, tokenId)) },
    });
    // The first delivery marks the row; what is measured is every later one, with its decryption.
    const first = await fetch(`${workers.url("edge")}/credentials/${tokenId}`, await fresh(0));
    if (!(await first.text()).includes("PRIVATE KEY")) throw new Error("the edge delivered no key");

    const routes: [string, number, (client: number) => Request | Promise<Request>][] = [
      ["/health", 2_000, path("/health")],
      ["/tiers", 4_000, path("/tiers")],
      ["/status/:tokenId", 2_000, path(`/status/${tokenId}`)],
      [`/vms/:address (${TOKENS} rows)`, 1_600, path(`/vms/${owner.address}`)],
      ["/credentials/:tokenId", 640, fresh],
    ];
    const rows: (string | number)[][] = [];
    for (const [name, amount, request] of routes) {
      await scanOnce(workers);
      const sides: Record<"edge" | "floor", Side[]> = { edge: [], floor: [] };
      for (let round = -1; round < rounds; round++) {
        // The order alternates too, so that neither side always runs on what the other left behind.
        for (const side of round % 2 === 0 ? (["edge", "floor"] as const) : (["floor", "edge"] as const)) {
          const result = await load(workers.url(side), amount, request);
          if (round >= 0) sides[side].push(result);
        }
      }
      const ratios = sides.edge.map((side, round) => side.perSecond / (sides.floor[round]?.perSecond ?? Number.NaN));
      const figure = (side: "edge" | "floor", field: keyof Side) => median(sides[side].map((one) => one[field]));
      rows.push([
        name,
        Math.round(figure("edge", "perSecond")),
        Math.round(figure("floor", "perSecond")),
        ...(["p50", "p99"] as const).flatMap((field) => [
          figure("edge", field).toFixed(1),
          figure("floor", field).toFixed(1),
        ]),
        median(ratios).toFixed(2),
        `${Math.min(...ratios).toFixed(2)}-${Math.max(...ratios).toFixed(2)}`,
      ]);
    }
    console.log(table(["route", "req/s", "floor", "p50 ms", "floor", "p99 ms", "floor", "ratio", "min-max"], rows));
  } finally {
    await workers.stop();
    await chain.stop();
  }
}

const address = (client: number) => ({ "cf-connecting-ip": `203.0.113.${client % CLIENTS}` });

/** What the edge asks the node for one token: calldata of the same multicall. */
function multicallBody(tokenId: number): string {
  const token = BigInt(tokenId);
  const calls = [
    encodeFunctionData({ abi: contractAbi, functionName: "ownerOf", args: [token] }),
    encodeFunctionData({ abi: contractAbi, functionName: "isTokenValid", args: [token] }),
    encodeFunctionData({ abi: multicallAbi, functionName: "getBlockNumber" }),
    encodeFunctionData({ abi: multicallAbi, functionName: "getCurrentBlockTimestamp" }),
  ].map((callData, i) => ({ target: i < 2 ? CONTRACT_ADDRESS : MULTICALL3, allowFailure: i < 2, callData }));
  const data = encodeFunctionData({ abi: multicall3Abi, functionName: "aggregate3", args: [calls] });
  return JSON.stringify({ jsonrpc: "2.0", id: 1, method: "eth_call", params: [{ to: MULTICALL3, data }, "latest"] });
}

async function scanOnce({ miniflare }: BareWorkers): Promise<void> {
  const edge = await miniflare.getWorker("edge");
  await edge.scheduled({ cron: "* * * * *" });
}

/** Gives every scanned token a machine, as the provisioner would have left it. */
async function setRunning({ database }: BareWorkers, publicKey: Uint8Array, owner: string): Promise<void> {
  const pair = await generateSshKeyPair("rsa-4096");
  const { results } = await database.prepare("SELECT incarnation FROM vms").all<{ incarnation: string }>();
  if (results.length < TOKENS) throw new Error(`the scan found ${results.length} of ${TOKENS} purchases of ${owner}`);
  for (const { incarnation } of results) {
    const sealed = await sealSecret(publicKey, { kind: "ssh", subject: incarnation, attempt: 1 }, pair.privateKey);
    await database.batch([
      database
        .prepare(
          "UPDATE vms SET status = 'running', step = 'idle', attempt = 1, provider = 'vultr', region = 'ewr', plan = 'vc2-1c-1gb', instance_id = ?1, ssh_host = '203.0.113.9', ssh_port = 22, ssh_private_key = ?2, running_at = ?3, wake_at = NULL WHERE incarnation = ?1",
        )
        .bind(incarnation, sealed, Date.now()),
      database
        .prepare(
          "INSERT INTO attempts (incarnation, number, provider, region, plan, label, mark, public_key, key_id, host_public_key, create_sent_at, started_at, ended_at, outcome) VALUES (?1, 1, 'vultr', 'ewr', 'vc2-1c-1gb', ?1, 'mark', ?2, 'key', ?2, ?3, ?3, ?3, 'running')",
        )
        .bind(incarnation, pair.publicKey, Date.now()),
    ]);
  }
}

/** Sends `amount` requests over the connections and waits for every answer; any that is not 2xx ends the bench. */
async function load(
  url: string,
  amount: number,
  request: (client: number) => Request | Promise<Request>,
): Promise<Side> {
  const perConnection = Math.floor(amount / CONNECTIONS);
  const lists: Request[][] = [];
  for (let connection = 0; connection < CONNECTIONS; connection++) {
    const list: Request[] = [];
    for (let i = 0; i < perConnection; i++) list.push(await request(connection * perConnection + i));
    lists.push(list);
  }
  const times: number[] = [];
  let setUp = 0;
  const began = performance.now();
  let ended = began;
  await new Promise<void>((resolve, reject) => {
    const instance = autocannon(
      {
        url,
        connections: CONNECTIONS,
        amount: perConnection * CONNECTIONS,
        setupClient: (client) => client.setRequests(lists[setUp++ % CONNECTIONS] ?? []),
      },
      (error, result) => {
        if (error != null) reject(error);
        else if (result.non2xx + result.errors > 0)
          reject(new Error(`${url}: ${JSON.stringify(result.statusCodeStats)}`));
        else resolve();
      },
    );
    instance.on("response", (_client, _status, _bytes, time) => {
      times.push(time);
      ended = performance.now();
    });
  });
  return {
    perSecond: times.length / ((ended - began) / 1_000),
    p50: percentile(times, 0.5),
    p99: percentile(times, 0.99),
  };
}
