// The state that all consumers of the provisioner share about a vendor: one object per vendor, named "vultr" or "runpod".
//
//   permits      each call to the vendor takes one, so that all calls together stay within the vendor's rate, and none is made
//                while the vendor is down (circuit breaker)
//   list         one list of the vendor's machines for all consumers that wait for a machine
//   troubles     the places without stock, with refusals or with failed boots
//   orders       the machines of each purchase: none gets more than `MAX_MACHINES`, regardless of the database (hard case 34)
//   supplies     the vendor's ids that an order needs
//
// Storage holds the state of rate and circuit, since an idle object is evicted after about ten seconds and a window of a minute
// must outlive that, and also troubles, orders and supplies. The list is in memory: a lost list costs one call.
import { DurableObject } from "cloudflare:workers";
import { allClear, errorFields, log, sendLogs } from "../src/log.ts";
import { familyOfLabel } from "../src/model/purchase-key.ts";
import type { VendorName } from "../src/model/stock.ts";
import { Connections } from "../src/outbound.ts";
import { provisionerConfig } from "../src/provisioner/config.ts";
import { createRunpod } from "../src/provisioner/vendors/runpod.ts";
import type { Machine, Supplies, Vendor } from "../src/provisioner/vendors/vendor.ts";
import { createVultr } from "../src/provisioner/vendors/vultr.ts";

/** The rate limit's state: a token bucket that refills steadily, and the time until which the vendor accepts no calls (ms). */
type Bucket = { tokens: number; at: number; closedUntil: number };

/** Faults in a row. From `FAULTS_TO_OPEN` on no call is made before `openUntil`, and then one at a time (`trial`). */
type Circuit = { faults: number; openUntil: number; trial?: boolean };

/** `waitSeconds` 0: the call may be made. `watched`: an earlier call failed, so the caller has to report how this one ends. */
export type Permit = { waitSeconds: number; watched: boolean };

/** A place's failure to give a machine: the time until which it counts (unix milliseconds), and the number of failures. */
type Trouble = { until: number; times: number };
export type TroubleKind = "no_stock" | "refused" | "no_boot";

export type Snapshot = { machines: Machine[]; readAt: number };
type Refusal = { ok: false; message: string; retryAfterSeconds: number };
export type SnapshotAnswer = { ok: true; snapshot: Snapshot } | Refusal;
type StoredSupplies = { supplies: Supplies; readAt: number; of: string };
export type SuppliesAnswer = { ok: true; supplies: Supplies } | Refusal;

/**
 * A machine that was ordered for a purchase, until the vendor has it no more. `instanceId`: null until the order has an answer.
 */
type Ordered = { mark: string; at: number; instanceId: string | null };
/**
 * The most machines of a purchase at a time, at all vendors together: the one that serves it, and one more. The second is
 * needed when the first is unknown to the database (restored to an earlier state), or comes from an order that was taken for
 * lost.
 */
const MAX_MACHINES = 2;

/** Vultr refuses the 31st request within a second. A full bucket and a second's refill are 30 requests. */
const VULTR_RATE = { perSecond: 15, burst: 15 };
/** RunPod's limit is per minute: a full bucket has the requests of this many seconds. */
const RUNPOD_BURST_SECONDS = 10;
const SUPPLIES_AGE_MS = 3_600_000;
/** The most sets of ports whose supplies are kept: buyers can name any number of sets. */
const MAX_PORT_SETS = 100;
const FAULTS_TO_OPEN = 5;
const FIRST_OPEN_MS = 10_000;
const MAX_OPEN_MS = 300_000;
const TROUBLE_MS: Record<TroubleKind, number> = { no_stock: 60_000, refused: 60_000, no_boot: 600_000 };
const MAX_TROUBLE_MS = 3_600_000;
/** Vultr counts a machine against the account's limit for up to two minutes after its deletion; half a minute is a margin. */
const LIMIT_SETTLES_MS = 150_000;
const LIMIT_FORGOTTEN_MS = 600_000;

export class VendorGate extends DurableObject<object> {
  readonly #connections = new Connections();
  #snapshot: Snapshot | undefined;
  #index: (ReturnType<typeof indexOf> & { snapshot: Snapshot }) | undefined;
  #reading: Promise<Snapshot> | undefined;
  readonly #preparing = new Map<string, Promise<Supplies>>();
  /** Supplies of machines with ports. Such machines are few, and lost supplies cost some calls, so memory is enough. */
  readonly #forPorts = new Map<string, StoredSupplies>();

  /** Takes a permit for one call, or for `calls` calls that belong together. `now`: unix milliseconds, as in all methods. */
  take(now: number, calls = 1): Permit {
    const circuit = this.ctx.storage.kv.get<Circuit>("circuit");
    const watched = circuit !== undefined;
    if (circuit !== undefined && circuit.openUntil > now) {
      return { waitSeconds: Math.ceil((circuit.openUntil - now) / 1_000), watched };
    }
    const waitSeconds = this.#takeTokens(now, calls);
    if (circuit !== undefined && circuit.faults >= FAULTS_TO_OPEN && waitSeconds === 0) {
      // Half open: this call tests the vendor for all others, which wait for as long as the call may take.
      const openUntil = now + provisionerConfig(this.env).VENDOR_TIMEOUT_MS;
      this.ctx.storage.kv.put("circuit", { ...circuit, openUntil, trial: true } satisfies Circuit);
    }
    return { waitSeconds, watched };
  }

  /** Records the end of a call. A fault is a call without an answer, or with an unreadable one. */
  report(now: number, isFault: boolean): void {
    const circuit = this.ctx.storage.kv.get<Circuit>("circuit");
    if (!isFault) {
      if (circuit !== undefined) this.ctx.storage.kv.delete("circuit");
      return;
    }
    // Calls that were under way when the circuit opened say nothing new: only the trial call counts.
    if (circuit !== undefined && circuit.openUntil > now && circuit.trial !== true) return;
    const faults = (circuit?.faults ?? 0) + 1;
    const openMs = Math.min(MAX_OPEN_MS, FIRST_OPEN_MS * 2 ** Math.max(0, faults - FAULTS_TO_OPEN));
    // Jitter: not all consumers come back at the same moment.
    const openUntil = faults < FAULTS_TO_OPEN ? 0 : now + openMs * (0.5 + Math.random() / 2);
    if (faults >= FAULTS_TO_OPEN) this.#tell("circuit_open", { faults, openMs });
    this.ctx.storage.kv.put("circuit", { faults, openUntil } satisfies Circuit);
  }

  /** Records that a place (`region/plan`) had no machine, or one that did not boot: all consumers try other places first. */
  remember(now: number, place: string, kind: TroubleKind): void {
    const troubles = this.#troubles(now);
    const times = (troubles[place]?.times ?? 0) + 1;
    const until = now + Math.min(MAX_TROUBLE_MS, TROUBLE_MS[kind] * 2 ** (times - 1));
    this.ctx.storage.kv.put("troubles", { ...troubles, [place]: { until, times } });
  }

  /** The places with a recorded failure that still counts. */
  troubled(now: number): string[] {
    return Object.keys(this.#troubles(now));
  }

  /**
   * Records that a machine is about to be ordered for a purchase (`family`: see `machinesOf`). False when the purchase may have
   * no other machine. `elsewhere`: the number of its machines at other vendors.
   */
  async mayOrder(now: number, family: string, mark: string, elsewhere: number): Promise<boolean> {
    if (this.#ordered(family).length + elsewhere >= MAX_MACHINES) await this.#forgetGone(now, family);
    const ordered = this.#ordered(family);
    if (ordered.length + elsewhere >= MAX_MACHINES) return false;
    this.#keepOrdered(family, [...ordered, { mark, at: now, instanceId: null }]);
    return true;
  }

  /** Records the machine that an order has made. */
  placed(family: string, mark: string, instanceId: string): void {
    this.ctx.storage.kv.delete("limitSince");
    const ordered = this.#ordered(family);
    this.#keepOrdered(
      family,
      ordered.map((one) => (one.mark === mark ? { ...one, instanceId } : one)),
    );
  }

  /**
   * Removes an order that has made no machine (`what`: its mark), or a machine that the vendor does not have any more (`what`:
   * its instance id; `endedAt`: the time of its deletion).
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
   * Records that the account's limit has refused an order. True while the limit may still count a deleted machine: for a while
   * after the deletion, and after the first such refusal, since a busy account has always just deleted a machine.
   */
  metLimit(now: number): boolean {
    const { kv } = this.ctx.storage;
    const known = kv.get<number>("limitSince") ?? 0;
    const since = known > now - LIMIT_FORGOTTEN_MS ? known : now;
    if (since !== known) kv.put("limitSince", since);
    return Math.min(since, kv.get<number>("endedAt") ?? 0) > now - LIMIT_SETTLES_MS;
  }

  /** The number of machines that a purchase has, or may have, at this vendor. */
  async countOrdered(now: number, family: string): Promise<number> {
    await this.#forgetGone(now, family);
    return this.#ordered(family).length;
  }

  /**
   * Removes the orders whose machine the vendor does not have: the database is not trusted here. A machine that the vendor may
   * not show yet stays, and so does every machine while the vendor does not answer.
   */
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

  /** The vendor asked for a pause (Retry-After): no permits for `seconds`. */
  close(now: number, seconds: number): void {
    const { burst } = this.#rate();
    const known = this.ctx.storage.kv.get<Bucket>("bucket") ?? { tokens: burst, at: now, closedUntil: 0 };
    const closedUntil = Math.max(known.closedUntil, now + seconds * 1_000);
    this.ctx.storage.kv.put("bucket", { ...known, closedUntil } satisfies Bucket);
  }

  /**
   * The machines of one purchase (`family`: their labels without the attempt's number), or the machine with an id, from the
   * shared list: the size of an answer must not grow with the machines of other purchases.
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

  /**
   * All machines, from a list that was started at or after `notBefore` (unix milliseconds). Concurrent callers share one list.
   */
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
   * The supplies for orders with these ports, read (or made) once for all consumers and kept for an hour: fifty concurrent
   * purchases must not ask the vendor fifty times, or make fifty firewalls.
   */
  async supplies(now: number, ports: readonly number[] = []): Promise<SuppliesAnswer> {
    const { DEPLOYMENT_ID, VULTR_SSH_PORT, VULTR_OS } = provisionerConfig(this.env);
    // Supplies depend on these settings.
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

  /** Keeps supplies for a set of ports; the oldest set is dropped when there are too many. */
  #keepForPorts(of: string, stored: StoredSupplies): void {
    const [oldest] = this.#forPorts.keys();
    if (oldest !== undefined && this.#forPorts.size >= MAX_PORT_SETS) this.#forPorts.delete(oldest);
    this.#forPorts.set(of, stored);
  }

  /** Drops the supplies after an order was refused as malformed: an id that it named may not exist any more. */
  forgetSupplies(): void {
    this.ctx.storage.kv.delete("supplies");
    this.#forPorts.clear();
  }

  /** Makes a call and reports its end once, regardless of the number of callers that wait for it. */
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

  /**
   * Pages when the vendor refuses calls that need nothing but our API key, and clears the page when the vendor accepts the key.
   */
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

  /** Logs a line and sends it at once: nothing else sends an object's lines. */
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

/** Whether an error needs a person: no further call succeeds before somebody acts. */
const isForPerson = (error: unknown): boolean => (error as { action?: string }).action === "page";

const notNow = (seconds: number): Refusal => ({
  ok: false,
  message: "the vendor's rate limit is used up, or the vendor does not answer",
  retryAfterSeconds: seconds,
});
