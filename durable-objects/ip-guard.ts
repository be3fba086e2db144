// One object per client address (IPv6 per /64), named by it: request counts per route, violations, and the ban. State is
// in SQLite, since an idle object is evicted after about ten seconds. Windows are fixed: they begin with the first
// request and end after the route's span. An alarm deletes everything once nothing is left to remember.
import { DurableObject } from "cloudflare:workers";

export type Limit = { requests: number; windowSeconds: number };
export type Verdict =
  | { kind: "allowed" | "limited"; limit: number; remaining: number; resetAt: number }
  | { kind: "banned"; until: number };

/** This many violations within the window ban the address. Reference: 10+ within 1 hour, 1 hour. */
const VIOLATIONS_TO_BAN = 10;
const VIOLATION_WINDOW_MS = 3_600_000;
const BAN_MS = 3_600_000;
// A poller that is told to wait and does not is rude, not an attacker: one violation per window (hard case 22).
const POLLED_ROUTES = new Set(["credentials", "status", "vms"]);

export class IpGuard extends DurableObject {
  readonly #sql: SqlStorage;

  constructor(ctx: DurableObjectState, env: Cloudflare.Env) {
    super(ctx, env);
    this.#sql = ctx.storage.sql;
    this.#createTables();
  }

  #createTables(): void {
    this.#sql.exec(`
      CREATE TABLE IF NOT EXISTS windows (route TEXT PRIMARY KEY, began_at INTEGER NOT NULL, ends_at INTEGER NOT NULL, count INTEGER NOT NULL);
      CREATE TABLE IF NOT EXISTS violations (at INTEGER NOT NULL);
      CREATE TABLE IF NOT EXISTS bans (id INTEGER PRIMARY KEY CHECK (id = 1), until INTEGER NOT NULL);`);
  }

  /** Counts one request. `now` is unix milliseconds. */
  hit(route: string, limit: Limit, now: number): Verdict {
    const ban = this.#sql.exec<{ until: number }>("SELECT until FROM bans WHERE until > ?", now).toArray()[0];
    if (ban !== undefined) return { kind: "banned", until: ban.until };
    const known = this.#sql
      .exec<{ ends_at: number; count: number }>(
        "SELECT ends_at, count FROM windows WHERE route = ? AND ends_at > ?",
        route,
        now,
      )
      .toArray()[0];
    const endsAt = known?.ends_at ?? now + limit.windowSeconds * 1_000;
    const count = (known?.count ?? 0) + 1;
    this.#sql.exec("INSERT OR REPLACE INTO windows VALUES (?, ?, ?, ?)", route, now, endsAt, count);
    this.#forgetLater(now);
    const resetAt = Math.ceil(endsAt / 1_000);
    if (count <= limit.requests) {
      return { kind: "allowed", limit: limit.requests, remaining: limit.requests - count, resetAt };
    }
    const firstInWindow = count === limit.requests + 1;
    if (firstInWindow || !POLLED_ROUTES.has(route)) {
      const until = this.#violation(now);
      if (until !== null) return { kind: "banned", until };
    }
    return { kind: "limited", limit: limit.requests, remaining: 0, resetAt };
  }

  override async alarm(): Promise<void> {
    await this.ctx.storage.deleteAll();
    // The object may live on in memory and be asked again.
    this.#createTables();
  }

  #violation(now: number): number | null {
    this.#sql.exec("DELETE FROM violations WHERE at <= ?", now - VIOLATION_WINDOW_MS);
    this.#sql.exec("INSERT INTO violations VALUES (?)", now);
    const { count } = this.#sql.exec<{ count: number }>("SELECT COUNT(*) AS count FROM violations").one();
    if (count < VIOLATIONS_TO_BAN) return null;
    const until = now + BAN_MS;
    this.#sql.exec("INSERT OR REPLACE INTO bans VALUES (1, ?)", until);
    this.#sql.exec("DELETE FROM violations");
    return until;
  }

  #forgetLater(now: number): void {
    void this.ctx.storage.setAlarm(now + Math.max(VIOLATION_WINDOW_MS, BAN_MS) * 2);
  }
}
