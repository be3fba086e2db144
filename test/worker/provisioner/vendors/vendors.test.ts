// What both adapters make of every kind of answer, over real HTTP.
import { expect, test } from "vitest";
import { generateHostKey, generateSshKeyPair } from "../../../../src/credentials/ssh-keys.ts";
import type { MachineSpec, Vendor, VendorError } from "../../../../src/provisioner/vendors/vendor.ts";
import { createVultr } from "../../../../src/provisioner/vendors/vultr.ts";
import { addFault, type Deployment, deploy, journal } from "../../deployment.ts";
import { unlocked } from "../../parts.ts";

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
  };
}
const failure = (work: Promise<unknown>) =>
  work.then(
    () => "nothing failed",
    (error: VendorError) => error,
  );

const NO_STOCK_VULTR = {
  error: "Server add failed: The selected plan is not available in the selected region",
  status: 400,
};
const NO_STOCK_RUNPOD = {
  title: "Bad Request",
  status: 400,
  detail: "There are no longer any instances available with the requested specifications.",
};

test.each([
  ["vultr", 400, NO_STOCK_VULTR, "next_candidate"],
  [
    "vultr",
    400,
    {
      error: "Server add failed: You have reached the maximum number of active instances for this account.",
      status: 400,
    },
    "page",
  ],
  [
    "vultr",
    400,
    { error: "Server add failed: Please open a support request for access to this product.", status: 400 },
    "page",
  ],
  ["vultr", 400, { error: "Invalid plan chosen.", status: 400 }, "page"],
  ["vultr", 401, { error: "Unauthorized IP address: 203.0.113.9", status: 401 }, "page"],
  ["vultr", 429, { error: "rate limit exceeded", status: 429 }, "wait"],
  ["vultr", 500, { error: "Internal server error", status: 500 }, "unknown"],
  ["vultr", 202, { hello: "world" }, "unknown"],
  ["runpod", 400, NO_STOCK_RUNPOD, "next_candidate"],
  ["runpod", 400, { title: "Bad Request", status: 400, detail: "gpu and cpu can't both be given" }, "page"],
  ["runpod", 402, { title: "Payment Required", status: 402, detail: "balance too low" }, "page"],
  ["runpod", 403, { title: "Forbidden", status: 403, detail: "access denied" }, "next_candidate"],
  ["runpod", 422, { title: "Unprocessable Entity", status: 422, detail: "Unknown GPU type: X" }, "page"],
  ["runpod", 429, { title: "Too Many Requests", status: 429, detail: "rate limit exceeded" }, "wait"],
  ["runpod", 503, { title: "Unavailable", status: 503, detail: "later" }, "unknown"],
  ["runpod", 201, { id: "x" }, "unknown"],
] as const)("%s: a create that is answered %i %j means %s", async (name, status, body, action) => {
  const world = await deploy();
  const vendor = world.context.vendors[name];
  const supplies = await vendor.prepare();
  await addFault(name, { call: "create", kind: "answer", status, body, times: 1 });
  expect(await failure(vendor.create(await specOf(world, vendor), supplies))).toMatchObject({
    name: "VendorError",
    vendor: name,
    action,
  });
});

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

test.each([
  [400, { error: "Bad request.", status: 400 }, "next_candidate"],
  [404, { error: "instance not found", status: 404 }, "next_candidate"],
  [401, { error: "Unauthorized IP address: 203.0.113.9", status: 401 }, "page"],
  [429, { error: "rate limit exceeded", status: 429 }, "wait"],
  [500, { error: "Internal server error", status: 500 }, "unknown"],
] as const)("vultr: a machine whose change or reinstallation is answered %i %j: %s", async (status, body, action) => {
  const world = await deploy();
  const vendor = world.context.vendors.vultr;
  const spec = await specOf(world, vendor);
  const { instanceId } = await vendor.create(spec, await vendor.prepare());
  await addFault("vultr", { call: "change", kind: "answer", status, body, times: 2 });
  expect(await failure(vendor.scrub?.(instanceId) ?? Promise.resolve())).toMatchObject({ action });
  expect(await failure(vendor.reinstall?.(instanceId, spec) ?? Promise.resolve())).toMatchObject({ action });
  await addFault("vultr", { call: "reinstall", kind: "answer", status, body, times: 1 });
  expect(await failure(vendor.reinstall?.(instanceId, spec) ?? Promise.resolve())).toMatchObject({ action });
  await unlocked();
  await vendor.delete(instanceId);
});

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
