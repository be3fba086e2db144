// Vultr API v2 (https://www.vultr.com/api/). What its answers mean is collected in the tables below.
import { z } from "zod";
import type { ProvisionerConfig } from "../../config.ts";
import type { Offer } from "../../db/schema.ts";
import { log } from "../../log.ts";
import { cloudConfig, SPENT_CLOUD_CONFIG } from "../cloud-init.ts";
import { callVendor, retryAfter, type VendorAnswer } from "./request.ts";
import {
  type Machine,
  type MachineSpec,
  type Supplies,
  type Vendor,
  type VendorAction,
  VendorError,
} from "./vendor.ts";

/** By tier. */
export const VULTR_PLANS: readonly string[] = ["vc2-1c-1gb", "vc2-1c-2gb", "vc2-2c-4gb", "vc2-4c-8gb"];
/** A whole A100 of 80 GB: what tier 6 pays for and more than tier 5 does. Other cards of ours Vultr has not, or by eights. */
export const VULTR_GPU_PLANS: Readonly<Record<number, readonly (readonly string[])[]>> = {
  5: [[], ["vcg-a100-12c-120g-80vram"]],
  6: [["vcg-a100-12c-120g-80vram"]],
};

const PAGE_SIZE = 500;
const MAX_PAGES = 50;
const NO_ADDRESS = "0.0.0.0";

const instanceSchema = z.object({
  id: z.string().min(1),
  // One odd object of the account must not hide the others: only what we can't do without is required.
  label: z.string().nullish(),
  tags: z.array(z.string()).nullish(),
  date_created: z.string(),
  main_ip: z.string(),
  status: z.string(),
  power_status: z.string(),
  server_status: z.string(),
});
const instancePage = z.object({
  instances: z.array(instanceSchema),
  meta: z.object({ links: z.object({ next: z.string() }) }),
});
const groupSchema = z.object({ id: z.string().min(1), description: z.string() });
const rulePage = z.object({ firewall_rules: z.array(z.object({ ip_type: z.string(), port: z.string() })) });
const groupPage = z.object({
  firewall_groups: z.array(groupSchema),
  meta: z.object({ links: z.object({ next: z.string() }) }),
});
const osPage = z.object({
  os: z.array(z.object({ id: z.number(), name: z.string() })),
  meta: z.object({ links: z.object({ next: z.string() }) }),
});

// `status` is an open set: what is not here is loud and counts as starting.
const STATUS: Record<string, "starting" | "up" | "dead"> = {
  pending: "starting",
  installing: "starting",
  resizing: "starting",
  active: "up",
  suspended: "dead",
  closed: "dead",
};

// Prose of a 400 on create, most telling first. Anything else is our request's fault: it fails everywhere alike.
const REFUSALS: readonly [RegExp, VendorAction][] = [
  [/not available in the selected region/i, "next_candidate"],
  [/maximum number of active instances/i, "page"],
  [/maximum monthly|exceed.*limit/i, "page"],
  [/open a support request/i, "page"],
];

export function createVultr(config: ProvisionerConfig): Vendor {
  const access = {
    vendor: "vultr" as const,
    baseUrl: config.VULTR_API_URL,
    apiKey: config.VULTR_API_KEY,
    timeoutMs: config.VENDOR_TIMEOUT_MS,
  };

  async function read<T>(path: string, schema: z.ZodType<T>): Promise<T> {
    const answer = await callVendor(access, "GET", path);
    if (answer.status !== 200) throw refusal(answer);
    return parse(answer, schema);
  }

  async function pages<Page extends { meta: { links: { next: string } } }>(
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
      cursor = page.meta.links.next;
      if (seen.has(cursor) || seen.size > MAX_PAGES) throw new VendorError("vultr", "wait", "a list does not end");
      seen.add(cursor);
    } while (cursor !== "");
    return all;
  }

  /** The image by name, since ids are not promised to last. */
  async function findOs(): Promise<number> {
    const all = (await pages("/os", osPage)).flatMap((page) => page.os);
    const found = all.find((os) => os.name === config.VULTR_OS);
    // Another system than the one that was configured would be sold in its place.
    if (found === undefined)
      throw new VendorError("vultr", "page", `VULTR_OS: there is no system "${config.VULTR_OS}"`);
    return found.id;
  }

  /** One firewall group per deployment, with SSH open and nothing else; found by its description, made once. */
  async function ensureFirewall(): Promise<string> {
    const description = `clawcloud-${config.DEPLOYMENT_ID} ssh-${config.VULTR_SSH_PORT}`;
    const groups = (await pages("/firewalls", groupPage)).flatMap((page) => page.firewall_groups);
    let group = groups.find((one) => one.description === description);
    if (group === undefined) {
      const made = await callVendor(access, "POST", "/firewalls", { description });
      if (made.status !== 201) throw refusal(made);
      group = parse(made, z.object({ firewall_group: groupSchema })).firewall_group;
    }
    const { firewall_rules: rules } = await read(`/firewalls/${group.id}/rules`, rulePage);
    for (const [ip_type, subnet] of [
      ["v4", "0.0.0.0"],
      ["v6", "::"],
    ] as const) {
      const port = String(config.VULTR_SSH_PORT);
      if (rules.some((rule) => rule.ip_type === ip_type && rule.port === port)) continue;
      const rule = { ip_type, protocol: "tcp", subnet, subnet_size: 0, port, notes: "ssh" };
      const added = await callVendor(access, "POST", `/firewalls/${group.id}/rules`, rule);
      if (added.status !== 201) throw refusal(added);
    }
    return group.id;
  }

  const list = async (): Promise<Machine[]> =>
    (await pages("/instances", instancePage)).flatMap((page) =>
      page.instances.map((instance) => toMachine(instance, config.VULTR_SSH_PORT)),
    );

  /** A change of one machine. What is refused for good is refused for this machine alone. */
  async function change(method: "PATCH" | "POST", instanceId: string, action: string, fields: object): Promise<void> {
    const answer = await callVendor(access, method, `/instances/${pathId(instanceId)}${action}`, fields);
    if (answer.status === 202) return;
    if (answer.status === 400 || answer.status === 404) {
      throw new VendorError("vultr", "next_candidate", answer.detail, { status: answer.status });
    }
    throw refusal(answer);
  }

  const kinds: [string, readonly string[]][] = [
    ["vc2", VULTR_PLANS],
    ...(config.VULTR_GPUS ? [["vcg", Object.values(VULTR_GPU_PLANS).flat(2)] as [string, string[]]] : []),
  ];

  return {
    name: "vultr",

    prepareCalls: 6,
    prepare: async () => ({ osId: await findOs(), firewallGroup: await ensureFirewall() }),

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
      if (answer.status === 202) {
        return toMachine(parse(answer, z.object({ instance: instanceSchema })).instance, config.VULTR_SSH_PORT);
      }
      throw refusal(answer);
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
      if (answer.status !== 200) throw refusal(answer);
      return toMachine(parse(answer, z.object({ instance: instanceSchema })).instance, config.VULTR_SSH_PORT);
    },

    async delete(instanceId) {
      const answer = await callVendor(access, "DELETE", `/instances/${pathId(instanceId)}`);
      if (answer.status === 204 || answer.status === 404 || isUnknownInstance(answer)) return;
      // "Server is currently locked": just after create, passes by itself.
      if (answer.status >= 500) throw new VendorError("vultr", "wait", answer.detail, { status: answer.status });
      throw refusal(answer);
    },

    list,

    catalogCalls: config.VULTR_REGIONS.length * kinds.length,
    async catalog(): Promise<Offer[]> {
      const schema = z.object({ available_plans: z.array(z.string()) });
      const offers: Offer[] = [];
      for (const region of config.VULTR_REGIONS) {
        for (const [kind, plans] of kinds) {
          const { available_plans } = await read(`/regions/${region}/availability?type=${kind}`, schema);
          for (const plan of plans)
            offers.push({ region, plan, stock: available_plans.includes(plan) ? "high" : "none" });
        }
      }
      return offers;
    },
  };
}

// In full, also on a change: it replaces them all.
const tagsOf = ({ label, mark }: MachineSpec): string[] => ["clawcloud", label, mark];

function toMachine(instance: z.output<typeof instanceSchema>, port: number): Machine {
  const { id, main_ip: ip } = instance;
  const label = instance.label ?? "";
  const tags = instance.tags ?? [];
  const state = STATUS[instance.status];
  // Loud, but one odd machine must not hide the others of a list: it waits until its boot deadline.
  if (state === undefined)
    log("error", "vendor_status_unknown", { vendor: "vultr", status: instance.status.slice(0, 40) });
  // `active` is not booted: the server has to be running and `ok` too.
  const up = state === "up" && instance.power_status === "running" && instance.server_status === "ok";
  return {
    instanceId: id,
    label,
    mark: tags.find((tag) => tag !== "clawcloud" && tag !== label) ?? null,
    createdAt: Date.parse(instance.date_created),
    state: up ? "up" : state === "dead" ? "dead" : "starting",
    host: ip === NO_ADDRESS || ip === "" ? null : ip,
    port,
  };
}

/** What to do about a refusal, by status first and prose last. A 5xx on create leaves the outcome open. */
function refusal(answer: VendorAnswer): VendorError {
  const { status, detail } = answer;
  const text = (answer.body as { error?: unknown } | null)?.error;
  const byText = REFUSALS.find(([pattern]) => pattern.test(String(text)))?.[1];
  const wait = retryAfter(answer.headers);
  const options = { status, ...(wait === undefined ? {} : { retryAfterSeconds: wait }) };
  if (status === 429) return new VendorError("vultr", "wait", detail, { retryAfterSeconds: 2, ...options });
  if (status >= 500) return new VendorError("vultr", "unknown", detail, options);
  return new VendorError("vultr", byText ?? "page", detail, options);
}

const isUnknownInstance = ({ status, body }: VendorAnswer): boolean =>
  status === 400 && /invalid instance|instance not found/i.test(String((body as { error?: unknown } | null)?.error));

function parse<T>(answer: VendorAnswer, schema: z.ZodType<T>): T {
  const result = schema.safeParse(answer.body);
  if (result.success) return result.data;
  throw new VendorError("vultr", "unknown", `${answer.detail}: the answer has another shape than documented`);
}

/** An empty id would name the whole collection. */
function pathId(id: string): string {
  if (id === "") throw new VendorError("vultr", "page", "an empty instance id was about to reach the vendor");
  return encodeURIComponent(id);
}
