import { beforeEach, expect, test } from "vitest";
import { followMachine } from "../../../../../src/provisioner/machines/run.ts";
import { buy, fixedHeaders } from "../../../../world/agent.ts";
import { agent, chain } from "../../../chain.ts";
import { buyAndRun, type Deployment, deploy } from "../../../deployment.ts";
import { addFault, clearFaults } from "../../../faults.ts";
import { type Operator, operator } from "./operator.ts";

let world: Deployment;
let ask: Operator;
beforeEach(async () => {
  world = await deploy();
  ask = operator(world, await world.operatorKey());
});
type Vms = { vms: { tokenId: number; status: string }[]; nextCursor?: string };

test("VMs by status, newest first, in pages", async () => {
  const running = await buyAndRun(world, 0);
  const first = (await buy(chain, agent(0), 0, 1)).tokenId;
  const second = (await buy(chain, agent(0), 0, 1)).tokenId;
  await world.scan();
  const ids = async (query: string) =>
    (await ask<Vms>("GET", `/admin/vms${query}`)).body.vms.map(({ tokenId }) => tokenId);
  expect(await ids("")).toEqual([second, first, running]);
  expect(await ids("?status=running")).toEqual([running]);
  expect(await ids("?status=failed")).toEqual([]);
  const page = await ask<Vms>("GET", "/admin/vms?limit=2");
  expect(page.body.nextCursor).toBe(String(first));
  expect(await ids(`?limit=2&cursor=${page.body.nextCursor}`)).toEqual([running]);
  expect((await ask("GET", "/admin/vms?status=nonsense")).status).toBe(400);
});

test("an operator ends a running VM: the machine is gone, the key erased, the owner told", async () => {
  const tokenId = await buyAndRun(world, 0);
  expect(await world.machines("vultr")).toHaveLength(1);
  expect((await ask("POST", `/admin/vms/${tokenId}/terminate`, { reason: "abuse" })).status).toBe(202);
  await world.drain();
  expect(await world.machines("vultr")).toEqual([]);
  expect(await world.vm(tokenId)).toMatchObject({ status: "terminated", ssh_private_key: null });
  const answer = await world.request(`/credentials/${tokenId}`, { headers: await fixedHeaders(agent(0), tokenId) });
  expect(await answer.json()).toMatchObject({ code: "vm_terminated" });
  expect(await ask("POST", `/admin/vms/${tokenId}/terminate`, { reason: "again" })).toMatchObject({
    status: 409,
    body: { code: "nothing_to_end" },
  });
});

test("an operator ends a VM that is still being made, and no machine is left over", async () => {
  const { tokenId } = await buy(chain, agent(0), 0, 1);
  await world.scan();
  await world.drain(async () => (await world.machines("vultr")).length > 0);
  expect((await ask("POST", `/admin/vms/${tokenId}/terminate`, { reason: "mistake" })).status).toBe(202);
  await world.drain();
  expect(await world.vm(tokenId)).toMatchObject({ status: "terminated" });
  expect(await world.machines("vultr")).toEqual([]);
});

test("a failed purchase goes back to work with a new deadline, once", async () => {
  await addFault("vultr", { call: "create", kind: "sold_out" });
  const { tokenId } = await buy(chain, agent(0), 0, 1);
  await world.scan();
  await world.sql.prepare("UPDATE vms SET deadline = 1").run();
  await world.drain();
  expect(await world.vm(tokenId)).toMatchObject({ status: "failed", failure: "no_machine_in_time" });
  type Failures = { failures: { id: number; tokenId: number; cause: string; resolvedAt: string | null }[] };
  const { body } = await ask<Failures>("GET", "/admin/failed-provisionings");
  expect(body.failures).toMatchObject([{ tokenId, cause: "no_machine_in_time", resolvedAt: null }]);
  await clearFaults();
  const id = body.failures[0]?.id;
  expect(await ask("POST", `/admin/failed-provisionings/${id}/retry`)).toMatchObject({ status: 202 });
  expect(await ask("POST", `/admin/failed-provisionings/${id}/retry`)).toMatchObject({
    status: 409,
    body: { code: "not_retryable" },
  });
  await world.drain();
  // Its end is watched again.
  const { expires_at, ...row } = (await world.vm(tokenId)) ?? {};
  expect(row).toMatchObject({ status: "running", failure: null, check_at: expires_at });
  expect((await ask<Failures>("GET", "/admin/failed-provisionings")).body.failures).toEqual([]);
  const settled = await ask<Failures>("GET", "/admin/failed-provisionings?settled=true");
  expect(settled.body.failures).toMatchObject([{ tokenId, resolvedAt: expect.any(String) }]);
  expect((await ask("POST", "/admin/failed-provisionings/999/retry")).status).toBe(404);
});

test("while provisioning is paused nothing is ordered, and resuming gives the time back", async () => {
  expect((await ask("PUT", "/admin/pauses/provisioning", { reason: "vendor incident" })).status).toBe(200);
  const { tokenId } = await buy(chain, agent(0), 0, 1);
  await world.scan();
  const before = Number((await world.vm(tokenId))?.["deadline"]);
  const [job] = world.sent;
  if (job?.body.kind !== "advance") throw new Error("nothing was queued");
  world.sent.length = 0;
  await followMachine(world.context, job.body);
  expect(await world.machines("vultr")).toEqual([]);
  expect(world.sent).toMatchObject([{ delaySeconds: 15 }]);
  expect(await ask("GET", "/admin/pauses")).toMatchObject({
    body: { pauses: [{ what: "provisioning", reason: "vendor incident", by: expect.stringMatching(/^key_/) }] },
  });
  await world.sql.prepare("UPDATE pauses SET since = since - 100000").run();
  await world.sql.prepare("UPDATE purchases SET seen_at = seen_at - 100000").run();
  expect(await ask("DELETE", "/admin/pauses/provisioning")).toMatchObject({ status: 200, body: { pauses: [] } });
  expect(Number((await world.vm(tokenId))?.["deadline"]) - before).toBeOneOf([100, 101, 102]);
  await world.drain();
  expect(await world.vm(tokenId)).toMatchObject({ status: "running" });
});

test("a range that the scan has passed is read again from every node", async () => {
  const from = Number(await chain.reader.getBlockNumber());
  const { tokenId, blockNumber } = await buy(chain, agent(0), 0, 1);
  await world.scan();
  await world.sql.prepare("DELETE FROM vms").run();
  await world.sql.prepare("DELETE FROM purchases").run();
  const scanned = await ask<{ queued: number }>("POST", "/admin/scan", { fromBlock: from, toBlock: blockNumber });
  expect(scanned).toMatchObject({ status: 200, body: { fromBlock: from, queued: 1 } });
  expect(await world.vm(tokenId)).toMatchObject({ status: "provisioning" });
  expect((await ask("POST", "/admin/scan", { fromBlock: 5, toBlock: 4 })).status).toBe(400);
  expect((await ask("POST", "/admin/scan", { fromBlock: 10 ** 9, toBlock: 10 ** 9 + 1 })).status).toBe(400);
});
