// Vultr API v2 (https://www.vultr.com/api/). What its refusals mean is in refusals.ts.
import { z } from "zod";
import { errorFields, log } from "../../log.ts";
import { type Offer, VULTR_GPU_PLANS, VULTR_PLANS } from "../../model/stock.ts";
import type { ProvisionerConfig } from "../config.ts";
import { cloudConfig, SPENT_CLOUD_CONFIG } from "../machines/cloud-init.ts";
import { refusalOfCall, refusalOfChange, refusalOfOrder } from "./refusals.ts";
import { callVendor, isSuccess, parseAnswer, readMachines, readRows, timeOf, type VendorAnswer } from "./request.ts";
import { type Machine, type MachineSpec, type Supplies, type Vendor, VendorError } from "./vendor.ts";
import { ensureFirewall, firewallCalls } from "./vultr-firewall.ts";

const PAGE_SIZE = 500;
const MAX_PAGES = 50;
const NO_ADDRESS = "0.0.0.0";

// Only the id is required: a field of any other kind than documented is as good as missing.
const text = z.string().nullish().catch(null);
const instanceSchema = z.object({
  id: z.string().min(1),
  label: text,
  tags: z.array(z.unknown()).nullish().catch(null),
  date_created: text,
  main_ip: text,
  status: text,
  power_status: text,
  server_status: text,
});
type Instance = z.output<typeof instanceSchema>;
const instanceAnswer = z.object({ instance: instanceSchema });
/** Without `meta` a list may have been cut short. */
const meta = z.object({
  total: z.number().nullish().catch(null),
  links: z.object({ next: z.string().nullish() }),
});
const instancePage = z.object({ instances: z.array(z.unknown()), meta });
const groupPage = z.object({ firewall_groups: z.array(z.unknown()), meta });
const osSchema = z.object({ id: z.number(), name: z.string() });
const osPage = z.object({ os: z.array(z.unknown()), meta });
export const vultrBalance = z.object({ balance: z.number(), pending_charges: z.number() });
const accountSchema = z.object({ account: vultrBalance });

// `status` is an open set: what is not here is loud and counts as starting.
const STATUS: Record<string, "starting" | "up" | "dead"> = {
  pending: "starting",
  installing: "starting",
  resizing: "starting",
  active: "up",
  suspended: "dead",
  closed: "dead",
};

export function createVultr(config: ProvisionerConfig): Vendor {
  const access = {
    vendor: "vultr" as const,
    baseUrl: config.VULTR_API_URL,
    apiKey: config.VULTR_API_KEY,
    timeoutMs: config.VENDOR_TIMEOUT_MS,
  };

  async function read<T>(path: string, schema: z.ZodType<T>): Promise<T> {
    const answer = await callVendor(access, "GET", path);
    if (answer.status !== 200) throw refusalOfCall("vultr", answer);
    return parseAnswer("vultr", answer, schema);
  }

  async function pages<Page extends { meta: z.output<typeof meta> }>(
    path: string,
    schema: z.ZodType<Page>,
  ): Promise<Page[]> {
    const all: Page[] = [];
    const seen = new Set<string>();
    let cursor = "";
    do {
      const separator = path.includes("?") ? "&" : "?";
      const next = cursor === "" ? "" : `&cursor=${encodeURIComponent(cursor)}`;
      const page = await read(`${path}${separator}per_page=${PAGE_SIZE}${next}`, schema);
      all.push(page);
      cursor = page.meta.links.next ?? "";
      if (seen.has(cursor) || seen.size > MAX_PAGES) throw new VendorError("vultr", "wait", "a list does not end");
      seen.add(cursor);
    } while (cursor !== "");
    return all;
  }

  /** The image by name, since ids are not promised to last. */
  async function findOs(): Promise<number> {
    const all = (await pages("/os", osPage)).flatMap((page) => page.os);
    const found = readRows("vultr", all, osSchema).find((os) => os.name === config.VULTR_OS);
    // Another system than the one that was configured would be sold in its place.
    if (found === undefined)
      throw new VendorError("vultr", "page", `VULTR_OS: there is no system "${config.VULTR_OS}"`);
    return found.id;
  }

  async function make<T>(path: string, body: object, schema: z.ZodType<T>): Promise<T> {
    const answer = await callVendor(access, "POST", path, body);
    if (!isSuccess(answer)) throw refusalOfCall("vultr", answer);
    return parseAnswer("vultr", answer, schema);
  }
  const remove = (path: string) => callVendor(access, "DELETE", path);
  const groups = async () => (await pages("/firewalls", groupPage)).flatMap((page) => page.firewall_groups);

  async function list(): Promise<Machine[]> {
    const all = await pages("/instances", instancePage);
    const rows = all.flatMap((page) => page.instances);
    if (rows.length < (all.at(-1)?.meta.total ?? 0)) throw new VendorError("vultr", "wait", "a list is cut short");
    return readMachines("vultr", rows, instanceSchema, "label", config).map((one) =>
      toMachine(one, config.VULTR_SSH_PORT),
    );
  }

  async function change(method: "PATCH" | "POST", instanceId: string, action: string, fields: object): Promise<void> {
    const answer = await callVendor(access, method, `/instances/${pathId(instanceId)}${action}`, fields);
    if (!isSuccess(answer)) throw refusalOfChange("vultr", answer, errorOf(answer));
  }

  const kinds: [string, readonly string[]][] = [
    ["vc2", VULTR_PLANS],
    ...(config.VULTR_GPUS ? [["vcg", Object.values(VULTR_GPU_PLANS).flat(2)] as [string, string[]]] : []),
  ];

  return {
    name: "vultr",

    prepareCalls: (ports) => 1 + firewallCalls(ports),
    prepare: async (ports = []) => ({
      osId: await findOs(),
      firewallGroup: await ensureFirewall({ groups, read, make, remove }, config, ports, Date.now()),
    }),

    async create(spec: MachineSpec, supplies: Supplies): Promise<Machine> {
      const answer = await callVendor(access, "POST", "/instances", {
        region: spec.region,
        plan: spec.plan,
        os_id: supplies["osId"],
        label: spec.label,
        hostname: spec.label,
        tags: tagsOf(spec),
        user_data: btoa(cloudConfig(spec, config.VULTR_SSH_PORT)),
        firewall_group_id: supplies["firewallGroup"],
        enable_ipv6: true,
        backups: "disabled",
        activation_email: false,
      });
      if (answer.status !== 202) throw refusalOfOrder("vultr", answer, errorOf(answer));
      return toMachine(parseAnswer("vultr", answer, instanceAnswer).instance, config.VULTR_SSH_PORT);
    },

    async reinstall(instanceId, spec) {
      // The data come first: the installation reads them, and a machine that runs does not.
      const { label } = spec;
      await change("PATCH", instanceId, "", {
        label,
        tags: tagsOf(spec),
        user_data: btoa(cloudConfig(spec, config.VULTR_SSH_PORT)),
      });
      await change("POST", instanceId, "/reinstall", { hostname: label });
    },

    scrub: (instanceId) => change("PATCH", instanceId, "", { user_data: btoa(SPENT_CLOUD_CONFIG) }),

    async get(instanceId) {
      const answer = await callVendor(access, "GET", `/instances/${pathId(instanceId)}`);
      // Vultr answers an id that it knows no more with 404, at times with a 400 that says so.
      if (answer.status === 404 || isUnknownInstance(answer)) return null;
      if (answer.status !== 200) throw refusalOfCall("vultr", answer);
      return toMachine(parseAnswer("vultr", answer, instanceAnswer).instance, config.VULTR_SSH_PORT);
    },

    async delete(instanceId) {
      const answer = await callVendor(access, "DELETE", `/instances/${pathId(instanceId)}`);
      if (isSuccess(answer) || answer.status === 404 || isUnknownInstance(answer) || isBeingEnded(answer)) return;
      throw refusalOfChange("vultr", answer, errorOf(answer));
    },

    readLog: null,

    list,

    // Payments are negative in its books: a balance below zero is ours. What this month has cost so far comes off it.
    async balance() {
      const { account } = await read("/account", accountSchema);
      return -account.balance - account.pending_charges;
    },

    catalogCalls: config.VULTR_REGIONS.length * kinds.length,
    async catalog(): Promise<Offer[]> {
      const offers: Offer[] = [];
      let failure: unknown;
      for (const region of config.VULTR_REGIONS) {
        for (const [kind, plans] of kinds) {
          try {
            const { available_plans: sold } = await read(`/regions/${region}/availability?type=${kind}`, planIds);
            for (const plan of plans) offers.push({ region, plan, stock: sold.includes(plan) ? "high" : "none" });
          } catch (error) {
            // One region that is withdrawn, or odd, hides no other. One that does not answer takes its time each time.
            if (!(error instanceof VendorError) || error.status === 429 || error.cause !== undefined) throw error;
            log("warn", "region_left_out", { vendor: "vultr", region, ...errorFields(error) });
            failure = error;
          }
        }
      }
      if (offers.length === 0 && failure !== undefined) throw failure;
      return offers;
    },
  };
}

const planIds = z.object({ available_plans: z.array(z.unknown()) });

// In full, also on a change: it replaces them all.
const tagsOf = ({ label, mark }: MachineSpec): string[] => ["clawcloud", label, mark];

function toMachine(instance: Instance, port: number): Machine {
  const { id, main_ip: ip, status, power_status: power, server_status: server } = instance;
  const label = instance.label ?? "";
  const tags = (instance.tags ?? []).filter((tag) => typeof tag === "string");
  const state = STATUS[status ?? ""];
  // Loud, but one odd machine must not hide the others of a list: it waits until its boot deadline.
  if (state === undefined)
    log("error", "vendor_status_unknown", { vendor: "vultr", status: String(status).slice(0, 40) });
  // `active` is not booted: the server has to be running and `ok` too.
  const up = state === "up" && power === "running" && server === "ok";
  return {
    instanceId: id,
    label,
    mark: tags.find((tag) => tag !== "clawcloud" && tag !== label) ?? null,
    createdAt: timeOf(instance.date_created),
    state: up ? "up" : state === "dead" ? "dead" : "starting",
    host: ip == null || ip === NO_ADDRESS || ip === "" ? null : ip,
    port,
    phase: [status, power, server].join("/"),
    upSeconds: null,
    mapped: null,
  };
}

const errorOf = ({ body }: VendorAnswer): string => String((body as { error?: unknown } | null)?.error ?? "");

const isUnknownInstance = (answer: VendorAnswer): boolean =>
  answer.status === 400 && /invalid instance|instance not found/i.test(errorOf(answer));

/** It has taken an earlier order to end it. */
const isBeingEnded = (answer: VendorAnswer): boolean => /pending destruction/i.test(errorOf(answer));

/** An empty id would name the whole collection. */
function pathId(id: string): string {
  if (id === "") throw new VendorError("vultr", "page", "an empty instance id was about to reach the vendor");
  return encodeURIComponent(id);
}
