// Machines at the vendors held against our rows: what the sweep ends, replaces, follows, and leaves alone (hard case 13).
import { expect, test } from "vitest";
import { generateHostKey } from "../../../../src/credentials/ssh-keys.ts";
import { vms } from "../../../../src/db/schema.ts";
import { isJob } from "../../../../src/model/jobs.ts";
import type { VendorName } from "../../../../src/model/stock.ts";
import { reap, turnOf } from "../../../../src/provisioner/machines/reap.ts";
import { machineRow } from "../../../rows.ts";
import { type Credentials, freshHeaders } from "../../../world/agent.ts";
import { agent, chain } from "../../chain.ts";
import { buyAndRun, type Deployment, deploy } from "../../deployment.ts";
import { operator } from "../../edge/routes/admin/operator.ts";
import { addFault, addRpcFault } from "../../faults.ts";
import { takePages } from "../../paged.ts";
import { unlocked } from "../../parts.ts";
import { forgetLists } from "../../vendors.ts";

const HOUR_MS = 3_600_000;
const NO_TOKEN = 900_000_000;
const SECONDS_PER_DAY = 86_400;
const NO_GRACE = { provisioner: { ORPHAN_GRACE_SECONDS: "0" } };

/** A machine that nobody ordered for us. */
async function stray(world: Deployment, label: string): Promise<string> {
  const vendor = world.context.vendors.vultr;
  const spec = { label, mark: "0123456789abcdef", region: "ewr", plan: "vc2-1c-1gb", publicKey: "ssh-ed25519 AAAA" };
  return (await vendor.create({ ...spec, hostKey: generateHostKey(), ports: [], note: "" }, await vendor.prepare()))
    .instanceId;
}
const labelOf = (world: Deployment, tokenId: number, hash = "abcdef01") =>
  `clawcloud-${world.edge.DEPLOYMENT_ID}-${tokenId}-${hash}-0-1`;
const exists = async (world: Deployment, vendor: VendorName, id: string) =>
  (await world.context.vendors[vendor].get(id)) !== null;
async function passTime(seconds: number) {
  await chain.node.increaseTime({ seconds });
  await chain.mine(4);
}
/** A new machine is locked for a moment, and the gate's last list is as old as the next look at the vendor. */
async function settle() {
  await unlocked();
  await forgetLists();
}
/** The machine is gone, and its vendor says so. */
const lose = async (world: Deployment, tokenId: number) => {
  const id = String((await world.vm(tokenId))?.["instance_id"]);
  await world.context.vendors.vultr.delete(id);
  await settle();
  return id;
};

test("a running machine that its vendor knows no more is replaced; its owner gets a key of the new one", async () => {
  const world = await deploy();
  const tokenId = await buyAndRun(world, 0);
  const ask = async () => {
    const headers = await freshHeaders("https://api.example", agent(0), tokenId);
    return (await (await world.request(`/credentials/${tokenId}`, { headers })).json()) as Credentials;
  };
  const before = await ask();
  const first = await world.vm(tokenId);
  await lose(world, tokenId);
  await reap(world.context);
  expect(await world.vm(tokenId)).toMatchObject({
    status: "provisioning",
    step: "create",
    instance_id: null,
    ssh_private_key: null,
    delivered_at: null,
  });
  await world.drain();
  const after = await ask();
  expect(after.ssh.privateKey).toContain("PRIVATE KEY");
  expect(after.ssh.publicKey).not.toBe(before.ssh.publicKey);
  expect(after.ssh.knownToFormerOwner).toBe(false);
  expect(await world.rows("SELECT outcome FROM attempts ORDER BY number")).toEqual([
    { outcome: "vanished" },
    { outcome: "running" },
  ]);
  expect(await world.vm(tokenId)).toMatchObject({ running_at: first?.["running_at"], late_seconds: null });
});

test("a machine that no list shows is not replaced while its vendor, asked by its id, knows it or does not answer", async () => {
  const world = await deploy();
  const tokenId = await buyAndRun(world, 0);
  await settle();
  await addFault("vultr", { call: "list", kind: "lagging_list", ms: HOUR_MS });
  await reap(world.context);
  expect(await world.vm(tokenId)).toMatchObject({ status: "running" });
  await settle();
  await addFault("vultr", { call: "get", kind: "error_before" });
  await reap(world.context);
  expect(await world.vm(tokenId)).toMatchObject({ status: "running" });
});

/** Rows like a running one's whose machines the vendor knows no more; each of another owner, or of one. */
async function lostRows(world: Deployment, tokenId: number, count: number, owners: "one" | "many" = "one") {
  const running = (await world.vm(tokenId)) ?? {};
  const copies = Array.from({ length: count }, (_, i) =>
    machineRow({
      incarnation: running["incarnation"].replace(/0$/, String(i + 1)),
      tokenId: 1_000_001 + i,
      owner: owners === "many" ? `0x${i}` : running["owner"],
      txHash: running["tx_hash"],
      blockNumber: running["block_number"],
      createdAt: running["created_at"],
      status: "running",
      step: "idle",
      provider: "vultr",
      instanceId: `gone-${i}`,
    }),
  );
  await world.insert(vms, ...copies);
}
const replaced = async (world: Deployment) =>
  (await world.rows("SELECT count(*) AS n FROM vms WHERE status = 'provisioning'"))[0]?.["n"];

test("a tenant who ends his own machines holds nobody's replacement up: so many are replaced with each turn (hard case 39)", async () => {
  const world = await deploy();
  const tokenId = await buyAndRun(world, 0);
  await lostRows(world, tokenId, 5);
  await settle();
  await takePages();
  await reap(world.context);
  expect(await replaced(world)).toBe(3);
  expect((await takePages()).pages).toEqual([]);
  await settle();
  await reap(world.context);
  expect(await replaced(world)).toBe(5);
  expect(await world.vm(tokenId)).toMatchObject({ status: "running" });
});

test("machines of many owners that are gone at once are replaced as well, and a person is called until they are", async () => {
  const world = await deploy();
  const tokenId = await buyAndRun(world, 0);
  await lostRows(world, tokenId, 5, "many");
  await settle();
  await takePages();
  await reap(world.context);
  expect(await replaced(world)).toBe(3);
  expect((await takePages()).pages).toEqual(["machines_missing vultr"]);
  await settle();
  await reap(world.context);
  expect(await replaced(world)).toBe(5);
  expect(await takePages()).toMatchObject({
    pages: [],
    cleared: expect.arrayContaining(["machines_missing vultr", "account_without_machines vultr"]),
  });
});

test("every part has its turn, whatever the time between turns: of two parts, turns a minute apart met the same one for ever", () => {
  const machines = Array.from({ length: 1_700 }, (_, i) => i);
  const met = new Set<number>();
  for (let turn = 0; turn < 60; turn++) {
    const part = turnOf(machines, 1_000);
    expect(part.length).toBeLessThanOrEqual(1_000);
    for (const one of part) met.add(one);
  }
  expect(met.size).toBe(1_700);
  expect(turnOf([1, 2, 3], 20)).toEqual([1, 2, 3]);
});

test("stopped pods of one person call somebody once, not each hour until they expire (hard case 40)", async () => {
  const world = await deploy();
  for (const index of [0, 1, 2, 3]) await buyAndRun(world, index);
  const answer = await fetch(`${world.provisioner.VULTR_API_URL}/instances?per_page=500`, {
    headers: { authorization: `Bearer ${world.provisioner.VULTR_API_KEY}` },
  });
  const list = (await answer.json()) as { instances: { status: string }[] };
  for (const instance of list.instances) instance.status = "suspended";
  await addFault("vultr", { call: "list", kind: "answer", status: 200, body: list });
  const turn = async () => {
    await settle();
    await takePages();
    await reap(world.context);
    return takePages();
  };
  expect((await turn()).pages).toEqual(["machines_missing vultr"]);
  expect(await turn()).toMatchObject({ pages: [], cleared: expect.arrayContaining(["machines_missing vultr"]) });
});

test("an account that shows none of more than twenty machines is another account: none is replaced (hard case 13)", async () => {
  const world = await deploy();
  const tokenId = await buyAndRun(world, 0);
  await lostRows(world, tokenId, 20, "many");
  await world.context.vendors.vultr.delete(String((await world.vm(tokenId))?.["instance_id"]));
  await settle();
  await takePages();
  await reap(world.context);
  expect(await replaced(world)).toBe(0);
  expect((await takePages()).pages).toEqual(["account_without_machines vultr"]);
  // One of ours is enough to know it by.
  await world.sql.prepare("DELETE FROM vms WHERE token_id = ?").bind(tokenId).run();
  await buyAndRun(world, 1);
  await settle();
  // The looks of the turn before have used up the vendor's rate.
  await reap({ ...world.context, now: () => Date.now() + 5_000 });
  expect(await replaced(world)).toBe(3);
});

test("a tenant who ends his own machine gets three others, then the rest of the price for what was not served (hard case 39)", async () => {
  const world = await deploy();
  const tokenId = await buyAndRun(world, 0);
  await takePages();
  for (let count = 0; count < 3; count++) {
    await lose(world, tokenId);
    await reap(world.context);
    await world.drain();
    expect(await world.vm(tokenId)).toMatchObject({ status: "running", attempt: count + 2 });
  }
  // Half of the paid day is over.
  await world.sql.prepare("UPDATE cursors SET block_timestamp = block_timestamp + 43200").run();
  await lose(world, tokenId);
  await reap(world.context);
  await world.drain();
  expect(await world.vm(tokenId)).toMatchObject({ status: "failed", failure: "replacements_used_up", attempt: 4 });
  expect(await world.machines("vultr")).toEqual([]);
  const [refund] = await world.rows("SELECT state, kind, amount FROM refunds");
  expect(refund).toMatchObject({ state: "due", kind: "failed" });
  expect(Math.abs(Number(refund?.["amount"]) - 250_000)).toBeLessThan(500);
  const { refund: told } = (await (await world.request(`/status/${tokenId}`)).json()) as { refund?: object };
  expect(told).toMatchObject({ state: "due" });
  expect((await takePages()).pages).toEqual([]);

  // An operator may give it another one: then the count begins anew.
  const ask = operator(world, await world.operatorKey());
  const [failure] = await world.rows("SELECT id FROM failed_provisionings");
  expect((await ask("POST", `/admin/failed-provisionings/${failure?.["id"]}/retry`)).status).toBe(202);
  await world.drain();
  expect(await world.vm(tokenId)).toMatchObject({ status: "running", attempt: 5 });
});

test("a machine of no attempt ends once final history, past its grace, knows no such token (hard case 13)", async () => {
  // Other tests may have sent the chain's clock ahead of ours.
  const ahead = Math.max(0, Number((await chain.reader.getBlock()).timestamp) - Math.floor(Date.now() / 1_000));
  const world = await deploy({ provisioner: { ORPHAN_GRACE_SECONDS: String(ahead + 3_600) } });
  const later = () => reap({ ...world.context, now: () => Date.now() + (ahead + 7_200) * 1_000 });
  const orphan = await stray(world, labelOf(world, NO_TOKEN));
  await settle();
  await reap(world.context);
  expect(await exists(world, "vultr", orphan)).toBe(true);
  // By our clock the grace is over; the chain has not got there.
  await passTime(1);
  await later();
  expect(await exists(world, "vultr", orphan)).toBe(true);
  await passTime(7_200);
  await later();
  expect(await exists(world, "vultr", orphan)).toBe(false);
});

test("a machine of no attempt does not end while its token is valid; after the paid time it does (hard case 13)", async () => {
  const world = await deploy(NO_GRACE);
  const { tokenId } = await world.buy(0);
  // Our database has lost the purchase, and the one who paid may be logged in.
  const orphan = await stray(world, labelOf(world, tokenId));
  await passTime(60);
  await settle();
  await reap(world.context);
  expect(await exists(world, "vultr", orphan)).toBe(true);
  await passTime(SECONDS_PER_DAY);
  await settle();
  await reap(world.context);
  expect(await exists(world, "vultr", orphan)).toBe(false);
});

test("with a grace for renewals, a token that is over proves nothing without the row that says since when", async () => {
  const grace = { EXPIRY_GRACE_SECONDS: "7200" };
  const world = await deploy({ edge: grace, provisioner: { ...grace, ORPHAN_GRACE_SECONDS: "0" } });
  const { tokenId } = await world.buy(0);
  const orphan = await stray(world, labelOf(world, tokenId));
  await passTime(SECONDS_PER_DAY + 60);
  await settle();
  await reap(world.context);
  await world.scan();
  await settle();
  await reap(world.context);
  expect(await exists(world, "vultr", orphan)).toBe(true);
  await passTime(7_200);
  await settle();
  await reap(world.context);
  expect(await exists(world, "vultr", orphan)).toBe(false);
});

test("a machine of another purchase of a token ends once the one that holds it is final (hard case 5)", async () => {
  const world = await deploy(NO_GRACE);
  const tokenId = await buyAndRun(world, 0);
  const row = await world.vm(tokenId);
  const older = await stray(world, labelOf(world, tokenId, "00000000"));
  const own = await stray(world, labelOf(world, tokenId, String(row?.["tx_hash"]).slice(2, 10)).replace(/1$/, "9"));
  await passTime(60);
  await settle();
  await reap(world.context);
  expect(await exists(world, "vultr", older)).toBe(false);
  // The holder's own, under a number that we don't know: the database may have been restored.
  expect(await exists(world, "vultr", own)).toBe(true);
  expect(await world.vm(tokenId)).toMatchObject({ status: "running", instance_id: row?.["instance_id"] });
  await world.context.vendors.vultr.delete(own);
});

test("nothing ends under another name than ours, nor while the chain can't be asked", async () => {
  const world = await deploy(NO_GRACE);
  const { DEPLOYMENT_ID } = world.edge;
  const names = ["web-1", `clawcloud-${DEPLOYMENT_ID}-2-900000000-abcdef01-0-1`, `clawcloud-${DEPLOYMENT_ID}-backup`];
  const strangers = [];
  for (const name of names) strangers.push(await stray(world, name));
  await passTime(60);
  await settle();
  await reap(world.context);
  for (const id of strangers) expect(await exists(world, "vultr", id)).toBe(true);

  const orphan = await stray(world, labelOf(world, NO_TOKEN));
  await passTime(60);
  await settle();
  await addRpcFault({ kind: "down" });
  const chainDown = { ...world.context.chain, nodes: world.context.chain.nodes.slice(0, 1) };
  await reap({ ...world.context, chain: chainDown });
  expect(await exists(world, "vultr", orphan)).toBe(true);
  for (const id of [...strangers, orphan]) await world.context.vendors.vultr.delete(id);
});

test("more orphans than looks right end none, and nobody's machine with them (hard case 13)", async () => {
  const world = await deploy(NO_GRACE);
  const orphans = [];
  for (let count = 0; count < 4; count++) orphans.push(await stray(world, labelOf(world, NO_TOKEN + count)));
  await passTime(60);
  await settle();
  await reap(world.context);
  for (const id of orphans) expect(await exists(world, "vultr", id)).toBe(true);
  await world.context.vendors.vultr.delete(orphans[0] ?? "");
  await settle();
  await reap(world.context);
  for (const id of orphans) expect(await exists(world, "vultr", id)).toBe(false);
});

test("a machine that comes back after the vendor had called it gone is ended as a ghost", async () => {
  const world = await deploy();
  const tokenId = await buyAndRun(world, 0);
  const ghost = String((await world.vm(tokenId))?.["instance_id"]);
  await addFault("vultr", { call: "list", kind: "lagging_list", ms: HOUR_MS, times: 1 });
  const body = { error: "Invalid instance.", status: 404 };
  await addFault("vultr", { call: "get", kind: "answer", status: 404, body, times: 1 });
  await settle();
  await reap(world.context);
  await world.drain();
  expect(await world.machines("vultr")).toHaveLength(2);
  await settle();
  await reap(world.context);
  expect((await world.machines("vultr")).map(({ id }) => id)).toEqual([(await world.vm(tokenId))?.["instance_id"]]);
  expect(await exists(world, "vultr", ghost)).toBe(false);
});

test.each([
  [{ kind: "reap" }, true],
  [{ kind: "reap", vendor: "vultr", after: "a" }, true],
  [{ kind: "reap", vendor: "vultr" }, false],
  [{ kind: "reap", vendor: "aws", after: "a" }, false],
  [{ kind: "reap", after: "a" }, false],
])("%j is a job: %s", (body, expected) => {
  expect(isJob(body)).toBe(expected);
});
