// One object per client (an address, IPv6 per /64; another Worker; cross-site requests apart), named by it: what it asked
// for lately, its violations, its ban. An automatic ban binds the object of the client's cross-site requests as well.
//
// Windows slide and are exact: the times of the requests that were let through are kept, so of N + k at once N pass. An
// object that idles for about ten seconds loses its memory. So windows that are `kept` (wallets, admin, an hour) and
// violations and bans are written before the answer leaves; the other minute windows are written together by a timer,
// five seconds after the first request that changed them. A crash of the object may forgive these five seconds, no more.
// An alarm deletes all storage once there is nothing left to remember.
//
// Keys of the storage: `minutes` (all windows that the timer writes, one row), `window:<bucket>`, `violations`, `ban`, and
// `lifted` while the row of a lifted ban may still be in the operators' list. The first write of all sets the alarm.
import { DurableObject } from "cloudflare:workers";
import { deleteBan, saveBan } from "../src/db/bans.ts";
import { openDatabase } from "../src/db/client.ts";
import { errorFields, log, sendLogs } from "../src/log.ts";
import { boundBy } from "../src/model/client-name.ts";
import type { LogBook } from "./log-book.ts";

export type Limit = { requests: number; windowSeconds: number };

export type Hit = {
  /** What is counted apart: a route. */
  bucket: string;
  limit: Limit;
  /** Written with each request instead of by the timer. */
  kept: boolean;
  /**
   * What a refusal counts towards a ban. `once` per window: a poller that is told to wait and does not is rude, no attacker
   * (hard case 22).
   */
  counts: "each" | "once" | "never";
  /** Counted although the client is banned: a caller that may show who it is. */
  evenIfBanned: boolean;
  /** Unix milliseconds. */
  now: number;
};

export type Verdict = {
  allowed: boolean;
  remaining: number;
  /** Unix milliseconds at which the next request is given back. */
  resetAt: number;
  bannedUntil: number | null;
  /** The refusal counts towards a ban. */
  violates: boolean;
  /** It was the violation that made the ban. */
  bansNow: boolean;
};

export type Ban = { until: number; since: number; reason: string; by: string };
type StoredBan = Ban & { mirrored: boolean };
type Violation = { at: number; bucket: string };
type Env = { DB: D1Database; LOG_BOOK: DurableObjectNamespace<LogBook>; IP_GUARD: DurableObjectNamespace<IpGuard> };

/** Version 1.3.0 of the API: ten violations within an hour ban for an hour. */
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
  /** Unix milliseconds: rows of bans that began until then are to go from the list. */
  #lifted: number | null = null;
  #flushing: ReturnType<typeof setTimeout> | undefined;
  /** Whether the alarm is set: it is from the first write on until everything is deleted. */
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

  /** Counts one request, if it may pass. */
  hit({ bucket, limit, kept, counts, evenIfBanned, now }: Hit): Verdict {
    const bannedUntil = this.#bannedUntil(now);
    if (bannedUntil !== null && !evenIfBanned) {
      return { allowed: false, remaining: 0, resetAt: bannedUntil, bannedUntil, violates: false, bansNow: false };
    }
    const windowMs = limit.windowSeconds * 1_000;
    const times = (this.#windows.get(bucket)?.times ?? []).filter((at) => at > now - windowMs);
    const allowed = times.length < limit.requests;
    if (allowed) {
      // Isolates' clocks differ by a little; the list stays in order.
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
      // A limit may have been lowered meanwhile.
      remaining: Math.max(0, limit.requests - times.length),
      resetAt: (times[0] ?? now) + windowMs,
      bannedUntil: this.#bannedUntil(now),
      violates,
      bansNow,
    };
  }

  /** What was counted last, and let through, came to nothing. Only for windows that are kept. */
  giveBack(bucket: string): void {
    const window = this.#windows.get(bucket);
    if (window === undefined) return;
    window.times.pop();
    this.#put(`window:${bucket}`, { times: window.times, limit: window.limit });
  }

  /**
   * Violations that `hit` did not see: an injection attempt, a wrong admin key, refusals that an isolate made by itself. Says
   * until when the client is banned now.
   */
  violate(what: string, now: number, violations = 1): { bannedUntil: number | null; bansNow: boolean } {
    let bansNow = false;
    for (let count = 0; count < violations && this.#bannedUntil(now) === null; count++) {
      bansNow = this.#violate(what, now);
    }
    return { bannedUntil: this.#bannedUntil(now), bansNow };
  }

  /** An operator's ban, in force before this resolves. */
  async ban(ban: Ban): Promise<void> {
    this.#setBan(ban);
    await this.#mirror();
  }

  /** A ban of the client whose cross-site requests are counted here: the list has it under the client's own name. */
  bind(ban: Ban): void {
    if ((this.#bannedUntil(ban.since) ?? 0) < ban.until) this.#setBan(ban, true);
  }

  /** Ends a ban, automatic or manual, and forgets what led to it. Resolves with whether there was one. */
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
      // Takes the alarm along; what comes next sets a new one.
      await this.ctx.storage.deleteAll();
      this.#alarmed = false;
    } else {
      const owesList = this.#ban?.mirrored === false || this.#lifted !== null;
      await this.ctx.storage.setAlarm(now + (owesList ? MIRROR_RETRY_MS : ALARM_MS));
    }
  }

  /** Drops what is over; true when nothing is left. */
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

  /** True when this is the one that bans. */
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
    // Isolates' clocks differ, and writes of rows overtake each other: by its `since` the later ban has the row.
    const since = Math.max(ban.since, 1 + Math.max(this.#ban?.since ?? 0, this.#lifted ?? 0));
    this.#ban = { ...ban, since, mirrored };
    this.#put("ban", this.#ban);
  }

  /**
   * Binds the client's other guard to an automatic ban, and writes the row: operators list bans from the database, since
   * nothing can list objects. What fails is tried again by the alarm.
   */
  async #mirror(): Promise<void> {
    const ban = this.#ban;
    if (ban === null) return;
    const { until, since, reason, by } = ban;
    // Operators ban both by themselves.
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
    // Lifted while the row was on its way.
    if (this.#ban !== null) return;
    await this.#unlist(since);
    for (const other of others) await other.lift();
  }

  /** The guards that a ban of this one binds. */
  #bound(): DurableObjectStub<IpGuard>[] {
    const { IP_GUARD } = this.env;
    const names = boundBy(this.#name()).filter((name) => name !== this.#name());
    return names.map((name) => IP_GUARD.get(IP_GUARD.idFromName(name)));
  }

  /** Takes the row of a lifted ban out of the list; a mark stays until that is done, for the alarm. */
  async #unlist(since: number): Promise<void> {
    this.#markLifted(since);
    try {
      await deleteBan(openDatabase(this.env.DB), this.#name(), since);
      if (this.#lifted !== since) return;
      this.#lifted = null;
      this.ctx.storage.kv.delete("lifted");
    } catch (error) {
      // Another delete, of an earlier row, may have taken the mark meanwhile.
      this.#markLifted(since);
      await this.#tryLater("ban_not_unlisted", error);
    }
  }

  #markLifted(since: number): void {
    this.#lifted = Math.max(since, this.#lifted ?? 0);
    this.#put("lifted", this.#lifted);
  }

  /** Whatever is owed to the list. The line goes to the book at once: nothing else sends what an object logs. */
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
