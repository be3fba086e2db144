// What buyers see while machines are not made: on every route that sells or tells of one.
import { beforeEach, expect, test, vi } from "vitest";
import { resume } from "../../../../src/db/pauses.ts";
import { followMachine } from "../../../../src/provisioner/machines/run.ts";
import { fixedHeaders } from "../../../world/agent.ts";
import { agent, chain } from "../../chain.ts";
import { type Deployment, deploy } from "../../deployment.ts";
import { accepted, computeBody } from "./x402/till.ts";

const TENTH_OF_A_DAY = 8_640;
let world: Deployment;
beforeEach(async () => {
  world = await deploy();
});

const pause = (since = Date.now()) => world.pause("provisioning", since);
/** As an isolate answers that has kept nothing. */
async function get(path: string, headers: Record<string, string> = {}) {
  const answer = await world.appOf({ ...world.edge }).request(`https://api.example${path}`, {
    headers: { ...headers, "cf-connecting-ip": "203.0.113.7" },
  });
  return { status: answer.status, body: (await answer.json()) as Record<string, never> & { delivery?: Delivery } };
}
type Delivery = { state: string; since?: string | null; until?: string | null; otherwise?: string; message: string };
const quote = async (headers: Record<string, string> = {}) => {
  const answer = await world.appOf({ ...world.edge }).request("https://api.example/x402/purchase-compute", {
    method: "POST",
    body: JSON.stringify(computeBody()),
    headers: { ...headers, "content-type": "application/json", "cf-connecting-ip": "203.0.113.8" },
  });
  return { status: answer.status, retry: answer.headers.get("retry-after"), body: (await answer.json()) as object };
};
const iso = (seconds: number) => new Date(seconds * 1_000).toISOString();

test("a pause is on every route: tiers and health say it, quotes refuse, a purchase's status says until when", async () => {
  const open = await get("/tiers");
  expect(open.body.delivery).toEqual({ state: "open", since: null, message: expect.any(String) });
  const { id: purchaseId } = await accepted(world, agent(1));
  const since = Date.now();
  await pause(since);

  expect((await get("/tiers")).body.delivery).toMatchObject({ state: "paused", since: new Date(since).toISOString() });
  const health = await get("/health");
  expect(health).toMatchObject({
    status: 200,
    body: { status: "degraded", checks: { provisioning: { paused: true } } },
  });
  expect(await quote()).toMatchObject({ status: 503, retry: "30", body: { code: "provisioning_paused" } });

  const { tokenId } = await world.buy(0);
  const unread = await get(`/status/${tokenId}`);
  expect(unread.body).toMatchObject({ status: "provisioning", delivery: { state: "paused", until: null } });
  await world.scan();
  const row = await world.vm(tokenId);
  const until = iso(row?.["deadline"] + TENTH_OF_A_DAY);
  const told = { state: "paused", until, otherwise: "refund", message: expect.stringContaining("paused") };
  expect((await get(`/status/${tokenId}`)).body).toMatchObject({ status: "provisioning", delivery: told });
  const credentials = await get(`/credentials/${tokenId}`, await fixedHeaders(agent(0), tokenId));
  expect(credentials).toMatchObject({ status: 202, body: { delivery: told } });
  const order = await get(`/x402/purchases/${purchaseId}`);
  expect(order.body.delivery).toMatchObject({ state: "paused", otherwise: "no_charge" });
  const { validBefore } = order.body as unknown as { validBefore: string };
  expect(order.body.delivery?.until).toBe(iso(Date.parse(validBefore) / 1_000 - 120));

  await world.liftPauses();
  expect((await get(`/status/${tokenId}`)).body.delivery).toMatchObject({
    state: "open",
    until: iso(row?.["deadline"]),
  });
  expect((await quote()).status).toBe(402);
  await world.drain();
  expect((await get(`/status/${tokenId}`)).body).toMatchObject({ status: "running" });
  expect((await get(`/status/${tokenId}`)).body.delivery).toBeUndefined();
});

test("what was bought in a pause is paid back when that lasts for more than a tenth of its time, and no machine is ordered", async () => {
  await pause();
  const { tokenId } = await world.buy(0);
  await world.scan();
  const { incarnation, deadline } = (await world.vm(tokenId)) ?? {};
  const look = async (chainTime: number) => {
    await world.sql.prepare("UPDATE cursors SET block_timestamp = ?").bind(chainTime).run();
    const generation = (await world.vm(tokenId))?.["generation"];
    await followMachine(world.context, { kind: "advance", incarnation, generation });
  };
  await look(deadline + TENTH_OF_A_DAY);
  expect(await world.vm(tokenId)).toMatchObject({ status: "provisioning", attempt: 0 });
  await look(deadline + TENTH_OF_A_DAY + 1);
  expect(await world.vm(tokenId)).toMatchObject({ status: "failed", failure: "no_machine_in_time", attempt: 0 });
  expect((await get(`/status/${tokenId}`)).body).toMatchObject({ refund: { state: "due", amount: "0.50" } });
  expect(await world.machines("vultr")).toEqual([]);
});

test("three pauses with resumes put a deadline off by no more than one that lasts: a tenth of the paid time (hard case 45)", async () => {
  const { tokenId } = await world.buy(0);
  await world.scan();
  await world.sql.prepare("UPDATE purchases SET seen_at = 0").run();
  const { deadline } = (await world.vm(tokenId)) ?? {};
  const until = async () => (await get(`/status/${tokenId}`)).body.delivery?.until;
  const now = Date.now();
  for (const [seconds, putOff] of [
    [3_000, 3_000],
    [3_000, 6_000],
    [100_000, TENTH_OF_A_DAY],
    [100_000, TENTH_OF_A_DAY],
  ] as const) {
    await pause(now - seconds * 1_000);
    expect(await until()).toBe(iso(deadline + TENTH_OF_A_DAY));
    await resume(world.db, "provisioning", now);
    expect(await world.vm(tokenId)).toMatchObject({ deadline: deadline + putOff, put_off: putOff });
  }
});

test("a scan that moves and is minutes behind the chain takes no order: nobody would see the purchase in time", async () => {
  await world.scan();
  await chain.node.increaseTime({ seconds: 200 });
  await chain.mine(1);
  await world.sql.prepare("UPDATE cursors SET scanned_at = ?").bind(Date.now()).run();
  expect(await quote()).toMatchObject({ status: 503, retry: "30", body: { code: "delivery_stalled" } });
  await world.scan();
  expect((await quote()).status).toBe(402);
});

test("while the scan stands still tiers and statuses say so, and no order is taken that nobody would see", async () => {
  const { tokenId } = await world.buy(0);
  await world.sql.prepare("UPDATE cursors SET scanned_at = 0").run();
  expect((await get("/tiers")).body.delivery).toMatchObject({ state: "stalled", since: null });
  expect((await get(`/status/${tokenId}`)).body.delivery).toMatchObject({ state: "stalled", until: null });
  // Where the chain itself stands still nothing is missed.
  expect((await quote()).status).toBe(402);
  await chain.node.increaseTime({ seconds: 200 });
  await chain.mine(1);
  expect(await quote()).toMatchObject({ status: 503, retry: "30", body: { code: "delivery_stalled" } });
  await world.scan();
  expect((await get("/tiers")).body.delivery).toMatchObject({ state: "open" });
  expect((await quote()).status).toBe(402);
});

test("/tiers does not go on saying open while D1 is away: what it has kept says since when nothing is read", async () => {
  // One isolate, which has kept its list.
  const tiers = async () => (await (await world.request("/tiers")).json()) as { tiers: object[]; delivery: Delivery };
  const { tiers: listed, delivery } = await tiers();
  expect(delivery.state).toBe("open");
  const began = Date.now();
  vi.useFakeTimers({ toFake: ["Date"] });
  try {
    world.weather.set({ kind: "fails" });
    for (const [seconds, state] of [
      [60, "open"],
      [121, "stalled"],
      [3_600, "stalled"],
    ] as const) {
      vi.setSystemTime(began + seconds * 1_000);
      const answer = await tiers();
      expect(answer.tiers).toHaveLength(listed.length);
      expect(answer.delivery.state, `after ${seconds} s`).toBe(state);
    }
    world.weather.set(null);
    await world.sql.prepare("UPDATE cursors SET scanned_at = ?").bind(Date.now()).run();
    vi.setSystemTime(Date.now() + 5_001);
    expect((await tiers()).delivery.state).toBe("open");
  } finally {
    vi.useRealTimers();
  }
});
