// Each route of the edge against its floor (floor.ts): the same binding calls in the same workerd, in turns.
import autocannon from "autocannon";
import { type Address, encodeFunctionData, multicall3Abi } from "viem";
import { contractAbi, multicallAbi } from "../../src/chain/contract.ts";
import { CONTRACT_ADDRESS, MULTICALL3_ADDRESS } from "../world/addresses.ts";
import { freshHeaders } from "../world/agent.ts";
import type { BareWorkers } from "../world/bare-workers.ts";
import { EDGE_APART, FLOOR_APART, OBJECTS_APART, openShop, TOKENS } from "../world/shop.ts";
import { type Answered, median, missing, percentile, printRows } from "./figures.ts";

const CONNECTIONS = 16;
export const CLIENTS = 64;

export type Request = { path: string; headers: Record<string, string>; method?: "POST"; body?: string };
/** `wrong` of the `answers` that were asked for did not come or had another status. */
export type Side = { perSecond: number; p50: number; p99: number; wrong: number; answers: number };

/** Prints requests per second, p50 and p99 of both sides and their ratio, median over the rounds. */
export async function benchRoutes(rounds: number): Promise<void> {
  const shop = await openShop([EDGE_APART, OBJECTS_APART, FLOOR_APART], (tokenId) => ({
    RPC_BODY: multicallBody(tokenId),
  }));
  const { workers, owner, tokenId } = shop;
  try {
    const path = (route: string) => (client: number) => ({ path: route, headers: address(client) });
    const fresh = async (client: number) => ({
      path: `/credentials/${tokenId}`,
      headers: { ...address(client), ...(await freshHeaders(shop.publicUrl, owner, tokenId)) },
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
    await printRows(COMPARED, routes, async ([name, amount, request]) => {
      await shop.scan();
      return compare(name, workers, amount, request, rounds);
    });
  } finally {
    await shop.close();
  }
}

export const COMPARED = ["route", "req/s", "floor", "p50 ms", "floor", "p99 ms", "floor", "ratio", "min-max"];

/** The edge and its floor in rounds that alternate, and so does who begins; the ratio is the median of the rounds'. */
export async function compare(
  name: string,
  workers: Pick<BareWorkers, "url">,
  amount: number,
  request: (client: number) => Request | Promise<Request>,
  rounds: number,
  expected = 200,
): Promise<Answered> {
  const sides: Record<"edge" | "floor", Side[]> = { edge: [], floor: [] };
  for (let round = -1; round < rounds; round++) {
    // The order alternates too, so that neither side always runs on what the other left behind.
    for (const side of round % 2 === 0 ? (["edge", "floor"] as const) : (["floor", "edge"] as const)) {
      const result = await load(workers.url(side), amount, request, expected);
      if (round >= 0) sides[side].push(result);
    }
  }
  const ratios = sides.edge.map((side, round) => side.perSecond / (sides.floor[round]?.perSecond ?? Number.NaN));
  const figure = (side: "edge" | "floor", field: keyof Side) => median(sides[side].map((one) => one[field]));
  return answered(
    [...sides.edge, ...sides.floor],
    [
      name,
      Math.round(figure("edge", "perSecond")),
      Math.round(figure("floor", "perSecond")),
      ...(["p50", "p99"] as const).flatMap((field) => [
        figure("edge", field).toFixed(1),
        figure("floor", field).toFixed(1),
      ]),
      median(ratios).toFixed(2),
      `${Math.min(...ratios).toFixed(2)}-${Math.max(...ratios).toFixed(2)}`,
    ],
  );
}

/** A row with what was wrong in the loads that it is made of. */
export const answered = (sides: readonly Side[], row: Answered["row"]): Answered => ({
  row,
  wrong: sides.reduce((sum, side) => sum + side.wrong, 0),
  answers: sides.reduce((sum, side) => sum + side.answers, 0),
});

export const address = (client: number) => ({ "cf-connecting-ip": `203.0.113.${client % CLIENTS}` });

/** What the edge asks the node for one token: calldata of the same multicall. */
function multicallBody(tokenId: number): string {
  const token = BigInt(tokenId);
  const calls = [
    encodeFunctionData({ abi: contractAbi, functionName: "ownerOf", args: [token] }),
    encodeFunctionData({ abi: contractAbi, functionName: "isTokenValid", args: [token] }),
    encodeFunctionData({ abi: multicallAbi, functionName: "getBlockNumber" }),
    encodeFunctionData({ abi: multicallAbi, functionName: "getCurrentBlockTimestamp" }),
  ].map((callData, i) => ({
    target: i < 2 ? (CONTRACT_ADDRESS as Address) : MULTICALL3_ADDRESS,
    allowFailure: i < 2,
    callData,
  }));
  const data = encodeFunctionData({ abi: multicall3Abi, functionName: "aggregate3", args: [calls] });
  return JSON.stringify({
    jsonrpc: "2.0",
    id: 1,
    method: "eth_call",
    params: [{ to: MULTICALL3_ADDRESS, data }, "latest"],
  });
}

/**
 * Sends `amount` requests over the connections and waits for every answer. Those that fail, or come with another status, are
 * told of and only counted as wrong; it throws where they are all that there is.
 */
export async function load(
  url: string,
  amount: number,
  request: (client: number) => Request | Promise<Request>,
  expected = 200,
): Promise<Side> {
  const perConnection = Math.floor(amount / CONNECTIONS);
  const lists: Request[][] = [];
  for (let connection = 0; connection < CONNECTIONS; connection++) {
    const list: Request[] = [];
    for (let i = 0; i < perConnection; i++) list.push(await request(connection * perConnection + i));
    lists.push(list);
  }
  const times: number[] = [];
  const others: Record<string, number> = {};
  let setUp = 0;
  const began = performance.now();
  let ended = began;
  const errors = await new Promise<number>((resolve, reject) => {
    const instance = autocannon(
      {
        url,
        connections: CONNECTIONS,
        amount: perConnection * CONNECTIONS,
        setupClient: (client) => client.setRequests(lists[setUp++ % CONNECTIONS] ?? []),
      },
      (error, result) => {
        if (error != null) reject(error);
        else resolve(result.errors);
      },
    );
    instance.on("response", (_client, status, _bytes, time) => {
      ended = performance.now();
      if (status === expected) times.push(time);
      else others[status] = (others[status] ?? 0) + 1;
    });
  });
  const asked = perConnection * CONNECTIONS;
  const wrong = Object.values(others).reduce((sum, count) => sum + count, errors);
  if (times.length === 0) throw new Error(`${url}: no answer was ${expected}: ${JSON.stringify(others)}`);
  for (const line of missing(wrong, asked, `without a ${expected}`)) console.log(`${url}: ${line}`, others);
  return {
    perSecond: times.length / ((ended - began) / 1_000),
    p50: percentile(times, 0.5),
    p99: percentile(times, 0.99),
    wrong,
    answers: asked,
  };
}
