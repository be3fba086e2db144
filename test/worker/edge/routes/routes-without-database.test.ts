// Every route while D1 fails, loses answers and stalls: 503 with Retry-After, whatever statement of the request it meets, and
// the same answer as ever once it is over (hard case 46).
import { beforeAll, expect, test } from "vitest";
import { freshHeaders } from "../../../world/agent.ts";
import type { BadDay } from "../../../world/bad-day.ts";
import { paymentHeaderV2 } from "../../../world/payer.ts";
import { agent, chain } from "../../chain.ts";
import { buyAndRun, type Deployment, deploy } from "../../deployment.ts";
import { quoteOf, signFor, signPurchaseOf } from "./x402/till.ts";

/** Each of a route's statements, in two ways. */
const PATIENCE_MS = 180_000;
const API = "https://api.example";
const ADDRESS = "203.0.113.7";
const reason = { reason: "a test" };
const ID = "0".repeat(32);
const HASH = `0x${"1".repeat(64)}`;

let world: Deployment;
let key: string;
let tokenId: number;
beforeAll(async () => {
  world = await deploy({ edge: { UNLIMITED_CLIENTS: ADDRESS } });
  tokenId = await buyAndRun(world, 0);
  key = await world.operatorKey();
});

type Asked = { headers?: Record<string, string>; body?: object; path?: string };
type Ask = () => Asked | Promise<Asked>;

/** A chain that stands still is not believed. */
const signed = (action: Parameters<typeof freshHeaders>[3]) => async () => {
  await chain.mine(1);
  return { headers: await freshHeaders(API, agent(0), tokenId, action) };
};
const forget = (table: "payments" | "catalogs") => world.sql.prepare(`DELETE FROM ${table}`).run();
const firstTiers = async () => {
  await forget("catalogs");
  return {};
};
const firstDelivery = async () => {
  await world.sql.prepare("UPDATE vms SET delivered_at = NULL").run();
  return signed("")();
};
const paidCredentials = async () => {
  await forget("payments");
  const path = `/x402/vm-credentials?tokenId=${tokenId}`;
  const requirement = await quoteOf(world.request(path));
  return { path, headers: { "payment-signature": paymentHeaderV2(requirement, await signFor(agent(0), requirement)) } };
};
const paidOrder = async () => {
  await forget("payments");
  const { body, headers } = await signPurchaseOf(world, agent(1));
  return { body, headers };
};
const nothing = () => ({});
const withBody = (body: object) => () => ({ body });

/** How each route is asked so that it comes far; by method and path of the document. What ends the machine is last. */
const ROUTES: Record<string, Ask> = {
  "get /tiers": firstTiers,
  "get /credentials/{tokenId}": firstDelivery,
  "get /vms/{address}": nothing,
  "get /status/{tokenId}": nothing,
  "post /agents/generate-wallet": () => ({ body: { agentId: `agent-${crypto.randomUUID()}` } }),
  "get /x402/vm-credentials": paidCredentials,
  "post /x402/purchase-compute": paidOrder,
  "get /x402/purchases/{id}": nothing,
  "get /x402/purchases": () => ({ path: `/x402/purchases?tx=${HASH}` }),
  "get /admin/keys": nothing,
  "post /admin/keys": withBody({ name: "another" }),
  "delete /admin/keys/{id}": nothing,
  "get /admin/bans": nothing,
  "post /admin/bans": withBody({ address: "203.0.113.90", durationSeconds: 60, reason: "a test" }),
  "delete /admin/bans/{client}": nothing,
  "get /admin/vms": nothing,
  "get /admin/failed-provisionings": nothing,
  "post /admin/failed-provisionings/{id}/retry": nothing,
  "get /admin/logs": nothing,
  "get /admin/logs/{stream}": nothing,
  "get /admin/security-events": nothing,
  "get /admin/refunds": nothing,
  "post /admin/refunds/{subject}/{kind}/pay": withBody(reason),
  "post /admin/refunds/{subject}/{kind}/settle": withBody({ ...reason, txHash: HASH }),
  "post /admin/refunds/{subject}/{kind}/cancel": withBody(reason),
  "get /admin/payments": nothing,
  "get /admin/payments/held": nothing,
  "get /admin/payments/reconcile": () => ({ path: `/admin/payments/reconcile?fromBlock=${world.edge.START_BLOCK}` }),
  "post /admin/payments/{id}/refund": withBody(reason),
  "post /admin/payments/{id}/settle": withBody({ ...reason, state: "released" }),
  "post /admin/payments/{id}/forgive": withBody(reason),
  "get /admin/data-keys": nothing,
  "post /admin/data-keys/reencrypt": withBody({}),
  "post /admin/scan": () => ({ body: { fromBlock: world.edge.START_BLOCK, toBlock: world.edge.START_BLOCK + 1 } }),
  "get /admin/pauses": nothing,
  "get /admin/vendors": nothing,
  "put /admin/pauses/{what}": withBody(reason),
  "delete /admin/pauses/{what}": nothing,
  "post /credentials/{tokenId}/refund": signed("/refund"),
  "post /credentials/{tokenId}/ack": signed("/ack"),
  "post /credentials/{tokenId}/rotate": signed("/rotate"),
  "post /admin/vms/{tokenId}/terminate": withBody(reason),
};
/** They read nothing, or have a body of their own. */
const WITHOUT_DATABASE = [
  "get /",
  "get /openapi.json",
  "get /docs",
  "get /llms.txt",
  "get /.well-known/x402",
  "get /health",
];

const PARAMETERS: Record<string, () => string> = {
  subject: () => String(tokenId),
  tokenId: () => String(tokenId),
  address: () => agent(0).address,
  id: () => ID,
  client: () => "203.0.113.90",
  stream: () => "security",
  kind: () => "failed",
  what: () => "payouts",
};

/** One request to an edge that has nothing in memory, under a fault that ends with it. */
async function send(route: string, day: BadDay | null) {
  const ask = await prepare(route);
  world.weather.set(day);
  const answer = await ask();
  const { calls } = world.weather;
  world.weather.set(null);
  return { ...answer, calls };
}

async function prepare(route: string) {
  const [method = "", template = ""] = route.split(" ");
  const { headers = {}, body, path } = (await ROUTES[route]?.()) ?? {};
  const url = API + (path ?? template.replace(/\{(\w+)\}/g, (_, name: string) => PARAMETERS[name]?.() ?? ""));
  const app = world.appOf({ ...world.edge });
  return async () => {
    const answer = await app.request(url, {
      method: method.toUpperCase(),
      ...(body === undefined ? {} : { body: JSON.stringify(body) }),
      headers: {
        "cf-connecting-ip": ADDRESS,
        ...(body === undefined ? {} : { "content-type": "application/json" }),
        ...(template.startsWith("/admin/") ? { "x-api-key": key } : {}),
        ...headers,
      },
    });
    const text = await answer.text();
    const { code, charged } = text.startsWith("{") ? (JSON.parse(text) as Record<string, unknown>) : {};
    return { status: answer.status, code, charged, retryAfter: answer.headers.get("retry-after") };
  };
}

const UNAVAILABLE = { status: 503, code: "database_unavailable", retryAfter: "5" };
const PAID: ReadonlySet<string> = new Set(["get /x402/vm-credentials", "post /x402/purchase-compute"]);
const unavailable = (route: string) => ({ ...UNAVAILABLE, charged: PAID.has(route) ? "unknown" : undefined });

test("every route of the document is asked here", async () => {
  const document = (await (await world.request("/openapi.json")).json()) as { paths: Record<string, object> };
  const routes = Object.entries(document.paths).flatMap(([path, methods]) =>
    Object.keys(methods).map((method) => `${method} ${path}`),
  );
  expect([...Object.keys(ROUTES), ...WITHOUT_DATABASE]).toEqual(expect.arrayContaining(routes));
});

test("a stall of the database holds no request: each is answered while it lasts", async () => {
  const asks: [string, Awaited<ReturnType<typeof prepare>>][] = [];
  for (const route of Object.keys(ROUTES)) asks.push([route, await prepare(route)]);
  world.weather.set({ kind: "stalls" });
  const answers = await Promise.all(asks.map(async ([route, ask]) => [route, await ask()]));
  world.weather.set(null);
  expect(answers).toEqual(asks.map(([route]) => [route, unavailable(route)]));
});

test("/health says that it is the database", async () => {
  // What an isolate has read it keeps for a second: each is asked of another one.
  const ask = async () => {
    const answer = await world
      .appOf({ ...world.edge })
      .request(`${API}/health`, { headers: { "cf-connecting-ip": ADDRESS } });
    const { checks } = (await answer.json()) as { checks: { database: { ok: boolean } } };
    return { ok: checks.database.ok, status: answer.status, retryAfter: answer.headers.get("retry-after") };
  };
  for (const kind of ["fails", "stalls"] as const) {
    world.weather.set({ kind });
    expect(await ask()).toEqual({ ok: false, status: 503, retryAfter: "10" });
    world.weather.set(null);
  }
  expect((await ask()).ok).toBe(true);
});

test.each(Object.keys(ROUTES))(
  "%s: 503 at whichever statement D1 fails, and as ever after",
  async (route) => {
    for (const kind of ["fails", "loses"] as const) {
      for (let after = 0; ; after++) {
        const { calls, ...answer } = await send(route, { kind, after });
        if (calls <= after) {
          // It has met none: D1 works again.
          expect(after).toBeGreaterThan(0);
          expect(answer.status, JSON.stringify(answer)).toBeLessThan(500);
          break;
        }
        expect(answer, `${kind} after ${after}`).toEqual(unavailable(route));
      }
    }
  },
  PATIENCE_MS,
);
