import { runInDurableObject } from "cloudflare:test";
import { parseAbi } from "viem";
import { expect, test } from "vitest";
import { followMachine } from "../../../../src/provisioner/machines/run.ts";
import { CONTRACT_ADDRESS, USDC_ADDRESS } from "../../../world/addresses.ts";
import { buy, fixedHeaders } from "../../../world/agent.ts";
import { agent, chain, deployer } from "../../chain.ts";
import { type Deployment, deploy } from "../../deployment.ts";
import { addFault, addRpcFault, clearRpcFaults } from "../../faults.ts";
import { vendorGate } from "../../vendors.ts";

const DAY = 86_400;
const abi = parseAbi([
  "function setOptions(bool renew, bool terminate)",
  "function renewVM(uint256 tokenId, uint16 additionalDays)",
  "function terminateVM(uint256 tokenId)",
  "function approve(address spender, uint256 amount)",
]);
const contract = { address: CONTRACT_ADDRESS, abi } as const;

async function running(world: Deployment, index = 0, tier = 0) {
  const { tokenId } = await buy(chain, agent(index), tier, 1);
  await world.scan();
  await world.drain();
  expect(await world.vm(tokenId)).toMatchObject({ status: "running" });
  return tokenId;
}

/** Lets chain time pass, and final history with it. */
async function passTime(seconds: number) {
  await chain.node.increaseTime({ seconds });
  await chain.mine(4);
}

const code = async (response: Response) => [response.status, ((await response.json()) as { code?: string }).code];

test("the end of the paid time ends the machine at the vendor: expired, then terminated (hard case 13)", async () => {
  const world = await deploy();
  const tokenId = await running(world);
  await passTime(DAY + 10);
  await world.scan();
  await world.sweep();
  expect(await world.vm(tokenId)).toMatchObject({ status: "expired", step: "prove" });
  const refused = await world.request(`/credentials/${tokenId}`, { headers: await fixedHeaders(agent(0), tokenId) });
  expect(await code(refused)).toEqual([403, "token_expired"]);

  await world.drain();
  expect(await world.vm(tokenId)).toMatchObject({
    status: "terminated",
    step: "idle",
    wake_at: null,
    ssh_private_key: null,
  });
  expect(await world.machines("vultr")).toEqual([]);
  const gone = await world.request(`/credentials/${tokenId}`, { headers: await fixedHeaders(agent(0), tokenId) });
  expect(await code(gone)).toEqual([404, "vm_terminated"]);
});

test("the last permit of a vendor's rate ends a machine: machines that ended at once took it from each other's looks, and none was seen gone", async () => {
  const world = await deploy();
  const tokenId = await running(world);
  await passTime(DAY + 10);
  await world.scan();
  await world.sweep();
  const [job] = world.sent.splice(0);
  // One permit, and no other for a minute.
  await runInDurableObject(vendorGate("vultr"), (_, { storage }) =>
    storage.kv.put("bucket", { tokens: 1, at: Date.now() + 60_000, closedUntil: 0 }),
  );
  if (job !== undefined) await world.run(job.body);
  expect(await world.vm(tokenId)).toMatchObject({ status: "terminated" });
});

test("an imported machine, known by its instance id alone, ends with its paid time", async () => {
  const world = await deploy();
  const tokenId = await running(world);
  await world.sql.prepare("UPDATE attempts SET label = 'imported-42', mark = '', region = 'imported'").run();
  await passTime(DAY + 10);
  await world.scan();
  await world.sweep();
  await world.drain();
  expect(await world.vm(tokenId)).toMatchObject({ status: "terminated" });
  expect(await world.machines("vultr")).toEqual([]);
});

test("our clock may run for days: while the chain stands still nothing expires (hard case 26)", async () => {
  const world = await deploy();
  const tokenId = await running(world);
  await world.sweep(Date.now() + 10 * DAY * 1_000);
  expect(await world.vm(tokenId)).toMatchObject({ status: "running" });
  expect(world.sent.filter(({ body }) => body.kind === "advance")).toEqual([]);
});

test("a grace keeps the machine for as long after the paid time", async () => {
  const grace = { EXPIRY_GRACE_SECONDS: "3600" };
  const world = await deploy({ edge: grace, provisioner: grace });
  const tokenId = await running(world);
  await passTime(DAY + 600);
  await world.scan();
  await world.sweep();
  expect(await world.vm(tokenId)).toMatchObject({ status: "running" });
  await passTime(3_600);
  await world.scan();
  await world.sweep();
  await world.drain();
  expect(await world.vm(tokenId)).toMatchObject({ status: "terminated" });
});

test("final history that has not reached the purchase yet proves nothing (hard case 13)", async () => {
  const world = await deploy();
  const tokenId = await running(world);
  await world.sql.prepare("UPDATE vms SET expires_at = 1, check_at = 1").run();
  await world.sweep();
  const [job] = world.sent.flatMap(({ body }) => (body.kind === "advance" ? [body] : []));
  if (job === undefined) throw new Error("the sweep sent nothing");
  await followMachine(world.context, job);
  expect(await world.vm(tokenId)).toMatchObject({ status: "expired", step: "prove" });
  expect(await world.machines("vultr")).toHaveLength(1);
});

test("a row that says expired ends nothing while final history says valid (hard case 13)", async () => {
  const world = await deploy();
  const tokenId = await running(world);
  await chain.mine(4);
  await world.sql.prepare("UPDATE vms SET expires_at = 1, check_at = 1").run();
  await world.sweep();
  expect(await world.vm(tokenId)).toMatchObject({ status: "expired", step: "prove" });
  await world.drain();
  const row = await world.vm(tokenId);
  expect(row).toMatchObject({ status: "running", step: "idle" });
  expect(row?.["check_at"]).toBeGreaterThan(1);
  expect(await world.machines("vultr")).toHaveLength(1);
});

test("an end that has begun and is disproved then, by a renewal, gives the owner another machine and another key", async () => {
  const world = await deploy();
  const tokenId = await running(world);
  const { attempt, ssh_host } = (await world.vm(tokenId)) ?? {};
  await world.sql.prepare("UPDATE vms SET delivered_at = 1, delivered_to = owner, expires_at = 1, check_at = 1").run();
  await chain.mine(4);
  await world.sweep();
  // The vendor has let it go already.
  await world.sql.prepare("UPDATE attempts SET gone_at = 1").run();
  await world.sql.prepare("UPDATE vms SET instance_id = NULL").run();
  await world.sql.prepare("UPDATE vms SET expires_at = created_at + 86400").run();
  await world.drain();
  const row = await world.vm(tokenId);
  expect(row).toMatchObject({ status: "running", attempt: attempt + 1, delivered_at: null });
  expect(row?.["ssh_host"]).not.toBe(ssh_host);
  expect(row?.["check_at"]).toBeGreaterThan(1);
});

test("a renewal that no log told of saves the machine (hard case 13)", async () => {
  const world = await deploy();
  const tokenId = await running(world);
  await renew(tokenId);
  // The event is lost on us for good: the scan is moved past it.
  await addRpcFault({ kind: "drop_logs" });
  await passTime(DAY + 10);
  await chain.mine(30);
  await world.scan();
  await clearRpcFaults();
  await world.sweep();
  // Final history passes the moment at which it was called expired.
  await chain.mine(4);
  await world.drain();
  expect(await world.vm(tokenId)).toMatchObject({ status: "running" });
  expect(await world.machines("vultr")).toHaveLength(1);
});

test("a renewal moves the end of the paid time", async () => {
  const world = await deploy();
  const tokenId = await running(world);
  const before = await world.vm(tokenId);
  await renew(tokenId);
  await world.scan();
  expect(await world.vm(tokenId)).toMatchObject({
    expires_at: before?.["expires_at"] + DAY,
    check_at: before?.["check_at"] + DAY,
  });
});

test("a token that its owner gave up ends its machine before the paid time", async () => {
  const world = await deploy();
  const tokenId = await running(world);
  await setOptions();
  await send(
    chain.wallet(agent(0)).writeContract({ ...contract, functionName: "terminateVM", args: [BigInt(tokenId)] }),
  );
  await chain.mine(4);
  await world.scan();
  await world.sweep();
  await world.drain();
  expect(await world.vm(tokenId)).toMatchObject({ status: "terminated" });
  expect(await world.machines("vultr")).toEqual([]);
});

test("a delete that the vendor puts off is asked again until the vendor knows the machine no more", async () => {
  const world = await deploy();
  const tokenId = await running(world, 0, 4);
  await addFault("runpod", { call: "delete", kind: "locked", times: 2 });
  await passTime(DAY + 10);
  await world.scan();
  await world.sweep();
  await world.drain();
  expect(await world.vm(tokenId)).toMatchObject({ status: "terminated" });
  expect(await world.machines("runpod")).toEqual([]);
});

test("another incarnation of a token ends the old one's machine and gets keys of its own (hard case 5)", async () => {
  const world = await deploy();
  const snapshot = await chain.node.snapshot();
  const tokenId = await running(world);
  const [old] = await world.rows("SELECT * FROM vms");
  await chain.node.revert({ id: snapshot });
  const bobs = await buy(chain, agent(1), 1, 1);
  await chain.mine(4);
  await world.scan();
  await world.drain();
  expect(bobs.tokenId).toBe(tokenId);
  const now = await world.vm(tokenId);
  expect(now).toMatchObject({ status: "running", tier: 1, owner: agent(1).address.toLowerCase() });
  const keys = await world.rows("SELECT DISTINCT public_key FROM attempts");
  expect(keys).toHaveLength(2);
  const [retired] = await world.rows(
    "SELECT status, current, ssh_private_key FROM vms WHERE incarnation = ?",
    old?.["incarnation"],
  );
  expect(retired).toEqual({ status: "terminated", current: 0, ssh_private_key: null });
  expect((await world.machines("vultr")).map((machine) => machine.id)).toEqual([now?.["instance_id"]]);
  const alices = await world.request(`/credentials/${tokenId}`, { headers: await fixedHeaders(agent(0), tokenId) });
  expect(await code(alices)).toEqual([403, "not_owner"]);
});

test("an event that one node invents for a sold token does not cost its owner the machine (hard case 5)", async () => {
  const world = await deploy();
  const tokenId = await running(world);
  const [row] = await world.rows("SELECT * FROM vms");
  const txHash = row?.["tx_hash"] as `0x${string}`;
  const receipt = (await chain.reader.request({ method: "eth_getTransactionReceipt", params: [txHash] })) as {
    logs: object[];
  } | null;
  const invented = JSON.parse(JSON.stringify(receipt?.logs).replaceAll(txHash, `0x${"9".repeat(64)}`)) as object[];
  await addRpcFault({ kind: "rewrite", method: "eth_getLogs", result: invented });
  await chain.mine(1);
  await world.scan();
  expect(await world.vm(tokenId)).toMatchObject({ status: "provisioning" });
  await clearRpcFaults();
  for (const { body } of world.sent.splice(0)) if (body.kind === "advance") await followMachine(world.context, body);
  expect(await world.vm(tokenId)).toMatchObject({
    incarnation: row?.["incarnation"],
    status: "running",
    instance_id: row?.["instance_id"],
  });
  expect(await world.machines("vultr")).toHaveLength(1);
});

test("a purchase that a reorg took for good ends its machine once final history has passed it", async () => {
  const world = await deploy();
  const snapshot = await chain.node.snapshot();
  const tokenId = await running(world);
  await chain.node.revert({ id: snapshot });
  await chain.mine(30);
  await world.scan();
  await world.sweep();
  await world.drain();
  expect(await world.machines("vultr")).toEqual([]);
  expect(await world.rows("SELECT status, current, failure FROM vms")).toEqual([
    { status: "terminated", current: 0, failure: "reorged" },
  ]);
  expect(await code(await world.request(`/status/${tokenId}`))).toEqual([404, "token_not_found"]);
});

const send = async (hash: Promise<`0x${string}`>) => chain.reader.waitForTransactionReceipt({ hash: await hash });
const setOptions = () =>
  send(chain.wallet(deployer).writeContract({ ...contract, functionName: "setOptions", args: [true, true] }));

async function renew(tokenId: number) {
  await setOptions();
  const wallet = chain.wallet(agent(0));
  await send(
    wallet.writeContract({ address: USDC_ADDRESS, abi, functionName: "approve", args: [CONTRACT_ADDRESS, 500_000n] }),
  );
  await send(wallet.writeContract({ ...contract, functionName: "renewVM", args: [BigInt(tokenId), 1] }));
}
