// Floods against the Worker as it is built for upload (hard case 44): what the refused cost, counted below the query builder,
// and what everybody else still gets.
import { afterAll, beforeAll, expect, test } from "vitest";
import type { RequestBill } from "../bench/metered-edge.ts";
import { EDGE_UNDER_LOAD, openShop } from "../world/shop.ts";

const AT_ONCE = 16;
/** A Worker is built for it. */
const SHOP_MS = 300_000;

let shop: Awaited<ReturnType<typeof openShop>>;
beforeAll(async () => {
  // A thousand requests take a busy machine longer than the minute that these limits are for.
  const variables = { ...EDGE_UNDER_LOAD.variables, RATE_LIMITS: "status=100/1800,x402_block=300/1800" };
  shop = await openShop([{ ...EDGE_UNDER_LOAD, variables, entry: "test/bench/metered-edge.ts" }]);
}, SHOP_MS);
afterAll(() => shop?.close());

type Asked = { status: number; headers: Headers; bill: RequestBill };
async function ask(path: string, address: string): Promise<Asked> {
  const answer = await fetch(`${shop.workers.url("edge")}${path}`, { headers: { "cf-connecting-ip": address } });
  await answer.text();
  const { status, headers } = answer;
  return { status, headers, bill: JSON.parse(headers.get("x-bill") ?? "{}") as RequestBill };
}
const countOf = (answers: readonly Asked[]) =>
  Object.fromEntries(
    [...Map.groupBy(answers, ({ status }) => status)].map(([status, some]) => [String(status), some.length]),
  );

test("a thousand requests of one client: 100 are served, 900 refused for nothing, and then it is banned", async () => {
  const answers: Asked[] = [];
  for (let count = 0; count < 1_000; count++) answers.push(await ask(`/status/${shop.tokenId}`, "198.51.100.1"));
  expect(countOf(answers)).toEqual({ 200: 100, 429: 900 });
  const refused = answers.slice(101).map(({ bill }) => bill);
  const sum = (field: keyof RequestBill) => refused.reduce((total, bill) => total + bill[field], 0);
  expect([sum("roundTrips"), sum("rowsRead"), sum("rpcCalls")]).toEqual([0, 0, 0]);
  // A call for each hundred.
  expect(sum("objectCalls")).toBe(9);
  const last = answers.at(-1)?.headers;
  expect(last?.get("ratelimit-policy")).toBe('"status";q=100;w=1800');
  expect([last?.get("x-ratelimit-limit"), last?.get("x-ratelimit-remaining")]).toEqual(["100", "0"]);
  expect(Number(last?.get("retry-after"))).toBeGreaterThan(0);
  await expect.poll(async () => (await ask("/tiers", "198.51.100.1")).status).toBe(403);
  expect((await ask(`/status/${shop.tokenId}`, "198.51.100.2")).status).toBe(200);
});

test("/health answers everybody at once, and looks into D1 once a second", async () => {
  await shop.scan();
  const crowd = await Promise.all(Array.from({ length: AT_ONCE }, () => ask("/health", "198.51.100.3")));
  expect(countOf(crowd)).toEqual({ 200: AT_ONCE });
  const began = Date.now();
  const answers: Asked[] = [];
  for (let count = 0; count < 100; count++) answers.push(await ask("/health", "198.51.100.3"));
  const trips = answers.reduce((total, { bill }) => total + bill.roundTrips, 0);
  expect(trips).toBeLessThanOrEqual(1 + Math.ceil((Date.now() - began) / 1_000));
});

test("quotes of many clients use up nobody's allowance", async () => {
  const path = `/x402/vm-credentials?tokenId=${shop.tokenId}`;
  const answers: Asked[] = [];
  // Of one /48, which has 300 payments a minute.
  for (let host = 0; host < 400; host++) answers.push(await ask(path, `2001:db8:1:${host.toString(16)}::1`));
  expect(countOf(answers)).toEqual({ 402: 400 });
  expect(answers.at(-1)?.bill).toMatchObject({ objectCalls: 1 });
});
