// What the guard costs: a route with and without it and against its floor, and what a banned client and limited ones cost
// against a Worker that guards nothing.
import { EDGE_APART, EDGE_UNDER_LOAD, FLOOR_APART, OBJECTS_APART, openShop } from "../world/shop.ts";
import { median, printRows } from "./figures.ts";
import type { RequestBill } from "./metered-edge.ts";
import { address, answered, CLIENTS, load, type Request, type Side } from "./routes.ts";

const AMOUNT = 4_000;
const BANNED = "198.51.100.1";
/** Of this route one request passes. It is a polled one: a flood of it is no ban yet. */
const LIMITED = { path: `/vms/0x${"1".repeat(40)}`, rate: "vms=1/3600" };
const REFUSED = 1_000;

/** Prints requests per second, p50 and p99 of both sides of each pair, and their ratio. */
export async function benchGuard(rounds: number): Promise<void> {
  const clients = Array.from({ length: CLIENTS }, (_, client) => `203.0.113.${client}`);
  const open = { ...EDGE_APART, name: "open" };
  const { RATE_LIMITS } = EDGE_APART.variables;
  const limiting = { variables: { ...EDGE_APART.variables, RATE_LIMITS: `${RATE_LIMITS},${LIMITED.rate}` } };
  const shop = await openShop([
    { ...EDGE_APART, ...limiting },
    { ...EDGE_UNDER_LOAD, ...limiting, name: "metered", entry: "test/bench/metered-edge.ts" },
    { ...open, variables: { ...open.variables, UNLIMITED_CLIENTS: clients.join(",") } },
    OBJECTS_APART,
    FLOOR_APART,
  ]);
  const url = (name: string) => shop.workers.url(name);
  const ask = (path: string) => (client: number) => ({ path, headers: address(client) });
  const banned = () => ({ path: "/tiers", headers: { "cf-connecting-ip": BANNED } });
  type Target = { worker: string; request: (client: number) => Request; status?: number };
  const pairs: [string, Target, Target][] = [
    [
      "/tiers against one object call",
      { worker: "edge", request: ask("/tiers") },
      { worker: "floor", request: ask("/tiers") },
    ],
    [
      "/tiers with the guard, without",
      { worker: "edge", request: ask("/tiers") },
      { worker: "open", request: ask("/tiers") },
    ],
    [
      "a banned client against bare Hono",
      { worker: "edge", request: banned, status: 403 },
      { worker: "floor", request: ask("/bare") },
    ],
    [
      "limited clients against bare Hono",
      { worker: "edge", request: ask(LIMITED.path), status: 429 },
      { worker: "floor", request: ask("/bare") },
    ],
  ];
  try {
    const header = ["", "req/s", "other", "p50 ms", "other", "p99 ms", "other", "ratio", "min-max"];
    await printRows(header, pairs, async ([name, left, right]) => {
      if (left.status === 403) await getBanned(url("edge"));
      if (left.status === 429) for (let client = 0; client < CLIENTS; client++) await getLimited(url("edge"), client);
      const sides: [Side[], Side[]] = [[], []];
      for (let round = -1; round < rounds; round++) {
        for (const index of round % 2 === 0 ? ([0, 1] as const) : ([1, 0] as const)) {
          const { worker, request, status = 200 } = index === 0 ? left : right;
          const result = await load(url(worker), AMOUNT, request, status);
          if (round >= 0) sides[index].push(result);
        }
      }
      const ratios = sides[0].map((side, round) => side.perSecond / (sides[1][round]?.perSecond ?? Number.NaN));
      const figure = (index: 0 | 1, field: keyof Side) => median(sides[index].map((side) => side[field]));
      return answered(
        [...sides[0], ...sides[1]],
        [
          name,
          Math.round(figure(0, "perSecond")),
          Math.round(figure(1, "perSecond")),
          ...(["p50", "p99"] as const).flatMap((field) => [figure(0, field).toFixed(1), figure(1, field).toFixed(1)]),
          median(ratios).toFixed(2),
          `${Math.min(...ratios).toFixed(2)}-${Math.max(...ratios).toFixed(2)}`,
        ],
      );
    });
    await countRefused(url("metered"));
  } finally {
    await shop.close();
  }
}

/** Prints what the requests of a limited client ask of the database and of objects, each and all together. */
async function countRefused(url: string): Promise<void> {
  await getLimited(url, 0);
  const sum = { trips: 0, rows: 0, calls: 0 };
  for (let count = 0; count < REFUSED; count++) {
    const answer = await fetch(`${url}${LIMITED.path}`, { headers: address(0) });
    await answer.text();
    if (answer.status !== 429 && answer.status !== 403)
      throw new Error(`a limited client was answered ${answer.status}`);
    const bill = JSON.parse(answer.headers.get("x-bill") ?? "{}") as RequestBill;
    sum.trips += bill.roundTrips;
    sum.rows += bill.rowsRead;
    sum.calls += bill.objectCalls;
  }
  const each = (total: number) => (total / REFUSED).toFixed(3);
  console.log(
    `\n${REFUSED} refused requests of one limited client, each: ${each(sum.trips)} D1 round trips, ${each(sum.rows)} rows read, ${each(sum.calls)} object calls (${sum.calls} in all: a violation for each hundred, until it is banned)`,
  );
}

/** Until the guard has refused it once. */
async function getLimited(url: string, client: number): Promise<void> {
  for (let count = 0; count < 2; count++) {
    await (await fetch(`${url}${LIMITED.path}`, { headers: address(client) })).text();
  }
}

/** The isolate knows the ban for as long as the bench lasts: asked again every ten seconds, as in production. */
async function getBanned(url: string): Promise<void> {
  const headers = { "cf-connecting-ip": BANNED };
  for (let count = 0; count < 10; count++) await (await fetch(`${url}/tiers?x=<script>`, { headers })).text();
}
