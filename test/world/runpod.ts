// RunPod REST v2 as its document and its behaviour are known: pods with a life, and SSH on a mapped port behind each.
import { randomBytes } from "node:crypto";
import type { Context } from "hono";
import type { DiskFile } from "./disk.ts";
import { isRefused, scriptOf, WENT_WRONG } from "./pod-arguments.ts";
import { streamLog } from "./pod-log.ts";
import { freePort } from "./ports.ts";
import { type Door, type DoorKeys, isConfigured, openDoor } from "./ssh-door.ts";
import { serveRunpodAccount } from "./vendor-accounts.ts";
import { VendorServer, type VendorServerOptions } from "./vendor-server.ts";

export type RunpodOptions = VendorServerOptions & {
  apiKey: string;
  /** Milliseconds from create to: STARTING, RUNNING with a port, sshd. */
  bootMs?: { starting: number; running: number; sshd: number };
  listLagMs?: number;
  requestsPerMinute?: number;
  /** What `save` of an earlier one gave. */
  saved?: RunpodSaved | undefined;
};
export type RunpodSaved = { pod: Omit<Pod, "door" | "timers">; door: DoorKeys | null }[];

type Gpu = { id: string; name: string; memory: number; secure: number; community: number };
const GPUS: Gpu[] = [
  { id: "NVIDIA GeForce RTX 4090", name: "RTX 4090", memory: 24, secure: 0.69, community: 0.34 },
  { id: "NVIDIA L40S", name: "L40S", memory: 48, secure: 0.86, community: 0.79 },
  { id: "NVIDIA A100-SXM4-40GB", name: "A100 SXM 40GB", memory: 40, secure: 0, community: 0.9 },
  { id: "NVIDIA A100 80GB PCIe", name: "A100 PCIe", memory: 80, secure: 1.64, community: 1.19 },
  { id: "NVIDIA A100-SXM4-80GB", name: "A100 SXM", memory: 80, secure: 1.74, community: 1.39 },
  { id: "NVIDIA H100 PCIe", name: "H100 PCIe", memory: 80, secure: 2.39, community: 1.99 },
  { id: "NVIDIA H100 80GB HBM3", name: "H100 SXM", memory: 80, secure: 2.99, community: 2.69 },
  { id: "NVIDIA H100 NVL", name: "H100 NVL", memory: 94, secure: 2.79, community: 2.59 },
];
const CREATE_FIELDS = new Set(
  "args disk env image ports registry name cloud cpu dataCenterIds globalNetworking gpu mounts startJupyter startSsh templateId".split(
    " ",
  ),
);
const CHANGE_FIELDS = new Set(
  "args disk env image ports registry globalNetworking locked mounts name templateId".split(" "),
);
const DEFAULT_BOOT_MS = { starting: 500, running: 2_000, sshd: 3_000 };
const NO_CAPACITY =
  "There are no longer any instances available with the requested specifications. Please refresh and try again.";

type Pod = {
  id: string;
  name: string;
  cloud: "SECURE" | "COMMUNITY";
  gpu: Gpu;
  image: string;
  args: string;
  disk: number;
  ports: string[];
  registry: string | null;
  env: Record<string, string>;
  createdAt: number;
  /** When its container was started last: with its creation, or by a change of what it runs. */
  startedAt: number;
  /** The public port that 22/tcp is mapped to: given with the machine, before anything listens on it. */
  sshPort: number;
  addressAt: number;
  boots: boolean;
  locked: boolean;
  wrongMark: boolean;
  door: Door | undefined;
  timers: NodeJS.Timeout[];
};

export async function startRunpod(options: RunpodOptions) {
  const bootMs = options.bootMs ?? DEFAULT_BOOT_MS;
  const listLagMs = options.listLagMs ?? 600;
  const perMinute = options.requestsPerMinute ?? 60;
  const pods = new Map<string, Pod>();
  let windowBegan = 0;
  let used = 0;
  const server = new VendorServer(options, {
    machines: () => [...pods.values()].map((pod) => ({ ...view(pod), env: {} })),
    clear: clearMachines,
  });
  const { app } = server;
  const problem = (c: Context, status: 400 | 401 | 402 | 404 | 422 | 429 | 500, title: string, detail: string) =>
    c.body(JSON.stringify({ title, status, detail }), status, { "content-type": "application/problem+json" });
  const faulty = (c: Context, call: string, effect: () => Promise<Response> | Response, region?: string) =>
    server.withFaults(
      c,
      call,
      {
        rateLimited: () => limitedAnswer(c, 2),
        failed: () => problem(c, 500, "Internal Server Error", "internal error"),
      },
      effect,
      region,
    );
  const limitedAnswer = (c: Context, seconds: number) => {
    c.header("Retry-After", String(seconds));
    return problem(c, 429, "Too Many Requests", "rate limit exceeded");
  };

  app.use("/v2/*", async (c, next) => {
    if (c.req.header("authorization") !== `Bearer ${options.apiKey}`) {
      return problem(c, 401, "Unauthorized", "missing bearer token");
    }
    const now = Date.now();
    if (now - windowBegan >= 60_000) {
      windowBegan = now;
      used = 0;
    }
    used += 1;
    const left = Math.max(0, perMinute - used);
    const resets = Math.ceil((windowBegan + 60_000 - now) / 1_000);
    c.header("RateLimit", `"minute";r=${left};t=${resets}, "hour";r=2900;t=1800, "day";r=49000;t=40000`);
    c.header("RateLimit-Policy", `"minute";q=${perMinute};w=60, "hour";q=3000;w=3600, "day";q=50000;w=86400`);
    if (used > perMinute) return limitedAnswer(c, resets);
    return next();
  });

  const account = serveRunpodAccount(server);
  app.get("/v2/catalog/gpus", (c) =>
    faulty(c, "catalog", () => {
      const { include, product, cloud = "SECURE" } = c.req.query();
      if ((include === "AVAILABILITY") !== (product !== undefined)) {
        return problem(c, 400, "Bad Request", "product goes with include=AVAILABILITY");
      }
      return c.json({
        gpus: GPUS.map((gpu) => {
          const sold = cloud === "SECURE" ? gpu.secure > 0 : gpu.community > 0;
          const soldOut = server.takeFault("catalog", ["sold_out"], cloud) !== undefined;
          return {
            id: gpu.id,
            name: gpu.name,
            pool: null,
            manufacturer: "NVIDIA",
            memory: gpu.memory,
            secure: gpu.secure > 0,
            community: gpu.community > 0,
            price: { secure: gpu.secure, community: gpu.community },
            maxCount: { secure: 8, community: 4 },
            ...(include === undefined ? {} : { availability: sold && !soldOut ? "HIGH" : "NONE" }),
          };
        }),
      });
    }),
  );

  app.post("/v2/pods", async (c) => {
    const body = (await c.req.json()) as Record<string, unknown>;
    const cloud = body["cloud"] === "COMMUNITY" ? "COMMUNITY" : "SECURE";
    return faulty(c, "create", () => createPod(c, body, cloud), cloud);
  });
  app.get("/v2/pods", (c) =>
    faulty(c, "list", () => {
      const lag = server.takeFault("list", ["lagging_list"])?.ms ?? listLagMs;
      const limit = Math.min(options.maxPage ?? 1_000, Number(c.req.query("limit") ?? 1_000));
      const from = Number(c.req.query("cursor") ?? 0);
      const all = [...pods.values()].filter((pod) => pod.createdAt <= Date.now() - lag).reverse();
      const hasNextPage = from + limit < all.length;
      const pagination = { hasNextPage, nextCursor: hasNextPage ? String(from + limit) : null };
      return c.json({ pods: all.slice(from, from + limit).map(view), pagination });
    }),
  );
  app.get("/v2/pods/:id", (c) =>
    faulty(c, "get", () => {
      const pod = pods.get(c.req.param("id"));
      return pod === undefined ? problem(c, 404, "Not Found", "pod not found") : c.json(view(pod));
    }),
  );
  // A stream that does not end: the container's last lines, then silence.
  app.get("/v2/pods/:id/logs", (c) => {
    const pod = pods.get(c.req.param("id"));
    if (pod === undefined) return problem(c, 404, "Not Found", "pod not found");
    return streamLog(pod);
  });
  // A tenant can do this from inside, with the key that every pod carries. Another environment or other arguments start the
  // container anew: its disk, and with it the host key, is gone, and its port is another one.
  app.patch("/v2/pods/:id", async (c) => {
    const body = (await c.req.json()) as Partial<Pick<Pod, "name" | "locked" | "env" | "args">>;
    return faulty(c, "change", async () => {
      const pod = pods.get(c.req.param("id"));
      if (pod === undefined) return problem(c, 404, "Not Found", "pod not found");
      const unknown = Object.keys(body).filter((field) => !CHANGE_FIELDS.has(field));
      if (unknown.length > 0) return problem(c, 422, "Unprocessable Entity", `unknown fields: ${unknown.join(", ")}`);
      const restarts = body.env !== undefined || body.args !== undefined;
      pod.locked = body.locked ?? pod.locked;
      if (restarts && pod.locked) return problem(c, 400, "Bad Request", "Pod is locked");
      pod.name = body.name ?? pod.name;
      pod.env = body.env ?? pod.env;
      pod.args = body.args ?? pod.args;
      if (restarts) await restart(pod);
      return c.json(view(pod));
    });
  });
  app.delete("/v2/pods/:id", (c) =>
    faulty(c, "delete", async () => {
      const pod = pods.get(c.req.param("id"));
      if (pod === undefined) return problem(c, 404, "Not Found", "pod not found");
      if (server.takeFault("delete", ["locked"]) !== undefined) pod.locked = true;
      if (pod.locked) return problem(c, 400, "Bad Request", "Pod is locked");
      pods.delete(pod.id);
      await close(pod);
      return c.body(null, 204);
    }),
  );

  async function createPod(c: Context, body: Record<string, unknown>, cloud: Pod["cloud"]): Promise<Response> {
    const unknown = Object.keys(body).filter((field) => !CREATE_FIELDS.has(field));
    const wanted = body["gpu"] as { id?: string; count?: number } | undefined;
    const gpu = GPUS.find((one) => one.id === wanted?.id);
    if (unknown.length > 0 || typeof body["name"] !== "string" || typeof body["image"] !== "string") {
      return problem(c, 422, "Unprocessable Entity", `Request validation failed: ${unknown.join(", ")}`);
    }
    if (gpu === undefined) return problem(c, 422, "Unprocessable Entity", `Unknown GPU type: ${wanted?.id}`);
    const sold = cloud === "SECURE" ? gpu.secure > 0 : gpu.community > 0;
    // Left out, `count` matches no machine, whatever the document says.
    if (!sold || wanted?.count === undefined || server.takeFault("create", ["sold_out"], cloud) !== undefined) {
      return problem(c, 400, "Bad Request", NO_CAPACITY);
    }
    if (isRefused(String(body["args"] ?? ""))) return problem(c, 400, "Bad Request", WENT_WRONG);
    const now = Date.now();
    const late = server.takeFault("create", ["late_address"], cloud);
    const pod: Pod = {
      id: randomBytes(7).toString("hex"),
      name: body["name"],
      cloud,
      gpu,
      image: body["image"],
      args: String(body["args"] ?? ""),
      disk: Number(body["disk"] ?? 20),
      ports: (body["ports"] as string[] | undefined) ?? [],
      registry: (body["registry"] as string | undefined) ?? null,
      env: (body["env"] as Record<string, string> | undefined) ?? {},
      createdAt: now,
      startedAt: now,
      sshPort: await freePort(),
      addressAt: now + (late?.ms ?? 0),
      boots: server.takeFault("create", ["never_boots"], cloud) === undefined,
      locked: false,
      wrongMark: server.takeFault("create", ["wrong_mark"], cloud) !== undefined,
      door: undefined,
      timers: [],
    };
    pods.set(pod.id, pod);
    if (pod.boots) bootUp(pod);
    return c.json(view(pod), 201);
  }

  async function clearMachines(): Promise<void> {
    const all = [...pods.values()];
    pods.clear();
    await Promise.all(all.map(close));
  }

  async function restart(pod: Pod): Promise<void> {
    await close(pod);
    pod.timers.length = 0;
    pod.startedAt = Date.now();
    pod.sshPort = await freePort();
    if (pod.boots) bootUp(pod);
  }

  function bootUp(pod: Pod): void {
    const timer = setTimeout(() => {
      startContainer(pod).catch((cause) => console.error("runpod: a pod did not boot", cause));
    }, bootMs.sshd);
    timer.unref();
    pod.timers.push(timer);
  }

  /** What the image's start script does: without PUBLIC_KEY or a mapped 22/tcp there is no sshd to reach. */
  async function startContainer(pod: Pod): Promise<void> {
    const publicKey = pod.env["PUBLIC_KEY"];
    if (publicKey === undefined || !pod.ports.includes("22/tcp") || !pods.has(pod.id)) return;
    const script = scriptOf(pod.args);
    const ours = script?.includes("exec /start.sh") === true;
    const givenKey = ours ? pod.env["CLAWCLOUD_HOST_KEY"] : null;
    // Without the key its sshd has nothing to start with.
    if (givenKey === undefined) return;
    const hostKey = givenKey === null ? null : Buffer.from(givenKey, "base64").toString();
    const mark = script?.includes("VersionAddendum $CLAWCLOUD_MARK") ? (pod.env["CLAWCLOUD_MARK"] ?? "") : "";
    const hardware = hardwareOf(pod);
    const addendum = pod.wrongMark ? "somebody-else" : mark;
    const keys = { hostKey, authorizedKeys: publicKey.split("\n"), addendum, files: writtenByArguments(pod) };
    // Between the order and the boot another process may have taken the port; ports move at RunPod anyway.
    pod.door = await openDoor("127.0.0.1", pod.sshPort, hardware, keys).catch(() =>
      openDoor("127.0.0.1", 0, hardware, keys),
    );
    pod.sshPort = pod.door.port;
    if (!pods.has(pod.id)) await close(pod);
  }

  function view(pod: Pod) {
    const age = Date.now() - pod.startedAt;
    const running = pod.boots && age >= bootMs.running;
    const status = running ? "RUNNING" : pod.boots && age >= bootMs.starting ? "STARTING" : "PROVISIONING";
    const port = pod.sshPort;
    const reachable = running && pod.ports.includes("22/tcp") && Date.now() >= pod.addressAt;
    return {
      id: pod.id,
      name: pod.name,
      status,
      actions: running ? ["stop", "restart", "terminate"] : ["stop", "terminate"],
      image: pod.image,
      args: pod.args,
      disk: pod.disk,
      mounts: {},
      ports: pod.ports,
      env: pod.env,
      registry: pod.registry,
      gpu: { id: pod.gpu.id, count: 1 },
      cloud: pod.cloud,
      dataCenterId: running ? "EU-RO-1" : null,
      cudaVersion: running ? "12.4" : null,
      ssh: {
        proxy: null,
        direct: reachable
          ? { host: "127.0.0.1", port, username: "root", command: `ssh root@127.0.0.1 -p ${port}` }
          : null,
      },
      template: null,
      cost: pod.cloud === "SECURE" ? pod.gpu.secure : pod.gpu.community,
      locked: pod.locked,
      globalNetworking: { enabled: false },
      runtime: running ? { uptime: Math.floor(age / 1_000), gpus: [], ports: reachable ? mappingOf(pod) : [] } : null,
      createdAt: new Date(pod.createdAt).toISOString(),
      startedAt: running ? new Date(pod.startedAt + bootMs.running).toISOString() : null,
    };
  }

  for (const { pod: saved, door } of options.saved ?? []) {
    const pod: Pod = { ...saved, door: undefined, timers: [] };
    pods.set(pod.id, pod);
    // One that was still booting boots anew.
    if (isConfigured(door)) pod.door = await openDoor("127.0.0.1", pod.sshPort, hardwareOf(pod), door);
    else if (pod.boots) bootUp(pod);
  }
  await server.start();
  return {
    server,
    apiUrl: server.origin,
    controlUrl: `${server.origin}/control`,
    pods,
    save: (): RunpodSaved =>
      [...pods.values()].map(({ door, timers: _, ...pod }) => ({ pod, door: door?.save() ?? null })),
    account,
    stop: async () => {
      await clearMachines();
      await server.stop();
    },
  };
}

const hardwareOf = (pod: Pod) => ({ name: pod.id, vcpu: 8, memoryMb: 32_768, gpu: pod.gpu.id });

/** Files that the start arguments write from the environment; keys stay out of sight. */
const writtenByArguments = ({ args, env }: Pod): DiskFile[] =>
  [...(scriptOf(args) ?? "").matchAll(/"\$(\w+)" \| base64 -d > (\/[\w./-]+)/g)]
    .map(([, name = "", path = ""]) => ({ path, base64: env[name] ?? "" }))
    .filter(({ path }) => !path.startsWith("/etc/ssh/"));
/** Each port under another number, which is the same for as long as the pod is not started anew. */
const mappingOf = (pod: Pod) =>
  pod.ports.map((port, i) => {
    const [number = "", type] = port.split("/");
    return { private: Number(number), public: number === "22" ? pod.sshPort : pod.sshPort + i, type, ip: "127.0.0.1" };
  });

async function close(pod: Pod): Promise<void> {
  for (const timer of pod.timers) clearTimeout(timer);
  await pod.door?.close();
  pod.door = undefined;
}
