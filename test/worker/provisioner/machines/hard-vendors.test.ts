// Vendors as their users describe them: each behaviour as the simulator has it, and what becomes of a purchase under it.
import { connect } from "cloudflare:sockets";
import { expect, test } from "vitest";
import { generateHostKey, generateSshKeyPair } from "../../../../src/credentials/ssh-keys.ts";
import type { VendorName } from "../../../../src/model/stock.ts";
import { readBanner } from "../../../../src/provisioner/machines/banner.ts";
import { reap } from "../../../../src/provisioner/machines/reap.ts";
import type { MachineSpec, Vendor } from "../../../../src/provisioner/vendors/vendor.ts";
import { freshHeaders } from "../../../world/agent.ts";
import { agent } from "../../chain.ts";
import { type Deployment, deploy, PATIENCE_MS } from "../../deployment.ts";
import { addFault, clearFaults } from "../../faults.ts";
import { unlocked } from "../../parts.ts";
import { forgetLists, IMPATIENT } from "../../vendors.ts";

const BOTH = ["vultr", "runpod"] as const;
const TIERS = { vultr: 0, runpod: 4 };
const PLACES = {
  vultr: { region: "ewr", plan: "vc2-1c-1gb" },
  runpod: { region: "COMMUNITY", plan: "NVIDIA GeForce RTX 4090" },
};
const PATHS = { vultr: "/instances", runpod: "/v2/pods" };

/** A call as any client of that account makes it. */
async function call(world: Deployment, vendor: VendorName, method: string, id = "", body?: object) {
  const { VULTR_API_URL, VULTR_API_KEY, RUNPOD_API_URL, RUNPOD_API_KEY } = world.provisioner;
  const [url, key] = vendor === "vultr" ? [VULTR_API_URL, VULTR_API_KEY] : [RUNPOD_API_URL, RUNPOD_API_KEY];
  const answer = await fetch(`${url}${PATHS[vendor]}${id === "" ? "" : `/${id}`}`, {
    method,
    headers: { authorization: `Bearer ${key}`, "content-type": "application/json" },
    ...(body === undefined ? {} : { body: JSON.stringify(body) }),
  });
  return { status: answer.status, text: await answer.text() };
}

const KNOCK_MS = 500;
let orders = 0;
async function order(world: Deployment, vendor: Vendor): Promise<string> {
  const { publicKey } = await generateSshKeyPair("ed25519");
  orders += 1;
  const label = `clawcloud-${world.edge.DEPLOYMENT_ID}-${orders}-00000000-0-1`;
  const place = PLACES[vendor.name];
  const keys = { publicKey, hostKey: generateHostKey() };
  const spec: MachineSpec = { label, mark: "abc", ...place, ...keys, ports: [], note: "# A machine\n" };
  return (await vendor.create(spec, await vendor.prepare())).instanceId;
}

/** What comes of a connection that is asked for: of one that is dropped, nothing. */
function knock(address: { hostname: string; port: number }): Promise<"made" | "refused" | "no answer"> {
  const socket = connect(address);
  socket.closed.catch(() => undefined);
  const answered = socket.opened.then(
    () => "made" as const,
    () => "refused" as const,
  );
  const later = new Promise<"no answer">((resolve) => setTimeout(() => resolve("no answer"), KNOCK_MS));
  return Promise.race([answered, later]).finally(() => void socket.close().catch(() => undefined));
}

/** Its first machine is given up as one that does not boot. */
async function passBootDeadline(world: Deployment, tokenId: number): Promise<void> {
  await world.drainToBoot(tokenId, 4);
  await world.sql.prepare("UPDATE attempts SET boot_deadline_at = 1 WHERE number = 1").run();
  await world.drain();
}

async function buyAt(world: Deployment, vendor: VendorName): Promise<number> {
  const { tokenId } = await world.buy(0, TIERS[vendor]);
  await world.scan();
  return tokenId;
}

/** It runs, and has the only machine that there is. */
async function expectServed(world: Deployment, vendor: VendorName, tokenId: number): Promise<void> {
  expect(await world.vm(tokenId)).toMatchObject({ status: "running" });
  await clearFaults();
  await expect
    .poll(
      async () => {
        await unlocked();
        await forgetLists();
        await reap(world.context);
        return (await world.machines(vendor)).map(({ id }) => id);
      },
      { timeout: PATIENCE_MS },
    )
    .toEqual([(await world.vm(tokenId))?.["instance_id"]]);
}

test.each(BOTH)("%s: a new machine that list and id hide: neither shows it, and then both do", async (name) => {
  const world = await deploy();
  const vendor = world.context.vendors[name];
  await addFault(name, { call: "create", kind: "hidden", times: 1 });
  const id = await order(world, vendor);
  expect(await vendor.get(id)).toBeNull();
  expect(await vendor.list()).toEqual([]);
  const refused = await call(world, name, "DELETE", id);
  expect(refused).toMatchObject(
    name === "vultr" ? { status: 500, text: expect.stringContaining("not currently active") } : { status: 404 },
  );
  await addFault(name, { call: "create", kind: "hidden", ms: 50, times: 1 });
  const shown = await order(world, vendor);
  await expect.poll(() => vendor.get(shown), { timeout: PATIENCE_MS }).not.toBeNull();
  expect((await vendor.list()).map(({ instanceId }) => instanceId)).toEqual([shown]);
});

test.each(BOTH)("%s: a hidden machine whose order had no answer is found once it shows: one order", async (name) => {
  const world = await deploy(IMPATIENT);
  await addFault(name, { call: "create", kind: "hidden", ms: 600, times: 1 });
  await addFault(name, { call: "create", kind: "error_after", times: 1 });
  const tokenId = await buyAt(world, name);
  await world.drain();
  await expectServed(world, name, tokenId);
  expect(await world.vm(tokenId)).toMatchObject({ attempt: 1 });
});

test("vultr: an account that is full counts what was deleted a moment ago; the next order waits for its place", async () => {
  const world = await deploy();
  const vendor = world.context.vendors.vultr;
  // Before the account is full: tests before this one have just deleted machines as well.
  const id = await order(world, vendor);
  await addFault("vultr", { call: "create", kind: "counts_deleted" });
  await unlocked();
  await vendor.delete(id);
  await expect(async () => void (await order(world, vendor))).rejects.toThrow("maximum number of active instances");
  const tokenId = await buyAt(world, "vultr");
  const outcomes = () => world.rows("SELECT outcome FROM attempts ORDER BY number");
  await world.drain(async () => (await outcomes())[0]?.["outcome"] != null);
  expect((await outcomes())[0]?.["outcome"]).toMatch(/refused|wait/);
  await clearFaults();
  await world.drain();
  await expectServed(world, "vultr", tokenId);
});

test.each(BOTH)(
  "%s: a delete that takes effect late: the machine is shown until then, and asked again it is pending",
  async (name) => {
    const world = await deploy();
    const vendor = world.context.vendors[name];
    await addFault(name, { call: "delete", kind: "slow_delete", times: 1 });
    const id = await order(world, vendor);
    await unlocked();
    await vendor.delete(id);
    expect(await vendor.get(id)).toMatchObject({ instanceId: id });
    expect(await vendor.list()).toHaveLength(1);
    expect(await call(world, name, "DELETE", id)).toMatchObject({
      status: name === "vultr" ? 500 : 409,
      text: expect.stringMatching(/pending destruction|being terminated/),
    });
    await addFault(name, { call: "delete", kind: "slow_delete", ms: 50, times: 1 });
    const gone = await order(world, vendor);
    await unlocked();
    await vendor.delete(gone);
    await expect.poll(() => vendor.get(gone), { timeout: PATIENCE_MS }).toBeNull();
  },
);

test.each(BOTH)("%s: nothing is ordered before a late delete has happened", async (name) => {
  const world = await deploy();
  await addFault(name, { call: "create", kind: "never_boots", times: 1 });
  await addFault(name, { call: "delete", kind: "slow_delete", ms: 700, times: 1 });
  const tokenId = await buyAt(world, name);
  await passBootDeadline(world, tokenId);
  const [first, second] = await world.rows("SELECT ended_at, gone_at, create_sent_at FROM attempts ORDER BY number");
  expect(Number(first?.["gone_at"]) - Number(first?.["ended_at"])).toBeGreaterThan(600);
  expect(second?.["create_sent_at"]).toBeGreaterThanOrEqual(first?.["gone_at"]);
  await expectServed(world, name, tokenId);
});

test("vultr: a locked machine takes no change, no reinstallation and no delete for as long as the lock lasts", async () => {
  const world = await deploy();
  const vendor = world.context.vendors.vultr;
  await addFault("vultr", { call: "create", kind: "locked", ms: 600_000, times: 1 });
  const id = await order(world, vendor);
  for (const [method, path] of [
    ["DELETE", id],
    ["PATCH", id],
    ["POST", `${id}/reinstall`],
  ] as const) {
    const answer = await call(world, "vultr", method, path, method === "DELETE" ? undefined : {});
    expect(answer, method).toMatchObject({ text: expect.stringContaining("currently locked") });
    expect(answer.status, method).toBe(method === "DELETE" ? 500 : 400);
  }
  expect(await vendor.get(id)).toMatchObject({ state: "starting" });
  await addFault("vultr", { call: "create", kind: "locked", ms: 100, times: 1 });
  const free = await order(world, vendor);
  await expect
    .poll(() => call(world, "vultr", "DELETE", free), { timeout: PATIENCE_MS })
    .toMatchObject({ status: 204 });
});

test.each(["change", "reinstall"] as const)(
  "vultr: a machine that is locked at its rotation (%s) gets its new key all the same",
  async (at) => {
    const world = await deploy();
    const tokenId = await buyAt(world, "vultr");
    await world.drain();
    const before = (await world.vm(tokenId))?.["instance_id"];
    await addFault("vultr", { call: at, kind: "locked", ms: 500, times: 1 });
    const path = `/credentials/${tokenId}/rotate`;
    const headers = await freshHeaders("https://api.example", agent(0), tokenId, "/rotate");
    expect((await world.request(path, { method: "POST", headers })).status).toBe(202);
    await world.drain();
    await expectServed(world, "vultr", tokenId);
    expect(Number((await world.vm(tokenId))?.["attempt"])).toBeGreaterThan(1);
    expect((await world.vm(tokenId))?.["instance_id"]).toBe(before);
  },
);

test.each(BOTH)("%s: odd neighbours in the account are in its list, and hold no purchase up", async (name) => {
  const world = await deploy();
  await addFault(name, { call: "list", kind: "odd_neighbours" });
  const { text } = await call(world, name, "GET");
  expect(JSON.parse(text)[name === "vultr" ? "instances" : "pods"]).toHaveLength(3);
  const tokenId = await buyAt(world, name);
  await world.drain();
  await expectServed(world, name, tokenId);
});

test.each([
  ["vultr", "any", "wrong_address", 401, "Unauthorized IP address"],
  ["runpod", "any", "few_rights", 403, "permission"],
  ["runpod", "create", "no_balance", 402, "balance"],
] as const)(
  "%s: a key or a balance that is no good (%s %s): refused with %i, and served once it is mended",
  async (name, at, kind, status, words) => {
    const world = await deploy();
    const gpu = { id: PLACES.runpod.plan, count: 1 };
    await addFault(name, { call: at, kind, times: 3 });
    expect(await call(world, name, "POST", "", { name: "x", image: "y", cloud: "COMMUNITY", gpu })).toMatchObject({
      status,
      text: expect.stringContaining(words),
    });
    const tokenId = await buyAt(world, name);
    await world.drain();
    await expectServed(world, name, tokenId);
  },
);

test("runpod: a pod without a public address runs and has none; its purchase gets another one", async () => {
  const world = await deploy();
  await addFault("runpod", { call: "create", kind: "no_address", times: 1 });
  const tokenId = await buyAt(world, "runpod");
  await world.drainToBoot(tokenId);
  const [pod] = await world.machines("runpod");
  const look = async () => JSON.parse((await call(world, "runpod", "GET", pod?.id)).text);
  await expect.poll(look, { timeout: PATIENCE_MS }).toMatchObject({ status: "RUNNING", runtime: { ports: [] } });
  expect(await look()).toMatchObject({ ssh: { direct: null } });
  await passBootDeadline(world, tokenId);
  await expectServed(world, "runpod", tokenId);
});

test("runpod: a pod's address may stand in its runtime's ports alone", async () => {
  const world = await deploy();
  await addFault("runpod", { call: "create", kind: "ports_only", times: 1 });
  const id = await order(world, world.context.vendors.runpod);
  const look = async () => JSON.parse((await call(world, "runpod", "GET", id)).text);
  const ports = [{ private: 22, public: expect.any(Number), type: "tcp", ip: "127.0.0.1" }];
  await expect.poll(look, { timeout: PATIENCE_MS }).toMatchObject({ ssh: { direct: null }, runtime: { ports } });
  await call(world, "runpod", "DELETE", id);
  await addFault("runpod", { call: "create", kind: "ports_only", times: 1 });
  const tokenId = await buyAt(world, "runpod");
  await world.drain();
  await expectServed(world, "runpod", tokenId);
  expect(await world.vm(tokenId)).toMatchObject({ attempt: 1 });
});

test("runpod: a pod whose image is pulled for a while is starting until then, and is waited for", async () => {
  const world = await deploy();
  await addFault("runpod", { call: "create", kind: "hanging_pull", times: 1 });
  const id = await order(world, world.context.vendors.runpod);
  const status = async () => JSON.parse((await call(world, "runpod", "GET", id)).text).status;
  await expect.poll(status, { timeout: PATIENCE_MS }).toBe("STARTING");
  await call(world, "runpod", "DELETE", id);
  await addFault("runpod", { call: "create", kind: "hanging_pull", ms: 500, times: 1 });
  const tokenId = await buyAt(world, "runpod");
  await world.drain();
  await expectServed(world, "runpod", tokenId);
  expect(await world.vm(tokenId)).toMatchObject({ attempt: 1 });
});

test("runpod: a pod that its host starts anew has another port, and its row follows it", async () => {
  const world = await deploy();
  const tokenId = await buyAt(world, "runpod");
  await world.drain();
  const before = await world.vm(tokenId);
  await addFault("runpod", { call: "list", kind: "moved_port", times: 1 });
  const portNow = async () => {
    await forgetLists();
    await reap(world.context);
    return (await world.vm(tokenId))?.["ssh_port"];
  };
  await expect.poll(portNow, { timeout: PATIENCE_MS }).not.toBe(before?.["ssh_port"]);
  const port = Number((await world.vm(tokenId))?.["ssh_port"]);
  const [attempt] = await world.rows("SELECT mark FROM attempts");
  await expect
    .poll(() => readBanner("127.0.0.1", port, 1_000), { timeout: PATIENCE_MS })
    .toContain(String(attempt?.["mark"]));
  expect(await world.vm(tokenId)).toMatchObject({ status: "running", attempt: 1 });
});

test.each(BOTH.flatMap((name) => (["prose_after", "odd_after"] as const).map((kind) => ({ name, kind }))))(
  "$name: an order that is answered with a page or with nothing ($kind) ends with one machine",
  async ({ name, kind }) => {
    const world = await deploy(IMPATIENT);
    await addFault(name, { call: "create", kind, times: 1 });
    const tokenId = await buyAt(world, name);
    await world.drain();
    await expectServed(world, name, tokenId);
    expect(await world.vm(tokenId)).toMatchObject({ attempt: 1 });
  },
);

test.each(BOTH)(
  "%s: deletes and looks that are answered with a page or with nothing: what ended is gone",
  async (name) => {
    const world = await deploy(IMPATIENT);
    await addFault(name, { call: "create", kind: "never_boots", times: 1 });
    const tokenId = await buyAt(world, name);
    await addFault(name, { call: "delete", kind: "odd_after", times: 1 });
    await addFault(name, { call: "get", kind: "prose_after", times: 1 });
    await addFault(name, { call: "list", kind: "odd_after", times: 2 });
    await passBootDeadline(world, tokenId);
    await expectServed(world, name, tokenId);
  },
);

test.each(BOTH)("%s: a machine whose address drops connections is given up for another one", async (name) => {
  const world = await deploy();
  await addFault(name, { call: "create", kind: "silent_address", times: 1 });
  const tokenId = await buyAt(world, name);
  await world.drainToBoot(tokenId);
  const [machine] = await world.rows("SELECT instance_id FROM attempts");
  const at = async () => {
    const told = await world.context.vendors[name].get(String(machine?.["instance_id"]));
    return told?.state === "up" && told.host !== null && told.port !== null
      ? knock({ hostname: told.host, port: told.port })
      : "not up";
  };
  await expect.poll(at, { timeout: PATIENCE_MS, interval: 10 }).toBe("no answer");
  await world.sql.prepare("UPDATE attempts SET boot_deadline_at = 1 WHERE number = 1").run();
  await world.drain();
  await expectServed(world, name, tokenId);
  expect(await world.vm(tokenId)).toMatchObject({ attempt: 2 });
});
