import { expect, test, vi } from "vitest";
import { vms } from "../../../../src/db/schema.ts";
import edge from "../../../../src/edge/index.ts";
import { refreshCatalog } from "../../../../src/provisioner/machines/catalog.ts";
import { machineRow } from "../../../rows.ts";
import { buy } from "../../../world/agent.ts";
import { agent, chain } from "../../chain.ts";
import { deploy, PATIENCE_MS } from "../../deployment.ts";
import { addFault, addRpcFault } from "../../faults.ts";
import { billOf } from "../../meter.ts";

type Tier = {
  tier: number;
  name: string;
  pricePerDay: string;
  pricePerMonth: string;
  active: boolean;
  type: string;
  stock: string;
};
const json = async <T>(response: Response | Promise<Response>) => (await (await response).json()) as T;

test("/tiers has all eight with prices from the contract and stock from the vendors", async () => {
  const world = await deploy();
  await addFault("vultr", { call: "catalog", kind: "sold_out" });
  await refreshCatalog(world.context);
  const response = await world.request("/tiers");
  const { tiers } = await json<{ tiers: Tier[] }>(response);
  expect(tiers.map((one) => one.tier)).toEqual([0, 1, 2, 3, 4, 5, 6, 7]);
  expect(tiers[0]).toEqual({
    tier: 0,
    name: "VM 1 vCPU / 1 GB",
    pricePerDay: "0.50",
    pricePerMonth: "15.00",
    active: true,
    type: "gcp",
    specs: { vcpu: 1, memoryGb: 1, gpu: null, diskGb: 25 },
    stock: "none",
  });
  expect(tiers[7]).toMatchObject({
    pricePerDay: "84.00",
    pricePerMonth: "2520.00",
    type: "gpu-external",
    stock: "high",
  });
  expect(response.headers.get("age")).toMatch(/^\d+$/);
});

test("/tiers without any catalog says unknown stock, and with dead nodes gives the last good answer", async () => {
  const world = await deploy();
  const first = await json<{ tiers: Tier[] }>(world.request("/tiers"));
  expect(first.tiers.every((one) => one.stock === "unknown")).toBe(true);
  await addRpcFault({ kind: "down" });
  const later = await deploy({ edge: { RPC_URLS: world.edge.RPC_URLS[0] ?? "" } });
  await addRpcFault({ kind: "down" });
  const none = await later.request("/tiers");
  expect([none.status, none.headers.get("retry-after")]).toEqual([503, "5"]);
});

test("/tiers learns of what a vendor refuses to sell at once, not from its next catalog (hard case 31)", async () => {
  const world = await deploy({ provisioner: { VULTR_REGIONS: "ewr,lax" } });
  await refreshCatalog(world.context);
  const stockNow = async () => {
    // Each isolate keeps its own list for five seconds.
    const answer = await world.appOf({ ...world.edge }).request("https://api.example/tiers", {
      headers: { "cf-connecting-ip": "203.0.113.7" },
    });
    return (await json<{ tiers: Tier[] }>(answer)).tiers.map(({ stock }) => stock);
  };
  const before = await stockNow();
  expect(before[0]).toBe("high");
  expect((await json<{ tiers: Tier[] }>(world.request("/tiers"))).tiers[0]?.stock).toBe("high");
  await addFault("vultr", { call: "create", kind: "sold_out", region: "ewr" });
  await buy(chain, agent(0), 0, 1);
  await world.scan();
  await world.drain();
  // It is to be had elsewhere.
  expect(await stockNow()).toEqual(before);
  await addFault("vultr", { call: "create", kind: "sold_out" });
  const { tokenId } = await buy(chain, agent(1), 0, 1);
  await world.scan();
  await world.drain(async () => (await world.rows("SELECT * FROM attempts WHERE outcome = 'sold_out'")).length >= 3);
  expect(await world.vm(tokenId)).toMatchObject({ status: "provisioning" });
  expect(await stockNow()).toEqual(["none", ...before.slice(1)]);
  // An isolate that has a list learns of it within five seconds.
  vi.useFakeTimers({ toFake: ["Date"], now: Date.now() + 5_001 });
  expect((await json<{ tiers: Tier[] }>(world.request("/tiers"))).tiers[0]?.stock).toBe("none");
  vi.useRealTimers();
  await refreshCatalog(world.context);
  expect((await stockNow())[0]).toBe("high");
});

test("/vms lists newest first, in pages, with the total beside them", async () => {
  const world = await deploy();
  const ids: number[] = [];
  for (let count = 0; count < 3; count++) ids.push((await buy(chain, agent(4), 0, 1)).tokenId);
  await world.scan();
  const address = agent(4).address;
  type Page = {
    address: string;
    count: number;
    vms: { token_id: number; status: string; ssh_host: string }[];
    nextCursor?: string;
  };
  const first = await json<Page>(world.request(`/vms/${address.toLowerCase()}?limit=2`));
  expect(first).toMatchObject({ address, count: 3 });
  expect(first.vms.map((vm) => vm.token_id)).toEqual([ids[2], ids[1]]);
  expect(first.vms[0]).toEqual({
    token_id: ids[2],
    tier: 0,
    vm_type: "gcp",
    ssh_host: "",
    status: "provisioning",
    created_at: expect.stringMatching(/Z$/),
    expires_at: expect.stringMatching(/Z$/),
  });
  const second = await json<Page>(world.request(`/vms/${address}?limit=2&cursor=${first.nextCursor}`));
  expect(second.vms.map((vm) => vm.token_id)).toEqual([ids[0]]);
  expect(await json(world.request(`/vms/0x${"1".repeat(40)}`))).toEqual({
    address: `0x${"1".repeat(40)}`,
    count: 0,
    vms: [],
  });
});

test("/status of a token that only the chain knows is provisioning, of one it does not know 404", async () => {
  const world = await deploy();
  const { tokenId } = await buy(chain, agent(0), 0, 1);
  expect(await json(world.request(`/status/${tokenId}`))).toMatchObject({
    tokenId: String(tokenId),
    status: "provisioning",
    purchase: null,
  });
  const unknown = await world.request("/status/8888888");
  expect(unknown.status).toBe(404);
  expect(await json(unknown)).toMatchObject({ error: "There is no token 8888888.", code: "token_not_found" });
});

test("token 0 is a token like any other", async () => {
  const world = await deploy();
  await world.insert(vms, machineRow({ tokenId: 0 }));
  expect(await json(world.request("/status/0"))).toMatchObject({ tokenId: "0", status: "provisioning" });
});

test("/health is ok while the scan runs, and 503 with the same body when a purchase could not be served", async () => {
  const world = await deploy();
  await buy(chain, agent(0), 0, 1);
  await world.scan();
  const ok = await world.request("/health");
  expect(ok.status).toBe(200);
  expect(await json(ok)).toMatchObject({
    version: "1.3.0",
    checks: {
      database: { ok: true },
      chain: { ok: true, chainId: 8453 },
      provisioning: { pending: 1, oldestSeconds: expect.any(Number) },
    },
  });
  await world.sql.prepare("UPDATE cursors SET scanned_at = 0").run();
  const stopped = await vi.waitFor(async () => {
    const answer = await world.request("/health");
    expect([answer.status, answer.headers.get("retry-after")]).toEqual([503, "10"]);
    return answer;
  }, PATIENCE_MS);
  expect(await json(stopped)).toMatchObject({ status: "degraded", checks: { chain: { ok: false } } });
});

test("/health tells of the newest block, and how far behind it the scan is: it told of block 0, and was never behind", async () => {
  const world = await deploy();
  await world.scan();
  await world.sql.prepare("UPDATE cursors SET block_timestamp = block_timestamp - 900").run();
  const head = Number(await chain.reader.getBlockNumber());
  const { status, checks } = await json<{ status: string; checks: { chain: { head: number; lagSeconds: number } } }>(
    world.request("/health"),
  );
  expect([status, checks.chain.head]).toEqual(["degraded", head]);
  expect(checks.chain.lagSeconds).toBeGreaterThanOrEqual(900);
});

test("/health costs one look at D1 and at each node, however many ask at once, and none within a second of it (hard case 44)", async () => {
  const world = await deploy();
  await world.scan();
  const askers = 20;
  const bill = await billOf(async () => {
    const answers = await Promise.all(Array.from({ length: askers }, () => world.request("/health")));
    expect(answers.map(({ status }) => status)).toEqual(Array.from({ length: askers }, () => 200));
  });
  expect(bill).toMatchObject({ roundTrips: 1, rowsWritten: 0 });
  const again = await billOf(async () => {
    const { checks } = await json<{ checks: { database: { ok: boolean } } }>(world.request("/health"));
    expect(checks.database.ok).toBe(true);
  });
  expect(again.roundTrips).toBeLessThanOrEqual(1);
  await vi.waitFor(async () => {
    expect((await billOf(async () => void (await world.request("/health")))).roundTrips).toBe(1);
  }, PATIENCE_MS);
});

test("/openapi.json is generated from the routes: 3.1, version 1.3.0, every public path", async () => {
  const world = await deploy({
    edge: { PUBLIC_URLS: "https://api.clawcloud.co,https://clawcloud-backend-railway-production.up.railway.app" },
  });
  const document = await json<{
    openapi: string;
    info: { version: string };
    servers: { url: string }[];
    paths: Record<string, object>;
  }>(world.request("/openapi.json"));
  expect(document).toMatchObject({ openapi: "3.1.0", info: { version: "1.3.0" } });
  expect(document.servers.map((server) => server.url)).toEqual([
    "https://api.clawcloud.co",
    "https://clawcloud-backend-railway-production.up.railway.app",
  ]);
  for (const path of [
    "/health",
    "/tiers",
    "/credentials/{tokenId}",
    "/credentials/{tokenId}/ack",
    "/vms/{address}",
    "/status/{tokenId}",
  ]) {
    expect(document.paths).toHaveProperty([path]);
  }
});

test("the document limits every text in a path or a query: what it took without limit counted as an attack (hard case 22)", async () => {
  type Parameter = { in: string; name: string; schema: Record<string, unknown> };
  const world = await deploy();
  const document = await json<{ paths: Record<string, Record<string, { parameters?: Parameter[] }>> }>(
    world.request("/openapi.json"),
  );
  const parameters = Object.entries(document.paths).flatMap(([path, operations]) =>
    Object.values(operations).flatMap(({ parameters = [] }) => parameters.map((one) => ({ ...one, path }))),
  );
  const texts = parameters.filter((one) => one.in !== "header" && one.schema["type"] === "string");
  expect(texts.length).toBeGreaterThan(10);
  const isLimited = ({ schema }: Parameter) => ["pattern", "enum", "format", "const"].some((name) => name in schema);
  expect(texts.filter((one) => !isLimited(one)).map(({ path, name }) => `${path} ${name}`)).toEqual([]);
  const ordered = JSON.stringify(document.paths["/x402/purchase-compute"]);
  const [, pattern = ""] = /"sshPublicKey":\{[^}]*?"pattern":("(?:[^"\\]|\\.)*")/.exec(ordered) ?? [];
  expect(`ssh-ed25519 ${"A".repeat(68)} me@host\n`).toMatch(new RegExp(JSON.parse(pattern) as string));
  const injected = encodeURIComponent('"; DROP TABLE vms; --');
  const refused = await world.request(`/x402/purchases?tx=${injected}`);
  expect([refused.status, (await json<{ code: string }>(refused)).code]).toEqual([400, "injection_refused"]);
});

test("/docs runs its own scripts and nothing from elsewhere", async () => {
  const world = await deploy();
  const page = await world.request("/docs");
  const html = await page.text();
  expect(page.headers.get("content-security-policy")).toContain("default-src 'self'");
  const sources = [...html.matchAll(/(?:src|href)="([^"]+)"/g)].map((match) => match[1] ?? "");
  expect(sources.length).toBeGreaterThan(2);
  for (const source of sources) {
    expect(source).toMatch(/^\//);
    const asset = await world.request(source);
    expect(asset.status).toBe(200);
    expect((await asset.text()).length).toBeGreaterThan(50);
  }
});

test("/llms.txt says how to buy and log in, in under 70 lines, with this deployment's addresses", async () => {
  const world = await deploy();
  const text = await (await world.request("/llms.txt")).text();
  expect(text.trim().split("\n").length).toBeLessThan(70);
  for (const needed of [
    "https://api.example",
    world.edge.CONTRACT_ADDRESS,
    "purchaseVM(tier, durationDays)",
    "ClawCloud Access Request:",
    "X-Access-Message",
  ]) {
    expect(text).toContain(needed);
  }
  expect(text).not.toContain("{{");
});

test.each([
  [{}, "DEPLOYMENT_ID"],
  [{ DEPLOYMENT_ID: "Prod!" }, "DEPLOYMENT_ID"],
  [{ START_BLOCK: "" }, "START_BLOCK"],
  [{ DATA_PRIVATE_KEY: "abc" }, "DATA_PRIVATE_KEY"],
  [{ RPC_URLS: "not a url" }, "RPC_URLS"],
  [{ PURCHASE_EVENT: "Bought(uint256 id)" }, "PURCHASE_EVENT"],
])("an environment of %j refuses to run and names %s, never its value", async (env, name) => {
  const context = { waitUntil: () => undefined, passThroughOnException: () => undefined, props: {} } as never;
  const response = await edge.fetch(new Request("https://api.example/health") as never, env as never, context);
  expect(response.status).toBe(500);
  const body = await json<{ error: string; code: string }>(response as never);
  expect(body.code).toBe("misconfigured");
  expect(body.error).toMatch(new RegExp(`${name}(\\.0)?: `));
  for (const value of Object.values(env)) if (value.length > 2) expect(body.error).not.toContain(value);
  const cron = await edge.scheduled({} as never, env as never, context).catch((error: unknown) => String(error));
  expect(cron).toContain(name);
});
