// Another key for a machine that runs, and what may go wrong on the way to it (hard cases 15 and 25).

import { connect } from "cloudflare:sockets";
import { expect, test } from "vitest";
import type { Context } from "../../../../src/provisioner/context.ts";
import { reap } from "../../../../src/provisioner/machines/reap.ts";
import { followMachine } from "../../../../src/provisioner/machines/run.ts";
import { type Credentials, fixedHeaders, freshHeaders, transfer } from "../../../world/agent.ts";
import { agent, chain } from "../../chain.ts";
import { buyAndRun, type Deployment, deploy, PATIENCE_MS } from "../../deployment.ts";
import { addFault, clearFaults } from "../../faults.ts";
import { forgetLists, IMPATIENT, journal } from "../../vendors.ts";

const API = "https://api.example";
const DAY = 86_400;

async function ask(world: Deployment, index: number, tokenId: number, action: "" | "/ack" | "/rotate" = "") {
  const response = await world.request(`/credentials/${tokenId}${action}`, {
    method: action === "" ? "GET" : "POST",
    headers: await freshHeaders(API, agent(index), tokenId, action),
  });
  return { status: response.status, body: (await response.json()) as Credentials & { code?: string; step?: string } };
}
const attemptsOf = (world: Deployment) =>
  world.rows("SELECT number, outcome, label, mark, instance_id, gone_at, private_key FROM attempts ORDER BY number");

async function bannerOf({ host, ssh }: Credentials): Promise<string> {
  const socket = connect({ hostname: host, port: ssh.port });
  socket.closed.catch(() => undefined);
  const { value } = await socket.readable.getReader().read();
  await socket.close();
  return new TextDecoder().decode(value);
}
/** Runs the one message that is queued, in a world that may be broken. */
async function turn(world: Deployment, changes: Partial<Context> = {}): Promise<void> {
  const job = world.sent.find(({ body }) => body.kind === "advance")?.body;
  world.sent.length = 0;
  if (job?.kind !== "advance") throw new Error("no step is queued");
  await followMachine({ ...world.context, ...changes }, job);
}
/** The message is lost, and the sweep brings the row back. */
async function heal(world: Deployment): Promise<void> {
  world.sent.length = 0;
  await world.sql.prepare("UPDATE vms SET lease = '', lease_until = 0").run();
  await world.sweep(Date.now() + 400_000);
  await world.drain();
}
const vultrThat = (world: Deployment, reinstall: NonNullable<Context["vendors"]["vultr"]["reinstall"]>) => ({
  vendors: { ...world.context.vendors, vultr: { ...world.context.vendors.vultr, reinstall } },
});
async function passTime(seconds: number) {
  await chain.node.increaseTime({ seconds });
  await chain.mine(4);
}

test("at Vultr the machine is reinstalled: login key, host key and mark are new, machine and address are not (hard case 15)", async () => {
  const world = await deploy();
  const tokenId = await buyAndRun(world, 0);
  const before = (await ask(world, 0, tokenId)).body;
  const machine = await world.vm(tokenId);
  const from = Date.now();

  const ordered = await ask(world, 0, tokenId, "/rotate");
  expect(ordered).toMatchObject({ status: 202, body: { status: "provisioning", step: "rotate" } });
  expect(await world.vm(tokenId)).toMatchObject({ status: "provisioning", ssh_host: null, ssh_private_key: null });
  expect((await ask(world, 0, tokenId)).status).toBe(202);
  await world.drain();

  const after = (await ask(world, 0, tokenId)).body;
  expect(after.ssh.privateKey).toContain("PRIVATE KEY");
  expect(after.ssh.privateKey).not.toBe(before.ssh.privateKey);
  expect(after.ssh.publicKey).not.toBe(before.ssh.publicKey);
  expect(after.ssh.knownHosts).not.toBe(before.ssh.knownHosts);
  expect(after.host).toBe(before.host);
  expect(await world.vm(tokenId)).toMatchObject({ instance_id: machine?.["instance_id"], attempt: 2 });
  const [old, now] = await attemptsOf(world);
  expect(await bannerOf(after)).toContain(now?.["mark"]);
  expect(await bannerOf(after)).not.toContain(old?.["mark"]);
  expect([old, now]).toMatchObject([
    { outcome: "running", gone_at: expect.any(Number), private_key: null },
    { outcome: "running", gone_at: null, private_key: null, instance_id: machine?.["instance_id"] },
  ]);
  const orders = (await journal("vultr", from)).filter((call) => call.method !== "GET");
  expect(orders.map(({ method, path, status }) => `${method} ${path.split("/")[4] ?? ""} ${status}`)).toEqual([
    "PATCH  202",
    "POST reinstall 202",
    "PATCH  202",
  ]);
  expect(atob(orders[0]?.requestBody["user_data"])).toContain(after.ssh.publicKey);
});

test("at RunPod the pod is replaced, and the key to its own API inside is good for nothing any more (hard case 15)", async () => {
  const world = await deploy();
  const { tokenId } = await world.buy(0, 4);
  await world.scan();
  await world.drain();
  await chain.mine(1);
  const before = (await ask(world, 0, tokenId)).body;
  const old = String((await world.vm(tokenId))?.["instance_id"]);
  // What the former owner can do from anywhere, with the key that the pod holds.
  const tamper = () =>
    fetch(`${world.provisioner.RUNPOD_API_URL}/v2/pods/${old}`, {
      method: "PATCH",
      headers: { authorization: `Bearer ${world.provisioner.RUNPOD_API_KEY}`, "content-type": "application/json" },
      body: JSON.stringify({ env: { PUBLIC_KEY: before.ssh.publicKey } }),
    });
  expect((await tamper()).status).toBe(200);

  expect((await ask(world, 0, tokenId, "/rotate")).status).toBe(202);
  await world.drain();
  const after = (await ask(world, 0, tokenId)).body;
  expect(after.ssh.privateKey).toContain("PRIVATE KEY");
  expect(after.ssh.publicKey).not.toBe(before.ssh.publicKey);
  expect(after.ssh.knownHosts?.split(" ")[2]).not.toBe(before.ssh.knownHosts?.split(" ")[2]);
  expect((await tamper()).status).toBe(404);
  expect(await world.machines("runpod")).toHaveLength(1);
  // The same place first: it was not the place's fault.
  expect((await world.rows("SELECT DISTINCT region, plan FROM attempts")).length).toBe(1);
});

test("the new owner is told that the former one has the key, and no more after a rotation (hard case 15)", async () => {
  const world = await deploy();
  const tokenId = await buyAndRun(world, 0);
  const sellers = (await ask(world, 0, tokenId)).body;
  expect(sellers.ssh.knownToFormerOwner).toBe(false);
  await transfer(chain, agent(0), agent(1).address, tokenId);
  await chain.mine(1);
  await world.scan();
  for (let read = 0; read < 2; read++) {
    const { body } = await ask(world, 1, tokenId);
    expect(body.ssh).toMatchObject({ privateKey: sellers.ssh.privateKey, knownToFormerOwner: true });
  }
  expect(await ask(world, 0, tokenId, "/rotate")).toMatchObject({ status: 403, body: { code: "not_owner" } });
  expect((await ask(world, 1, tokenId, "/rotate")).status).toBe(202);
  await world.drain();
  const { ssh } = (await ask(world, 1, tokenId)).body;
  expect(ssh.knownToFormerOwner).toBe(false);
  expect(ssh.privateKey).not.toBe(sellers.ssh.privateKey);
  expect((await ask(world, 1, tokenId)).body.ssh.knownToFormerOwner).toBe(false);
});

test("a key that was not delivered before a transfer goes to the new owner alone, also one that a rotation makes", async () => {
  const world = await deploy();
  const tokenId = await buyAndRun(world, 0);
  expect((await ask(world, 0, tokenId, "/rotate")).status).toBe(202);
  await transfer(chain, agent(0), agent(1).address, tokenId);
  await chain.mine(1);
  await world.scan();
  await world.drain();
  expect(await ask(world, 0, tokenId)).toMatchObject({ status: 403, body: { code: "not_owner" } });
  const { ssh } = (await ask(world, 1, tokenId)).body;
  expect(ssh).toMatchObject({ privateKey: expect.stringContaining("PRIVATE KEY"), knownToFormerOwner: false });
});

test("a rotation takes the fresh form that names it, once (hard case 25)", async () => {
  const world = await deploy();
  const tokenId = await buyAndRun(world, 0);
  const path = `/credentials/${tokenId}/rotate`;
  const post = async (headers: Record<string, string>) => {
    const answer = await world.request(path, { method: "POST", headers });
    return [answer.status, ((await answer.json()) as { code?: string }).code];
  };
  expect(await post(await fixedHeaders(agent(0), tokenId))).toEqual([401, "fresh_signature_required"]);
  expect(await post(await freshHeaders(API, agent(0), tokenId))).toEqual([401, "signature_invalid"]);
  expect(await post(await freshHeaders(API, agent(0), tokenId, "/ack"))).toEqual([401, "signature_invalid"]);
  const signed = await freshHeaders(API, agent(0), tokenId, "/rotate");
  expect(await post(signed)).toEqual([202, undefined]);
  expect(await post(signed)).toEqual([401, "nonce_used"]);
  const second = await freshHeaders(API, agent(0), tokenId, "/rotate");
  expect(await post(second)).toEqual([409, "nothing_to_rotate"]);
  await world.drain();
  expect(await post(signed)).toEqual([401, "nonce_used"]);
  expect(await world.vm(tokenId)).toMatchObject({ status: "running", attempt: 2 });
});

test("a token has so many new keys within 24 hours; a buyer's first is not used up by the seller (hard case 44)", async () => {
  const world = await deploy({ edge: { RATE_LIMITS: "rotations=1/86400" } });
  const tokenId = await buyAndRun(world, 0);
  const rotate = async (index: number) => {
    const { status, body } = await ask(world, index, tokenId, "/rotate");
    await world.drain();
    return [status, body.code];
  };
  expect(await rotate(0)).toEqual([202, undefined]);
  const refused = await world.request(`/credentials/${tokenId}/rotate`, {
    method: "POST",
    headers: await freshHeaders(API, agent(0), tokenId, "/rotate"),
  });
  const body = (await refused.json()) as { code: string; error: string };
  expect([refused.status, body.code]).toEqual([429, "rate_limited"]);
  expect(body.error).toMatch(/^Token \d+ had too many new keys lately; try again in 86\d{3} seconds\.$/);
  expect(refused.headers.get("retry-after")).toMatch(/^86\d{3}$/);
  expect(refused.headers.get("ratelimit-policy")).toBe('"rotations";q=1;w=86400');
  // The key is told to its owner, who sells the token.
  expect((await ask(world, 0, tokenId)).body.ssh.privateKey).toContain("PRIVATE KEY");
  await transfer(chain, agent(0), agent(1).address, tokenId);
  await world.scan();
  await chain.mine(1);
  expect(await rotate(1)).toEqual([202, undefined]);
  expect(await rotate(1)).toEqual([429, "rate_limited"]);
});

test("a seller with two accounts, each of which knows the other's key, uses up no rotation of his buyer's (hard case 44)", async () => {
  const world = await deploy({ edge: { RATE_LIMITS: "rotations=1/86400" } });
  const tokenId = await buyAndRun(world, 0);
  const hand = async (from: number, to: number) => {
    expect((await ask(world, from, tokenId)).body.ssh.privateKey).toContain("PRIVATE KEY");
    await transfer(chain, agent(from), agent(to).address, tokenId);
    await world.scan();
    await chain.mine(1);
  };
  const rotate = async (index: number) => {
    const { status } = await ask(world, index, tokenId, "/rotate");
    await world.drain();
    return status;
  };
  await hand(0, 1);
  expect(await rotate(1)).toBe(202);
  await hand(1, 0);
  expect(await rotate(0)).toBe(202);
  await hand(0, 2);
  // The buyer's first key is one that its seller knows; the second, of his own, is his as well.
  expect(await rotate(2)).toBe(202);
  expect(await rotate(2)).toBe(429);
  await transfer(chain, agent(2), agent(0).address, tokenId);
  await world.scan();
  await chain.mine(1);
  expect(await rotate(0)).toBe(429);
});

test("a rotation that D1 did not take, and one that nothing runs for, is not counted (hard case 46)", async () => {
  const world = await deploy({ edge: { RATE_LIMITS: "rotations=1/86400" } });
  const tokenId = await buyAndRun(world, 0);
  const answers: unknown[] = [];
  for (let after = 0; answers.at(-1) !== 202; after++) {
    world.weather.set({ kind: "fails", after });
    const { status, body } = await ask(world, 0, tokenId, "/rotate");
    world.weather.set(null);
    answers.push(status === 503 ? body.code : status);
    expect(["database_unavailable", 202]).toContain(answers.at(-1));
  }
  expect(answers.length).toBeGreaterThan(3);
  expect((await ask(world, 0, tokenId, "/rotate")).status).toBe(409);
});

test("an acknowledgement of the old key that comes late does not erase the new one", async () => {
  const world = await deploy();
  const tokenId = await buyAndRun(world, 0);
  await ask(world, 0, tokenId);
  await ask(world, 0, tokenId, "/rotate");
  await world.drain();
  expect(await ask(world, 0, tokenId, "/ack")).toMatchObject({ status: 409, body: { code: "not_delivered" } });
  expect((await ask(world, 0, tokenId)).body.ssh.privateKey).toContain("PRIVATE KEY");
});

test("a machine that the vendor will not reinstall is ended, and another one takes its place", async () => {
  const world = await deploy();
  const tokenId = await buyAndRun(world, 0);
  const before = (await ask(world, 0, tokenId)).body;
  const body = { error: "Reinstalling is not available for this instance.", status: 400 };
  await addFault("vultr", { call: "reinstall", kind: "answer", status: 400, body, times: 1 });
  await ask(world, 0, tokenId, "/rotate");
  await world.drain();
  const after = (await ask(world, 0, tokenId)).body;
  expect(after.host).not.toBe(before.host);
  expect(after.ssh.publicKey).not.toBe(before.ssh.publicKey);
  expect((await attemptsOf(world)).map((row) => row["outcome"])).toEqual(["running", "refused", "running"]);
  expect((await world.machines("vultr")).map(({ id }) => id)).toEqual([(await world.vm(tokenId))?.["instance_id"]]);
});

test.each([
  ["change", "rate_limited"],
  ["change", "error_before"],
  ["reinstall", "error_before"],
  ["reinstall", "timeout_after"],
] as const)(
  "a %s that ends with %s is ordered again: one more attempt in all, on the same machine",
  async (call, kind) => {
    const world = await deploy(IMPATIENT);
    const tokenId = await buyAndRun(world, 0);
    const before = await world.vm(tokenId);
    await addFault("vultr", { call, kind, times: 1 });
    await ask(world, 0, tokenId, "/rotate");
    await world.drain();
    expect(await world.vm(tokenId)).toMatchObject({
      status: "running",
      instance_id: before?.["instance_id"],
      attempt: 2,
    });
    const attempts = await attemptsOf(world);
    expect(attempts).toHaveLength(2);
    const { body } = await ask(world, 0, tokenId);
    expect(body.ssh.privateKey).toContain("PRIVATE KEY");
    expect(await bannerOf(body)).toContain(attempts[1]?.["mark"]);
  },
);

test("while the vendor's key is refused, the rotation waits and the machine is not ended", async () => {
  const world = await deploy();
  const tokenId = await buyAndRun(world, 0);
  const body = { error: "Unauthorized IP address: 203.0.113.9", status: 401 };
  await addFault("vultr", { call: "change", kind: "answer", status: 401, body });
  await ask(world, 0, tokenId, "/rotate");
  await turn(world);
  await turn(world);
  expect(await world.vm(tokenId)).toMatchObject({ status: "provisioning", step: "rotate", attempt: 2 });
  expect(await world.machines("vultr")).toHaveLength(1);
  await clearFaults();
  await world.drain();
  expect(await world.vm(tokenId)).toMatchObject({ status: "running", attempt: 2 });
});

test("a crash between the stored intent and the order to the vendor loses neither machine nor key", async () => {
  const world = await deploy();
  const tokenId = await buyAndRun(world, 0);
  const before = await world.vm(tokenId);
  await ask(world, 0, tokenId, "/rotate");
  const crash = async () => {
    throw new Error("the isolate is gone");
  };
  await expect(async () => turn(world, vultrThat(world, crash))).rejects.toThrow("the isolate is gone");
  expect(await world.vm(tokenId)).toMatchObject({ step: "rotate", attempt: 2 });
  await reap(world.context);
  await heal(world);
  expect(await world.vm(tokenId)).toMatchObject({
    status: "running",
    instance_id: before?.["instance_id"],
    attempt: 2,
  });
  const { body } = await ask(world, 0, tokenId);
  expect(await bannerOf(body)).toContain((await attemptsOf(world))[1]?.["mark"]);
});

test("a machine under rotation is neither ghost nor orphan, whatever it is called at the moment (hard case 12)", async () => {
  const world = await deploy({ provisioner: { ORPHAN_GRACE_SECONDS: "0" } });
  const tokenId = await buyAndRun(world, 0);
  await ask(world, 0, tokenId, "/rotate");
  const { reinstall } = world.context.vendors.vultr;
  const crash = async (...args: Parameters<NonNullable<typeof reinstall>>) => {
    await reinstall?.(...args);
    throw new Error("the isolate is gone");
  };
  await expect(async () => turn(world, vultrThat(world, crash))).rejects.toThrow("the isolate is gone");
  const [machine] = await world.machines("vultr");
  expect(machine?.label).toMatch(/-2$/);
  // The order comes again, under another mark than the machine has.
  await addFault("vultr", { call: "change", kind: "rate_limited" });
  await world.sweep(Date.now() + 400_000);
  await world.sql.prepare("UPDATE vms SET lease = '', lease_until = 0").run();
  await turn(world);
  await passTime(10);
  await forgetLists();
  await reap(world.context);
  expect((await world.machines("vultr")).map(({ id }) => id)).toEqual([machine?.id]);
  await clearFaults();
  await world.drain();
  expect(await world.vm(tokenId)).toMatchObject({ status: "running", instance_id: machine?.id });
});

test("two consumers with the same message order one reinstallation", async () => {
  const world = await deploy();
  const tokenId = await buyAndRun(world, 0);
  const from = Date.now();
  await ask(world, 0, tokenId, "/rotate");
  const job = world.sent.find(({ body }) => body.kind === "advance")?.body;
  if (job?.kind !== "advance") throw new Error("no step is queued");
  await Promise.all([1, 2, 3].map(() => followMachine(world.context, job)));
  await world.drain();
  const orders = (await journal("vultr", from)).filter((call) => call.path.endsWith("/reinstall"));
  expect(orders).toHaveLength(1);
  expect(await world.vm(tokenId)).toMatchObject({ status: "running", attempt: 2 });
});

test("a machine that does not come up after its reinstallation is replaced", async () => {
  const world = await deploy();
  const tokenId = await buyAndRun(world, 0);
  const before = await world.vm(tokenId);
  await addFault("vultr", { call: "reinstall", kind: "never_boots", times: 1 });
  await ask(world, 0, tokenId, "/rotate");
  await world.drainToBoot(tokenId);
  world.passTime(world.provisioner.BOOT_TIMEOUT_SECONDS);
  await world.drain();
  const outcomes = (await attemptsOf(world)).map((row) => row["outcome"]);
  expect([...outcomes.slice(0, 2), outcomes.at(-1)]).toEqual(["running", "boot_timeout", "running"]);
  const after = await world.vm(tokenId);
  expect(after).toMatchObject({ status: "running", attempt: outcomes.length });
  expect(after?.["instance_id"]).not.toBe(before?.["instance_id"]);
  expect(await world.machines("vultr")).toHaveLength(1);
});

test("a machine that is gone when its owner rotates it counts as one that went: only the sweep counted them (hard case 39)", async () => {
  const world = await deploy();
  const tokenId = await buyAndRun(world, 0);
  for (let count = 1; count <= 4; count++) {
    await world.context.vendors.vultr.delete(String((await world.vm(tokenId))?.["instance_id"]));
    await expect.poll(() => world.machines("vultr"), { timeout: PATIENCE_MS }).toEqual([]);
    await chain.mine(1);
    expect(await ask(world, 0, tokenId, "/rotate")).toMatchObject({ status: 202 });
    await world.drain();
    const outcomes = (await attemptsOf(world)).map((row) => row["outcome"]);
    expect(outcomes.filter((outcome) => outcome === "vanished")).toHaveLength(count);
    if (count < 4) expect(await world.vm(tokenId)).toMatchObject({ status: "running" });
  }
  expect(await world.vm(tokenId)).toMatchObject({ status: "failed", failure: "replacements_used_up" });
  expect(await world.machines("vultr")).toEqual([]);
  expect(await world.rows("SELECT state FROM refunds")).toEqual([{ state: "due" }]);
});

test.each([0, 4])("while provisioning is paused a machine of tier %i keeps running as it is", async (tier) => {
  const world = await deploy();
  const { tokenId } = await world.buy(0, tier);
  await world.scan();
  await world.drain();
  await chain.mine(1);
  const before = (await ask(world, 0, tokenId)).body;
  await world.pause("provisioning");
  await ask(world, 0, tokenId, "/rotate");
  await turn(world);
  await turn(world);
  expect(await world.vm(tokenId)).toMatchObject({ step: "rotate", attempt: 1 });
  expect(await bannerOf(before)).toContain((await attemptsOf(world))[0]?.["mark"]);
  await world.liftPauses();
  await world.drain();
  expect(await world.vm(tokenId)).toMatchObject({ status: "running", attempt: 2 });
});

test("a rotation that can't be had by its deadline ends in a refund of the time that is left, not of the price", async () => {
  const world = await deploy();
  const tokenId = await buyAndRun(world, 0);
  await addFault("vultr", { call: "change", kind: "error_before" });
  await addFault("vultr", { call: "create", kind: "sold_out" });
  await ask(world, 0, tokenId, "/rotate");
  await turn(world);
  // Half of the paid day passes.
  await world.sql.prepare("UPDATE cursors SET block_timestamp = block_timestamp + 43200").run();
  await world.drain();
  expect(await world.vm(tokenId)).toMatchObject({ status: "failed", failure: "no_machine_in_time" });
  expect(await world.machines("vultr")).toEqual([]);
  const [refund] = await world.rows("SELECT state, amount FROM refunds");
  expect(refund?.["state"]).toBe("due");
  expect(Math.abs(Number(refund?.["amount"]) - 250_000)).toBeLessThan(500);
  expect(await ask(world, 0, tokenId)).toMatchObject({ status: 404, body: { code: "vm_failed" } });
});

/** A token's time runs out, as the scan sees, while its machine is being reinstalled. */
async function runOutWhileRotating() {
  const world = await deploy();
  const tokenId = await buyAndRun(world, 0);
  await addFault("vultr", { call: "reinstall", kind: "never_boots" });
  await ask(world, 0, tokenId, "/rotate");
  await world.drain(async () => (await world.vm(tokenId))?.["step"] === "boot");
  await passTime(DAY + 10);
  await world.scan();
  return { world, tokenId };
}

test("a token whose time ends while its machine is replaced was served: it ends without a refund", async () => {
  const { world, tokenId } = await runOutWhileRotating();
  world.sent.length = 0;
  await world.sweep();
  expect(await world.vm(tokenId)).toMatchObject({ status: "expired", step: "prove" });
  await world.drain();
  expect(await world.vm(tokenId)).toMatchObject({ status: "terminated" });
  expect(await world.machines("vultr")).toEqual([]);
  expect(await world.rows("SELECT * FROM refunds")).toEqual([]);
});

test("nor is one called failed whose deadline and time run out together, before any sweep", async () => {
  const { world, tokenId } = await runOutWhileRotating();
  await world.drain();
  expect(await world.vm(tokenId)).toMatchObject({ status: "terminated", failure: null });
  expect(await world.machines("vultr")).toEqual([]);
  expect(await world.rows("SELECT * FROM refunds")).toEqual([]);
});

test("a rotation makes no purchase late, and none look as if it had waited since it was bought (hard case 14)", async () => {
  const world = await deploy({ provisioner: { LATE_AFTER_SECONDS: "60", LATE_REFUNDS: "pay" } });
  const tokenId = await buyAndRun(world, 0);
  const before = await world.vm(tokenId);
  await world.sql.prepare("UPDATE cursors SET block_timestamp = block_timestamp + 3000").run();
  await ask(world, 0, tokenId, "/rotate");
  const health = (await (await world.request("/health")).json()) as { checks: { provisioning: object } };
  expect(health.checks.provisioning).toEqual({ pending: 1, oldestSeconds: 0, paused: false });
  await world.drain();
  expect(await world.vm(tokenId)).toMatchObject({ running_at: before?.["running_at"], late_seconds: null });
  expect(await world.rows("SELECT * FROM refunds")).toEqual([]);
});

test("once a machine runs its host key is no more in what the vendor stores, also where that took several tries (hard case 15)", async () => {
  const world = await deploy();
  const from = Date.now();
  await addFault("vultr", { call: "change", kind: "error_before", times: 2 });
  const tokenId = await buyAndRun(world, 0);
  expect(await world.vm(tokenId)).toMatchObject({ status: "running", step: "idle", wake_at: null });
  const changes = (await journal("vultr", from)).filter((call) => call.method === "PATCH");
  expect(changes.map(({ status }) => status)).toEqual([500, 500, 202]);
  expect(Object.keys(changes[2]?.requestBody ?? {})).toEqual(["user_data"]);
  expect(atob(changes[2]?.requestBody["user_data"])).not.toMatch(/PRIVATE|ssh_keys|ssh-/);
});

test("a crash between publication and scrub is healed by the sweep; meanwhile the owner has the machine", async () => {
  const world = await deploy();
  const from = Date.now();
  await addFault("vultr", { call: "change", kind: "error_before" });
  const { tokenId } = await world.buy(0);
  await world.scan();
  await world.drain(async () => (await world.vm(tokenId))?.["step"] === "scrub");
  await chain.mine(1);
  expect((await ask(world, 0, tokenId)).body.ssh.privateKey).toContain("PRIVATE KEY");
  await clearFaults();
  await heal(world);
  expect(await world.vm(tokenId)).toMatchObject({ status: "running", step: "idle" });
  expect((await journal("vultr", from)).at(-1)).toMatchObject({ method: "PATCH", status: 202 });
});
