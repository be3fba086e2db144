// What both adapters make of every kind of answer, over real HTTP.
import { expect, test } from "vitest";
import { generateHostKey, generateSshKeyPair } from "../../../../src/credentials/ssh-keys.ts";
import type { MachineSpec, Vendor, VendorError } from "../../../../src/provisioner/vendors/vendor.ts";
import { createVultr } from "../../../../src/provisioner/vendors/vultr.ts";
import { type Deployment, deploy } from "../../deployment.ts";
import { addFault } from "../../faults.ts";
import { unlocked } from "../../parts.ts";
import { journal } from "../../vendors.ts";

async function specOf(world: Deployment, vendor: Vendor, number = 1): Promise<MachineSpec> {
  const place =
    vendor.name === "vultr"
      ? { region: "ewr", plan: "vc2-1c-1gb" }
      : { region: "COMMUNITY", plan: "NVIDIA GeForce RTX 4090" };
  const { publicKey } = await generateSshKeyPair("ed25519");
  return {
    label: `clawcloud-${world.edge.DEPLOYMENT_ID}-1-00000000-0-${number}`,
    mark: "abc123",
    ...place,
    publicKey,
    hostKey: generateHostKey(),
    ports: [],
    note: "# A machine\n",
  };
}
const failure = (work: Promise<unknown>) =>
  work.then(
    () => "nothing failed",
    (error: VendorError) => error,
  );

test("RunPod's wait is the longest of Retry-After and every exhausted window", async () => {
  const world = await deploy();
  const headers = { "retry-after": "3", ratelimit: '"minute";r=0;t=12, "hour";r=0;t=40, "day";r=9;t=9000' };
  await addFault("runpod", { call: "create", kind: "answer", status: 429, headers, times: 1 });
  const vendor = world.context.vendors.runpod;
  expect(await failure(vendor.create(await specOf(world, vendor), {}))).toMatchObject({
    action: "wait",
    retryAfterSeconds: 40,
  });
});

test.each([
  ["7", 7],
  ["2.5", 3],
  ["999999999", 3_600],
  ["Sun, 06 Nov 1994 08:49:47 GMT", 10],
  ["Sunday, 06-Nov-94 08:49:47 GMT", 10],
  ["Sun, 06 Nov 1994 08:49:30 GMT", 0],
  ["Sun, 06 Nov 2094 08:49:37 GMT", 3_600],
  ["-5", 2],
  ["soon", 2],
] as const)("Retry-After: %s asks for %i seconds, an hour at most", async (value, seconds) => {
  const world = await deploy();
  const headers = { "retry-after": value, date: "Sun, 06 Nov 1994 08:49:37 GMT" };
  await addFault("vultr", { call: "get", kind: "answer", status: 429, headers, times: 1 });
  expect(await failure(world.context.vendors.vultr.get("x"))).toMatchObject({
    action: "wait",
    retryAfterSeconds: seconds,
  });
});

test.each(["vultr", "runpod"] as const)(
  "%s: a list is read to its last page, and one that fails throws instead of looking empty",
  async (name) => {
    const world = await deploy();
    const vendor = world.context.vendors[name];
    const supplies = await vendor.prepare();
    const made: string[] = [];
    for (let number = 1; number <= 11; number++)
      made.push((await vendor.create(await specOf(world, vendor, number), supplies)).instanceId);
    const listed = (await vendor.list()).filter((machine) => machine.label.includes(world.edge.DEPLOYMENT_ID));
    expect(listed.map((machine) => machine.instanceId).sort()).toEqual([...made].sort());
    await addFault(name, { call: "list", kind: "error_before", times: 1 });
    expect(await failure(vendor.list())).toMatchObject({ name: "VendorError" });
    await unlocked();
    for (const id of made) await vendor.delete(id);
    for (const id of made) expect(await vendor.get(id)).toBeNull();
    await vendor.delete(made[0] ?? "");
  },
);

test.each(["vultr", "runpod"] as const)(
  "%s: an empty id never reaches the vendor, where it would name every machine",
  async (name) => {
    const world = await deploy();
    const vendor = world.context.vendors[name];
    expect(await failure(vendor.delete(""))).toMatchObject({ action: "page" });
    expect(await failure(vendor.get(""))).toMatchObject({ action: "page" });
    if (vendor.reinstall !== null) {
      expect(await failure(vendor.reinstall("", await specOf(world, vendor)))).toMatchObject({ action: "page" });
    }
    if (vendor.scrub !== null) expect(await failure(vendor.scrub(""))).toMatchObject({ action: "page" });
  },
);

test("what a vendor says about a failure is quoted without keys, passwords or user data", async () => {
  const world = await deploy();
  const vendor = world.context.vendors.vultr;
  const supplies = await vendor.prepare();
  const body = {
    error: `bad: Bearer ${world.provisioner.VULTR_API_KEY} {"default_password":"hunter22","user_data":"I2Nsb3VkLWNvbmZpZwo="} ${"QUJD".repeat(30)}`,
    status: 400,
  };
  await addFault("vultr", { call: "create", kind: "answer", status: 400, body, times: 1 });
  const error = await failure(vendor.create(await specOf(world, vendor), supplies));
  const text = String((error as VendorError).message);
  expect(text).toContain("POST 400");
  for (const secret of [world.provisioner.VULTR_API_KEY, "hunter22", "I2Nsb3VkLWNvbmZpZwo=", "QUJDQUJD"])
    expect(text).not.toContain(secret);
});

test("one firewall group per deployment and port, with SSH open and nothing else, however often it is looked for", async () => {
  const world = await deploy();
  const other = await deploy({ provisioner: { DEPLOYMENT_ID: world.provisioner.DEPLOYMENT_ID } });
  await world.context.vendors.vultr.prepare();
  await other.context.vendors.vultr.prepare();
  const headers = { authorization: `Bearer ${world.provisioner.VULTR_API_KEY}` };
  const read = async (path: string) =>
    (await (await fetch(`${world.provisioner.VULTR_API_URL}${path}`, { headers })).json()) as Record<
      string,
      { id: string; description: string }[]
    >;
  const groups = (await read("/firewalls"))["firewall_groups"]?.filter((group) =>
    group.description.includes(world.provisioner.DEPLOYMENT_ID),
  );
  expect(groups).toHaveLength(1);
  const rules = (await read(`/firewalls/${groups?.[0]?.id}/rules`))["firewall_rules"];
  const port = String(world.provisioner.VULTR_SSH_PORT);
  expect(rules).toMatchObject([
    { ip_type: "v4", protocol: "tcp", port, subnet: "0.0.0.0" },
    { ip_type: "v6", protocol: "tcp", port, subnet: "::" },
  ]);
});

test("fifty orders at once ask for image and firewall once: each used to ask for itself until the vendor refused", async () => {
  const world = await deploy();
  const gate = world.context.gate("vultr");
  const began = Date.now();
  const answers = await Promise.all(Array.from({ length: 50 }, () => gate.supplies(Date.now())));
  expect(new Set(answers.map((answer) => JSON.stringify(answer))).size).toBe(1);
  expect(answers[0]).toMatchObject({ ok: true, supplies: { osId: expect.any(Number) } });
  const asked = async (path: string) =>
    (await journal("vultr", began)).filter((one) => one.method === "GET" && one.path.startsWith(path)).length;
  expect(await asked("/v2/os")).toBe(1);
  await gate.supplies(Date.now());
  expect(await asked("/v2/os")).toBe(1);
  await gate.forgetSupplies();
  await gate.supplies(Date.now());
  expect(await asked("/v2/os")).toBe(2);
});

test("a system that Vultr does not have is refused by its name, and no other one is sold in its place", async () => {
  const world = await deploy({ provisioner: { VULTR_OS: "Ubuntu 24.4 LTS" } });
  expect(await failure(createVultr(world.provisioner).prepare())).toMatchObject({
    action: "page",
    message: 'vultr: VULTR_OS: there is no system "Ubuntu 24.4 LTS"',
  });
});

test("RunPod pulls its image with the registry login of RUNPOD_REGISTRY, and with none where that is not set", async () => {
  for (const [settings, registry] of [
    [{ RUNPOD_REGISTRY: "clzdaifot0001l90809257ynb" }, "clzdaifot0001l90809257ynb"],
    [{}, undefined],
  ] as const) {
    const world = await deploy({ provisioner: settings });
    const vendor = world.context.vendors.runpod;
    const from = Date.now();
    const { instanceId } = await vendor.create(await specOf(world, vendor), {});
    const order = (await journal("runpod", from)).find(({ method }) => method === "POST");
    expect(order?.requestBody["registry"]).toBe(registry);
    await vendor.delete(instanceId);
  }
});
