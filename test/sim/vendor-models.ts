// Vultr and RunPod behind their HTTP APIs, each in its own words.
import { type Answer, answer } from "./http.ts";
import type { Runtime } from "./runtime.ts";
import { type Machine, ModelVendor, type Request, type Watcher } from "./vendors.ts";

/** Of the same account and none of ours, as odd as accounts have them. */
const VULTR_NEIGHBOURS = [{ id: "web", label: null, main_ip: null, plan: null, status: "migrating" }];
const RUNPOD_NEIGHBOURS = [{ id: "train", name: null, status: "MIGRATING", env: null, createdAt: null }];
const page = { meta: { total: 0, links: { next: "", prev: "" } } };
const TIMES = (machine: Machine) => new Date(machine.createdAt).toISOString();

export class ModelVultr extends ModelVendor {
  constructor(runtime: Runtime, watcher: Watcher) {
    const text = (status: number, error: string) => answer(status, { error, status });
    super("vultr", runtime, watcher, {
      failed: text(500, "Internal server error"),
      limited: text(429, "rate limit exceeded"),
      full: text(400, "You have reached the maximum number of active instances for this account."),
      noKey: text(401, "Unauthorized IP address: 203.0.113.9"),
      unknown: text(404, "Invalid instance."),
      hidden: text(500, "Unable to destroy server: Server is not currently active."),
      locked: text(500, "Unable to destroy server: Server is currently locked"),
      busy: text(400, "Server is currently locked"),
      pending: text(500, "Unable to destroy server: Server is already pending destruction."),
    });
  }

  /** Its key has a list of addresses; some of its data are public. */
  protected needsKey = ({ path }: Request): boolean => /^\/v2\/(instances|firewalls)/.test(path);

  protected serve({ method, path, body }: Request): Answer {
    if (path.startsWith("/v2/os")) return answer(200, { os: [{ id: 2284, name: "Ubuntu 24.04 LTS x64" }], ...page });
    if (path.startsWith("/v2/firewalls")) return this.#firewall(method, path);
    const region = /^\/v2\/regions\/(\w+)\/availability/.exec(path)?.[1];
    if (region !== undefined) return answer(200, { available_plans: ["vc2-1c-1gb", "vc2-1c-2gb", "vc2-2c-4gb"] });
    const [, id = "", verb] = /^\/v2\/instances\/([^/?]*)\/?(\w*)/.exec(path) ?? [];
    if (id === "" && method === "POST") return this.#order(body ?? {});
    if (id === "") {
      const list = this.listed();
      return list === null
        ? this.wording.failed
        : answer(200, {
            instances: this.withNeighbours(
              list.map((one) => this.#view(one)),
              VULTR_NEIGHBOURS,
            ),
            ...page,
          });
    }
    if (method === "DELETE") return this.remove(id);
    const machine = this.shown(id);
    if (machine === undefined) return this.wording.unknown;
    const isBusy = machine.isEnding || this.runtime.clock.now < machine.lockedUntil;
    if (isBusy && method !== "GET") return this.wording.busy;
    if (method === "PATCH") return this.#change(machine, body ?? {});
    if (verb === "reinstall") {
      this.boot(machine);
      this.runtime.note(`vultr reinstalls ${machine.id} as ${machine.label}`);
      return answer(202, { instance: this.#view(machine) });
    }
    return answer(200, { instance: this.#view(machine) });
  }

  #firewall(method: string, path: string): Answer {
    if (path.includes("/rules")) {
      const rules = ["v4", "v6"].map((ip_type) => ({ ip_type, port: "22" }));
      return method === "POST" ? answer(201, {}) : answer(200, { firewall_rules: rules });
    }
    const group = { id: "fw", description: "clawcloud-sim ssh-22" };
    return method === "POST"
      ? answer(201, { firewall_group: group })
      : answer(200, { firewall_groups: [group], ...page });
  }

  #order(body: Record<string, unknown>): Answer {
    const refusal = this.refuseOrder();
    if (refusal !== null) return refusal;
    const label = String(body["label"]);
    const machine = this.make({
      label,
      mark: markOf(body["tags"] as string[], label),
      publicKey: keyIn(String(body["user_data"])),
      region: String(body["region"]),
      plan: String(body["plan"]),
    });
    return answer(202, { instance: this.#view(machine) });
  }

  #change(machine: Machine, body: Record<string, unknown>): Answer {
    if (typeof body["label"] === "string") machine.label = body["label"];
    if (Array.isArray(body["tags"])) machine.mark = markOf(body["tags"] as string[], machine.label);
    if (typeof body["user_data"] === "string") machine.publicKey = keyIn(body["user_data"]);
    return answer(202, { instance: this.#view(machine) });
  }

  #view(machine: Machine): object {
    const up = this.isUp(machine);
    return {
      id: machine.id,
      label: machine.label,
      tags: ["clawcloud", machine.label, ...(machine.mark === null ? [] : [machine.mark])],
      date_created: TIMES(machine),
      main_ip: up ? machine.host : "0.0.0.0",
      status: machine.dead ? "suspended" : up ? "active" : "pending",
      power_status: "running",
      server_status: this.runtime.clock.now < machine.lockedUntil ? "locked" : up ? "ok" : "none",
    };
  }
}

const markOf = (tags: readonly string[], label: string): string | null =>
  tags.find((tag) => tag !== "clawcloud" && tag !== label) ?? null;
const keyIn = (userData: string): string | null =>
  /ssh_authorized_keys[\s\S]*?(ssh-ed25519 simulated-\w+)/.exec(Buffer.from(userData, "base64").toString())?.[1] ??
  null;

export class ModelRunpod extends ModelVendor {
  #emptyHandedUntil = 0;

  constructor(runtime: Runtime, watcher: Watcher) {
    const text = (status: number, detail: string) => answer(status, { title: "Error", status, detail });
    super("runpod", runtime, watcher, {
      failed: text(500, "Internal server error"),
      limited: answer(429, { title: "Too many requests", status: 429 }, { "retry-after": "5" }),
      full: text(402, "Your balance is too low."),
      noKey: text(403, "This API key has no permission to do that."),
      unknown: text(404, "Pod not found"),
      hidden: text(404, "Pod not found"),
      locked: text(400, "Pod is locked"),
      busy: text(400, "Pod is locked"),
      pending: text(409, "Pod is being terminated"),
    });
  }

  /** One that may only read. */
  protected needsKey = ({ method }: Request): boolean => method !== "GET";

  /** All pods end with their disks, and none can be ordered for a while. */
  loseBalance(ms: number): void {
    const { clock } = this.runtime;
    this.#emptyHandedUntil = clock.now + ms;
    for (const machine of this.living) machine.deletedAt = clock.now;
  }

  override heal(): void {
    super.heal();
    this.#emptyHandedUntil = 0;
  }

  protected serve({ method, path, body }: Request): Answer {
    if (path.startsWith("/v2/catalog")) return answer(200, { gpus: [] });
    const id = /^\/v2\/pods\/([^/?]*)/.exec(path)?.[1] ?? "";
    if (id === "" && method === "POST") return this.#order(body ?? {});
    if (id === "") {
      const list = this.listed();
      if (list === null) return this.wording.failed;
      return answer(200, {
        pods: this.withNeighbours(
          list.map((one) => this.#view(one)),
          RUNPOD_NEIGHBOURS,
        ),
      });
    }
    if (method === "DELETE") return this.remove(id);
    const machine = this.shown(id);
    if (machine === undefined) return this.wording.unknown;
    if (method === "PATCH") this.#change(machine, body ?? {});
    return answer(200, this.#view(machine));
  }

  #order(body: Record<string, unknown>): Answer {
    const refusal = this.refuseOrder();
    if (refusal !== null) return refusal;
    if (this.runtime.clock.now < this.#emptyHandedUntil) return this.wording.full;
    const env = body["env"] as Record<string, string>;
    const machine = this.make({
      label: String(body["name"]),
      mark: env["CLAWCLOUD_MARK"] ?? null,
      publicKey: env["PUBLIC_KEY"] ?? null,
      region: String(body["cloud"]),
      plan: String((body["gpu"] as { id: string }).id),
    });
    return answer(201, this.#view(machine));
  }

  #change(machine: Machine, body: Record<string, unknown>): void {
    if (typeof body["name"] === "string") machine.label = body["name"];
    const env = body["env"] as Record<string, string> | undefined;
    if (env === undefined) return;
    machine.mark = env["CLAWCLOUD_MARK"] ?? null;
    machine.publicKey = env["PUBLIC_KEY"] ?? null;
    this.boot(machine);
    this.runtime.note(`runpod restarts ${machine.id} as ${machine.label}`);
  }

  #view(machine: Machine): object {
    const up = this.isUp(machine);
    const { host, port, addressIn } = machine;
    const mapping = { private: 22, public: port, type: "tcp", ip: host };
    return {
      id: machine.id,
      name: machine.label,
      status: machine.dead ? "EXITED" : up ? "RUNNING" : "PROVISIONING",
      env: machine.mark === null ? {} : { CLAWCLOUD_MARK: machine.mark },
      createdAt: TIMES(machine),
      ssh: { direct: up && addressIn === "ssh" ? { host, port } : null },
      runtime: up ? { ports: addressIn === "nowhere" ? [] : [mapping] } : null,
    };
  }
}
