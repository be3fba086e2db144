// What our accounts at the vendors can still spend: read with the catalog, kept for operators, paged while it is low.
import { expect, test } from "vitest";
import { refreshCatalog } from "../../../../src/provisioner/machines/catalog.ts";
import { type Deployment, deploy } from "../../deployment.ts";
import { operator } from "../../edge/routes/admin/operator.ts";
import { addFault, clearFaults } from "../../faults.ts";
import { takePages } from "../../paged.ts";
import { journal } from "../../vendors.ts";

const LOW = ["vendor_balance_low runpod", "vendor_balance_low vultr"];

async function told(world: Deployment, key?: string) {
  const ask = operator(world, key ?? (await world.operatorKey()));
  type Vendors = { vendors: { vendor: string; balanceUsd: number | null; readAt: string }[] };
  const { body } = await ask<Vendors>("GET", "/admin/vendors");
  return body.vendors.map(({ vendor, balanceUsd }) => [vendor, balanceUsd]);
}
async function refreshed(world: Deployment) {
  // Each pass asks for every region: the vendor's rate is for others as well.
  world.passTime(5);
  await takePages();
  await refreshCatalog(world.context);
  return takePages();
}
const offersOf = async (world: Deployment) => {
  const [row] = await world.rows("SELECT stock FROM catalogs");
  const stock = JSON.parse(String(row?.["stock"])) as Record<string, { offers: unknown[] }>;
  return ["vultr", "runpod"].map((vendor) => (stock[vendor]?.offers.length ?? 0) > 0);
};

test("balances are read with the catalog: Vultr's is ours below zero, and pending charges come off it", async () => {
  const world = await deploy();
  const key = await world.operatorKey();
  expect(await told(world, key)).toEqual([]);
  expect(await refreshed(world)).toEqual({ pages: [], cleared: expect.arrayContaining(LOW) });
  expect(await told(world, key)).toEqual([
    ["vultr", 237.5],
    ["runpod", 435.85],
  ]);
});

test("a balance below its vendor's limit pages for that vendor, and is called off once there is more", async () => {
  const world = await deploy({ provisioner: { LOW_VULTR_USD: "400", LOW_RUNPOD_USD: "400" } });
  const { pages, cleared } = await refreshed(world);
  expect([pages, cleared]).toEqual([
    ["vendor_balance_low vultr"],
    expect.arrayContaining(["vendor_balance_low runpod"]),
  ]);
  const body = { account: { balance: -5_000, pending_charges: 0 } };
  await addFault("vultr", { call: "account", kind: "answer", status: 200, body, times: 1 });
  expect(await refreshed(world)).toEqual({ pages: [], cleared: expect.arrayContaining(LOW) });
});

test.each([
  [403, { error: "not with this key" }],
  [500, {}],
  [200, { errors: [{ message: "not authorized" }], data: null }],
  [200, { account: { balance: "much", pending_charges: null } }],
])("a balance that is answered %i %j is not known: nobody is called, and the catalog is read", async (status, body) => {
  const world = await deploy();
  for (const vendor of ["vultr", "runpod"] as const)
    await addFault(vendor, { call: "account", kind: "answer", status, body });
  // Five faults in a row would close a vendor's gate.
  for (let pass = 0; pass < 6; pass++) {
    const { pages, cleared } = await refreshed(world);
    expect([...pages, ...cleared.filter((cause) => LOW.includes(cause))]).toEqual([]);
  }
  expect(await offersOf(world)).toEqual([true, true]);
  expect(await told(world)).toEqual([
    ["vultr", null],
    ["runpod", null],
  ]);
  for (const vendor of ["vultr", "runpod"] as const)
    expect((await world.context.gate(vendor).take(world.context.now())).waitSeconds).toBe(0);
  await clearFaults();
});

test("with a limit of 0 no balance is read", async () => {
  const world = await deploy({ provisioner: { LOW_VULTR_USD: "0", LOW_RUNPOD_USD: "0" } });
  const from = Date.now();
  await refreshed(world);
  const paths = [...(await journal("vultr", from)), ...(await journal("runpod", from))].map(({ path }) => path);
  expect(paths.filter((path) => ["/v2/account", "/v2/billing/balance", "/graphql"].includes(path))).toEqual([]);
  expect(await offersOf(world)).toEqual([true, true]);
});

test("a card at Vultr takes its limit away and leaves RunPod's: one limit for both was off for both", async () => {
  const world = await deploy({ provisioner: { LOW_VULTR_USD: "0", LOW_RUNPOD_USD: "1000" } });
  const key = await world.operatorKey();
  expect((await refreshed(world)).pages).toEqual(["vendor_balance_low runpod"]);
  expect(await told(world, key)).toEqual([
    ["vultr", null],
    ["runpod", 435.85],
  ]);
});

test("where RunPod's newer question is not known, the older one tells; an account that is billed afterwards is never low", async () => {
  const world = await deploy({ provisioner: { LOW_VULTR_USD: "1000", LOW_RUNPOD_USD: "1000" } });
  const key = await world.operatorKey();
  await addFault("runpod", { call: "account", kind: "answer", status: 404, body: {}, times: 1 });
  expect((await refreshed(world)).pages).toEqual(LOW);
  expect(await told(world, key)).toContainEqual(["runpod", 435.85]);
  const body = { balanceAmount: 0, billingMode: "INVOICED" };
  await addFault("runpod", { call: "account", kind: "answer", status: 200, body, times: 1 });
  expect((await refreshed(world)).pages).toEqual(["vendor_balance_low vultr"]);
  expect(await told(world, key)).toContainEqual(["runpod", null]);
});
