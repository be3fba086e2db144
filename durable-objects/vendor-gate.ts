// One object per vendor, named "vultr" or "runpod", in the provisioner: everything that all its consumers share about a
// vendor. Calls take a permit here, so that together they stay inside the vendor's rate and leave it alone while it is
// down (circuit breaker); machines that are waited for are watched through one list that all consumers read; where
// machines could not be had is known to all; and no purchase gets more machines than it may have, whatever rows say
// (hard case 34). The rate's and the circuit's state is in storage (an idle object is evicted after about ten seconds and
// a minute's window must outlive it), and so are the ids that orders need and what was ordered; the list is in memory,
// since a lost one costs one call.
import { DurableObject } from "cloudflare:workers";
import { allClear, errorFields, log, sendLogs } from "../src/log.ts";
import { familyOfLabel } from "../src/model/purchase-key.ts";
import type { VendorName } from "../src/model/stock.ts";
import { Connections } from "../src/outbound.ts";
import { provisionerConfig } from "../src/provisioner/config.ts";
import { createRunpod } from "../src/provisioner/vendors/runpod.ts";
import type { Machine, Supplies, Vendor } from "../src/provisioner/vendors/vendor.ts";
import { createVultr } from "../src/provisioner/vendors/vultr.ts";

/** `take` as it is stored: a token bucket that refills steadily, and a time before which the vendor wants no calls. */
type Bucket = { tokens: number; at: number; closedUntil: number };

/** Faults in a row; from `FAULTS_TO_OPEN` on no call leaves before `openUntil`, and then one at a time (`trial`). */
type Circuit = { faults: number; openUntil: number; trial?: boolean };

/** `waitSeconds` 0: go. `watched`: the last call failed, so the gate wants to know how this one ends. */
export type Permit = { waitSeconds: number; watched: boolean };

/** Where machines could not be had or did not come up, until when that counts, and how often it happened. */
type Trouble = { until: number; times: number };
export type TroubleKind = "no_stock" | "refused" | "no_boot";

export type Snapshot = { machines: Machine[]; readAt: number };
type Refusal = { ok: false; message: string; retryAfterSeconds: number };
export type SnapshotAnswer = { ok: true; snapshot: Snapshot } | Refusal;
type StoredSupplies = { supplies: Supplies; readAt: number; of: string };
export type SuppliesAnswer = { ok: true; supplies: Supplies } | Refusal;

/** A machine that was ordered for a purchase, until the vendor knows none. `instanceId`: null until the order has an answer. */
type Ordered = { mark: string; at: number; instanceId: string | null };
/**
 * Machines that a purchase may have at a time, at all vendors together: the one that serves it, and one more where that is
 * not known to us any more (a database restored to an earlier state), or came of an order that was taken for lost.
 */
const MAX_MACHINES = 2;

/** Vultr refuses the 31st request within a second: a full bucket and a second's refill are at most 30. */
const VULTR_RATE = { perSecond: 15, burst: 15 };
/** RunPod counts by the minute. */
const RUNPOD_BURST_SECONDS = 10;
const SUPPLIES_AGE_MS = 3_600_000;
/** Sets of ports whose supplies an object remembers: buyers think of as many as they like. */
const MAX_PORT_SETS = 100;
const FAULTS_TO_OPEN = 5;
const FIRST_OPEN_MS = 10_000;
const MAX_OPEN_MS = 300_000;
const TROUBLE_MS: Record<TroubleKind, number> = { no_stock: 60_000, refused: 60_000, no_boot: 600_000 };
const MAX_TROUBLE_MS = 3_600_000;
/** Vultr counts a machine against the account's limit for up to two minutes after its end; half a minute is ours. */
const LIMIT_SETTLES_MS = 150_000;
const LIMIT_FORGOTTEN_MS = 600_000;

export class VendorGate extends DurableObject<object> {
  readonly #connections = new Connections();
  #snapshot: Snapshot | undefined;
  #index: (ReturnType<typeof indexOf> & { snapshot: Snapshot }) | undefined;
  #reading: Promise<Snapshot> | undefined;
  readonly #preparing = new Map<string, Promise<Supplies>>();
  /** Of machines with ports, which are few: in memory alone, since lost ones cost some calls. */
  readonly #forPorts = new Map<string, StoredSupplies>();

  /** Takes a permit for one call, or for some that belong together. */
  take(now: number, calls = 1): Permit {
    const circuit = this.ctx.storage.kv.get<Circuit>("circuit");
    const watched = circuit !== undefined;
    if (circuit !== undefined && circuit.openUntil > now) {
      return { waitSeconds: Math.ceil((circuit.openUntil - now) / 1_000), watched };
    }
    const waitSeconds = this.#takeTokens(now, calls);
    if (circuit !== undefined && circuit.faults >= FAULTS_TO_OPEN && waitSeconds === 0) {
      // Half open: this call finds out for all others, who wait as long as it may take.
      const openUntil = now + provisionerConfig(this.env).VENDOR_TIMEOUT_MS;
      this.ctx.storage.kv.put("circuit", { ...circuit, openUntil, trial: true } satisfies Circuit);
    }
    return { waitSeconds, watched };
  }

  /** How a call ended: a fault is no answer, or one that nobody could read. */
  report(now: number, isFault: boolean): void {
    const circuit = this.ctx.storage.kv.get<Circuit>("circuit");
    if (!isFault) {
      if (circuit !== undefined) this.ctx.storage.kv.delete("circuit");
      return;
    }
    // Calls that were under way when it opened say nothing new: only the one that was let through counts.
    if (circuit !== undefined && circuit.openUntil > now && circuit.trial !== true) return;
    const faults = (circuit?.faults ?? 0) + 1;
    const openMs = Math.min(MAX_OPEN_MS, FIRST_OPEN_MS * 2 ** Math.max(0, faults - FAULTS_TO_OPEN));
    // Jitter: not all come back in one moment.
    const openUntil = faults < FAULTS_TO_OPEN ? 0 : now + openMs * (0.5 + Math.random() / 2);
    if (faults >= FAULTS_TO_OPEN) this.#tell("circuit_open", { faults, openMs });
    this.ctx.storage.kv.put("circuit", { faults, openUntil } satisfies Circuit);
  }

  /** Machines could not be had, or did not come up, at a place (`region/plan`): all consumers try others first. */
  remember(now: number, place: string, kind: TroubleKind): void {
    const troubles = this.#troubles(now);
    const times = (troubles[place]?.times ?? 0) + 1;
    const until = now + Math.min(MAX_TROUBLE_MS, TROUBLE_MS[kind] * 2 ** (times - 1));
    this.ctx.storage.kv.put("troubles", { ...troubles, [place]: { until, times } });
  }

  /** The places of `remember` that still count. */
  troubled(now: number): string[] {
    return Object.keys(this.#troubles(now));
  }

  /**
   * Notes that a machine is about to be ordered for a purchase (`family`: see `machinesOf`); false where it may have no
   * more. `elsewhere`: how many it has at other vendors.
   */
  async mayOrder(now: number, family: string, mark: string, elsewhere: number): Promise<boolean> {
    if (this.#ordered(family).length + elsewhere >= MAX_MACHINES) await this.#forgetGone(now, family);
    const ordered = this.#ordered(family);
    if (ordered.length + elsewhere >= MAX_MACHINES) return false;
    this.#keepOrdered(family, [...ordered, { mark, at: now, instanceId: null }]);
    return true;
  }

  /** The order has made a machine. */
  placed(family: string, mark: string, instanceId: string): void {
    this.ctx.storage.kv.delete("limitSince");
    const ordered = this.#ordered(family);
    this.#keepOrdered(
      family,
      ordered.map((one) => (one.mark === mark ? { ...one, instanceId } : one)),
    );
  }

  /**
   * The order that bears a mark has made none, or the vendor has said that it knows the machine of an id no more, which ended
   * at `endedAt`.
   */
  released(family: string, what: string, endedAt?: number): void {
    if (endedAt !== undefined) this.ctx.storage.kv.put("endedAt", endedAt);
    const ordered = this.#ordered(family);
    this.#keepOrdered(
      family,
      ordered.filter(({ mark, instanceId }) => mark !== what && instanceId !== what),
    );
  }

  /**
   * The account's limit has refused an order. True while it may still count a machine that has ended: for a while after the
   * end, and after the first such refusal, since in a busy shop a machine has always just ended.
   */
  metLimit(now: number): boolean {
    const { kv } = this.ctx.storage;
    const known = kv.get<number>("limitSince") ?? 0;
    const since = known > now - LIMIT_FORGOTTEN_MS ? known : now;
    if (since !== known) kv.put("limitSince", since);
    return Math.min(since, kv.get<number>("endedAt") ?? 0) > now - LIMIT_SETTLES_MS;
  }

  /** How many machines of a purchase there are, or may be. */
  async countOrdered(now: number, family: string): Promise<number> {
    await this.#forgetGone(now, family);
    return this.#ordered(family).length;
  }

  /** Asks the vendor, since no row is believed. What it may not show yet counts as there, and so does what it does not tell. */
  async #forgetGone(now: number, family: string): Promise<void> {
    const { VENDOR_TIMEOUT_MS, LISTING_LAG_MS } = provisionerConfig(this.env);
    const old = this.#ordered(family).filter(({ at }) => at <= now - VENDOR_TIMEOUT_MS - LISTING_LAG_MS);
    if (old.length === 0) return;
    const answer = await this.machines(now, now);
    if (!answer.ok) return;
    const { machines } = answer.snapshot;
    for (const { mark, instanceId } of old) {
      if (machines.some((machine) => machine.mark === mark || machine.instanceId === instanceId)) continue;
      if (instanceId === null || (await this.#isUnknown(now, instanceId))) this.released(family, mark);
    }
  }

  async #isUnknown(now: number, instanceId: string): Promise<boolean> {
    if (this.take(now).waitSeconds > 0) return false;
    try {
      return (await this.#reported(now, (vendor) => vendor.get(instanceId))) === null;
    } catch (error) {
      this.#tell("vendor_get_failed", errorFields(error));
      return false;
    }
  }

  #ordered = (family: string): Ordered[] => this.ctx.storage.kv.get<Ordered[]>(`ordered/${family}`) ?? [];

  #keepOrdered(family: string, ordered: Ordered[]): void {
    if (ordered.length > 0) this.ctx.storage.kv.put(`ordered/${family}`, ordered);
    else this.ctx.storage.kv.delete(`ordered/${family}`);
  }

  #troubles(now: number): Record<string, Trouble> {
    const all = this.ctx.storage.kv.get<Record<string, Trouble>>("troubles") ?? {};
    return Object.fromEntries(Object.entries(all).filter(([, { until }]) => until > now));
  }

  #takeTokens(now: number, calls: number): number {
    const { perSecond, burst } = this.#rate();
    const known = this.ctx.storage.kv.get<Bucket>("bucket");
    const bucket = known ?? { tokens: burst, at: now, closedUntil: 0 };
    if (bucket.closedUntil > now) return Math.ceil((bucket.closedUntil - now) / 1_000);
    const tokens = Math.min(burst, bucket.tokens + (Math.max(0, now - bucket.at) / 1_000) * perSecond);
    if (tokens < 1) return Math.max(1, Math.ceil((1 - tokens) / perSecond));
    this.ctx.storage.kv.put("bucket", { tokens: tokens - calls, at: now, closedUntil: 0 } satisfies Bucket);
    return 0;
  }

  /** The vendor said to stay away: no permits until then. */
  close(now: number, seconds: number): void {
    const { burst } = this.#rate();
    const known = this.ctx.storage.kv.get<Bucket>("bucket") ?? { tokens: burst, at: now, closedUntil: 0 };
    const closedUntil = Math.max(known.closedUntil, now + seconds * 1_000);
    this.ctx.storage.kv.put("bucket", { ...known, closedUntil } satisfies Bucket);
  }

  /**
   * The machines of one purchase (`family`: their labels without the attempt's number), or the one with an id, of that same
   * list: what everybody asks for must not grow with what others have rented.
   */
  async machinesOf(
    now: number,
    notBefore: number,
    of: { family: string } | { instanceId: string },
  ): Promise<SnapshotAnswer> {
    const answer = await this.machines(now, notBefore);
    if (!answer.ok) return answer;
    const { snapshot } = answer;
    if (this.#index?.snapshot !== snapshot) this.#index = { snapshot, ...indexOf(snapshot.machines) };
    const found = "family" in of ? this.#index.byFamily.get(of.family) : this.#index.byId.get(of.instanceId);
    return { ok: true, snapshot: { machines: found ?? [], readAt: snapshot.readAt } };
  }

  /** All machines, from one list that was begun at or after `notBefore` (unix ms); concurrent callers share it. */
  async machines(now: number, notBefore: number): Promise<SnapshotAnswer> {
    if (this.#snapshot !== undefined && this.#snapshot.readAt >= notBefore)
      return { ok: true, snapshot: this.#snapshot };
    if (this.#reading === undefined) {
      const { waitSeconds } = this.take(now);
      if (waitSeconds > 0) return notNow(waitSeconds);
      this.#reading = this.#reported(now, (vendor) => vendor.list())
        .then((machines) => ({ machines, readAt: now }))
        .finally(() => {
          this.#reading = undefined;
        });
    }
    try {
      this.#snapshot = await this.#reading;
      this.#noteAccess(true);
      return { ok: true, snapshot: this.#snapshot };
    } catch (error) {
      if (isForPerson(error)) this.#noteAccess(false, errorFields(error));
      return this.#refusal("vendor_list_failed", "error", error, now);
    }
  }

  /**
   * What orders of machines with these ports need, read (or made) once for all consumers and kept for an hour: fifty
   * purchases at once must not ask fifty times, nor make fifty firewalls.
   */
  async supplies(now: number, ports: readonly number[] = []): Promise<SuppliesAnswer> {
    const { DEPLOYMENT_ID, VULTR_SSH_PORT, VULTR_OS } = provisionerConfig(this.env);
    // Under other settings they are others.
    const of = [DEPLOYMENT_ID, VULTR_SSH_PORT, VULTR_OS, ...ports].join("/");
    const known = ports.length > 0 ? this.#forPorts.get(of) : this.ctx.storage.kv.get<StoredSupplies>("supplies");
    if (known?.of === of && known.readAt > now - SUPPLIES_AGE_MS) return { ok: true, supplies: known.supplies };
    let preparing = this.#preparing.get(of);
    if (preparing === undefined) {
      const vendor = this.#vendor();
      const calls = vendor.prepareCalls(ports);
      const waitSeconds = calls === 0 ? 0 : this.take(now, calls).waitSeconds;
      if (waitSeconds > 0) return notNow(waitSeconds);
      preparing = this.#reported(now, () => vendor.prepare(ports)).finally(() => this.#preparing.delete(of));
      this.#preparing.set(of, preparing);
    }
    try {
      const stored: StoredSupplies = { supplies: await preparing, readAt: now, of };
      allClear("vendor_not_prepared", this.#name());
      if (ports.length === 0) this.ctx.storage.kv.put("supplies", stored);
      else this.#keepForPorts(of, stored);
      return { ok: true, supplies: stored.supplies };
    } catch (error) {
      return this.#refusal("vendor_not_prepared", isForPerson(error) ? "page" : "error", error, now);
    }
  }

  /** The set that was prepared first gives way. */
  #keepForPorts(of: string, stored: StoredSupplies): void {
    const [oldest] = this.#forPorts.keys();
    if (oldest !== undefined && this.#forPorts.size >= MAX_PORT_SETS) this.#forPorts.delete(oldest);
    this.#forPorts.set(of, stored);
  }

  /** An order was refused as malformed: what it named may be gone. */
  forgetSupplies(): void {
    this.ctx.storage.kv.delete("supplies");
    this.#forPorts.clear();
  }

  /** One call is one success or one fault, however many wait for it. */
  async #reported<T>(now: number, call: (vendor: Vendor) => Promise<T>): Promise<T> {
    try {
      const answer = await this.#connections.run(() => call(this.#vendor()));
      this.report(now, false);
      return answer;
    } catch (error) {
      if ((error as { action?: string }).action === "unknown") this.report(now, true);
      throw error;
    }
  }

  #refusal(event: string, level: "error" | "page", error: unknown, now: number): Refusal {
    this.#tell(event, errorFields(error), level);
    const retryAfterSeconds = (error as { retryAfterSeconds?: number }).retryAfterSeconds ?? 5;
    if ((error as { status?: number }).status === 429) this.close(now, retryAfterSeconds);
    return { ok: false, message: error instanceof Error ? error.message : "the call failed", retryAfterSeconds };
  }

  /** The vendor takes our key, or says no to calls that need nothing else: a person is called once, and called off. */
  #noteAccess(isTaken: boolean, fields: Record<string, unknown> = {}): void {
    const wasRefused = this.ctx.storage.kv.get<boolean>("accessRefused") === true;
    if (isTaken && !wasRefused) return;
    if (isTaken) {
      this.ctx.storage.kv.delete("accessRefused");
      allClear("vendor_access_refused", this.#name());
    } else {
      this.ctx.storage.kv.put("accessRefused", true);
      log("page", "vendor_access_refused", { about: this.#name(), ...fields });
    }
    this.ctx.waitUntil(sendLogs(provisionerConfig(this.env).LOG_BOOK));
  }

  /** The line goes to the book at once: nothing else sends what an object logs. */
  #tell(event: string, fields: Record<string, unknown>, level: "error" | "page" = "error"): void {
    log(level, event, { vendor: this.#name(), ...(level === "page" ? { about: this.#name() } : {}), ...fields });
    this.ctx.waitUntil(sendLogs(provisionerConfig(this.env).LOG_BOOK));
  }

  #name(): VendorName {
    return this.ctx.id.name === "runpod" ? "runpod" : "vultr";
  }

  #vendor(): Vendor {
    const config = provisionerConfig(this.env);
    return this.#name() === "runpod" ? createRunpod(config) : createVultr(config);
  }

  #rate(): { perSecond: number; burst: number } {
    if (this.#name() === "vultr") return VULTR_RATE;
    const perSecond = provisionerConfig(this.env).RUNPOD_REQUESTS_PER_MINUTE / 60;
    return { perSecond, burst: Math.max(1, perSecond * RUNPOD_BURST_SECONDS) };
  }
}

function indexOf(machines: readonly Machine[]) {
  const byFamily = new Map<string, Machine[]>();
  const byId = new Map<string, Machine[]>();
  for (const machine of machines) {
    const family = familyOfLabel(machine.label);
    byFamily.set(family, [...(byFamily.get(family) ?? []), machine]);
    byId.set(machine.instanceId, [machine]);
  }
  return { byFamily, byId };
}

/** No call of ours will do before somebody acts. */
const isForPerson = (error: unknown): boolean => (error as { action?: string }).action === "page";

const notNow = (seconds: number): Refusal => ({
  ok: false,
  message: "the vendor's rate is used up, or it does not answer",
  retryAfterSeconds: seconds,
});
