// Logging: one JSON line per event, to the console (`wrangler tail`) and to the log book. Lines are sent to the book in
// batches, a second after a batch's first line; warnings, errors, audit lines and pages are printed to the console at once.
// Errors of third-party code are logged by an allow-list of fields: their messages may carry RPC keys, signed transactions or
// whole requests.
import { AsyncLocalStorage } from "node:async_hooks";
import type { LogBatch, LogBook } from "../durable-objects/log-book.ts";
import { isWritten, takeCounted } from "./audit.ts";
import { AppError, GiveUp, isDatabaseRefusal } from "./errors.ts";
import { redactFields } from "./redact.ts";

/**
 * `security`: a line of the audit. `page`: an operator should look now. A page is about our own state, never about a request's
 * content (hard case 40). A page's cause is its event and the field `about`, one of a few values (a vendor, a tier, a node). A
 * cause alerts once, and again each hour while it is logged. Where a cause can end, each check without a fault calls
 * `allClear`.
 */
export type Level = "debug" | "info" | "warn" | "error" | "security" | "page";
export const LOG_LEVELS = ["debug", "info", "warn", "error"] as const;

const RANK: Record<Level, number> = { debug: 0, info: 1, warn: 2, error: 3, security: 4, page: 4 };
const SHIP_AFTER_MS = 1_000;
/** After this time the request that was to send the lines is taken for dead, and the next one sends them. */
const SHIP_LOST_MS = 15_000;
/** The most characters kept while the book can't be reached. Dropped lines are still in the console. */
const MAX_PENDING_CHARS = 2_000_000;
/** The console truncates output beyond 256 KB. */
const MAX_UNPRINTED_CHARS = 50_000;

type Scope = { shared: Record<string, unknown>; noted: Record<string, unknown> };

// State of the isolate: one environment, one threshold, one batch under way.
const scopes = new AsyncLocalStorage<Scope>();
let threshold = RANK.info;
let pending: LogBatch = emptyBatch();
/** Lines that are not printed yet. A console call per line would cost as much as a small request. */
let unprinted = "";
let shippingSince = 0;

/** Sets the level below which nothing is written. Audit lines and pages are always written. */
export function setLogLevel(level: (typeof LOG_LEVELS)[number]): void {
  threshold = RANK[level];
}

/** Writes one event. Fields are redacted (see redact.ts). */
export function log(level: Level, event: string, fields: Record<string, unknown> = {}): void {
  if (RANK[level] < threshold) return;
  if (level === "security" && !isWritten(event, fields["address"], Date.now())) return;
  write(level, event, fields);
}

function write(level: Level, event: string, fields: Record<string, unknown>): void {
  const shared = scopes.getStore()?.shared;
  const safe = redactFields(shared === undefined ? fields : { ...shared, ...fields });
  const line = JSON.stringify({ time: new Date().toISOString(), level, event, ...safe });
  if (level === "error" || level === "page") console.error(line);
  else if (level === "warn" || level === "security") console.warn(line);
  else unprinted += unprinted === "" ? line : `\n${line}`;
  if (unprinted.length >= MAX_UNPRINTED_CHARS) print();
  // Pages are never dropped: a batch has one per cause.
  if (level === "page") {
    const cause = causeOf(event, fields["about"]);
    pending.pages[cause] ??= line;
    pending.cleared.delete(cause);
  }
  if (pending.combined.length >= MAX_PENDING_CHARS) return;
  pending.combined += `${line}\n`;
  if (level === "error" || level === "page") pending.error += `${line}\n`;
  if (level === "security") pending.security += `${line}\n`;
}

/** The level of a fault in background work: a refusal by D1 pages, since the queue's retries do not mend it. */
export const levelOfFault = (error: unknown): "page" | "error" => (isDatabaseRefusal(error) ? "page" : "error");

/** Ends a cause of pages. Without a page of that cause this does nothing. */
export const allClear = (event: string, about?: Cause): void => void pending.cleared.add(causeOf(event, about));

type Cause = string | number;
const causeOf = (event: string, about: unknown): string => (about === undefined ? event : `${event} ${about as Cause}`);

function print(): void {
  if (unprinted !== "") console.log(unprinted);
  unprinted = "";
}

/** Runs work whose log lines all carry the fields `shared`, like the id of a request or a job. */
export const withLogScope = <T>(shared: Record<string, unknown>, work: () => T): T =>
  scopes.run({ shared, noted: {} }, work);

/** Adds fields to the summary event of the current scope. */
export function note(fields: Record<string, unknown>): void {
  Object.assign(scopes.getStore()?.noted ?? {}, fields);
}

/** The fields that `note` has added in the current scope. */
export const noted = (): Record<string, unknown> => scopes.getStore()?.noted ?? {};

/**
 * Sends the pending lines to the book a second from now, after the response, one batch at a time. `last` runs before and may
 * add lines.
 */
export function shipLogs(
  book: DurableObjectNamespace<LogBook>,
  waitUntil: (work: Promise<unknown>) => void,
  last: () => void = () => {},
): void {
  const now = Date.now();
  if (now - shippingSince < SHIP_LOST_MS) return;
  shippingSince = now;
  const rest = new Promise((resolve) => setTimeout(resolve, SHIP_AFTER_MS));
  waitUntil(
    rest.then(() => {
      last();
      return sendLogs(book);
    }),
  );
}

/** Sends the pending lines to the book now. Never rejects: an unreachable book must not fail the logged work. */
export async function sendLogs(book: DurableObjectNamespace<LogBook>): Promise<void> {
  for (const counted of takeCounted(Date.now())) write("security", "lines_counted", counted);
  print();
  shippingSince = 0;
  // An all-clear writes no line, so a batch may have no line and still be sent.
  if (pending.combined === "" && pending.cleared.size === 0) return;
  const batch = pending;
  pending = emptyBatch();
  try {
    await book.get(book.idFromName("book")).append(batch);
  } catch (error) {
    keep(batch);
    const { error: name } = errorFields(error);
    console.error(
      JSON.stringify({ time: new Date().toISOString(), level: "error", event: "logs_not_kept", error: name }),
    );
  }
}

/** Puts an unsent batch back for the next send: its pages always, its lines while there is room. */
function keep(batch: LogBatch): void {
  for (const cause of batch.cleared) if (!(cause in pending.pages)) pending.cleared.add(cause);
  pending.pages = { ...pending.pages, ...batch.pages };
  if (pending.combined.length + batch.combined.length > MAX_PENDING_CHARS) return;
  for (const stream of ["combined", "error", "security"] as const) pending[stream] = batch[stream] + pending[stream];
}

function emptyBatch(): LogBatch {
  return { combined: "", error: "", security: "", pages: {}, cleared: new Set() };
}

/**
 * The loggable fields of an error and its causes: name, code and status; the message of our own errors, the place of others.
 */
export function errorFields(error: unknown): Record<string, unknown> {
  if (!(error instanceof Error)) return { error: typeof error };
  const known = error instanceof AppError || error instanceof GiveUp || "safeToLog" in error;
  const { code, status } = error as { code?: unknown; status?: unknown };
  return {
    error: error.name,
    ...(known || isDatabaseError(error) ? { message: error.message } : {}),
    ...(known
      ? {}
      : {
          at: error.stack
            ?.split("\n")
            .find((line) => /^\s+at /.test(line))
            ?.trim(),
        }),
    ...(typeof code === "string" || typeof code === "number" ? { code } : {}),
    ...(typeof status === "number" ? { status } : {}),
    ...(error.cause === undefined ? {} : { cause: errorFields(error.cause) }),
  };
}

// D1's messages name the failed constraint or table, never a bound value.
const isDatabaseError = (error: Error): boolean => error.message.startsWith("D1_ERROR");
