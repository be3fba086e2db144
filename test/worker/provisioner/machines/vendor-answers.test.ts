// What a purchase makes of vendors' answers that are refusals, odd, or not what their documents say (hard cases 51 and 53).
import { runInDurableObject } from "cloudflare:test";
import { expect, test, vi } from "vitest";
import { loadVm } from "../../../../src/db/vms.ts";
import { endMachines } from "../../../../src/provisioner/machines/clear.ts";
import { agent, chain } from "../../chain.ts";
import { buyAndRun, type Deployment, deploy, PATIENCE_MS } from "../../deployment.ts";
import { accepted } from "../../edge/routes/x402/till.ts";
import { addFault, clearFaults } from "../../faults.ts";
import { takePages } from "../../paged.ts";
import { forgetLists, IMPATIENT } from "../../vendors.ts";

const LIMIT = {
  error: "Server add failed: You have reached the maximum number of active instances for this account.",
  status: 400,
};
const attemptsOf = (world: Deployment) => world.rows("SELECT region, outcome, detail FROM attempts ORDER BY number");
const outcomesOf = async (world: Deployment) =>
  (await attemptsOf(world)).map(({ region, outcome }) => `${region} ${outcome}`);
const hasTried = (world: Deployment, count: number) => async () =>
  (await attemptsOf(world)).filter(({ outcome }) => outcome !== null).length >= count;

test("403 at every place calls a person once, and a place that takes an order calls off (hard case 51)", async () => {
  const world = await deploy({ provisioner: { VULTR_REGIONS: "ewr,ams" } });
  await takePages();
  await addFault("vultr", { call: "create", kind: "answer", status: 403, body: { error: "Forbidden", status: 403 } });
  await world.buy(0);
  await world.scan();
  await world.drain(hasTried(world, 2));
  expect(await outcomesOf(world)).toEqual(["ewr refused", "ams refused"]);
  expect(await takePages()).toMatchObject({ pages: ["create_refused vultr"] });

  await clearFaults();
  world.passTime(120);
  await world.drain();
  expect((await outcomesOf(world)).at(-1)).toMatch(/running$/);
  expect((await takePages()).cleared).toContain("create_refused vultr");
});

test("an order for one region, refused there, calls nobody: other regions were not asked", async () => {
  const world = await deploy({ provisioner: { VULTR_REGIONS: "ewr,ams" } });
  await chain.mine();
  await takePages();
  await addFault("vultr", { call: "create", kind: "answer", status: 403, body: { error: "Forbidden", status: 403 } });
  await accepted(world, agent(0), { region: "europe" });
  await world.drain(async () => (await world.rows("SELECT 1 FROM payments WHERE purchase_tx IS NOT NULL")).length > 0);
  await world.scan();
  await world.drain(hasTried(world, 1));
  expect(await outcomesOf(world)).toEqual(["ams refused"]);
  expect((await takePages()).pages).toEqual([]);
});

test.each([
  [422, { title: "Unprocessable Entity", status: 422, detail: "Unknown GPU type: NVIDIA GeForce RTX 4090" }],
  [403, { title: "Forbidden", status: 403, detail: "access denied" }],
  [400, { title: "Bad Request", status: 400, detail: "request could not be processed" }],
] as const)("a place that answers %i stops no other and calls nobody (hard case 51)", async (status, body) => {
  const world = await deploy();
  await takePages();
  await addFault("runpod", { call: "create", kind: "answer", region: "COMMUNITY", status, body, times: 1 });
  await world.buy(0, 4);
  await world.scan();
  await world.drain();
  expect(await outcomesOf(world)).toEqual(["COMMUNITY refused", "SECURE running"]);
  expect((await takePages()).pages).toEqual([]);
});

test("the account's limit waits while it may count a machine that has just ended (hard case 51)", async () => {
  const world = await deploy();
  await takePages();
  await world.context.gate("vultr").released("nobody's", "an instance", world.context.now());
  await addFault("vultr", { call: "create", kind: "answer", status: 400, body: LIMIT, times: 2 });
  await world.buy(0);
  await world.scan();
  await world.drain();
  expect(await outcomesOf(world)).toEqual(["ewr wait", "ewr wait", "ewr running"]);
  expect((await takePages()).pages).toEqual([]);
});

test("the account's limit calls a person where nothing has ended, or when it lasts (hard case 51)", async () => {
  const world = await deploy();
  await takePages();
  await addFault("vultr", { call: "create", kind: "answer", status: 400, body: LIMIT, times: 2 });
  await world.buy(0);
  await world.scan();
  await world.drain(hasTried(world, 1));
  expect((await takePages()).pages).toEqual(["create_refused vultr"]);
  // In a busy shop something has always just ended.
  world.passTime(200);
  await world.context.gate("vultr").released("nobody's", "an instance", world.context.now());
  await world.drain(hasTried(world, 2));
  expect((await takePages()).pages).toEqual(["create_refused vultr"]);
});

test.each([
  ["vultr", 0, 200, "{}"],
  ["vultr", 0, 202, ""],
  ["runpod", 4, 200, "<html></html>"],
] as const)(
  "%s, tier %i: an order that works and answers %i %j is found by its label (hard case 51)",
  async (name, tier, status, text) => {
    const world = await deploy(IMPATIENT);
    await addFault(name, { call: "create", kind: "answer", effect: true, status, text, times: 1 });
    const { tokenId } = await world.buy(0, tier);
    await world.scan();
    await world.drain();
    expect(await world.vm(tokenId)).toMatchObject({ status: "running", attempt: 1 });
    expect(await world.machines(name)).toHaveLength(1);
  },
);

test("an end that works and answers 200 with a page is an end (hard case 51)", async () => {
  const world = await deploy();
  const { tokenId } = await world.buy(0);
  await world.scan();
  await world.drain();
  const [machine] = await world.machines("vultr");
  await addFault("vultr", {
    call: "delete",
    kind: "answer",
    effect: true,
    status: 200,
    text: "<html></html>",
    times: 1,
  });
  await world.context.vendors.vultr.delete(machine?.id ?? "");
  expect(await world.machines("vultr")).toEqual([]);
  expect(await world.vm(tokenId)).toMatchObject({ status: "running" });
});

test("rows that can't be read hide no other; one that bears our name makes a list incomplete (hard case 51)", async () => {
  const world = await deploy();
  const ours = `clawcloud-${world.edge.DEPLOYMENT_ID}-1-00000000-0-1`;
  const odd = [null, 7, "x", {}, { id: 5, label: "a neighbour's", name: "a neighbour's" }];
  const bare = { id: "bare", main_ip: null, tags: [null, 3], date_created: "yesterday", status: null, env: 5, ssh: [] };
  const meta = { total: 6, links: { next: "", prev: "" } };
  for (const name of ["vultr", "runpod"] as const) {
    const vendor = world.context.vendors[name];
    const list = (rows: unknown[]) =>
      addFault(name, {
        call: "list",
        kind: "answer",
        status: 200,
        body: { instances: rows, pods: rows, meta },
        times: 1,
      });
    await list([...odd, bare]);
    expect(await vendor.list()).toMatchObject([
      { instanceId: "bare", label: "", mark: null, state: "starting", host: null },
    ]);
    await list([...odd, { ...bare, id: null, label: ours, name: ours }]);
    await expect(vendor.list()).rejects.toMatchObject({ name: "VendorError", action: "wait" });
  }
});

test("a region that is withdrawn and a card that can't be read hide no other's stock (hard case 51)", async () => {
  const world = await deploy({ provisioner: { VULTR_REGIONS: "ewr,zzz,ams", RUNPOD_CLOUDS: "SECURE" } });
  const { vultr, runpod } = world.context.vendors;
  expect(new Set((await vultr.catalog()).map(({ region }) => region))).toEqual(new Set(["ewr", "ams"]));
  const card = { id: "NVIDIA L40S", secure: true, community: true, availability: "LOW" };
  const gpus = [null, { id: "unknown" }, { ...card, secure: "yes" }, card];
  await addFault("runpod", { call: "catalog", kind: "answer", status: 200, body: { gpus }, times: 1 });
  expect(await runpod.catalog()).toEqual([{ region: "SECURE", plan: "NVIDIA L40S", stock: "low" }]);
});

test("while its vendor's list fails, a machine is asked for by its id (hard case 51)", async () => {
  const world = await deploy();
  const { tokenId } = await world.buy(0);
  await world.scan();
  await world.drainToBoot(tokenId);
  await forgetLists();
  await addFault("vultr", { call: "list", kind: "error_before" });
  await world.drain(async () => (await world.vm(tokenId))?.["status"] === "running");
  expect(await outcomesOf(world)).toEqual(["ewr running"]);
});

test("a vendor that refuses our key calls a person, and calls off once it takes it (hard case 51)", async () => {
  const world = await deploy();
  const gate = world.context.gate("vultr");
  const isRefused = () =>
    runInDurableObject(gate, (_, { storage }) => storage.kv.get<boolean>("accessRefused") === true);
  const body = { error: "Unauthorized IP address: 192.0.2.1", status: 401 };
  await addFault("vultr", { call: "list", kind: "answer", status: 401, body, times: 1 });
  const now = Date.now();
  expect(await gate.machines(now, now)).toMatchObject({ ok: false });
  expect(await isRefused()).toBe(true);
  const book = world.edge.LOG_BOOK.get(world.edge.LOG_BOOK.idFromName("book"));
  await vi.waitFor(
    async () => expect(String(await book.read("error", 0))).toContain('"event":"vendor_access_refused"'),
    PATIENCE_MS,
  );
  expect(await gate.machines(now, now)).toMatchObject({ ok: true });
  expect(await isRefused()).toBe(false);
});

test("a pod that runs without a public address is given up early; the attempt says why, with its log (hard case 53)", async () => {
  const world = await deploy({ provisioner: { ADDRESS_TIMEOUT_SECONDS: "1" } });
  await addFault("runpod", { call: "create", kind: "late_address", region: "COMMUNITY", ms: 3_600_000, times: 1 });
  await world.buy(0, 4);
  await world.scan();
  await world.drain();
  expect(await outcomesOf(world)).toEqual(["COMMUNITY no_address", "SECURE running"]);
  const [first] = await attemptsOf(world);
  expect(first?.["detail"]).toMatch(/^it runs without a public address; its log ends: system: create container runpod/);
  expect(first?.["detail"]).toMatch(/container: Pod Started with \S*\[long value\]$/);
});

test("a pod that never runs says where it stood and what its host logged (hard case 53)", async () => {
  const world = await deploy({ provisioner: { RUNPOD_CLOUDS: "COMMUNITY" } });
  await addFault("runpod", { call: "create", kind: "never_boots", times: 1 });
  const { tokenId } = await world.buy(0, 4);
  await world.scan();
  await world.drainToBoot(tokenId);
  world.passTime(world.provisioner.BOOT_TIMEOUT_SECONDS + 1);
  await world.drain(hasTried(world, 1));
  const [first] = await attemptsOf(world);
  expect(first).toMatchObject({ outcome: "boot_timeout" });
  expect(first?.["detail"]).toMatch(
    /did not answer SSH in time: its vendor had it at (PROVISIONING|STARTING); its log ends:/,
  );
  expect(first?.["detail"]).toContain("toomanyrequests");
});

test.each([
  ["203.0.113.5", "203.0.113.5"],
  ["100.65.1.9", null],
  ["10.1.2.3", null],
  [null, null],
])("RunPod's port mapping to %s is the address where ssh.direct is missing: %s (hard case 53)", async (ip, host) => {
  const world = await deploy();
  const ports = [
    { private: 8888, public: 1, type: "http", ip: "203.0.113.5" },
    { private: 22, public: 40_022, type: "tcp", ip },
  ];
  const body = {
    id: "p",
    name: "n",
    status: "RUNNING",
    ssh: { proxy: null, direct: null },
    runtime: { uptime: 5, ports },
  };
  await addFault("runpod", { call: "get", kind: "answer", status: 200, body, times: 1 });
  const port = host === null ? null : 40_022;
  expect(await world.context.vendors.runpod.get("p")).toMatchObject({ state: "up", host, port, upSeconds: 5 });
});

test("what keeps orders from being prepared calls a person by its own name: the next list called it off, and so on", async () => {
  const world = await deploy();
  const gate = world.context.gate("vultr");
  const book = world.edge.LOG_BOOK.get(world.edge.LOG_BOOK.idFromName("book"));
  await addFault("vultr", { call: "any", kind: "wrong_address", times: 1 });
  expect(await gate.supplies(Date.now(), [7005])).toMatchObject({ ok: false });
  await vi.waitFor(
    async () => expect(String(await book.read("error", 0))).toMatch(/"level":"page","event":"vendor_not_prepared"/),
    PATIENCE_MS,
  );
  expect(await runInDurableObject(gate, (_, { storage }) => storage.kv.get("accessRefused"))).toBeUndefined();
});

test("a vendor that does not let us end a machine calls a person, and calls off once it does", async () => {
  const world = await deploy();
  const tokenId = await buyAndRun(world, 0);
  await takePages();
  await addFault("vultr", {
    call: "delete",
    kind: "answer",
    status: 403,
    body: { error: "Forbidden", status: 403 },
    times: 1,
  });
  const vm = await loadVm(world.context.db, String((await world.vm(tokenId))?.["incarnation"]));
  if (vm === null) throw new Error("there is no row");
  expect(await endMachines(world.context, vm)).toBe(false);
  expect((await takePages()).pages).toEqual(["delete_refused vultr"]);
  await expect.poll(() => endMachines(world.context, vm), { timeout: 10_000 }).toBe(true);
  expect(await takePages()).toMatchObject({ pages: [], cleared: expect.arrayContaining(["delete_refused vultr"]) });
});
