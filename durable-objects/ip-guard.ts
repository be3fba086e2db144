// A client's rate limits, violations and ban: one object per client, named after it. A client is an address (IPv6: a /64) or
// another Worker. A client's cross-site requests have an object of their own, which an automatic ban of the client binds as
// well.
//
// Windows slide and are exact: the object keeps the time of each allowed request, so of N + k concurrent requests N pass. An
// idle object loses its memory after about ten seconds. `kept` windows (wallets, admin, an hour), violations and bans are
// therefore written before the answer leaves. A timer writes the other windows, which last a minute, together, five seconds
// after the first request that changed them: a crash of the object loses at most these five seconds. An alarm deletes all
// storage once everything in it has expired.
//
// Storage keys: `minutes` (all windows that the timer writes, one row), `window:<bucket>`, `violations`, `ban`, and `lifted`
// while the row of a lifted ban may still be in the operators' list. The first write sets the alarm.
import { DurableObject } from "cloudflare:workers";
import { deleteBan, saveBan } from "../src/db/bans.ts";
import { openDatabase } from "../src/db/client.ts";
import { errorFields, log, sendLogs } from "../src/log.ts";
import { boundBy } from "../src/model/client-name.ts";
import type { LogBook } from "./log-book.ts";

export type Limit = { requests: number; windowSeconds: number };

export type Hit = {
  /** The name of the counter: a route. */
  bucket: string;
  limit: Limit;
  /** Write the window with each request instead of by the timer. */
  kept: boolean;
  /**
   * Whether a refusal is a violation, which counts towards a ban. `once` per window: a poller that ignores Retry-After is not
   * an attacker (hard case 22).
   */
  counts: "each" | "once" | "never";
  /** Count the request although the client is banned: its owner's signature may pass the ban. */
  evenIfBanned: boolean;
  /** Unix milliseconds. */
  now: number;
};

export type Verdict = {
  allowed: boolean;
  remaining: number;
  /** Unix milliseconds at which the window has room for another request. */
  resetAt: number;
  bannedUntil: number | null;
  /** The refusal counts towards a ban. */
  violates: boolean;
  /** The violation that caused the ban. */
  bansNow: boolean;
};

export type Ban = { until: number; since: number; reason: string; by: string };
type StoredBan = Ban & { mirrored: boolean };
type Violation = { at: number; bucket: string };
type Env = { DB: D1Database; LOG_BOOK: DurableObjectNamespace<LogBook>; IP_GUARD: DurableObjectNamespace<IpGuard> };

/** Version 1.3.0 of the API: ten violations within an hour cause a ban of an hour. */
const VIOLATIONS_TO_BAN = 10;
const VIOLATION_WINDOW_MS = 3_600_000;
const BAN_MS = 3_600_000;
const FLUSH_MS = 5_000;
const ALARM_MS = 900_000;
const MIRROR_RETRY_MS = 30_000;

export class IpGuard extends DurableObject<Env> {
  readonly #windows = new Map<string, { times: number[]; limit: Limit; kept: boolean }>();
  #violations: Violation[] = [];
  #ban: StoredBan | null = null;
  /** Rows of bans that began up to this time (unix milliseconds) have to leave the operators' list. */
  #lifted: number | null = null;
  #flushing: ReturnType<typeof setTimeout> | undefined;
  /** Whether the alarm is set: from the first write until all storage is deleted. */
  #alarmed = false;

  constructor(ctx: DurableObjectState, env: Env) {
    super(ctx, env);
    for (const [key, value] of ctx.storage.kv.list()) {
      this.#alarmed = true;
      if (key === "ban") this.#ban = value as StoredBan;
      else if (key === "lifted") this.#lifted = value as number;
      else if (key === "violations") this.#violations = value as Violation[];
      else if (key === "minutes") {
        for (const [bucket, { times, limit }] of Object.entries(value as Minutes)) {
          this.#windows.set(bucket, { times, limit, kept: false });
        }
      } else {
        const { times, limit } = value as Minutes[string];
        this.#windows.set(key.slice("window:".length), { times, limit, kept: true });
      }
    }
  }

  /** Decides about one request, and counts it if it is allowed. */
  hit({ bucket, limit, kept, counts, evenIfBanned, now }: Hit): Verdict {
    const bannedUntil = this.#bannedUntil(now);
    if (bannedUntil !== null && !evenIfBanned) {
      return { allowed: false, remaining: 0, resetAt: bannedUntil, bannedUntil, violates: false, bansNow: false };
    }
    const windowMs = limit.windowSeconds * 1_000;
    const times = (this.#windows.get(bucket)?.times ?? []).filter((at) => at > now - windowMs);
    const allowed = times.length < limit.requests;
    if (allowed) {
      // Isolates' clocks differ a little; the list has to stay in order.
      times.push(Math.max(now, times.at(-1) ?? 0));
      this.#windows.set(bucket, { times, limit, kept });
      if (kept) this.#put(`window:${bucket}`, { times, limit });
      else this.#flushLater();
    }
    const violates =
      !allowed &&
      bannedUntil === null &&
      (counts === "each" || (counts === "once" && !this.#violatedSince(bucket, now - windowMs)));
    const bansNow = violates && this.#violate(bucket, now);
    return {
      allowed,
      // The limit may be lower than when the earlier requests passed.
      remaining: Math.max(0, limit.requests - times.length),
      resetAt: (times[0] ?? now) + windowMs,
      bannedUntil: this.#bannedUntil(now),
      violates,
      bansNow,
    };
  }

  /** Removes the last counted request, whose work failed. Only for `kept` windows. */
  giveBack(bucket: string): void {
    const window = this.#windows.get(bucket);
    if (window === undefined) return;
    window.times.pop();
    this.#put(`window:${bucket}`, { times: window.times, limit: window.limit });
  }

  /**
   * Adds violations that `hit` did not see: an injection attempt, a wrong admin key, refusals by an isolate alone. Returns the
   * end of the client's ban (unix milliseconds), or null.
   */
  violate(what: string, now: number, violations = 1): { bannedUntil: number | null; bansNow: boolean } {
    let bansNow = false;
    for (let count = 0; count < violations && this.#bannedUntil(now) === null; count++) {
      bansNow = this.#violate(what, now);
    }
    return { bannedUntil: this.#bannedUntil(now), bansNow };
  }

  /** Sets an operator's ban. It is in force before the promise resolves. */
  async ban(ban: Ban): Promise<void> {
    this.#setBan(ban);
    await this.#mirror();
  }

  /** Takes over the ban of the client whose cross-site requests this object counts. The list has it under the client's name. */
  bind(ban: Ban): void {
    if ((this.#bannedUntil(ban.since) ?? 0) < ban.until) this.#setBan(ban, true);
  }

  /** Ends an automatic or an operator's ban and deletes the violations. Resolves with whether the client was banned. */
  async lift(): Promise<boolean> {
    const now = Date.now();
    const wasBanned = this.#bannedUntil(now) !== null;
    const since = Math.max(now, this.#ban?.since ?? 0);
    this.#ban = null;
    this.#violations = [];
    this.ctx.storage.kv.delete("ban");
    this.ctx.storage.kv.delete("violations");
    await this.#unlist(since);
    return wasBanned;
  }

  override async alarm(): Promise<void> {
    const now = Date.now();
    if (this.#ban !== null && !this.#ban.mirrored) await this.#mirror();
    if (this.#lifted !== null) await this.#unlist(this.#lifted);
    if (this.#forget(now)) {
      clearTimeout(this.#flushing);
      this.#flushing = undefined;
      // Deletes the alarm as well; the next write sets a new one.
      await this.ctx.storage.deleteAll();
      this.#alarmed = false;
    } else {
      const owesList = this.#ban?.mirrored === false || this.#lifted !== null;
      await this.ctx.storage.setAlarm(now + (owesList ? MIRROR_RETRY_MS : ALARM_MS));
    }
  }

  /** Drops windows, violations and a ban that are over. True when nothing is left. */
  #forget(now: number): boolean {
    for (const [bucket, { times, limit }] of this.#windows) {
      if ((times.at(-1) ?? 0) <= now - limit.windowSeconds * 1_000) this.#windows.delete(bucket);
    }
    this.#violations = this.#violations.filter(({ at }) => at > now - VIOLATION_WINDOW_MS);
    if (this.#bannedUntil(now) === null && this.#ban?.mirrored !== false) this.#ban = null;
    return this.#windows.size + this.#violations.length === 0 && this.#ban === null && this.#lifted === null;
  }

  #bannedUntil(now: number): number | null {
    return this.#ban !== null && this.#ban.until > now ? this.#ban.until : null;
  }

  #violatedSince(bucket: string, since: number): boolean {
    return this.#violations.some((violation) => violation.bucket === bucket && violation.at > since);
  }

  /** Adds a violation. True when it causes the ban. */
  #violate(bucket: string, now: number): boolean {
    this.#violations = this.#violations.filter(({ at }) => at > now - VIOLATION_WINDOW_MS);
    this.#violations.push({ at: now, bucket });
    if (this.#violations.length < VIOLATIONS_TO_BAN) {
      this.#put("violations", this.#violations);
      return false;
    }
    this.#violations = [];
    this.ctx.storage.kv.delete("violations");
    const reason = `${VIOLATIONS_TO_BAN} violations within an hour, the last one: ${bucket}`;
    this.#setBan({ since: now, until: now + BAN_MS, reason, by: "auto" });
    this.ctx.waitUntil(this.#mirror());
    return true;
  }

  #setBan(ban: Ban, mirrored = false): void {
    // Isolates' clocks differ, and writes of rows overtake each other: the row belongs to the ban with the later `since`.
    const since = Math.max(ban.since, 1 + Math.max(this.#ban?.since ?? 0, this.#lifted ?? 0));
    this.#ban = { ...ban, since, mirrored };
    this.#put("ban", this.#ban);
  }

  /**
   * Passes an automatic ban on to the client's other guard and writes the row of the ban. Operators list bans from the
   * database, since objects can't be listed. The alarm tries again after a failure.
   */
  async #mirror(): Promise<void> {
    const ban = this.#ban;
    if (ban === null) return;
    const { until, since, reason, by } = ban;
    // An operator's ban is set on both guards by the admin route.
    const others = by === "auto" ? this.#bound() : [];
    try {
      await Promise.all([
        saveBan(openDatabase(this.env.DB), { client: this.#name(), until, since, reason, by }),
        ...others.map((other) => other.bind({ until, since, reason, by })),
      ]);
      if (this.#ban === ban) {
        this.#ban = { ...ban, mirrored: true };
        this.#put("ban", this.#ban);
      }
    } catch (error) {
      await this.#tryLater("ban_not_mirrored", error);
    }
    // The ban was lifted during the write of its row.
    if (this.#ban !== null) return;
    await this.#unlist(since);
    for (const other of others) await other.lift();
  }

  /** The other guards that an automatic ban of this client binds. */
  #bound(): DurableObjectStub<IpGuard>[] {
    const { IP_GUARD } = this.env;
    const names = boundBy(this.#name()).filter((name) => name !== this.#name());
    return names.map((name) => IP_GUARD.get(IP_GUARD.idFromName(name)));
  }

  /** Deletes the row of a lifted ban. Until that succeeds, `lifted` is stored and the alarm tries again. */
  async #unlist(since: number): Promise<void> {
    this.#markLifted(since);
    try {
      await deleteBan(openDatabase(this.env.DB), this.#name(), since);
      if (this.#lifted !== since) return;
      this.#lifted = null;
      this.ctx.storage.kv.delete("lifted");
    } catch (error) {
      // A concurrent delete of an earlier ban's row may have removed `lifted`.
      this.#markLifted(since);
      await this.#tryLater("ban_not_unlisted", error);
    }
  }

  #markLifted(since: number): void {
    this.#lifted = Math.max(since, this.#lifted ?? 0);
    this.#put("lifted", this.#lifted);
  }

  /**
   * Logs a failed write of a ban's row and sets the alarm. The log line is sent at once: nothing else sends an object's lines.
   */
  async #tryLater(event: string, error: unknown): Promise<void> {
    log("error", event, errorFields(error));
    this.ctx.waitUntil(sendLogs(this.env.LOG_BOOK));
    await this.ctx.storage.setAlarm(Date.now() + MIRROR_RETRY_MS);
  }

  #flushLater(): void {
    this.#flushing ??= setTimeout(() => {
      this.#flushing = undefined;
      const minutes: Minutes = {};
      for (const [bucket, { times, limit, kept }] of this.#windows) if (!kept) minutes[bucket] = { times, limit };
      this.#put("minutes", minutes);
    }, FLUSH_MS);
  }

  #put(key: string, value: unknown): void {
    this.ctx.storage.kv.put(key, value);
    if (this.#alarmed) return;
    this.#alarmed = true;
    void this.ctx.storage.setAlarm(Date.now() + ALARM_MS);
  }

  #name(): string {
    return this.ctx.id.name ?? this.ctx.id.toString();
  }
}

type Minutes = Record<string, { times: number[]; limit: Limit }>;
