// The logs of both Workers, in one object: three streams as files of at most 5 MB, of which five are kept, and pages, which go
// to a webhook. Workers send lines in batches, a second after a batch's first line; lines that are lost on the way are still in
// `wrangler tail`.
//
// A row of `chunks` is a batch's lines of one stream; a file is the chunks with its number. `causes` has the causes of pages,
// so that each cause alerts once, and once when it ends. `alerts` has the webhook calls that were not accepted yet.
import { DurableObject } from "cloudflare:workers";
import { Webhook } from "standardwebhooks";

export const STREAMS = ["combined", "error", "security"] as const;
export type Stream = (typeof STREAMS)[number];
/**
 * Lines of JSON, each with its line feed. `combined` has the lines of the other streams too. A text per stream costs less to
 * send than a list of lines.
 */
export type LogBatch = Record<Stream, string> & {
  /** The first line of each cause. */
  pages: Record<string, string>;
  /** Causes that are over, unless a page of this batch or a later one has them. */
  cleared: Set<string>;
};
/** `index` 0 is the file being written, 1 the one before. `from` and `to`: unix milliseconds. */
export type LogFile = { stream: Stream; index: number; bytes: number; from: number; to: number };
export type EventFilter = { event?: string; address?: string; since?: number; until?: number; limit: number };
type Alert = { id: string; what: "page" | "all_clear"; line: string; tries: number };
type Env = { ALERT_WEBHOOK_URL?: string; ALERT_WEBHOOK_SECRET?: string };

/** Version 1.3.0 of the API: five files of at most 5 MB. */
const MAX_FILE_BYTES = 5_000_000;
const FILES_KEPT = 5;
/** A storage value has at most 2 MB. */
const MAX_CHUNK_BYTES = 500_000;
const LINE_FEED = 0x0a;
/** The part that is kept of a line that is too long for a row. */
const EXCERPT_BYTES = 1_000;
/** The interval of alerts about a cause that keeps being logged. */
const REMIND_MS = 3_600_000;
/** A page this soon after its cause's alert is about the same incident; a later one may be about the next. */
const SAME_MS = 60_000;
/** Condition: the cause is not over, and was logged again after its last alert. */
const IS_UNTOLD = `cleared_at IS NULL AND said_at > paged_at + ${SAME_MS}`;
/** A cause ends when it is not logged for this long after its all-clear: a cause that comes and goes stays one cause. */
const SETTLE_MS = 300_000;
/** A cause without an all-clear is deleted, without an alert, when it is not logged for this long: it has no end. */
const FORGET_MS = 7 * 86_400_000;
const WEBHOOK_TIMEOUT_MS = 10_000;
const FIRST_RETRY_MS = 15_000;
const MAX_RETRY_MS = 3_600_000;
const MAX_TRIES = 24;

export class LogBook extends DurableObject<Env> {
  readonly #sql: SqlStorage;
  /** Each stream's current file, read from storage once. */
  readonly #current = new Map<Stream, { file: number; bytes: number }>();

  constructor(ctx: DurableObjectState, env: Env) {
    super(ctx, env);
    this.#sql = ctx.storage.sql;
    this.#sql.exec(`
      CREATE TABLE IF NOT EXISTS chunks (id INTEGER PRIMARY KEY, stream TEXT NOT NULL, file INTEGER NOT NULL, bytes INTEGER NOT NULL, at INTEGER NOT NULL, lines TEXT NOT NULL);
      CREATE INDEX IF NOT EXISTS chunks_by_file ON chunks (stream, file);
      CREATE TABLE IF NOT EXISTS causes (cause TEXT PRIMARY KEY, line TEXT NOT NULL, since INTEGER NOT NULL, said_at INTEGER NOT NULL, paged_at INTEGER NOT NULL, cleared_at INTEGER);
      CREATE TABLE IF NOT EXISTS alerts (id TEXT PRIMARY KEY, what TEXT NOT NULL, line TEXT NOT NULL, at INTEGER NOT NULL, tries INTEGER NOT NULL, next_try_at INTEGER);`);
  }

  /** Stores a batch and sends its pages. `now`: unix milliseconds. */
  async append(batch: LogBatch, now = Date.now()): Promise<void> {
    for (const stream of STREAMS) this.#write(stream, batch[stream], now);
    if (this.env.ALERT_WEBHOOK_URL === undefined) return;
    const pages = Object.entries(batch.pages);
    for (const [cause, line] of pages) this.#page(cause, line, now);
    if (this.#clear(batch.cleared, now) || pages.length > 0) await this.#deliverLater(now);
  }

  /** All files, by stream, newest first. */
  files(): LogFile[] {
    const rows = this.#sql.exec<{ stream: Stream; file: number; bytes: number; from_at: number; to_at: number }>(
      "SELECT stream, file, SUM(bytes) AS bytes, MIN(at) AS from_at, MAX(at) AS to_at FROM chunks GROUP BY stream, file ORDER BY stream, file DESC",
    );
    const newest = new Map<Stream, number>();
    return [...rows].map(({ stream, file, bytes, from_at: from, to_at: to }) => {
      const first = newest.get(stream) ?? file;
      newest.set(stream, first);
      return { stream, index: first - file, bytes, from, to };
    });
  }

  /** A file's lines; null when the file does not exist. */
  read(stream: Stream, index: number): string | null {
    const rows = this.#sql.exec<{ lines: string }>(
      "SELECT lines FROM chunks WHERE stream = ? AND file = ? ORDER BY id",
      stream,
      this.#newest(stream).file - index,
    );
    const chunks = [...rows].map(({ lines }) => lines);
    return chunks.length === 0 ? null : chunks.join("");
  }

  /** Events of the security stream, newest first. `since` and `until`: unix milliseconds, inclusive. */
  events({
    event,
    address,
    since = 0,
    until = Number.MAX_SAFE_INTEGER,
    limit,
  }: EventFilter): Record<string, unknown>[] {
    const found: Record<string, unknown>[] = [];
    const chunks = this.#sql.exec<{ lines: string }>(
      "SELECT lines FROM chunks WHERE stream = 'security' AND at >= ? ORDER BY id DESC",
      since,
    );
    for (const { lines } of chunks) {
      for (const line of lines.trimEnd().split("\n").reverse()) {
        const entry = JSON.parse(line) as Record<string, unknown>;
        const at = Date.parse(String(entry["time"]));
        if (at < since || at > until) continue;
        if (event !== undefined && entry["event"] !== event) continue;
        if (address !== undefined && entry["address"] !== address) continue;
        found.push(entry);
        if (found.length === limit) return found;
      }
    }
    return found;
  }

  override async alarm(): Promise<void> {
    const now = Date.now();
    this.#endCauses(now);
    this.#remind(now);
    const due = this.#sql
      .exec<Alert>("SELECT id, what, line, tries FROM alerts WHERE next_try_at <= ? ORDER BY at LIMIT 20", now)
      .toArray();
    for (const alert of due) {
      const tries = alert.tries + 1;
      if ((await this.#send(alert, now)) || tries >= MAX_TRIES) {
        this.#sql.exec("DELETE FROM alerts WHERE id = ?", alert.id);
        continue;
      }
      const next = now + Math.min(MAX_RETRY_MS, FIRST_RETRY_MS * 2 ** alert.tries);
      this.#sql.exec("UPDATE alerts SET tries = ?, next_try_at = ? WHERE id = ?", tries, next, alert.id);
    }
    await this.#deliverLater(now);
  }

  #newest(stream: Stream): { file: number; bytes: number } {
    const known = this.#current.get(stream);
    if (known !== undefined) return known;
    const row = this.#sql
      .exec<{ file: number; bytes: number }>(
        "SELECT file, SUM(bytes) AS bytes FROM chunks WHERE stream = ? GROUP BY file ORDER BY file DESC LIMIT 1",
        stream,
      )
      .toArray()[0];
    const current = row ?? { file: 0, bytes: 0 };
    this.#current.set(stream, current);
    return current;
  }

  /** Appends whole lines, in chunks that fit a row and a file. */
  #write(stream: Stream, text: string, now: number): void {
    const current = this.#newest(stream);
    const bytes = cutLongLines(Buffer.from(text), now);
    for (let at = 0; at < bytes.length; ) {
      if (current.bytes >= MAX_FILE_BYTES) this.#turnOver(stream, current);
      const room = Math.min(MAX_CHUNK_BYTES, MAX_FILE_BYTES - current.bytes);
      const end = bytes.length - at <= room ? bytes.length : bytes.lastIndexOf(LINE_FEED, at + room - 1) + 1;
      if (end <= at) {
        // The next line does not fit the rest of the file.
        this.#turnOver(stream, current);
        continue;
      }
      const lines = bytes.subarray(at, end).toString();
      this.#sql.exec(
        "INSERT INTO chunks (stream, file, bytes, at, lines) VALUES (?, ?, ?, ?, ?)",
        stream,
        current.file,
        end - at,
        now,
        lines,
      );
      current.bytes += end - at;
      at = end;
    }
  }

  #turnOver(stream: Stream, current: { file: number; bytes: number }): void {
    current.file += 1;
    current.bytes = 0;
    this.#sql.exec("DELETE FROM chunks WHERE stream = ? AND file <= ?", stream, current.file - FILES_KEPT);
  }

  /** Stores a page's cause. A cause without an alert within `REMIND_MS` gets one. */
  #page(cause: string, line: string, now: number): void {
    this.#sql.exec(
      `INSERT INTO causes VALUES (?1, ?2, ?3, ?3, 0, NULL)
        ON CONFLICT (cause) DO UPDATE SET line = excluded.line, said_at = excluded.said_at, cleared_at = NULL`,
      cause,
      line,
      now,
    );
    const due = "cause = ? AND paged_at <= ? RETURNING cause";
    const told = this.#sql.exec(`UPDATE causes SET paged_at = ? WHERE ${due}`, now, cause, now - REMIND_MS).toArray();
    if (told.length > 0) this.#alert("page", line, now);
  }

  /** Alerts about causes that were logged again within the hour after their last alert, once the hour is over. */
  #remind(now: number): void {
    const due = this.#sql
      .exec<{ line: string }>(
        `UPDATE causes SET paged_at = ? WHERE paged_at <= ? AND ${IS_UNTOLD} RETURNING line`,
        now,
        now - REMIND_MS,
      )
      .toArray();
    for (const { line } of due) this.#alert("page", line, now);
  }

  /** Marks causes as over. True when one of them was open. */
  #clear(causes: ReadonlySet<string>, now: number): boolean {
    if (causes.size === 0) return false;
    const named = JSON.stringify([...causes]);
    const where = "cleared_at IS NULL AND cause IN (SELECT value FROM json_each(?))";
    return (
      this.#sql.exec(`UPDATE causes SET cleared_at = ? WHERE ${where} RETURNING cause`, now, named).toArray().length > 0
    );
  }

  #endCauses(now: number): void {
    const over = this.#sql
      .exec<{ line: string; since: number }>(
        "DELETE FROM causes WHERE cleared_at <= ? RETURNING line, since",
        now - SETTLE_MS,
      )
      .toArray();
    for (const { line, since } of over) {
      const { event, about } = JSON.parse(line) as Record<string, unknown>;
      const lasted = { since: new Date(since).toISOString(), seconds: Math.round((now - since) / 1_000) };
      this.#alert("all_clear", JSON.stringify({ time: new Date(now).toISOString(), event, about, ...lasted }), now);
    }
    this.#sql.exec("DELETE FROM causes WHERE cleared_at IS NULL AND said_at <= ?", now - FORGET_MS);
  }

  #alert(what: Alert["what"], line: string, now: number): void {
    this.#sql.exec("INSERT INTO alerts VALUES (?, ?, ?, ?, 0, ?)", `msg_${crypto.randomUUID()}`, what, line, now, now);
  }

  async #deliverLater(now: number): Promise<void> {
    const next = this.#sql
      .exec<{ at: number | null }>(
        `SELECT MIN(at) AS at FROM (SELECT next_try_at AS at FROM alerts
          UNION ALL SELECT COALESCE(cleared_at + ?, said_at + ?) FROM causes
          UNION ALL SELECT paged_at + ? FROM causes WHERE ${IS_UNTOLD})`,
        SETTLE_MS,
        FORGET_MS,
        REMIND_MS,
      )
      .one().at;
    if (next !== null) await this.ctx.storage.setAlarm(Math.max(next, now));
  }

  /**
   * Sends one alert, signed as in standardwebhooks.com: headers webhook-id, webhook-timestamp, webhook-signature. False on
   * failure.
   */
  async #send({ id, what, line }: Alert, now: number): Promise<boolean> {
    const { ALERT_WEBHOOK_URL: url, ALERT_WEBHOOK_SECRET: secret } = this.env;
    if (url === undefined || secret === undefined) return false;
    const body = JSON.stringify({ type: what, data: JSON.parse(line) as unknown });
    const at = new Date(now);
    try {
      const headers = {
        "content-type": "application/json",
        "webhook-id": id,
        "webhook-timestamp": String(Math.floor(now / 1_000)),
        "webhook-signature": new Webhook(secret).sign(id, at, body),
      };
      const answer = await fetch(url, {
        method: "POST",
        headers,
        body,
        signal: AbortSignal.timeout(WEBHOOK_TIMEOUT_MS),
      });
      await answer.body?.cancel();
      return answer.ok;
    } catch {
      return false;
    }
  }
}

/** Replaces each line that is too long for a row by a `line_cut` line with its length and beginning. */
function cutLongLines(bytes: Buffer, now: number): Buffer {
  if (bytes.length <= MAX_CHUNK_BYTES) return bytes;
  const parts: Buffer[] = [];
  for (let at = 0; at < bytes.length; ) {
    const feed = bytes.indexOf(LINE_FEED, at);
    const end = feed === -1 ? bytes.length : feed + 1;
    const line = bytes.subarray(at, end);
    if (line.length <= MAX_CHUNK_BYTES) parts.push(line);
    else {
      const begin = line.subarray(0, EXCERPT_BYTES).toString();
      const cut = { time: new Date(now).toISOString(), level: "warn", event: "line_cut", bytes: line.length, begin };
      parts.push(Buffer.from(`${JSON.stringify(cut)}\n`));
    }
    at = end;
  }
  return Buffer.concat(parts);
}
