// Where a machine comes from when the first place has none, fails, or does not answer.
import { expect, test, vi } from "vitest";
import { labelFamily } from "../../../../src/model/purchase-key.ts";
import { stockOf } from "../../../../src/model/stock.ts";
import { candidatesOf, type Market, nextCandidate, placeOf } from "../../../../src/provisioner/machines/candidates.ts";
import { followMachine } from "../../../../src/provisioner/machines/run.ts";
import { type Deployment, deploy, PATIENCE_MS } from "../../deployment.ts";
import { addFault } from "../../faults.ts";
import { journal } from "../../vendors.ts";

const PLACES = {
  VULTR_REGIONS: ["ewr", "ams"],
  VULTR_GPUS: false,
  RUNPOD_CLOUDS: ["COMMUNITY", "SECURE"] as ("COMMUNITY" | "SECURE")[],
};
const market = (changes: Partial<Market> = {}): Market => ({
  places: PLACES,
  stock: {},
  isTroubled: () => false,
  ...changes,
});
const names = (tier: number, changes?: Partial<Market>) =>
  candidatesOf(tier, market(changes)).map(({ vendor, region, plan }) => `${vendor} ${region} ${plan}`);
const attemptsOf = async (world: Deployment) =>
  (await world.rows("SELECT provider, region, plan, outcome FROM attempts ORDER BY rowid")).map((row) =>
    Object.values(row).join(" "),
  );
const A100 = "NVIDIA A100 80GB PCIe";
const A100_SXM = "NVIDIA A100-SXM4-80GB";
const offers = (list: [string, string, "high" | "low" | "none", number?][]) => ({
  runpod: {
    readAt: 0,
    offers: list.map(([region, plan, stock, usdPerHour]) => ({
      region,
      plan,
      stock,
      ...(usdPerHour === undefined ? {} : { usdPerHour }),
    })),
  },
});

test("the exact card in every cloud comes before a larger one, community before secure", () => {
  expect(names(4)).toEqual([
    "runpod COMMUNITY NVIDIA GeForce RTX 4090",
    "runpod SECURE NVIDIA GeForce RTX 4090",
    "runpod COMMUNITY NVIDIA L40S",
    "runpod SECURE NVIDIA L40S",
  ]);
});

test("configuration turns clouds and regions round, or leaves some out", () => {
  const places = { ...PLACES, RUNPOD_CLOUDS: ["SECURE"] as "SECURE"[], VULTR_REGIONS: ["nrt", "ewr"] };
  expect(names(4, { places })).toEqual(["runpod SECURE NVIDIA GeForce RTX 4090", "runpod SECURE NVIDIA L40S"]);
  expect(names(1, { places })).toEqual(["vultr nrt vc2-1c-2gb", "vultr ewr vc2-1c-2gb"]);
});

test("Vultr's A100 stands in where the account is entitled to it, after RunPod's of the same size", () => {
  const places = { ...PLACES, VULTR_GPUS: true };
  const sixth = names(6, { places });
  expect(sixth.slice(0, 4)).toEqual([
    `runpod COMMUNITY ${A100}`,
    `runpod SECURE ${A100}`,
    "vultr ewr vcg-a100-12c-120g-80vram",
    "vultr ams vcg-a100-12c-120g-80vram",
  ]);
  expect(names(6).some((name) => name.startsWith("vultr"))).toBe(false);
  expect(names(4, { places }).some((name) => name.startsWith("vultr"))).toBe(false);
});

test("among cards as good as each other, stock and then price decide", () => {
  const larger = (list: Parameters<typeof offers>[0]) =>
    names(5, { stock: offers(list) }).filter((name) => name.includes("COMMUNITY NVIDIA A100") && name.includes("80GB"));
  expect(
    larger([
      ["COMMUNITY", A100, "high", 1.6],
      ["COMMUNITY", A100_SXM, "high", 1.2],
    ]),
  ).toEqual([`runpod COMMUNITY ${A100_SXM}`, `runpod COMMUNITY ${A100}`]);
  expect(
    larger([
      ["COMMUNITY", A100, "high", 1.6],
      ["COMMUNITY", A100_SXM, "low", 1.2],
    ]),
  ).toEqual([`runpod COMMUNITY ${A100}`, `runpod COMMUNITY ${A100_SXM}`]);
});

test("what is sold out comes after everything that may be had, what had trouble lately after that, and nothing is left out", () => {
  const stock = { vultr: { readAt: 0, offers: [{ region: "ewr", plan: "vc2-1c-1gb", stock: "none" as const }] } };
  const isTroubled = (one: { region: string }) => one.region === "ams";
  expect(names(0, { stock })).toEqual(["vultr ams vc2-1c-1gb", "vultr ewr vc2-1c-1gb"]);
  expect(names(0, { stock, isTroubled })).toEqual(["vultr ewr vc2-1c-1gb", "vultr ams vc2-1c-1gb"]);
});

test("a tier's stock is the best of everything that may serve it, Vultr's stand-ins included", () => {
  expect(stockOf(4, offers([["SECURE", "NVIDIA L40S", "low"]]))).toBe("low");
  const vultr = { readAt: 0, offers: [{ region: "ewr", plan: "vcg-a100-12c-120g-80vram", stock: "high" as const }] };
  expect(stockOf(6, { ...offers([["SECURE", A100, "none"]]), vultr })).toBe("high");
  expect(stockOf(6, {})).toBe("unknown");
});

test("rounds wait longer from one to the next, and the jitter keeps two purchases apart by at most half", () => {
  const candidates = candidatesOf(0, market());
  const tried = (rounds: number) =>
    Array.from({ length: rounds }, () => candidates)
      .flat()
      .map(({ vendor, region, plan }) => ({ provider: vendor, region, plan, outcome: "sold_out", endedAt: 1_000 }));
  const waits = [1, 2, 3, 9].map((rounds) => nextCandidate(candidates, tried(rounds), 1_000));
  expect(waits).toEqual([10_000, 20_000, 40_000, 300_000].map((waitMs) => ({ waitMs })));
  expect(nextCandidate(candidates, tried(1), 1_000, 0)).toEqual({ waitMs: 5_000 });
});

test("a card that no cloud has is replaced by the next larger one", async () => {
  const world = await deploy();
  for (const region of ["COMMUNITY", "SECURE"]) {
    await addFault("runpod", { call: "create", kind: "sold_out", region, times: 1 });
  }
  const { tokenId } = await world.buy(0, 4);
  await world.scan();
  await world.drain();
  expect(await attemptsOf(world)).toEqual([
    "runpod COMMUNITY NVIDIA GeForce RTX 4090 sold_out",
    "runpod SECURE NVIDIA GeForce RTX 4090 sold_out",
    "runpod COMMUNITY NVIDIA L40S running",
  ]);
  const { attempts } = (await (await world.request(`/status/${tokenId}`)).json()) as { attempts: object[] };
  expect(attempts).toMatchObject([
    { provider: "runpod", region: "COMMUNITY", outcome: "sold_out" },
    { provider: "runpod", region: "SECURE", outcome: "sold_out" },
    { provider: "runpod", region: "COMMUNITY", outcome: "running" },
  ]);
});

test("a vendor that takes no order until a person acts is passed over where another one sells the card", async () => {
  const world = await deploy({ provisioner: { VULTR_GPUS: "true" } });
  const body = { title: "Payment Required", status: 402, detail: "insufficient balance" };
  await addFault("runpod", { call: "create", kind: "answer", status: 402, body });
  await world.buy(0, 6);
  await world.scan();
  await world.drain();
  expect(await attemptsOf(world)).toEqual([
    `runpod COMMUNITY ${A100} refused`,
    "vultr ewr vcg-a100-12c-120g-80vram running",
  ]);
});

test("where one purchase's machine did not come up, the next purchase does not look first", async () => {
  const world = await deploy();
  await addFault("vultr", { call: "create", kind: "never_boots", region: "ewr", times: 1 });
  const { tokenId } = await world.buy(0, 0);
  await world.scan();
  await world.drainToBoot(tokenId);
  world.passTime(world.provisioner.BOOT_TIMEOUT_SECONDS);
  await world.drain(async () => (await attemptsOf(world)).length > 1);
  expect(await world.context.gate("vultr").troubled(world.context.now())).toEqual([
    placeOf({ region: "ewr", plan: "vc2-1c-1gb" }),
  ]);
  expect((await attemptsOf(world))[1]).toMatch(/^vultr lax/);
  await world.buy(1, 0);
  await world.scan();
  await world.drain(async () => (await attemptsOf(world)).length > 2);
  expect((await attemptsOf(world))[2]).toMatch(/^vultr lax/);
  expect(await world.context.gate("vultr").troubled(world.context.now() + 600_000)).toEqual([]);
});

test("after five calls without an answer a vendor is left alone; then one call finds out for all", async () => {
  const world = await deploy();
  const gate = world.context.gate("vultr");
  const now = Date.now();
  for (let fault = 0; fault < 4; fault++) await gate.report(now, true);
  expect(await gate.take(now)).toEqual({ waitSeconds: 0, watched: true });
  await gate.report(now, true);
  const { waitSeconds } = await gate.take(now);
  expect(waitSeconds).toBeGreaterThanOrEqual(5);
  expect(waitSeconds).toBeLessThanOrEqual(10);
  expect(await gate.machines(now, now)).toMatchObject({ ok: false });

  // Half open: one goes, the others wait for what it finds.
  const later = now + 10_000;
  expect(await gate.take(later)).toEqual({ waitSeconds: 0, watched: true });
  expect((await gate.take(later)).waitSeconds).toBeGreaterThan(0);
  await gate.report(later, true);
  expect((await gate.take(later)).waitSeconds).toBeGreaterThanOrEqual(10);

  const last = later + 20_000;
  expect((await gate.take(last)).waitSeconds).toBe(0);
  await gate.report(last, false);
  expect(await gate.take(last)).toEqual({ waitSeconds: 0, watched: false });
  // The gate is an object: what it logs would reach nobody if it did not send it.
  const book = world.edge.LOG_BOOK.get(world.edge.LOG_BOOK.idFromName("book"));
  await vi.waitFor(
    async () => expect(String(await book.read("error", 0))).toContain('"event":"circuit_open"'),
    PATIENCE_MS,
  );
});

test("a list that fails is one fault however many wait for it, and calls under way when the circuit opened add none", async () => {
  const world = await deploy();
  const gate = world.context.gate("vultr");
  await addFault("vultr", { call: "list", kind: "error_before", times: 1 });
  const now = Date.now();
  const answers = await Promise.all(Array.from({ length: 8 }, () => gate.machines(now, now)));
  expect(answers.map((answer) => answer.ok)).toEqual(Array.from({ length: 8 }, () => false));
  expect(await gate.take(now)).toEqual({ waitSeconds: 0, watched: true });
  for (let fault = 0; fault < 12; fault++) await gate.report(now, true);
  expect((await gate.take(now)).waitSeconds).toBeLessThanOrEqual(10);
});

test("what the gate says of one purchase does not grow with what else is rented", async () => {
  const world = await deploy();
  const first = await world.buy(0);
  const second = await world.buy(0);
  await world.scan();
  await world.drain();
  const now = Date.now();
  const gate = world.context.gate("vultr");
  const [row] = await world.rows(`SELECT incarnation, instance_id FROM vms WHERE token_id = ${first.tokenId}`);
  const family = labelFamily(String(row?.["incarnation"]));
  const instanceId = String(row?.["instance_id"]);
  for (const of of [{ family }, { instanceId }]) {
    const answer = await gate.machinesOf(now, now, of);
    if (!answer.ok) throw new Error(answer.message);
    expect(answer.snapshot.machines.map((machine) => machine.instanceId)).toEqual([instanceId]);
  }
  const none = await gate.machinesOf(now, now, { family: `${family.slice(0, -1)}9-` });
  expect(none).toMatchObject({ ok: true, snapshot: { machines: [] } });
  expect(second.tokenId).not.toBe(first.tokenId);
});

test("a vendor that was down for a while serves the purchase once it is back, with one machine", async () => {
  const world = await deploy();
  const gate = world.context.gate("vultr");
  let ahead = 0;
  const context = { ...world.context, now: () => Date.now() + ahead };
  const turn = async () => {
    const next = world.sent.shift();
    if (next?.body.kind === "advance") await followMachine(context, next.body);
  };
  await addFault("vultr", { call: "list", kind: "error_before", times: 5 });
  const { tokenId } = await world.buy(0);
  await world.scan();
  const began = Date.now();
  for (let fault = 0; fault < 5; fault++) await turn();
  const asked = (await journal("vultr", began)).length;
  expect(asked).toBe(5);
  // Nothing leaves while the circuit is open: the row waits, a message at a time.
  for (let waiting = 0; waiting < 3; waiting++) await turn();
  expect((await journal("vultr", began)).length).toBe(asked);
  expect(world.sent).toMatchObject([{ body: { kind: "advance" } }]);

  ahead = 60_000;
  expect((await gate.take(context.now(), 0)).waitSeconds).toBe(0);
  ahead = 120_000;
  for (let count = 0; count < 100 && (await world.vm(tokenId))?.["status"] !== "running"; count++) {
    await turn();
    await new Promise((resolve) => setTimeout(resolve, 50));
  }
  expect(await world.vm(tokenId)).toMatchObject({ status: "running", attempt: 1 });
  expect(await world.machines("vultr")).toHaveLength(1);
});
