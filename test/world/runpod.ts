// RunPod REST v2 as its document and its behaviour are known: pods with a life, and SSH on a mapped port behind each.
import { randomBytes } from "node:crypto";
import type { Context } from "hono";
import type { DiskFile } from "./disk.ts";
import { isRefused, scriptOf, WENT_WRONG } from "./pod-arguments.ts";
import { streamLog } from "./pod-log.ts";
import { freePort } from "./ports.ts";
import { addressOf, type Gpu, ODD_NEIGHBOURS, type Pod, viewOf } from "./runpod-pod.ts";
import { startSilentPort } from "./silent-port.ts";
import { type DoorKeys, isConfigured, openDoor } from "./ssh-door.ts";
import { serveRunpodAccount } from "./vendor-accounts.ts";
import { durationOf, VendorServer, type VendorServerOptions } from "./vendor-server.ts";

export type RunpodOptions = VendorServerOptions & {
  apiKey: string;
  /** Milliseconds from create to: STARTING, RUNNING with a port, sshd. */
  bootMs?: { starting: number; running: number; sshd: number };
  listLagMs?: number;
  requestsPerMinute?: number;
  /** What `save` of an earlier one gave. */
  saved?: RunpodSaved | undefined;
};
export type RunpodSaved = {
  pod: Omit<Pod, "door" | "timers" | "pulledAt"> & { pulledAt: number | null };
  door: DoorKeys | null;
}[];

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
  const view = (pod: Pod) => viewOf(pod, bootMs);
  /** What the account says that there is. */
  const shown = (id: string) => {
    const pod = pods.get(id);
    return pod !== undefined && Date.now() >= pod.shownAt ? pod : undefined;
  };
  const problem = (
    c: Context,
    status: 400 | 401 | 402 | 403 | 404 | 409 | 422 | 429 | 500,
    title: string,
    detail: string,
  ) => c.body(JSON.stringify({ title, status, detail }), status, { "content-type": "application/problem+json" });
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
    if (c.req.method !== "GET" && server.takeFault("any", ["few_rights"]) !== undefined) {
      return problem(c, 403, "Forbidden", "this API key has no permission to do that");
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
    faulty(c, "list", async () => {
      const lag = server.takeFault("list", ["lagging_list"])?.ms ?? listLagMs;
      const limit = Math.min(options.maxPage ?? 1_000, Number(c.req.query("limit") ?? 1_000));
      const from = Number(c.req.query("cursor") ?? 0);
      await movePort();
      const now = Date.now();
      const all = [...pods.values()].filter((pod) => pod.createdAt <= now - lag && now >= pod.shownAt).reverse();
      const hasNextPage = from + limit < all.length;
      const pagination = { hasNextPage, nextCursor: hasNextPage ? String(from + limit) : null };
      const page: object[] = all.slice(from, from + limit).map(view);
      if (from === 0 && server.takeFault("list", ["odd_neighbours"]) !== undefined) page.unshift(...ODD_NEIGHBOURS);
      return c.json({ pods: page, pagination });
    }),
  );
  app.get("/v2/pods/:id", (c) =>
    faulty(c, "get", () => {
      const pod = shown(c.req.param("id"));
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
    const body = (await c.req.json()) as Partial<Pick<Pod, "name" | "locked" | "env" | "args" | "ports">>;
    return faulty(c, "change", async () => {
      const pod = shown(c.req.param("id"));
      if (pod === undefined) return problem(c, 404, "Not Found", "pod not found");
      const unknown = Object.keys(body).filter((field) => !CHANGE_FIELDS.has(field));
      if (unknown.length > 0) return problem(c, 422, "Unprocessable Entity", `unknown fields: ${unknown.join(", ")}`);
      const restarts = body.env !== undefined || body.args !== undefined || body.ports !== undefined;
      pod.locked = body.locked ?? pod.locked;
      if (restarts && pod.locked) return problem(c, 400, "Bad Request", "Pod is locked");
      pod.name = body.name ?? pod.name;
      pod.env = body.env ?? pod.env;
      pod.args = body.args ?? pod.args;
      pod.ports = body.ports ?? pod.ports;
      if (restarts) await restart(pod);
      return c.json(view(pod));
    });
  });
  app.delete("/v2/pods/:id", (c) =>
    faulty(c, "delete", async () => {
      const pod = shown(c.req.param("id"));
      if (pod === undefined) return problem(c, 404, "Not Found", "pod not found");
      if (pod.isEnding) return problem(c, 409, "Conflict", "pod is being terminated");
      if (server.takeFault("delete", ["locked"]) !== undefined) pod.locked = true;
      if (pod.locked) return problem(c, 400, "Bad Request", "Pod is locked");
      const slow = server.takeFault("delete", ["slow_delete"]);
      pod.isEnding = true;
      if (slow === undefined) await end(pod);
      else if (slow.ms !== undefined) later(pod, slow.ms, () => end(pod));
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
    if (server.takeFault("create", ["no_balance"]) !== undefined) {
      return problem(c, 402, "Payment Required", "balance too low");
    }
    const now = Date.now();
    const late = server.takeFault("create", ["late_address"], cloud);
    const pull = server.takeFault("create", ["hanging_pull"], cloud);
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
      shownAt: now + durationOf(server.takeFault("create", ["hidden"], cloud)),
      pulledAt: now + durationOf(pull),
      addressIn: addressOf(server.takeFault("create", ["no_address", "ports_only"], cloud)?.kind),
      isEnding: false,
      isSilent: server.takeFault("create", ["silent_address"], cloud) !== undefined,
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

  /** Its host starts a pod anew, whoever runs it. */
  async function movePort(): Promise<void> {
    const running = [...pods.values()].filter((pod) => !pod.isEnding && view(pod).status === "RUNNING");
    const pod = running[Math.floor(Math.random() * running.length)];
    if (pod !== undefined && server.takeFault("list", ["moved_port"]) !== undefined) await restart(pod);
  }

  async function restart(pod: Pod): Promise<void> {
    await close(pod);
    pod.timers.length = 0;
    pod.startedAt = Date.now();
    pod.sshPort = await freePort();
    if (pod.boots) bootUp(pod);
  }

  async function end(pod: Pod): Promise<void> {
    pods.delete(pod.id);
    await close(pod);
  }

  function later(pod: Pod, ms: number, what: () => Promise<void>): void {
    const timer = setTimeout(() => what().catch((cause) => console.error("runpod: a pod failed", cause)), ms);
    timer.unref();
    pod.timers.push(timer);
  }

  function bootUp(pod: Pod): void {
    const pullMs = Math.max(0, pod.pulledAt - Date.now());
    if (Number.isFinite(pullMs)) later(pod, pullMs + bootMs.sshd, () => startContainer(pod));
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
    if (pod.isSilent) {
      const { port, stop } = await startSilentPort();
      pod.door = { port, close: stop, save: () => null };
      pod.sshPort = port;
      if (!pods.has(pod.id)) await close(pod);
      return;
    }
    // Between the order and the boot another process may have taken the port; ports move at RunPod anyway.
    pod.door = await openDoor("127.0.0.1", pod.sshPort, hardware, keys).catch(() =>
      openDoor("127.0.0.1", 0, hardware, keys),
    );
    pod.sshPort = pod.door.port;
    if (!pods.has(pod.id)) await close(pod);
  }

  for (const { pod: saved, door } of options.saved ?? []) {
    // In JSON, a pull that never ends is null.
    const pod: Pod = { ...saved, pulledAt: saved.pulledAt ?? Infinity, door: undefined, timers: [] };
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

async function close(pod: Pod): Promise<void> {
  for (const timer of pod.timers) clearTimeout(timer);
  await pod.door?.close();
  pod.door = undefined;
}
