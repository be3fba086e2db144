// What a lost or restored database, and a purchase that vanishes at a bad moment, must not cost anybody.
import { expect, test } from "vitest";
import { startCursor } from "../../../src/edge/scan.ts";
import { reap } from "../../../src/provisioner/machines/reap.ts";
import { followMachine } from "../../../src/provisioner/machines/run.ts";
import { buy } from "../../world/agent.ts";
import { agent, chain } from "../chain.ts";
import { deploy } from "../deployment.ts";
import { addFault, clearFaults } from "../faults.ts";
import { forgetLists, IMPATIENT } from "../vendors.ts";

test("a database that was emptied ends nobody's machine: the next order takes a number of its own (hard case 13)", async () => {
  const world = await deploy();
  const { tokenId } = await buy(chain, agent(0), 0, 1);
  await world.scan();
  await world.drain();
  const [customer] = await world.machines("vultr");
  for (const table of ["vms", "attempts", "purchases", "transfers", "cursors"])
    await world.sql.prepare(`DELETE FROM ${table}`).run();
  const context = await world.scanContext();
  await startCursor(context);
  await world.scan();
  // The vendors' gate remembers its last list for a few seconds; a restore takes longer than that.
  await forgetLists();
  await world.drain();
  await reap(world.context);
  expect(await world.vm(tokenId)).toMatchObject({ status: "running", attempt: 2 });
  const machines = await world.machines("vultr");
  expect(machines.map((machine) => machine.id)).toContain(customer?.id);
  expect(machines).toHaveLength(2);
});

test("an order whose answer is still out when its purchase is replaced is found and ended (hard cases 5 and 9)", async () => {
  const world = await deploy(IMPATIENT);
  const snapshot = await chain.node.snapshot();
  await addFault("vultr", { call: "create", kind: "timeout_after", times: 1 });
  const alices = await buy(chain, agent(0), 0, 1);
  await world.scan();
  await world.drain(async () => (await world.vm(alices.tokenId))?.["step"] === "find");
  world.sent.length = 0;
  expect(await world.machines("vultr")).toHaveLength(1);
  await clearFaults();
  await chain.node.revert({ id: snapshot });
  const bobs = await buy(chain, agent(1), 4, 1);
  await chain.mine(4);
  await world.scan();
  await world.drain();
  expect(bobs.tokenId).toBe(alices.tokenId);
  expect(await world.machines("vultr")).toEqual([]);
  expect(await world.machines("runpod")).toHaveLength(1);
  const [old] = await world.rows(
    "SELECT status, private_key, gone_at FROM vms JOIN attempts USING (incarnation) WHERE current = 0",
  );
  expect(old).toMatchObject({ status: "terminated", private_key: null, gone_at: expect.any(Number) });
});

test("an attempt that a crash left open is resolved before anything else is ordered", async () => {
  const world = await deploy(IMPATIENT);
  await addFault("vultr", { call: "create", kind: "timeout_after", times: 1 });
  const { tokenId } = await buy(chain, agent(0), 0, 1);
  await world.scan();
  await world.drain(async () => (await world.vm(tokenId))?.["step"] === "find");
  // As if a reorg had sent the row back to its start meanwhile.
  await world.sql.prepare("UPDATE vms SET step = 'create'").run();
  await world.drain();
  expect(await world.vm(tokenId)).toMatchObject({ status: "running", attempt: 1 });
  expect(await world.machines("vultr")).toHaveLength(1);
});

test("a RunPod address that moved is taken over by the next look at the vendor (hard case 10)", async () => {
  const world = await deploy();
  const { tokenId } = await buy(chain, agent(0), 4, 1);
  await world.scan();
  await world.drain();
  const before = await world.vm(tokenId);
  await world.sql.prepare("UPDATE vms SET ssh_host = '198.51.100.1', ssh_port = 9").run();
  await forgetLists();
  await reap(world.context);
  expect(await world.vm(tokenId)).toMatchObject({
    ssh_host: before?.["ssh_host"],
    ssh_port: before?.["ssh_port"],
    status: "running",
  });
});

test("an imported machine, known by its instance id alone, is followed where its address moves", async () => {
  const world = await deploy();
  const { tokenId } = await buy(chain, agent(0), 4, 1);
  await world.scan();
  await world.drain();
  const before = await world.vm(tokenId);
  // The old backend's name for it: no label and no mark of ours.
  const renamed = await fetch(`${world.provisioner.RUNPOD_API_URL}/v2/pods/${before?.["instance_id"]}`, {
    method: "PATCH",
    headers: { authorization: `Bearer ${world.provisioner.RUNPOD_API_KEY}`, "content-type": "application/json" },
    body: JSON.stringify({ name: "old-backend-42" }),
  });
  expect(renamed.status).toBe(200);
  await world.sql.prepare("UPDATE attempts SET label = 'imported-42', mark = ''").run();
  await world.sql.prepare("UPDATE vms SET ssh_host = '198.51.100.1', ssh_port = 9").run();
  await forgetLists();
  await reap(world.context);
  expect(await world.vm(tokenId)).toMatchObject({ ssh_host: before?.["ssh_host"], ssh_port: before?.["ssh_port"] });
});

test("a machine whose purchase a forged row claims to be at its end still needs the proof (hard case 13)", async () => {
  const world = await deploy();
  const { tokenId } = await buy(chain, agent(0), 0, 1);
  await world.scan();
  await world.drain();
  await chain.mine(4);
  await world.sql.prepare("UPDATE vms SET step = 'retire', generation = generation + 1").run();
  const row = await world.vm(tokenId);
  await followMachine(world.context, {
    kind: "advance",
    incarnation: String(row?.["incarnation"]),
    generation: Number(row?.["generation"]),
  });
  expect(await world.vm(tokenId)).toMatchObject({ status: "running", step: "idle" });
  expect(await world.machines("vultr")).toHaveLength(1);
});
