// Ports that a buyer asks for beside SSH: open at the vendor and on the machine, told to the buyer, and kept with the machine.
import { expect, test, vi } from "vitest";
import { generateHostKey, generateSshKeyPair } from "../../../../src/credentials/ssh-keys.ts";
import { reap } from "../../../../src/provisioner/machines/reap.ts";
import { freshHeaders } from "../../../world/agent.ts";
import { agent, chain } from "../../chain.ts";
import { buyAndRun, type Deployment, deploy } from "../../deployment.ts";
import {
  accepted,
  isDelivered,
  type Order,
  orderMachine,
  playUntil,
  post,
  signPurchaseOf,
} from "../../edge/routes/x402/till.ts";
import { unlocked } from "../../parts.ts";
import { forgetLists, journal } from "../../vendors.ts";

const HOUR_MS = 3_600_000;
const PORTS = [443, 80];
const SORTED = [80, 443];
const API = "https://api.example";

/** A machine that its order's payer owns. */
async function orderAndRun(world: Deployment, order: Order): Promise<number> {
  const { id } = await accepted(world, agent(1), order);
  const { token_id: tokenId } = await playUntil(world, id, isDelivered);
  await chain.mine(2);
  await world.scan();
  return Number(tokenId);
}
type Told = { ports: unknown };
const status = async (world: Deployment, tokenId: number) =>
  (await (await world.request(`/status/${tokenId}`)).json()) as Told & { status: string };
async function credentials(world: Deployment, tokenId: number, action: "" | "/rotate" = "") {
  const headers = await freshHeaders(API, agent(1), tokenId, action);
  const answer = await world.request(`/credentials/${tokenId}${action}`, {
    method: action === "" ? "GET" : "POST",
    headers,
  });
  return (await answer.json()) as Told & { host: string };
}
/** What ufw lets in, and the note, by the user data that the vendor was sent last. */
async function lastUserData(from: number) {
  const sent = (await journal("vultr", from)).filter(({ requestBody }) => requestBody?.["tags"] !== undefined).at(-1);
  const text = atob(String(sent?.requestBody["user_data"]));
  const allowed = [...text.matchAll(/ufw allow (\d+)\/tcp/g)].map(([, port]) => Number(port));
  return { allowed, text, firewallGroup: sent?.requestBody["firewall_group_id"] as string };
}
async function readVultr<T>(world: Deployment, path: string): Promise<T> {
  const headers = { authorization: `Bearer ${world.provisioner.VULTR_API_KEY}` };
  return (await fetch(`${world.provisioner.VULTR_API_URL}${path}`, { headers })).json() as Promise<T>;
}
async function rulesOf(world: Deployment, group: string): Promise<string[]> {
  type Rules = { firewall_rules: { ip_type: string; protocol: string; port: string }[] };
  const { firewall_rules: rules } = await readVultr<Rules>(world, `/firewalls/${group}/rules`);
  return rules.map(({ ip_type, protocol, port }) => `${ip_type} ${protocol} ${port}`).sort();
}
const openedBy = (ports: readonly number[]) =>
  ports.flatMap((port) => ["v4", "v6"].map((family) => `${family} tcp ${port}`)).sort();

test("a VM's ports are open in a firewall group of their own and in ufw, and stay open through a rotation and a replacement", async () => {
  const world = await deploy();
  const ssh = world.provisioner.VULTR_SSH_PORT;
  const from = Date.now();
  const tokenId = await orderAndRun(world, { ports: PORTS });
  const { allowed, text, firewallGroup } = await lastUserData(from);
  expect(allowed).toEqual([ssh, ...SORTED]);
  expect(await rulesOf(world, firewallGroup)).toEqual(openedBy([ssh, ...SORTED]));
  expect(text).toContain(`TCP ${ssh}, 80, 443.`);
  expect((await status(world, tokenId)).ports).toEqual(SORTED.map((port) => ({ port, publicPort: port })));
  const { host, ports } = await credentials(world, tokenId);
  expect(ports).toEqual(SORTED.map((port) => ({ port, host, publicPort: port })));

  const rotated = Date.now();
  await credentials(world, tokenId, "/rotate");
  await forgetLists();
  expect((await status(world, tokenId)).ports).toEqual(SORTED.map((port) => ({ port, publicPort: null })));
  await world.drain();
  expect((await lastUserData(rotated)).allowed).toEqual([ssh, ...SORTED]);
  expect(await status(world, tokenId)).toMatchObject({
    status: "running",
    ports: [{ publicPort: 80 }, { publicPort: 443 }],
  });

  const replaced = Date.now();
  await world.context.vendors.vultr.delete(String((await world.vm(tokenId))?.["instance_id"]));
  await forgetLists();
  await reap(world.context);
  await world.drain();
  const again = await lastUserData(replaced);
  expect([again.allowed, again.firewallGroup]).toEqual([[ssh, ...SORTED], firewallGroup]);
  expect(await status(world, tokenId)).toMatchObject({
    status: "running",
    ports: [{ publicPort: 80 }, { publicPort: 443 }],
  });
});

test("without ports SSH alone is open, on a purchase by the contract as well", async () => {
  const world = await deploy();
  const ssh = world.provisioner.VULTR_SSH_PORT;
  const from = Date.now();
  const tokenId = await buyAndRun(world, 0);
  const { allowed, text, firewallGroup } = await lastUserData(from);
  expect(allowed).toEqual([ssh]);
  expect(await rulesOf(world, firewallGroup)).toEqual(openedBy([ssh]));
  expect(text).toContain(`TCP ${ssh} (SSH) alone.`);
  expect((await status(world, tokenId)).ports).toEqual([]);
});

test("a GPU's ports are mapped to others, which the answers tell, also after they have moved", async () => {
  const world = await deploy();
  const from = Date.now();
  const tokenId = await orderAndRun(world, { tier: 4, ports: [8888] });
  const order = (await journal("runpod", from)).find(({ method, path }) => method === "POST" && path === "/v2/pods");
  expect(order?.requestBody["ports"]).toEqual(["22/tcp", "8888/tcp"]);
  const row = await world.vm(tokenId);
  const [told] = (await credentials(world, tokenId)).ports as { publicPort: number }[];
  expect(told).toEqual({ port: 8888, host: "127.0.0.1", publicPort: Number(row?.["ssh_port"]) + 1 });
  // A change from inside starts the pod anew, at other ports.
  await fetch(`${world.provisioner.RUNPOD_API_URL}/v2/pods/${row?.["instance_id"]}`, {
    method: "PATCH",
    headers: { authorization: `Bearer ${world.provisioner.RUNPOD_API_KEY}`, "content-type": "application/json" },
    body: JSON.stringify({ env: { CLAWCLOUD_MARK: "x" } }),
  });
  const moved = async () => {
    await forgetLists();
    await reap(world.context);
    return ((await status(world, tokenId)).ports as { publicPort: number }[])[0]?.publicPort;
  };
  await expect.poll(moved, { timeout: 20_000 }).not.toBe(told?.publicPort);
  expect(await moved()).toBe(Number((await world.vm(tokenId))?.["ssh_port"]) + 1);
});

test.each(['["80; reboot"]', "[80, 80]", "[70000]", "{", '"80"', "[22]"])(
  "a row whose ports are %s opens SSH alone and breaks nothing",
  async (ports) => {
    const world = await deploy();
    const from = Date.now();
    const { id } = await accepted(world, agent(1), { ports: PORTS });
    await world.sql.prepare("UPDATE payments SET ports = ?").bind(ports).run();
    const { token_id: tokenId } = await playUntil(world, id, isDelivered);
    const { allowed, firewallGroup } = await lastUserData(from);
    expect(allowed).toEqual([world.provisioner.VULTR_SSH_PORT]);
    expect(await rulesOf(world, firewallGroup)).toEqual(openedBy([world.provisioner.VULTR_SSH_PORT]));
    await world.sql.prepare("UPDATE vms SET ports = ?").bind(ports).run();
    expect((await status(world, Number(tokenId))).ports).toEqual([]);
    expect(await (await world.request(`/x402/purchases/${id}`)).json()).toMatchObject({ ports: [] });
  },
);

test("the same ports in another order are the same purchase, and other ports are not", async () => {
  const world = await deploy();
  const first = await accepted(world, agent(1), { ports: [80, 443] });
  const second = await orderMachine(world, agent(1), { ports: [443, 80] });
  expect(await second.answer.json()).toMatchObject({ purchaseId: first.id, ports: SORTED });
  const third = await orderMachine(world, agent(1), { ports: [80] });
  expect([third.answer.status, await third.answer.json()]).toMatchObject([409, { code: "order_open" }]);
  const { headers, body } = first;
  const other = await post(world, "/x402/purchase-compute", { ...body, ports: [8080] }, headers);
  expect(await other.json()).toMatchObject({ code: "payment_used", details: [{ purchaseId: first.id }] });
});

test.each([
  [[22, 80], "ports must leave out 22: SSH is open on each machine"],
  [[25], "ports must leave out 25: vendors block mail; use 465 or 587"],
  [[80, 80], "ports must name each port once"],
  [[0], "ports.0 must be whole numbers from 1 to 65535; only TCP can be opened"],
  [[65_536], "ports.0 must be whole numbers from 1 to 65535; only TCP can be opened"],
  [[80.5], "ports.0 must be whole numbers from 1 to 65535; only TCP can be opened"],
  [["53/udp"], "ports.0 must be whole numbers from 1 to 65535; only TCP can be opened"],
  [[1, 2, 3, 4, 5, 6, 7, 8, 9], "ports must be 8 ports at most"],
  ["80", "ports"],
])("ports %j are refused before anybody pays: %s", async (ports, sentence) => {
  const world = await deploy();
  const answer = await post(world, "/x402/purchase-compute", { tier: 0, durationDays: 1, ports });
  const body = JSON.stringify(await answer.json());
  expect(answer.status, body).toBe(400);
  expect(body).toContain(sentence);
});

test("no ports are the same order as an empty list, and as one from before there were ports", async () => {
  const world = await deploy();
  const { id } = await accepted(world, agent(1));
  const again = await signPurchaseOf(world, agent(1), { ports: [] });
  const answer = await post(world, "/x402/purchase-compute", again.body, again.headers);
  expect(await answer.json()).toMatchObject({ purchaseId: id, ports: [] });
});

test("an unused group is taken for half a day, and one whose machines are gone is deleted after a day, by the next new set of ports", async () => {
  const world = await deploy();
  const { vultr } = world.context.vendors;
  const groupFor = async (port: number) => (await vultr.prepare([port]))["firewallGroup"];
  type Groups = { firewall_groups: { id: string }[] };
  const exists = async (group: unknown) =>
    (await readVultr<Groups>(world, "/firewalls")).firewall_groups.some(({ id }) => id === group);
  const first = await groupFor(7001);
  expect(await groupFor(7001)).toBe(first);
  vi.useFakeTimers({ toFake: ["Date"], now: Date.now() + 13 * HOUR_MS });
  try {
    expect(await groupFor(7001)).not.toBe(first);
    expect(await exists(first)).toBe(true);
    vi.setSystemTime(Date.now() + 12 * HOUR_MS);
    await groupFor(7002);
    expect(await exists(first)).toBe(false);
  } finally {
    vi.useRealTimers();
  }
});

test("a group whose machines run is taken for as long as they do: each half day made another one", async () => {
  const world = await deploy();
  const { vultr } = world.context.vendors;
  const supplies = await vultr.prepare([7003]);
  const { publicKey } = await generateSshKeyPair("ed25519");
  const { instanceId } = await vultr.create(
    {
      label: `clawcloud-${world.edge.DEPLOYMENT_ID}-1-00000000-0-1`,
      mark: "abc",
      region: "ewr",
      plan: "vc2-1c-1gb",
      publicKey,
      hostKey: generateHostKey(),
      ports: [7003],
      note: "# A machine\n",
    },
    supplies,
  );
  vi.useFakeTimers({ toFake: ["Date"], now: Date.now() + 13 * HOUR_MS });
  try {
    expect((await vultr.prepare([7003]))["firewallGroup"]).toBe(supplies["firewallGroup"]);
  } finally {
    vi.useRealTimers();
  }
  await unlocked();
  await vultr.delete(instanceId);
});

test("a port of an order that SSH has at Vultr is one rule of each kind, not two", async () => {
  const world = await deploy();
  const ssh = world.provisioner.VULTR_SSH_PORT;
  const { firewallGroup } = await world.context.vendors.vultr.prepare([ssh]);
  expect(await rulesOf(world, String(firewallGroup))).toEqual(openedBy([ssh]));
});

test("where a GPU moves and a port is not mapped any more, nobody is told where that port was", async () => {
  const world = await deploy();
  const tokenId = await orderAndRun(world, { tier: 4, ports: [8889] });
  const row = await world.vm(tokenId);
  await fetch(`${world.provisioner.RUNPOD_API_URL}/v2/pods/${row?.["instance_id"]}`, {
    method: "PATCH",
    headers: { authorization: `Bearer ${world.provisioner.RUNPOD_API_KEY}`, "content-type": "application/json" },
    body: JSON.stringify({ ports: ["22/tcp"] }),
  });
  const moved = async () => {
    await forgetLists();
    await reap(world.context);
    return (await world.vm(tokenId))?.["ssh_port"];
  };
  await expect.poll(moved, { timeout: 20_000 }).not.toBe(row?.["ssh_port"]);
  expect((await status(world, tokenId)).ports).toEqual([{ port: 8889, publicPort: null }]);
});
