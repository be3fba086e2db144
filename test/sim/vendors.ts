// What the models of Vultr and RunPod (vendor-models.ts) share: machines with a life, and answers that come late, wrong or never.

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
  /** Before, its id is not known either. */
  shownFrom: number;
  /** Deleted, and until when the vendor still shows it. */
  deletedAt: number | null;
  shownUntil: number;
  /** A delete was accepted and has not happened yet. */
  isEnding: boolean;
  /** No change and no delete is taken before. */
  lockedUntil: number;
  /** Its image is there. */
  pulledAt: number;
  /** Where a pod's address is told, if anywhere. */
  addressIn: "ssh" | "ports" | "nowhere";
  /** Its address drops whoever asks for a connection. */
  isSilent: boolean;
};
export type Watcher = { created(machine: Machine): void; deleting(machine: Machine): void };

export type Request = { method: string; path: string; body: Record<string, unknown> | null };
type Wording = Record<
  "failed" | "limited" | "full" | "noKey" | "unknown" | "hidden" | "locked" | "busy" | "pending",
  Answer
>;
const MACHINES_IN_ADDRESS_POOL = 12;
const TIMEOUT_MS = 30_000;
const LISTING_LAG_MS = 29_000;
/** Beyond what any vendor was seen to take. */
const GHOST_MS = { least: 70_000, most: 240_000 };
/** A vendor's own time for what is over in a moment on its good days. */
const HARD_MS = { least: 10_000, most: 120_000 };
/** What Vultr was seen to take. */
const HIDDEN_MS = { least: 1_000, most: 59_000 };
const PULL_MS = { least: 60_000, most: 900_000 };
const COUNTS_DELETED_MS = 120_000;
const GATEWAY_PAGE = "<html><head><title>502 Bad Gateway</title></head><body><center>nginx</center></body></html>";
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
    if (clock.now < this.downUntil) return random.unit() < 0.5 ? "hangs" : this.fail();
    if (faults.strikes("rate_limited")) return wording.limited;
    if (this.needsKey(request) && faults.strikes("key_refused")) return wording.noKey;
    if (faults.strikes("vendor_fails_before")) return this.fail();
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
    if (faults.strikes("vendor_fails_after")) return this.fail();
    if (faults.strikes("vendor_hangs_after")) return "hangs";
    if (served !== "hangs" && served.status < 300 && faults.strikes("odd_answer")) return answer(200, null);
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

  /** Whether a call that a key has no right to, or not from there, is refused. */
  protected abstract needsKey(request: Request): boolean;

  /** In its own words, or in those of what stands before it. */
  protected fail = (): Answer =>
    this.runtime.faults.strikes("vendor_prose") ? failure(502, GATEWAY_PAGE) : this.wording.failed;

  protected refuseOrder(): Answer | null {
    const { faults, clock } = this.runtime;
    const isFresh = ({ deletedAt }: Machine) => deletedAt !== null && clock.now < deletedAt + COUNTS_DELETED_MS;
    if (this.machines.some(isFresh) && faults.strikes("counts_deleted")) return this.wording.full;
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
      shownFrom: clock.now + (faults.strikes("machine_hidden") ? random.int(HIDDEN_MS.least, HIDDEN_MS.most) : 0),
      deletedAt: null,
      shownUntil: 0,
      isEnding: false,
      lockedUntil: 0,
      pulledAt: 0,
      addressIn: this.name === "vultr" ? "ssh" : this.#addressIn(),
      isSilent: faults.strikes("silent_address"),
    };
    this.boot(machine);
    this.machines.push(machine);
    note(`${this.name} makes ${machine.id} ${machine.label}`);
    this.#watcher.created(machine);
    return machine;
  }

  #addressIn(): Machine["addressIn"] {
    const { faults } = this.runtime;
    return faults.strikes("no_public_address") ? "nowhere" : faults.strikes("ports_only") ? "ports" : "ssh";
  }

  /** From its image, with what its settings say now. */
  protected boot(machine: Machine): void {
    const { clock, random, faults } = this.runtime;
    const ms = faults.strikes("slow_boot") ? BOOT_MS.slow : random.int(BOOT_MS.least, BOOT_MS.most);
    machine.booted = { mark: machine.mark, publicKey: machine.publicKey };
    machine.bootAt = faults.strikes("never_boots") ? Number.POSITIVE_INFINITY : clock.now + ms;
    machine.stranger = faults.strikes("stranger_answers");
    machine.dead = faults.strikes("dies_booting");
    if (faults.strikes("long_lock")) machine.lockedUntil = clock.now + random.int(HARD_MS.least, HARD_MS.most);
    if (this.name === "runpod" && faults.strikes("pull_hangs")) {
      machine.pulledAt = clock.now + random.int(PULL_MS.least, PULL_MS.most);
      machine.bootAt += machine.pulledAt - clock.now;
    }
  }

  protected remove(id: string): Answer {
    const { faults, clock, random, note } = this.runtime;
    if (this.living.some((one) => one.id === id && clock.now < one.shownFrom)) return this.wording.hidden;
    const machine = this.shown(id);
    if (machine === undefined) return this.wording.unknown;
    if (machine.deletedAt !== null) return answer(204, null);
    if (machine.isEnding) return this.wording.pending;
    if (clock.now < machine.lockedUntil || faults.strikes("locked")) return this.wording.locked;
    note(`${this.name} deletes ${machine.id} ${machine.label}`);
    this.#watcher.deleting(machine);
    if (faults.strikes("delete_pending")) {
      machine.isEnding = true;
      clock.after(random.int(HARD_MS.least, HARD_MS.most), () => {
        machine.deletedAt ??= clock.now;
      });
      return answer(204, null);
    }
    machine.deletedAt = clock.now;
    machine.shownUntil = faults.strikes("slow_delete") ? clock.now + random.int(1_000, 60_000) : clock.now;
    return answer(204, null);
  }

  /** What the vendor still knows of it, deleted or not. */
  protected shown = (id: string): Machine | undefined =>
    this.machines.find((one) => one.id === id && this.#isShown(one));

  /** A list, or nothing where it fails or would be cut short. */
  protected listed(): Machine[] | null {
    const { now } = this.runtime.clock;
    if (now < this.listsFailUntil || this.runtime.faults.strikes("list_cut")) return null;
    return this.machines.filter((one) => one.listedFrom <= now && this.#isShown(one));
  }

  #isShown({ shownFrom, deletedAt, shownUntil }: Machine): boolean {
    const { now } = this.runtime.clock;
    return shownFrom <= now && (deletedAt === null || now < shownUntil);
  }

  /** The banner at one of its addresses: null where nobody answers. */
  banner(host: string, port: number): string | null {
    const { now } = this.runtime.clock;
    const machine = this.living.find((one) => one.host === host && one.port === port);
    if (machine === undefined || machine.dead || now < Math.max(machine.createdAt + 5_000, machine.pulledAt))
      return null;
    if (machine.stranger || now < machine.bootAt) return "SSH-2.0-OpenSSH_9.6p1 Ubuntu-3ubuntu13";
    return `SSH-2.0-OpenSSH_9.6p1 ${machine.booted.mark ?? ""}`;
  }

  isSilentAt = (host: string, port: number): boolean =>
    this.living.some((one) => one.host === host && one.port === port && one.isSilent);

  /** It says so itself: SSH may come later. */
  protected isUp = (machine: Machine): boolean =>
    !machine.dead && this.runtime.clock.now >= Math.max(machine.createdAt + 10_000, machine.pulledAt);

  /** In the list, where the account has odd machines that are none of ours. */
  protected withNeighbours = (list: object[], neighbours: readonly object[]): object[] =>
    this.runtime.faults.strikes("odd_neighbours") ? [...neighbours, ...list] : list;
}
