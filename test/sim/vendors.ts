// Models of Vultr and RunPod behind their HTTP APIs: machines with a life, and answers that come late, wrong or never.

import { type Meaning, ordersRefused } from "../world/vendor-words.ts";
import { type Answer, answer, failure } from "./http.ts";
import type { Runtime } from "./runtime.ts";

export type VendorName = "vultr" | "runpod";
export type Machine = {
  vendor: VendorName;
  id: string;
  label: string;
  /** The label that its order gave it: tenants rename. */
  orderedAs: string;
  /** What its settings say it will be at its next boot, and what it booted with. */
  mark: string | null;
  publicKey: string | null;
  booted: { mark: string | null; publicKey: string | null };
  region: string;
  plan: string;
  host: string;
  port: number;
  createdAt: number;
  bootAt: number;
  dead: boolean;
  stranger: boolean;
  /** Made long after its order was given up on. */
  ghost: boolean;
  listedFrom: number;
  /** Deleted, and until when the vendor still shows it. */
  deletedAt: number | null;
  shownUntil: number;
};
export type Watcher = { created(machine: Machine): void; deleting(machine: Machine): void };

type Request = { method: string; path: string; body: Record<string, unknown> | null };
type Wording = { failed: Answer; limited: Answer; unknown: Answer; locked: Answer };
const MACHINES_IN_ADDRESS_POOL = 12;
const TIMEOUT_MS = 30_000;
const LISTING_LAG_MS = 29_000;
/** Beyond what any vendor was seen to take. */
const GHOST_MS = { least: 70_000, most: 240_000 };
const BOOT_MS = { least: 20_000, most: 90_000, slow: 400_000 };

export abstract class ModelVendor {
  readonly name: VendorName;
  readonly machines: Machine[] = [];
  emptyUntil = 0;
  downUntil = 0;
  listsFailUntil = 0;
  protected readonly runtime: Runtime;
  protected readonly wording: Wording;
  readonly #watcher: Watcher;
  #made = 0;
  #late = false;
  #refused = 0;

  constructor(name: VendorName, runtime: Runtime, watcher: Watcher, wording: Wording) {
    this.name = name;
    this.runtime = runtime;
    this.#watcher = watcher;
    this.wording = wording;
  }

  get living(): Machine[] {
    return this.machines.filter(({ deletedAt }) => deletedAt === null);
  }

  heal(): void {
    this.downUntil = 0;
    this.listsFailUntil = 0;
  }

  async respond(request: Request): Promise<Answer> {
    const { faults, clock, random } = this.runtime;
    const { wording } = this;
    if (clock.now < this.downUntil) return random.unit() < 0.5 ? "hangs" : wording.failed;
    if (faults.strikes("rate_limited")) return wording.limited;
    if (faults.strikes("vendor_fails_before")) return wording.failed;
    if (faults.strikes("vendor_hangs_before")) return "hangs";
    if (request.method !== "GET" && faults.strikes("vendor_acts_late")) {
      // The answer is given up on, and then it happens all the same.
      clock.after(random.int(1_000, TIMEOUT_MS - 1_000), () => void this.serve(request));
      return "hangs";
    }
    if (this.isOrder(request) && faults.strikes("vendor_acts_too_late")) {
      clock.after(random.int(GHOST_MS.least, GHOST_MS.most), () => this.#serveLate(request));
      return "hangs";
    }
    const served = this.serve(request);
    if (faults.strikes("vendor_fails_after")) return wording.failed;
    if (faults.strikes("vendor_hangs_after")) return "hangs";
    return served;
  }

  #serveLate(request: Request): void {
    this.#late = true;
    this.serve(request);
    this.#late = false;
  }

  protected abstract serve(request: Request): Answer;

  /** Whether it asks for a machine. */
  protected isOrder = ({ method, path }: Request): boolean =>
    method === "POST" && (path === "/v2/instances" || path === "/v2/pods");

  protected refuseOrder(): Answer | null {
    const { faults, clock } = this.runtime;
    if (clock.now < this.emptyUntil || faults.strikes("sold_out")) return this.#refuse("sold out");
    return faults.strikes("refused") ? this.#refuse("person", "limit", "not there") : null;
  }

  /** In the vendor's own words, one after the other: nothing is drawn. */
  #refuse(...meanings: readonly Meaning[]): Answer {
    const words = meanings.flatMap((means) => ordersRefused(this.name, means));
    const { status, body } = words[this.#refused++ % words.length] ?? { status: 403, body: "" };
    return typeof body === "string" ? failure(status, body) : answer(status, body);
  }

  protected make(order: Pick<Machine, "label" | "mark" | "publicKey" | "region" | "plan">): Machine {
    const { clock, random, faults, note } = this.runtime;
    this.#made += 1;
    const taken = new Set(this.living.map(({ host }) => host));
    const free = Array.from({ length: MACHINES_IN_ADDRESS_POOL + taken.size }, (_, i) => `${this.name}-${i}`).filter(
      (host) => !taken.has(host),
    );
    const machine: Machine = {
      vendor: this.name,
      id: `${this.name}-m${this.#made}`,
      ...order,
      orderedAs: order.label,
      booted: { mark: null, publicKey: null },
      host: random.pick(free) ?? "",
      port: 22,
      createdAt: clock.now,
      bootAt: 0,
      dead: false,
      stranger: false,
      ghost: this.#late,
      listedFrom: clock.now + (faults.strikes("list_stale") ? random.int(1_000, LISTING_LAG_MS) : 0),
      deletedAt: null,
      shownUntil: 0,
    };
    this.boot(machine);
    this.machines.push(machine);
    note(`${this.name} makes ${machine.id} ${machine.label}`);
    this.#watcher.created(machine);
    return machine;
  }

  /** From its image, with what its settings say now. */
  protected boot(machine: Machine): void {
    const { clock, random, faults } = this.runtime;
    const ms = faults.strikes("slow_boot") ? BOOT_MS.slow : random.int(BOOT_MS.least, BOOT_MS.most);
    machine.booted = { mark: machine.mark, publicKey: machine.publicKey };
    machine.bootAt = faults.strikes("never_boots") ? Number.POSITIVE_INFINITY : clock.now + ms;
    machine.stranger = faults.strikes("stranger_answers");
    machine.dead = faults.strikes("dies_booting");
  }

  protected remove(id: string): Answer {
    const machine = this.shown(id);
    if (machine === undefined) return this.wording.unknown;
    const { faults, clock, random, note } = this.runtime;
    if (machine.deletedAt !== null) return answer(204, null);
    if (faults.strikes("locked")) return this.wording.locked;
    note(`${this.name} deletes ${machine.id} ${machine.label}`);
    this.#watcher.deleting(machine);
    machine.deletedAt = clock.now;
    machine.shownUntil = faults.strikes("slow_delete") ? clock.now + random.int(1_000, 60_000) : clock.now;
    return answer(204, null);
  }

  /** What the vendor still knows of it, deleted or not. */
  protected shown = (id: string): Machine | undefined =>
    this.machines.find((one) => one.id === id && (one.deletedAt === null || this.runtime.clock.now < one.shownUntil));

  /** A list, or nothing where it fails or would be cut short. */
  protected listed(): Machine[] | null {
    const { now } = this.runtime.clock;
    if (now < this.listsFailUntil || this.runtime.faults.strikes("list_cut")) return null;
    return this.machines.filter((one) => one.listedFrom <= now && (one.deletedAt === null || now < one.shownUntil));
  }

  /** The banner at one of its addresses: null where nobody answers. */
  banner(host: string, port: number): string | null {
    const { now } = this.runtime.clock;
    const machine = this.living.find((one) => one.host === host && one.port === port);
    if (machine === undefined || machine.dead || now < machine.createdAt + 5_000) return null;
    if (machine.stranger || now < machine.bootAt) return "SSH-2.0-OpenSSH_9.6p1 Ubuntu-3ubuntu13";
    return `SSH-2.0-OpenSSH_9.6p1 ${machine.booted.mark ?? ""}`;
  }

  /** It says so itself: SSH may come later. */
  protected isUp = (machine: Machine): boolean => !machine.dead && this.runtime.clock.now >= machine.createdAt + 10_000;
}

const page = { meta: { total: 0, links: { next: "", prev: "" } } };
const TIMES = (machine: Machine) => new Date(machine.createdAt).toISOString();

export class ModelVultr extends ModelVendor {
  constructor(runtime: Runtime, watcher: Watcher) {
    const text = (status: number, error: string) => answer(status, { error, status });
    super("vultr", runtime, watcher, {
      failed: text(500, "Internal server error"),
      limited: text(429, "rate limit exceeded"),
      unknown: text(404, "Invalid instance."),
      locked: text(500, "Unable to destroy server: Server is currently locked"),
    });
  }

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
        : answer(200, { instances: list.map((one) => this.#view(one)), ...page });
    }
    if (method === "DELETE") return this.remove(id);
    const machine = this.shown(id);
    if (machine === undefined) return this.wording.unknown;
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
      server_status: up ? "ok" : "none",
    };
  }
}

const markOf = (tags: readonly string[], label: string): string | null =>
  tags.find((tag) => tag !== "clawcloud" && tag !== label) ?? null;
const keyIn = (userData: string): string | null =>
  /ssh_authorized_keys[\s\S]*?(ssh-ed25519 simulated-\w+)/.exec(Buffer.from(userData, "base64").toString())?.[1] ??
  null;

export class ModelRunpod extends ModelVendor {
  constructor(runtime: Runtime, watcher: Watcher) {
    const text = (status: number, detail: string) => answer(status, { title: "Error", status, detail });
    super("runpod", runtime, watcher, {
      failed: text(500, "Internal server error"),
      limited: answer(429, { title: "Too many requests", status: 429 }, { "retry-after": "5" }),
      unknown: text(404, "Pod not found"),
      locked: text(400, "Pod is locked"),
    });
  }

  protected serve({ method, path, body }: Request): Answer {
    if (path.startsWith("/v2/catalog")) return answer(200, { gpus: [] });
    const id = /^\/v2\/pods\/([^/?]*)/.exec(path)?.[1] ?? "";
    if (id === "" && method === "POST") return this.#order(body ?? {});
    if (id === "") {
      const list = this.listed();
      return list === null ? this.wording.failed : answer(200, { pods: list.map((one) => this.#view(one)) });
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
    return {
      id: machine.id,
      name: machine.label,
      status: machine.dead ? "EXITED" : up ? "RUNNING" : "PROVISIONING",
      env: machine.mark === null ? {} : { CLAWCLOUD_MARK: machine.mark },
      createdAt: TIMES(machine),
      ssh: { direct: up ? { host: machine.host, port: machine.port } : null },
    };
  }
}
