import { connect } from "cloudflare:sockets";
import { expect, test } from "vitest";
import { isFenced, loadVm, openAttempt, takeLease } from "../../../../src/db/vms.ts";
import { reap } from "../../../../src/provisioner/machines/reap.ts";
import { followMachine } from "../../../../src/provisioner/machines/run.ts";
import { buy, type Credentials, fixedHeaders } from "../../../world/agent.ts";
import { agent, chain, signPurchase } from "../../chain.ts";
import { type Deployment, deploy, PATIENCE_MS } from "../../deployment.ts";
import { addFault, addRpcFault, clearFaults } from "../../faults.ts";
import { takePages } from "../../paged.ts";
import { forgetLists, IMPATIENT, journal } from "../../vendors.ts";

const outcomes = async (world: Deployment) =>
  (await world.rows("SELECT region, outcome FROM attempts ORDER BY number")).map(
    (row) => `${row["region"]} ${row["outcome"]}`,
  );
const creates = async (vendor: "vultr" | "runpod", from: number) =>
  (await journal(vendor, from)).filter((call) => call.method === "POST" && /instances$|pods$/.test(call.path));

/** What an SSH server says first; nothing where none answers. */
async function bannerAt(hostname: string, port: number): Promise<string> {
  const socket = connect({ hostname, port });
  socket.closed.catch(() => undefined);
  try {
    const { value } = await socket.readable.getReader().read();
    return new TextDecoder().decode(value);
  } catch {
    return "";
  } finally {
    void socket.close().catch(() => undefined);
  }
}
/** Until the one machine at Vultr answers with this; then we have looked at it so often. */
async function lookAt(world: Deployment, tokenId: number, banner: string, looks: number): Promise<void> {
  await world.drainToBoot(tokenId);
  const [machine] = await world.machines("vultr");
  const answer = () => bannerAt(machine?.main_ip ?? "", world.provisioner.VULTR_SSH_PORT);
  await expect.poll(answer, { timeout: PATIENCE_MS }).toContain(banner);
  await world.drainToBoot(tokenId, looks);
}

test("a purchase becomes a running machine whose credentials its owner gets", async () => {
  const world = await deploy();
  const { tokenId, txHash } = await buy(chain, agent(0), 0, 1);
  await world.scan();
  await world.drain();

  const status = (await (await world.request(`/status/${tokenId}`)).json()) as Record<string, unknown>;
  expect(status).toMatchObject({ status: "running", tier: 0, type: "gcp", purchase: { txHash } });
  const response = await world.request(`/credentials/${tokenId}`, { headers: await fixedHeaders(agent(0), tokenId) });
  expect(response.status).toBe(200);
  const body = (await response.json()) as Credentials;
  expect(body.privateKey).toBe(body.ssh.privateKey);
  expect(body.ssh.privateKey).toContain("OPENSSH PRIVATE KEY");
  expect(body.ssh.knownHosts).toMatch(/^\[127\.[\d.]+\]:\d+ ssh-ed25519 /);
});

test("a GPU comes from RunPod's community cloud, its key under ssh alone", async () => {
  const world = await deploy();
  const { tokenId } = await buy(chain, agent(0), 4, 1);
  await world.scan();
  await world.drain();
  const response = await world.request(`/credentials/${tokenId}`, { headers: await fixedHeaders(agent(0), tokenId) });
  const body = (await response.json()) as Credentials;
  expect(body).toMatchObject({ type: "gpu-external", privateKey: null });
  expect(body.ssh.privateKey).toContain("PRIVATE KEY");
  expect(await outcomes(world)).toEqual(["COMMUNITY running"]);
});

test("a running machine's row stays under 6 KiB with an RSA-4096 key in it", async () => {
  const world = await deploy({ provisioner: { SSH_KEY_ALGORITHM: "rsa-4096" } });
  const { tokenId } = await buy(chain, agent(0), 0, 1);
  await world.scan();
  await world.drain();
  const row = (await world.vm(tokenId)) ?? {};
  expect(row["ssh_private_key"]).toMatch(/^ecc:/);
  const bytes = Object.values(row).reduce((sum: number, value) => sum + String(value ?? "").length, 0);
  expect(bytes).toBeLessThan(6 * 1_024);
});

test("the private key leaves the attempt's row with the publication, and no row holds it in clear", async () => {
  const world = await deploy();
  await buy(chain, agent(0), 0, 1);
  await world.scan();
  await world.drain();
  expect(await world.rows("SELECT private_key FROM attempts")).toEqual([{ private_key: null }]);
  const [dump] = await world.rows("SELECT json_group_array(ssh_private_key) AS keys FROM vms");
  expect(dump?.["keys"]).not.toContain("PRIVATE KEY");
});

test("what is sold out in one region is tried in the next, and each try is on record", async () => {
  const world = await deploy();
  await addFault("vultr", { call: "create", kind: "sold_out", region: "ewr" });
  await addFault("vultr", { call: "create", kind: "sold_out", region: "lax" });
  await buy(chain, agent(0), 0, 1);
  await world.scan();
  await world.drain();
  expect(await outcomes(world)).toEqual(["ewr sold_out", "lax sold_out", "ams running"]);
});

test("a rate limit is waited for; it uses up no candidate", async () => {
  const world = await deploy();
  await addFault("vultr", { call: "create", kind: "rate_limited", times: 1 });
  const { tokenId } = await buy(chain, agent(0), 0, 1);
  await world.scan();
  await world.drain(async () => (await world.vm(tokenId))?.["status"] === "running");
  expect(await outcomes(world)).toEqual(["ewr wait", "ewr running"]);
});

test.each(["timeout_after", "error_after"] as const)(
  "a create that works and then answers %s is found by its label: one order, one machine (hard case 9)",
  async (kind) => {
    const world = await deploy(IMPATIENT);
    const from = Date.now();
    await addFault("vultr", { call: "create", kind, times: 1 });
    const { tokenId } = await buy(chain, agent(0), 0, 1);
    await world.scan();
    await world.drain();
    expect(await world.vm(tokenId)).toMatchObject({ status: "running", attempt: 1 });
    expect(await world.machines("vultr")).toHaveLength(1);
    expect(await creates("vultr", from)).toHaveLength(1);
  },
);

test("after a create of unknown outcome nothing else is ordered before the quiet time is over (hard case 9)", async () => {
  const world = await deploy(IMPATIENT);
  const from = Date.now();
  await addFault("vultr", { call: "create", kind: "timeout_before", times: 1 });
  const { tokenId } = await buy(chain, agent(0), 0, 1);
  await world.scan();
  await world.drain(
    async () => (await world.vm(tokenId))?.["step"] === "find" && (await creates("vultr", from)).length > 0,
  );
  await world.drain();
  const [first, second] = await world.rows("SELECT create_sent_at, outcome FROM attempts ORDER BY number");
  expect([first?.["outcome"], second?.["outcome"]]).toEqual(["lost", "running"]);
  const { VENDOR_TIMEOUT_MS, LISTING_LAG_MS } = world.provisioner;
  expect(Number(second?.["create_sent_at"]) - Number(first?.["create_sent_at"])).toBeGreaterThan(
    VENDOR_TIMEOUT_MS + LISTING_LAG_MS,
  );
  expect(await world.machines("vultr")).toHaveLength(1);
});

test("a machine that turns up after its attempt was given up is ended by the next sweep (hard case 9)", async () => {
  const world = await deploy(IMPATIENT);
  await addFault("vultr", { call: "create", kind: "timeout_after", times: 1 });
  await addFault("vultr", { call: "list", kind: "lagging_list", ms: 600_000 });
  const { tokenId } = await buy(chain, agent(0), 0, 1);
  await world.scan();
  await world.drain(
    async () => (await world.vm(tokenId))?.["attempt"] === 2 && (await world.vm(tokenId))?.["step"] === "boot",
  );
  expect(await world.machines("vultr")).toHaveLength(2);
  await clearFaults();
  await world.drain();
  expect(await world.vm(tokenId)).toMatchObject({ status: "running", attempt: 2 });
  await forgetLists();
  await reap(world.context);
  const left = await world.machines("vultr");
  expect(left.map((machine) => machine.label)).toEqual([expect.stringMatching(/-2$/)]);
});

/** The vendor shows no machine, neither in its list nor by its id. */
async function hideMachines(): Promise<void> {
  await addFault("vultr", { call: "list", kind: "lagging_list", ms: 600_000 });
  await addFault("vultr", {
    call: "get",
    kind: "answer",
    status: 404,
    body: { error: "Invalid instance.", status: 404 },
  });
}

test("a machine that its vendor does not show for a while is waited for: eight were bought in eight regions within four minutes (hard case 49)", async () => {
  const world = await deploy();
  await hideMachines();
  const { tokenId } = await buy(chain, agent(0), 0, 1);
  await world.scan();
  // Longer than a list may lag.
  await world.drainToBoot(tokenId, 40);
  expect(await world.machines("vultr")).toHaveLength(1);
  await clearFaults();
  await world.drain();
  expect(await world.vm(tokenId)).toMatchObject({ status: "running", attempt: 1 });
  expect(await world.machines("vultr")).toHaveLength(1);
});

test("two machines in a row that their vendor never shows call a person, until it shows one (hard case 49)", async () => {
  const world = await deploy();
  await hideMachines();
  const { tokenId } = await buy(chain, agent(0), 0, 1);
  await world.scan();
  const giveUp = async (number: number) => {
    await world.drainToBoot(tokenId);
    await takePages();
    await world.sql.prepare("UPDATE attempts SET boot_deadline_at = 1 WHERE number = ?").bind(number).run();
    await world.drain(async () => (await world.vm(tokenId))?.["attempt"] === number + 1);
    return (await takePages()).pages;
  };
  expect(await giveUp(1)).toEqual([]);
  expect(await giveUp(2)).toEqual(["machines_not_shown vultr"]);
  await clearFaults();
  await world.drain();
  expect(await world.vm(tokenId)).toMatchObject({ status: "running", attempt: 3 });
  expect((await takePages()).cleared).toContain("machines_not_shown vultr");
  expect(await world.machines("vultr")).toHaveLength(1);
});

test("two consumers with the same message order one machine", async () => {
  const world = await deploy();
  const from = Date.now();
  const { tokenId } = await buy(chain, agent(0), 0, 1);
  await world.scan();
  const [message] = world.sent;
  if (message?.body.kind !== "advance") throw new Error("no job was queued");
  const job = message.body;
  await Promise.all([
    followMachine(world.context, job),
    followMachine(world.context, job),
    followMachine(world.context, job),
  ]);
  await world.drain();
  expect(await world.vm(tokenId)).toMatchObject({ status: "running" });
  expect(await creates("vultr", from)).toHaveLength(1);
  expect(await world.machines("vultr")).toHaveLength(1);
});

test("a consumer that lost its lease can write neither attempt nor state (hard case 9)", async () => {
  const world = await deploy();
  const { tokenId } = await buy(chain, agent(0), 0, 1);
  await world.scan();
  const id = (await world.vm(tokenId))?.["incarnation"] as string;
  const vm = await loadVm(world.db, id);
  if (vm === null) throw new Error("no row");
  const now = Date.now();
  expect(await takeLease(world.db, vm, "mine", now + 1_000, now)).toBe(true);
  expect(await takeLease(world.db, vm, "theirs", now + 9_000, now + 500)).toBe(false);
  expect(await takeLease(world.db, vm, "theirs", now + 9_000, now + 2_000)).toBe(true);
  const attempt = {
    incarnation: id,
    number: 1,
    provider: "vultr" as const,
    region: "ewr",
    plan: "vc2-1c-1gb",
    label: "x",
    mark: "y",
    publicKey: "",
    keyId: "",
    hostPublicKey: "",
    createSentAt: now,
    startedAt: now,
  };
  const failure: unknown = await openAttempt(world.db, vm, "mine", attempt, null).catch((error: unknown) => error);
  expect(isFenced(failure)).toBe(true);
  expect(await world.rows("SELECT * FROM attempts")).toEqual([]);
  expect(await world.vm(tokenId)).toMatchObject({ step: "create", attempt: 0, lease: "theirs" });
});

test("a stranger's sshd at the machine's address is not taken for the machine (hard case 10)", async () => {
  const world = await deploy();
  await addFault("vultr", { call: "create", kind: "wrong_mark", region: "ewr" });
  const { tokenId } = await buy(chain, agent(0), 0, 1);
  await world.scan();
  await lookAt(world, tokenId, "somebody-else", 5);
  world.passTime(world.provisioner.BOOT_TIMEOUT_SECONDS);
  await world.drain();
  expect(await outcomes(world)).toEqual(["ewr boot_timeout", "lax running"]);
  expect(await world.vm(tokenId)).toMatchObject({ status: "running", region: "lax" });
  expect(await world.machines("vultr")).toHaveLength(1);
});

test("the image's own sshd, up before cloud-init is through, is not ready yet (hard case 10)", async () => {
  const world = await deploy();
  await addFault("vultr", { call: "create", kind: "unconfigured" });
  const { tokenId } = await buy(chain, agent(0), 0, 1);
  await world.scan();
  await lookAt(world, tokenId, "Ubuntu-3ubuntu13", 5);
  expect(await world.vm(tokenId)).toMatchObject({ status: "provisioning", step: "boot", attempt: 1 });
  await clearFaults();
  await world.drain();
  const row = (await world.vm(tokenId)) ?? {};
  expect(row).toMatchObject({ status: "running", attempt: 1 });
  const [attempt] = await world.rows("SELECT mark FROM attempts");
  expect(await bannerAt(row["ssh_host"], row["ssh_port"])).toContain(attempt?.["mark"]);
});

test("a machine that answers when its time is just over is published, not thrown away", async () => {
  const world = await deploy();
  const { tokenId } = await buy(chain, agent(0), 0, 1);
  await world.scan();
  await world.drainToBoot(tokenId);
  const [attempt] = await world.rows("SELECT mark, instance_id FROM attempts");
  const answers = async () => {
    const { host, port } = (await world.context.vendors.vultr.get(String(attempt?.["instance_id"]))) ?? {};
    return host == null || port == null ? "" : bannerAt(host, port);
  };
  await expect.poll(answers, { timeout: PATIENCE_MS }).toContain(attempt?.["mark"]);
  await forgetLists();
  world.passTime(world.provisioner.BOOT_TIMEOUT_SECONDS);
  await world.drain();
  expect(await outcomes(world)).toEqual(["ewr running"]);
});

test("a machine that never boots is ended before the next one is ordered", async () => {
  const world = await deploy();
  const from = Date.now();
  await addFault("vultr", { call: "create", kind: "never_boots", region: "ewr" });
  await addFault("vultr", { call: "delete", kind: "locked", times: 2 });
  const { tokenId } = await buy(chain, agent(0), 0, 1);
  await world.scan();
  await world.drainToBoot(tokenId);
  world.passTime(world.provisioner.BOOT_TIMEOUT_SECONDS);
  await world.drain();
  expect(await outcomes(world)).toEqual(["ewr boot_timeout", "lax running"]);
  const calls = (await journal("vultr", from)).map((call) => `${call.method} ${call.status}`);
  expect(calls.indexOf("DELETE 204")).toBeLessThan(calls.lastIndexOf("POST 202"));
  expect(await world.machines("vultr")).toHaveLength(1);
});

test("an address that comes late is waited for", async () => {
  const world = await deploy();
  await addFault("runpod", { call: "create", kind: "late_address", ms: 1_200 });
  const { tokenId } = await buy(chain, agent(0), 5, 1);
  await world.scan();
  await world.drain();
  expect(await world.vm(tokenId)).toMatchObject({ status: "running", plan: "NVIDIA A100-SXM4-40GB" });
});

test("a machine with the right name and another mark is not adopted, and a claimed one is not touched (hard case 12)", async () => {
  const world = await deploy(IMPATIENT);
  const tenant = await buy(chain, agent(1), 4, 1);
  await world.scan();
  await world.drain();
  const tenantPod = (await world.vm(tenant.tokenId))?.["instance_id"] as string;

  await addFault("runpod", { call: "create", kind: "timeout_before", times: 1 });
  const { tokenId } = await buy(chain, agent(0), 4, 1);
  await world.scan();
  await world.drain(async () => (await world.vm(tokenId))?.["step"] === "find");
  const [attempt] = await world.rows("SELECT label FROM attempts WHERE outcome IS NULL");
  const api = world.provisioner.RUNPOD_API_URL;
  const headers = { authorization: `Bearer ${world.provisioner.RUNPOD_API_KEY}`, "content-type": "application/json" };
  // The tenant's own pod, under the name of the order that is looked for.
  const renamed = await fetch(`${api}/v2/pods/${tenantPod}`, {
    method: "PATCH",
    headers,
    body: JSON.stringify({ name: attempt?.["label"] }),
  });
  expect(renamed.status).toBe(200);
  await world.drain();
  expect((await world.vm(tokenId))?.["instance_id"]).not.toBe(tenantPod);
  expect(await world.vm(tenant.tokenId)).toMatchObject({ status: "running", instance_id: tenantPod });
  expect((await fetch(`${api}/v2/pods/${tenantPod}`, { headers })).status).toBe(200);
});

test("a row that somebody wrote into the database orders nothing (hard case 4)", async () => {
  const world = await deploy();
  const from = Date.now();
  const { tokenId } = await buy(chain, agent(0), 0, 1);
  await world.scan();
  world.sent.length = 0;
  const id = String((await world.vm(tokenId))?.["incarnation"]);
  const forged = id.replace(/0x[0-9a-f]{64}/, `0x${"5".repeat(64)}`);
  await world.sql.prepare("UPDATE vms SET incarnation = ?").bind(forged).run();
  await followMachine(world.context, { kind: "advance", incarnation: forged, generation: 1 });
  expect(await world.vm(tokenId)).toMatchObject({ step: "create", attempt: 0 });
  expect(await creates("vultr", from)).toEqual([]);
});

test("a row that says another tier than the receipt is held for an operator, with its cause (hard case 4)", async () => {
  const world = await deploy();
  const { tokenId } = await buy(chain, agent(0), 0, 1);
  await world.scan();
  await world.sql.prepare("UPDATE vms SET tier = 7, vm_type = 'gpu'").run();
  await world.drain();
  expect(await world.vm(tokenId)).toMatchObject({ status: "failed", failure: "purchase_mismatch", attempt: 0 });
  const [failed] = await world.rows("SELECT cause, token_id, resolved_at FROM failed_provisionings");
  expect(failed).toEqual({ cause: "purchase_mismatch", token_id: tokenId, resolved_at: null });
  const answer = await world.request(`/credentials/${tokenId}`, { headers: await fixedHeaders(agent(0), tokenId) });
  expect([answer.status, ((await answer.json()) as { code: string }).code]).toEqual([404, "vm_failed"]);
});

test("an event that one node invents orders nothing, since two nodes know no such receipt (hard case 4)", async () => {
  const world = await deploy();
  const from = Date.now();
  const { tokenId, txHash } = await buy(chain, agent(0), 0, 1);
  const receipt = (await chain.reader.request({ method: "eth_getTransactionReceipt", params: [txHash] })) as {
    logs: { topics: string[]; transactionHash: string }[];
  } & object;
  const inventedHash = `0x${"7".repeat(64)}`;
  const invented = JSON.parse(JSON.stringify(receipt).replaceAll(txHash, inventedHash)) as typeof receipt;
  await addRpcFault({ kind: "rewrite", method: "eth_getLogs", result: invented.logs });
  await addRpcFault({ kind: "rewrite", method: "eth_getTransactionReceipt", result: invented });
  await world.scan();
  expect(await world.vm(tokenId)).toMatchObject({ tx_hash: inventedHash });
  await world.drain(async () => true);
  const [message] = world.sent;
  if (message?.body.kind === "advance") await followMachine(world.context, message.body);
  expect(await world.vm(tokenId)).toMatchObject({ step: "create", attempt: 0 });
  expect(await creates("vultr", from)).toEqual([]);
});

test("no vendor has one: after the deadline by the chain's clock the purchase is failed, with a row that says why", async () => {
  const world = await deploy();
  await addFault("vultr", { call: "create", kind: "sold_out" });
  const { tokenId } = await buy(chain, agent(0), 3, 1);
  await world.scan();
  await world.drain(async () => (await outcomes(world)).length === 8 && world.sent.length > 0);
  await chain.node.increaseTime({ seconds: 8_700 });
  await chain.mine(1);
  await world.scan();
  await world.drain();
  expect(await world.vm(tokenId)).toMatchObject({
    status: "failed",
    failure: "no_machine_in_time",
    step: "idle",
    wake_at: null,
  });
  expect(await world.rows("SELECT cause, attempts FROM failed_provisionings")).toEqual([
    { cause: "no_machine_in_time", attempts: 8 },
  ]);
  expect(await world.machines("vultr")).toEqual([]);
});

/** A purchase is scanned, and a reorg takes it into another block, unseen by the scan; some turns pass. */
async function moveByReorg(world: Deployment, before: () => Promise<unknown>) {
  const raw = await signPurchase(agent(0));
  const snapshot = await chain.node.snapshot();
  const hash = await chain.reader.sendRawTransaction({ serializedTransaction: raw });
  // A node answers before it has mined.
  await chain.reader.waitForTransactionReceipt({ hash });
  await world.scan();
  await chain.node.revert({ id: snapshot });
  await before();
  await chain.reader.sendRawTransaction({ serializedTransaction: raw });
  await chain.mine(3);
  let turns = 0;
  await world.drain(async () => turns++ === 4);
}

test("a purchase that a reorg moved into another block waits until the scan has seen it there, and is not held", async () => {
  const world = await deploy();
  await moveByReorg(world, () => chain.mine(3));
  expect(await world.rows("SELECT status, step, attempt FROM vms")).toEqual([
    { status: "provisioning", step: "create", attempt: 0 },
  ]);
  await world.scan();
  await world.drain();
  expect(await world.rows("SELECT status FROM vms")).toEqual([{ status: "running" }]);
});

test("a purchase that a reorg moved into another block of the same height, with another time, is not held either", async () => {
  const world = await deploy();
  await moveByReorg(world, () => chain.node.increaseTime({ seconds: 7 }));
  const [before] = await world.rows("SELECT status, step, attempt, block_number, created_at FROM vms");
  expect(before).toMatchObject({ status: "provisioning", step: "create", attempt: 0 });
  await world.scan();
  const [after] = await world.rows("SELECT block_number, created_at FROM vms");
  expect(after?.["block_number"]).toBe(before?.["block_number"]);
  expect(Number(after?.["created_at"])).toBeGreaterThan(Number(before?.["created_at"]));
  await world.drain();
  expect(await world.rows("SELECT status FROM vms")).toEqual([{ status: "running" }]);
});

/** As if somebody who writes rows wanted another machine for a token that has one. */
async function startAnew(world: Deployment): Promise<void> {
  await world.sql.prepare("DELETE FROM attempts").run();
  await world.sql
    .prepare(
      `UPDATE vms SET status = 'provisioning', step = 'create', attempt = 0, instance_id = NULL, running_at = NULL,
        lease = '', lease_until = 0, wake_at = NULL, generation = generation + 1`,
    )
    .run();
  const [row] = await world.rows("SELECT incarnation, generation FROM vms");
  const { incarnation, generation } = row as { incarnation: string; generation: number };
  await followMachine(world.context, { kind: "advance", incarnation, generation });
}

test("deleting attempts makes no more than two machines for a token, whatever names they bear by then: it made four (hard case 34)", async () => {
  const world = await deploy();
  const { tokenId } = await buy(chain, agent(0), 4, 1);
  const from = (await journal("runpod", 0)).length;
  await world.scan();
  await world.drain();
  for (let time = 0; time < 3; time++) {
    // A tenant renames its pod.
    const id = (await world.vm(tokenId))?.["instance_id"];
    await fetch(`${world.provisioner.RUNPOD_API_URL}/v2/pods/${id}`, {
      method: "PATCH",
      headers: { authorization: `Bearer ${world.provisioner.RUNPOD_API_KEY}`, "content-type": "application/json" },
      body: JSON.stringify({ name: `mine-${id}` }),
    });
    await startAnew(world);
  }
  const own = (await creates("runpod", from)).filter(({ requestBody }) =>
    JSON.stringify(requestBody).includes(`clawcloud-${world.provisioner.DEPLOYMENT_ID}-`),
  );
  expect(own).toHaveLength(2);
  expect(await world.vm(tokenId)).toMatchObject({ status: "provisioning", step: "create" });
});
