// Vultr API v2 as its document and its behaviour are known: a real HTTP server, machines with a life, SSH behind each.
import { randomBytes, randomUUID } from "node:crypto";
import type { Context } from "hono";
import { startSilentPort } from "./silent-port.ts";
import { type DoorKeys, type Hardware, isConfigured, openDoor } from "./ssh-door.ts";
import { serveVultrAccount } from "./vendor-accounts.ts";
import { durationOf, VendorServer, type VendorServerOptions } from "./vendor-server.ts";
import { type Instance, ODD_NEIGHBOURS, type Rule, readCloudConfig, viewOf } from "./vultr-instance.ts";

export type VultrOptions = VendorServerOptions & {
  apiKey: string;
  sshPort: number;
  /** Milliseconds from create to: active, server_status ok, first sshd, sshd with our keys. */
  bootMs?: { active: number; ok: number; sshd: number; configured: number };
  listLagMs?: number;
  /** A machine can't be changed or deleted for this long after it was installed. */
  lockedMs?: number;
  requestsPerSecond?: number;
  /** What `save` of an earlier one gave. */
  saved?: VultrSaved | undefined;
};
type Machine = Omit<Instance, "door" | "timers">;
export type VultrSaved = {
  machines: { machine: Machine; door: DoorKeys | null }[];
  groups: Group[];
  addresses: [second: number, third: number, lastHost: number];
};
type Group = { id: string; description: string; createdAt: number; rules: Rule[] };

const PLANS: Record<string, { vcpu: number; ram: number; disk: number; monthly: number }> = {
  "vc2-1c-1gb": { vcpu: 1, ram: 1_024, disk: 25, monthly: 5 },
  "vc2-1c-2gb": { vcpu: 1, ram: 2_048, disk: 55, monthly: 10 },
  "vc2-2c-4gb": { vcpu: 2, ram: 4_096, disk: 80, monthly: 20 },
  "vc2-4c-8gb": { vcpu: 4, ram: 8_192, disk: 160, monthly: 40 },
  "vcg-a100-12c-120g-80vram": { vcpu: 12, ram: 122_880, disk: 1_400, monthly: 1_750 },
};
const REGIONS = ["ewr", "lax", "sjc", "sea", "ams", "fra", "sgp", "nrt"];
const SYSTEMS = [
  { id: 1743, name: "Ubuntu 22.04 LTS x64", arch: "x64", family: "ubuntu" },
  { id: 2284, name: "Ubuntu 24.04 LTS x64", arch: "x64", family: "ubuntu" },
];
const DEFAULT_BOOT_MS = { active: 900, ok: 1_800, sshd: 2_400, configured: 3_200 };
const DEFAULT_LOCKED_MS = 400;
const CONFIGURED_LOOK_MS = 20;
const LOCKED = "Server is currently locked";
const LIMITED = { error: "rate limit exceeded", status: 429 };

export async function startVultr(options: VultrOptions) {
  const bootMs = options.bootMs ?? DEFAULT_BOOT_MS;
  const { listLagMs = 600, lockedMs = DEFAULT_LOCKED_MS } = options;
  const instances = new Map<string, Instance>();
  const { saved } = options;
  const groups = new Map((saved?.groups ?? []).map((group) => [group.id, group]));
  const hits: number[] = [];
  let lastDeletedAt = 0;
  const view = (instance: Instance) => viewOf(instance, bootMs);
  /** What the account says that there is. */
  const shown = (id: string) => {
    const instance = instances.get(id);
    return instance !== undefined && Date.now() >= instance.shownAt ? instance : undefined;
  };
  /** A lock that is on, or one that a fault puts on now: for its time, or for this call. */
  const isLocked = (instance: Instance, call: "change" | "reinstall" | "delete"): boolean => {
    const fault = server.takeFault(call, ["locked"]);
    if (fault?.ms !== undefined) instance.lockedUntil = Date.now() + fault.ms;
    return fault !== undefined || Date.now() < instance.lockedUntil;
  };
  // Addresses of one run lie together, and far from those of another.
  const drawn = [16 + ((randomBytes(1)[0] ?? 0) % 200), randomBytes(1)[0] ?? 0] as const;
  const [second, third, last] = saved?.addresses ?? [...drawn, 0];
  let lastHost = last;
  const server = new VendorServer(options, {
    machines: () => [...instances.values()].map((one) => ({ ...view(one), userData: one.userData.length })),
    clear: clearMachines,
  });
  const { app } = server;
  const error = (c: Context, status: 400 | 401 | 404 | 429 | 500, text: string) =>
    c.json({ error: text, status }, status);
  const faulty = (c: Context, call: string, effect: () => Promise<Response> | Response, region?: string) =>
    server.withFaults(
      c,
      call,
      { rateLimited: () => c.json(LIMITED, 429), failed: () => error(c, 500, "Internal server error") },
      effect,
      region,
    );

  app.use("/v2/*", async (c, next) => {
    const now = Date.now();
    while ((hits[0] ?? now) < now - 1_000) hits.shift();
    hits.push(now);
    if (hits.length > (options.requestsPerSecond ?? 30)) return c.json(LIMITED, 429);
    const open = /^\/v2\/(regions|plans|os)(\/|$)/.test(c.req.path);
    if (!open && c.req.header("authorization") !== `Bearer ${options.apiKey}`)
      return error(c, 401, "Invalid API token.");
    if (!open && server.takeFault("any", ["wrong_address"]) !== undefined)
      return error(c, 401, "Unauthorized IP address: 203.0.113.9");
    return next();
  });

  const account = serveVultrAccount(server);
  app.get("/v2/os", (c) => c.json({ os: SYSTEMS, meta: { total: SYSTEMS.length, links: { next: "", prev: "" } } }));
  app.get("/v2/regions", (c) =>
    c.json({
      regions: REGIONS.map((id) => ({ id, city: id, country: "US", continent: "North America", options: [] })),
      meta: { total: REGIONS.length, links: { next: "", prev: "" } },
    }),
  );
  app.get("/v2/plans", (c) => {
    const plans = Object.entries(PLANS).map(([id, plan]) => ({
      id,
      vcpu_count: plan.vcpu,
      ram: plan.ram,
      disk: plan.disk,
      disk_count: 1,
      bandwidth: 1_024,
      monthly_cost: plan.monthly,
      hourly_cost: plan.monthly / 730,
      type: id.slice(0, 3),
      locations: REGIONS,
    }));
    return c.json({ plans, meta: { total: plans.length, links: { next: "", prev: "" } } });
  });
  app.get("/v2/regions/:region/availability", (c) =>
    faulty(c, "catalog", () => {
      const region = c.req.param("region");
      if (!REGIONS.includes(region)) return error(c, 400, "Invalid region.");
      const soldOut = server.takeFault("catalog", ["sold_out"], region) !== undefined;
      const kind = c.req.query("type") ?? "";
      return c.json({ available_plans: soldOut ? [] : Object.keys(PLANS).filter((id) => id.startsWith(kind)) });
    }),
  );

  app.get("/v2/firewalls", (c) => {
    const list = [...groups.values()].map((group) => groupView(group));
    return c.json({ firewall_groups: list, meta: { total: list.length, links: { next: "", prev: "" } } });
  });
  app.post("/v2/firewalls", async (c) => {
    const { description = "" } = (await c.req.json()) as { description?: string };
    const group = { id: randomUUID(), description, createdAt: Date.now(), rules: [] as Rule[] };
    groups.set(group.id, group);
    return c.json({ firewall_group: groupView(group) }, 201);
  });
  app.get("/v2/firewalls/:id/rules", (c) => {
    const group = groups.get(c.req.param("id"));
    if (group === undefined) return error(c, 404, "Invalid firewall group.");
    const rules = group.rules.map((rule) => ({ ...rule, action: "accept", source: "" }));
    return c.json({ firewall_rules: rules, meta: { total: rules.length, links: { next: "", prev: "" } } });
  });
  app.post("/v2/firewalls/:id/rules", async (c) => {
    const group = groups.get(c.req.param("id"));
    if (group === undefined) return error(c, 404, "Invalid firewall group.");
    const body = (await c.req.json()) as Partial<Rule>;
    const { ip_type, protocol, subnet, subnet_size, port = "", notes = "" } = body;
    if (ip_type === undefined || protocol === undefined || subnet === undefined || subnet_size === undefined) {
      return error(c, 400, "Bad request.");
    }
    const rule = { id: group.rules.length + 1, ip_type, protocol, port, subnet, subnet_size, notes };
    group.rules.push(rule);
    return c.json({ firewall_rule: { ...rule, action: "accept", source: "" } }, 201);
  });

  app.delete("/v2/firewalls/:id", (c) => {
    const id = c.req.param("id");
    if ([...instances.values()].some((one) => one.firewallGroup === id)) return error(c, 400, "Group is in use.");
    return groups.delete(id) ? c.body(null, 204) : error(c, 404, "Invalid firewall group.");
  });

  app.post("/v2/instances", async (c) => {
    const body = (await c.req.json()) as Record<string, unknown>;
    const region = String(body["region"] ?? "");
    return faulty(c, "create", () => createInstance(c, body, region), region);
  });
  app.get("/v2/instances", (c) =>
    faulty(c, "list", () => {
      const lag = server.takeFault("list", ["lagging_list"])?.ms ?? listLagMs;
      const { label, tag, cursor } = c.req.query();
      const perPage = Math.min(options.maxPage ?? 500, Number(c.req.query("per_page") ?? 100));
      const all = [...instances.values()].filter(
        (one) =>
          one.createdAt <= Date.now() - lag &&
          Date.now() >= one.shownAt &&
          (label === undefined || one.label === label) &&
          (tag === undefined || one.tags.some((own) => own.toLowerCase() === tag.toLowerCase())),
      );
      const from = cursor === undefined ? 0 : Number(Buffer.from(cursor, "base64").toString());
      const next = from + perPage < all.length ? Buffer.from(String(from + perPage)).toString("base64") : "";
      const page: object[] = all.slice(from, from + perPage).map(view);
      if (from === 0 && server.takeFault("list", ["odd_neighbours"]) !== undefined) page.unshift(...ODD_NEIGHBOURS);
      return c.json({ instances: page, meta: { total: all.length, links: { next, prev: "" } } });
    }),
  );
  app.get("/v2/instances/:id", (c) =>
    faulty(c, "get", () => {
      const instance = shown(c.req.param("id"));
      return instance === undefined ? error(c, 404, "Invalid instance.") : c.json({ instance: view(instance) });
    }),
  );
  app.delete("/v2/instances/:id", (c) =>
    faulty(c, "delete", async () => {
      const instance = instances.get(c.req.param("id"));
      if (instance === undefined) return error(c, 404, "Invalid instance.");
      const refused = (why: string) => error(c, 500, `Unable to destroy server: ${why}`);
      if (Date.now() < instance.shownAt) return refused("Server is not currently active.");
      if (instance.isEnding) return refused("Server is already pending destruction.");
      if (isLocked(instance, "delete")) return refused(`Unable to remove VM: ${LOCKED}`);
      lastDeletedAt = Date.now();
      const slow = server.takeFault("delete", ["slow_delete"]);
      instance.isEnding = true;
      if (slow === undefined) await end(instance);
      else if (slow.ms !== undefined) later(instance, slow.ms, () => end(instance));
      return c.body(null, 204);
    }),
  );

  // Merged field by field, but tags in full. The machine sees changed data only when it is installed or boots again.
  app.patch("/v2/instances/:id", async (c) => {
    const body = (await c.req.json()) as { label?: string; tags?: string[] | null; user_data?: string };
    return faulty(c, "change", () => {
      const instance = shown(c.req.param("id"));
      if (instance === undefined) return error(c, 404, "Invalid instance.");
      if (instance.isEnding || isLocked(instance, "change")) return error(c, 400, LOCKED);
      instance.label = body.label ?? instance.label;
      instance.tags = body.tags ?? instance.tags;
      if (body.user_data !== undefined) instance.userData = Buffer.from(body.user_data, "base64").toString();
      return c.json({ instance: view(instance) }, 202);
    });
  });
  app.post("/v2/instances/:id/reinstall", async (c) => {
    const { hostname } = (await c.req.json()) as { hostname?: string };
    return faulty(c, "reinstall", async () => {
      const instance = shown(c.req.param("id"));
      if (instance === undefined) return error(c, 404, "Invalid instance.");
      if (instance.isEnding || isLocked(instance, "reinstall")) return error(c, 400, LOCKED);
      await close(instance);
      instance.timers.length = 0;
      instance.hostname = hostname ?? instance.hostname;
      instance.installedAt = Date.now();
      instance.lockedUntil = instance.installedAt + lockedMs;
      instance.boots = server.takeFault("reinstall", ["never_boots"], instance.region) === undefined;
      instance.markShift = server.takeFault("reinstall", ["wrong_mark"], instance.region) !== undefined;
      if (instance.boots) bootUp(instance);
      return c.json({ instance: view(instance) }, 202);
    });
  });

  async function clearMachines(): Promise<void> {
    const all = [...instances.values()];
    instances.clear();
    await Promise.all(all.map(close));
  }

  function createInstance(c: Context, body: Record<string, unknown>, region: string): Response {
    const plan = String(body["plan"] ?? "");
    if (!REGIONS.includes(region)) return error(c, 400, "Bad request.");
    const size = PLANS[plan];
    if (size === undefined) return error(c, 400, "Invalid plan chosen.");
    const os = SYSTEMS.find((system) => system.id === body["os_id"]);
    if (os === undefined) return error(c, 400, "Invalid OS chosen.");
    if (server.takeFault("create", ["sold_out"], region) !== undefined) {
      return error(c, 400, "Server add failed: The selected plan is not available in the selected region");
    }
    // The account is full, and what was deleted within that time still takes its place.
    const counts = server.findFault("create", "counts_deleted");
    if (lastDeletedAt > 0 && Date.now() < lastDeletedAt + durationOf(counts)) {
      server.takeFault("create", ["counts_deleted"]);
      const full = "You have reached the maximum number of active instances for this account.";
      return error(c, 400, `Server add failed: ${full}`);
    }
    lastHost += 1;
    const late = server.takeFault("create", ["late_address"], region);
    const now = Date.now();
    const instance: Instance = {
      id: randomUUID(),
      region,
      plan,
      size,
      label: String(body["label"] ?? ""),
      hostname: String(body["hostname"] ?? ""),
      tags: (body["tags"] as string[] | undefined) ?? [],
      os,
      userData: Buffer.from(String(body["user_data"] ?? ""), "base64").toString(),
      firewallGroup: String(body["firewall_group_id"] ?? ""),
      password: randomBytes(9).toString("base64"),
      createdAt: now,
      installedAt: now,
      address: `127.${second}.${(third + (lastHost >> 8)) % 256}.${lastHost % 256}`,
      addressAt: now + (late?.ms ?? 0),
      boots: server.takeFault("create", ["never_boots"], region) === undefined,
      markShift: server.takeFault("create", ["wrong_mark"], region) !== undefined,
      shownAt: now + durationOf(server.takeFault("create", ["hidden"], region)),
      lockedUntil: now + (server.takeFault("create", ["locked"], region)?.ms ?? lockedMs),
      isEnding: false,
      isSilent: server.takeFault("create", ["silent_address"], region) !== undefined,
      door: undefined,
      timers: [],
    };
    instances.set(instance.id, instance);
    if (instance.boots) bootUp(instance);
    return c.json({ instance: { ...view(instance), default_password: instance.password } }, 202);
  }

  async function end(instance: Instance): Promise<void> {
    instances.delete(instance.id);
    await close(instance);
  }

  function later(instance: Instance, ms: number, what: () => Promise<void>): void {
    const timer = setTimeout(() => what().catch((cause) => console.error("vultr: a machine failed", cause)), ms);
    timer.unref();
    instance.timers.push(timer);
  }

  function bootUp(instance: Instance): void {
    if (instance.isSilent) {
      later(instance, bootMs.sshd, async () => {
        const { stop } = await startSilentPort({ host: instance.address, port: options.sshPort });
        instance.door = { close: stop, save: () => null };
        if (!instances.has(instance.id)) await close(instance);
      });
      return;
    }
    later(instance, bootMs.sshd, async () => {
      // The image's own sshd: its own host key, nobody's login key.
      const stock = { hostKey: null, authorizedKeys: [], addendum: "Ubuntu-3ubuntu13" };
      instance.door = await openDoor(instance.address, options.sshPort, hardware(instance), stock);
      // Begun here: of two timers that are late the later one may come first.
      later(instance, bootMs.configured - bootMs.sshd, () => configure(instance));
    });
  }

  async function configure(instance: Instance): Promise<void> {
    // cloud-init is not through while that fault is on.
    while (server.findFault("create", "unconfigured") !== undefined) await server.pause(CONFIGURED_LOOK_MS);
    const keys = readCloudConfig(instance, groups.get(instance.firewallGroup)?.rules ?? [], options.sshPort);
    await instance.door?.close();
    instance.door = undefined;
    if (keys === null || !instances.has(instance.id)) return;
    instance.door = await openDoor(instance.address, options.sshPort, hardware(instance), keys);
    if (!instances.has(instance.id)) await close(instance);
  }

  const groupView = (group: Group) => ({
    id: group.id,
    description: group.description,
    date_created: new Date(group.createdAt).toISOString(),
    date_modified: new Date(group.createdAt).toISOString(),
    instance_count: [...instances.values()].filter((one) => one.firewallGroup === group.id).length,
    rule_count: group.rules.length,
    max_rule_count: 50,
  });

  for (const { machine, door } of saved?.machines ?? []) {
    const instance: Instance = { ...machine, door: undefined, timers: [] };
    instances.set(instance.id, instance);
    // One that was still booting boots anew.
    if (isConfigured(door)) instance.door = await openDoor(machine.address, options.sshPort, hardware(instance), door);
    else if (machine.boots) bootUp(instance);
  }
  await server.start();
  return {
    server,
    apiUrl: `${server.origin}/v2`,
    controlUrl: `${server.origin}/control`,
    instances,
    save: (): VultrSaved => ({
      machines: [...instances.values()].map(({ door, timers: _, ...machine }) => ({
        machine,
        door: door?.save() ?? null,
      })),
      groups: [...groups.values()],
      addresses: [second, third, lastHost],
    }),
    account,
    stop: async () => {
      await clearMachines();
      await server.stop();
    },
  };
}

async function close(instance: Instance): Promise<void> {
  for (const timer of instance.timers) clearTimeout(timer);
  await instance.door?.close();
  instance.door = undefined;
}

const hardware = (instance: Instance): Hardware => ({
  name: instance.hostname,
  vcpu: instance.size.vcpu,
  memoryMb: instance.size.ram,
  gpu: null,
});
