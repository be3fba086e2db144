// RunPod REST v2 (https://api.runpod.io/v2/openapi.json). Pods are containers with a GPU and a mapped SSH port.
import { z } from "zod";
import { log } from "../../log.ts";
import { type Offer, RUNPOD_GPUS } from "../../model/stock.ts";
import type { ProvisionerConfig } from "../config.ts";
import { podEnvironment, podStartArguments } from "../machines/cloud-init.ts";
import { readPodLog } from "./pod-log.ts";
import { refusalOfCall, refusalOfChange, refusalOfOrder } from "./refusals.ts";
import {
  boundWait,
  callVendor,
  isSuccess,
  parseAnswer,
  readMachines,
  readRows,
  retryAfter,
  timeOf,
  type VendorAnswer,
} from "./request.ts";
import { type Machine, type MachineSpec, type Vendor, VendorError } from "./vendor.ts";

const SSH_PORT = 22;
const MAX_PAGES = 50;

// Only the id is required: a field of any other kind than documented is as good as missing.
const text = z.string().nullish().catch(null);
// No public address, although it is called one: RFC 1918, RFC 6598, link-local.
const publicAddress = z
  .string()
  .regex(/^(?!10\.|192\.168\.|169\.254\.|172\.(?:1[6-9]|2\d|3[01])\.|100\.(?:6[4-9]|[7-9]\d|1[01]\d|12[0-7])\.)\S+$/);
const podSchema = z.object({
  id: z.string().min(1),
  name: text,
  status: text,
  env: z.record(z.string(), z.unknown()).nullish().catch(null),
  createdAt: text,
  ssh: z
    .object({ direct: z.object({ host: z.string().min(1), port: z.number() }).nullish() })
    .nullish()
    .catch(null),
  runtime: z
    .object({ uptime: z.number().nullish().catch(null), ports: z.array(z.unknown()).nullish().catch(null) })
    .nullish()
    .catch(null),
});
/** Of `runtime.ports`: others (the proxy's, or one without a public side yet) are left out. */
const mappedPort = z
  .object({ private: z.int(), public: z.int().min(1).max(65_535), type: z.literal("tcp"), ip: publicAddress })
  .transform(({ private: port, public: publicPort, ip: host }) => ({ port, host, publicPort }));
type MappedPort = z.output<typeof mappedPort>;
const podPage = z.object({
  pods: z.array(z.unknown()),
  pagination: z.object({ hasNextPage: z.boolean(), nextCursor: z.string().nullable() }).optional(),
});
const gpuSchema = z.object({
  id: z.string(),
  secure: z.boolean(),
  community: z.boolean(),
  availability: z.string().optional(),
  price: z.object({ secure: z.number().nullish(), community: z.number().nullish() }).nullish(),
});
const gpuCatalog = z.object({ gpus: z.array(z.unknown()) });

export const runpodBalance = z.object({ balanceAmount: z.number(), billingMode: z.string() });
export const oldRunpodBalance = z.object({ clientBalance: z.number() });
const myselfSchema = z.object({ data: z.object({ myself: oldRunpodBalance }) });

const STATUS: Record<string, Machine["state"]> = {
  PROVISIONING: "starting",
  STARTING: "starting",
  RUNNING: "up",
  EXITED: "dead",
  ERROR: "dead",
  TERMINATED: "dead",
};
const STOCK: Record<string, Offer["stock"]> = { NONE: "none", LOW: "low", MEDIUM: "low", HIGH: "high" };

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
      const page = parseAnswer("runpod", answer, podPage);
      machines.push(...readMachines("runpod", page.pods, podSchema, "name", config).map(toMachine));
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

    prepareCalls: () => 0,
    prepare: async () => ({}),

    async create(spec: MachineSpec): Promise<Machine> {
      const answer = await callVendor(access, "POST", "/v2/pods", {
        name: spec.label,
        image: config.RUNPOD_IMAGE,
        ...(config.RUNPOD_REGISTRY === undefined ? {} : { registry: config.RUNPOD_REGISTRY }),
        gpu: { id: spec.plan, count: 1, minCudaVersion: config.RUNPOD_MIN_CUDA },
        cloud: spec.region,
        disk: config.RUNPOD_DISK_GB,
        // By TCP, since its HTTP proxy cuts connections after 100 seconds and ends TLS itself.
        ports: [SSH_PORT, ...spec.ports].map((port) => `${port}/tcp`),
        env: podEnvironment(spec),
        args: podStartArguments(),
        // Account keys must never reach a customer's machine.
        startSsh: false,
      });
      if (answer.status === 201) return toMachine(parseAnswer("runpod", answer, podSchema));
      throw refusalOfOrder("runpod", answer, detailOf(answer), waitSeconds(answer.headers));
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
      const pod = parseAnswer("runpod", answer, podSchema);
      // "Permanently deleted", says the document of this status.
      return pod.status === "TERMINATED" ? null : toMachine(pod);
    },

    async delete(instanceId) {
      const answer = await callVendor(access, "DELETE", `/v2/pods/${pathId(instanceId)}`);
      if (isSuccess(answer) || answer.status === 404) return;
      // A lock can be set from inside the pod; it must not keep a machine alive that nobody pays for.
      if (answer.status === 400) await callVendor(access, "PATCH", `/v2/pods/${pathId(instanceId)}`, { locked: false });
      // The caller looks, and asks again.
      throw refusalOfChange("runpod", answer, detailOf(answer), waitSeconds(answer.headers));
    },

    readLog: (instanceId) => readPodLog(access, pathId(instanceId)),

    list,

    async balance() {
      const answer = await callVendor(access, "GET", "/v2/billing/balance");
      if (isSuccess(answer)) {
        const { balanceAmount, billingMode } = parseAnswer("runpod", answer, runpodBalance);
        return billingMode === "PREPAID" ? balanceAmount : null;
      }
      if (answer.status !== 404) throw refusal(answer);
      // Where that is not known yet: an interface that ends in 2027.
      const old = await callVendor(access, "POST", "/graphql", { query: "query { myself { clientBalance } }" });
      if (!isSuccess(old)) throw refusal(old);
      return parseAnswer("runpod", old, myselfSchema).data.myself.clientBalance;
    },

    catalogCalls: config.RUNPOD_CLOUDS.length,
    async catalog(): Promise<Offer[]> {
      const wanted = new Set(Object.values(RUNPOD_GPUS).flat(2));
      const offers: Offer[] = [];
      for (const cloud of config.RUNPOD_CLOUDS) {
        const query = `?include=AVAILABILITY&product=POD&count=1&cloud=${cloud}`;
        const answer = await callVendor(access, "GET", `/v2/catalog/gpus${query}`);
        if (answer.status !== 200) throw refusal(answer);
        const { gpus } = parseAnswer("runpod", answer, gpuCatalog);
        for (const gpu of readRows("runpod", gpus, gpuSchema)) {
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
  const { runtime } = pod;
  const state = STATUS[pod.status ?? ""];
  // Loud, but one odd pod must not hide the others of a list: it waits until its boot deadline.
  if (state === undefined)
    log("error", "vendor_status_unknown", { vendor: "runpod", status: String(pod.status).slice(0, 40) });
  const mark = pod.env?.["CLAWCLOUD_MARK"];
  const mapped = (runtime?.ports ?? []).flatMap((port) => mappedPort.safeParse(port).data ?? []);
  return {
    instanceId: pod.id,
    label: pod.name ?? "",
    mark: typeof mark === "string" ? mark : null,
    createdAt: timeOf(pod.createdAt),
    state: state ?? "starting",
    ...addressOf(pod, mapped),
    phase: state === "up" && runtime == null ? `${pod.status}, its container is not` : String(pod.status),
    upSeconds: state === "up" ? (runtime?.uptime ?? null) : null,
    mapped,
  };
}

/** `ssh.direct` is at times missing where the mapping of its port is there. */
function addressOf({ ssh }: z.output<typeof podSchema>, mapped: readonly MappedPort[]): Pick<Machine, "host" | "port"> {
  if (ssh?.direct != null) return { host: ssh.direct.host, port: ssh.direct.port };
  const found = mapped.find(({ port }) => port === SSH_PORT);
  return { host: found?.host ?? null, port: found?.publicPort ?? null };
}

const detailOf = ({ body }: VendorAnswer): string => String((body as { detail?: unknown } | null)?.detail ?? "");

const refusal = (answer: VendorAnswer): VendorError => refusalOfCall("runpod", answer, waitSeconds(answer.headers));

/** The longest of Retry-After and the reset of every exhausted window of `RateLimit` (structured field: r left, t seconds). */
function waitSeconds(headers: Headers): number | undefined {
  const resets = [...(headers.get("ratelimit") ?? "").matchAll(/;r=0;t=(\d+)/g)].map((match) => Number(match[1]));
  const after = retryAfter(headers);
  const all = after === undefined ? resets : [...resets, after];
  return all.length === 0 ? undefined : boundWait(Math.max(...all));
}

/** An empty id would name the whole collection. */
function pathId(id: string): string {
  if (id === "") throw new VendorError("runpod", "page", "an empty pod id was about to reach the vendor");
  return encodeURIComponent(id);
}
