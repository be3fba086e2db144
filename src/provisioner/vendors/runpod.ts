// RunPod REST v2 (https://api.runpod.io/v2/openapi.json). Pods are containers with a GPU and a mapped SSH port.
import { z } from "zod";
import type { ProvisionerConfig } from "../../config.ts";
import type { Offer } from "../../db/schema.ts";
import { log } from "../../log.ts";
import { podEnvironment, podStartArguments } from "../cloud-init.ts";
import { callVendor, retryAfter, type VendorAnswer } from "./request.ts";
import { type Machine, type MachineSpec, type Vendor, type VendorAction, VendorError } from "./vendor.ts";

/**
 * The cards of tiers 4 to 7: what was paid for, then the next larger ones; cards in one group are as good as each other.
 * There is no A100 40GB PCIe any more: the SXM card of that size where it is left, else one of 80 GB.
 */
export const RUNPOD_GPUS: Readonly<Record<number, readonly (readonly string[])[]>> = {
  4: [["NVIDIA GeForce RTX 4090"], ["NVIDIA L40S"]],
  5: [["NVIDIA A100-SXM4-40GB"], ["NVIDIA A100 80GB PCIe", "NVIDIA A100-SXM4-80GB"]],
  6: [["NVIDIA A100 80GB PCIe"], ["NVIDIA A100-SXM4-80GB"], ["NVIDIA H100 PCIe"]],
  7: [["NVIDIA H100 PCIe"], ["NVIDIA H100 80GB HBM3", "NVIDIA H100 NVL"]],
};

const SSH_PORT = 22;
const MAX_PAGES = 50;

const podSchema = z.object({
  id: z.string().min(1),
  // One odd pod of the account must not hide the others: only what we can't do without is required.
  name: z.string().nullish(),
  status: z.string(),
  env: z.record(z.string(), z.string()).nullish(),
  createdAt: z.string(),
  ssh: z.object({ direct: z.object({ host: z.string(), port: z.number() }).nullish() }).nullish(),
});
const podPage = z.object({
  pods: z.array(podSchema),
  pagination: z.object({ hasNextPage: z.boolean(), nextCursor: z.string().nullable() }).optional(),
});
const gpuCatalog = z.object({
  gpus: z.array(
    z.object({
      id: z.string(),
      secure: z.boolean(),
      community: z.boolean(),
      availability: z.string().optional(),
      price: z.object({ secure: z.number().nullish(), community: z.number().nullish() }).nullish(),
    }),
  ),
});

const STATUS: Record<string, Machine["state"]> = {
  PROVISIONING: "starting",
  STARTING: "starting",
  RUNNING: "up",
  EXITED: "dead",
  ERROR: "dead",
  TERMINATED: "dead",
};
const STOCK: Record<string, Offer["stock"]> = { NONE: "none", LOW: "low", MEDIUM: "low", HIGH: "high" };

// A 400 on create is either no capacity or a broken cross-field rule; only the text tells.
const NO_CAPACITY =
  /no longer any instances available|no instances (?:currently )?available|does not have the resources|try a different machine|something went wrong.*try again/i;

const CREATE_ACTIONS: Record<number, VendorAction> = {
  401: "page",
  402: "page",
  403: "next_candidate",
  404: "page",
  422: "page",
  429: "wait",
};

export function createRunpod(config: ProvisionerConfig): Vendor {
  const access = {
    vendor: "runpod" as const,
    baseUrl: config.RUNPOD_API_URL,
    apiKey: config.RUNPOD_API_KEY,
    timeoutMs: config.VENDOR_TIMEOUT_MS,
  };

  async function list(): Promise<Machine[]> {
    const machines: Machine[] = [];
    const seen = new Set<string>();
    let cursor: string | null = null;
    do {
      const query: string = cursor === null ? "" : `?cursor=${encodeURIComponent(cursor)}`;
      const answer = await callVendor(access, "GET", `/v2/pods${query}`);
      if (answer.status !== 200) throw refusal(answer);
      const page = parse(answer, podPage);
      machines.push(...page.pods.map(toMachine));
      cursor = page.pagination?.hasNextPage ? (page.pagination.nextCursor ?? "") : null;
      if (cursor !== null && (cursor === "" || seen.has(cursor) || seen.size > MAX_PAGES)) {
        throw new VendorError("runpod", "wait", "a list does not end");
      }
      if (cursor !== null) seen.add(cursor);
    } while (cursor !== null);
    return machines;
  }

  return {
    name: "runpod",

    prepareCalls: 0,
    prepare: async () => ({}),

    async create(spec: MachineSpec): Promise<Machine> {
      const answer = await callVendor(access, "POST", "/v2/pods", {
        name: spec.label,
        image: config.RUNPOD_IMAGE,
        gpu: { id: spec.plan, count: 1, minCudaVersion: config.RUNPOD_MIN_CUDA },
        cloud: spec.region,
        disk: config.RUNPOD_DISK_GB,
        ports: [`${SSH_PORT}/tcp`],
        env: podEnvironment(spec),
        args: podStartArguments(),
        // Account keys must never reach a customer's machine.
        startSsh: false,
      });
      if (answer.status === 201) return toMachine(parse(answer, podSchema));
      throw refusal(answer);
    },

    // A change of the environment would start the pod anew from its image. But every pod has a key to its own API inside,
    // and a former owner who copied that could put his login key back: another pod has another one (hard case 15).
    reinstall: null,

    // The environment holds the host key for as long as the pod lives: changing it would wipe the pod.
    scrub: null,

    async get(instanceId) {
      const answer = await callVendor(access, "GET", `/v2/pods/${pathId(instanceId)}`);
      if (answer.status === 404) return null;
      if (answer.status !== 200) throw refusal(answer);
      const pod = parse(answer, podSchema);
      // "Permanently deleted", says the document of this status.
      return pod.status === "TERMINATED" ? null : toMachine(pod);
    },

    async delete(instanceId) {
      const answer = await callVendor(access, "DELETE", `/v2/pods/${pathId(instanceId)}`);
      if (answer.status === 204 || answer.status === 404) return;
      // A lock can be set from inside the pod; it must not keep a machine alive that nobody pays for.
      if (answer.status === 400) await callVendor(access, "PATCH", `/v2/pods/${pathId(instanceId)}`, { locked: false });
      // The lock, 409 and 5xx pass; the caller looks and asks again.
      if (answer.status === 400 || answer.status === 409 || answer.status >= 500) {
        throw new VendorError("runpod", "wait", answer.detail, { status: answer.status });
      }
      throw refusal(answer);
    },

    list,

    catalogCalls: config.RUNPOD_CLOUDS.length,
    async catalog(): Promise<Offer[]> {
      const wanted = new Set(Object.values(RUNPOD_GPUS).flat(2));
      const offers: Offer[] = [];
      for (const cloud of config.RUNPOD_CLOUDS) {
        const query = `?include=AVAILABILITY&product=POD&count=1&cloud=${cloud}`;
        const answer = await callVendor(access, "GET", `/v2/catalog/gpus${query}`);
        if (answer.status !== 200) throw refusal(answer);
        for (const gpu of parse(answer, gpuCatalog).gpus) {
          if (!wanted.has(gpu.id)) continue;
          const sold = cloud === "SECURE" ? gpu.secure : gpu.community;
          const usdPerHour = cloud === "SECURE" ? gpu.price?.secure : gpu.price?.community;
          offers.push({
            region: cloud,
            plan: gpu.id,
            stock: sold ? (STOCK[gpu.availability ?? "NONE"] ?? "none") : "none",
            ...(sold && usdPerHour != null ? { usdPerHour } : {}),
          });
        }
      }
      return offers;
    },
  };
}

function toMachine(pod: z.output<typeof podSchema>): Machine {
  const state = STATUS[pod.status];
  // Loud, but one odd pod must not hide the others of a list: it waits until its boot deadline.
  if (state === undefined) log("error", "vendor_status_unknown", { vendor: "runpod", status: pod.status.slice(0, 40) });
  return {
    instanceId: pod.id,
    label: pod.name ?? "",
    mark: pod.env?.["CLAWCLOUD_MARK"] ?? null,
    createdAt: Date.parse(pod.createdAt),
    state: state ?? "starting",
    host: pod.ssh?.direct?.host ?? null,
    port: pod.ssh?.direct?.port ?? null,
  };
}

function refusal(answer: VendorAnswer): VendorError {
  const { status, detail, headers } = answer;
  const wait = waitSeconds(headers);
  const options = { status, ...(wait === undefined ? {} : { retryAfterSeconds: wait }) };
  if (status >= 500) return new VendorError("runpod", "unknown", detail, options);
  if (status === 400) {
    const text = String((answer.body as { detail?: unknown } | null)?.detail);
    return new VendorError("runpod", NO_CAPACITY.test(text) ? "next_candidate" : "page", detail, options);
  }
  return new VendorError("runpod", CREATE_ACTIONS[status] ?? "page", detail, options);
}

/** The longest of Retry-After and the reset of every exhausted window of `RateLimit` (structured field: r left, t seconds). */
function waitSeconds(headers: Headers): number | undefined {
  const resets = [...(headers.get("ratelimit") ?? "").matchAll(/;r=0;t=(\d+)/g)].map((match) => Number(match[1]));
  const after = retryAfter(headers);
  const all = after === undefined ? resets : [...resets, after];
  return all.length === 0 ? undefined : Math.max(...all);
}

function parse<T>(answer: VendorAnswer, schema: z.ZodType<T>): T {
  const result = schema.safeParse(answer.body);
  if (result.success) return result.data;
  throw new VendorError("runpod", "unknown", `${answer.detail}: the answer has another shape than documented`);
}

/** An empty id would name the whole collection. */
function pathId(id: string): string {
  if (id === "") throw new VendorError("runpod", "page", "an empty pod id was about to reach the vendor");
  return encodeURIComponent(id);
}
