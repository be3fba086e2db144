// One JSON line per event: to the console (`wrangler tail`) and to the log book, in batches, a second after the first of
// them; what wants attention (warnings, errors, audit, pages) goes to the console at once. Errors of other people's code are
// logged by an allow-list of fields: their messages may carry RPC keys, signed transactions or whole requests.
import { AsyncLocalStorage } from "node:async_hooks";
import type { LogBatch, LogBook } from "../durable-objects/log-book.ts";
import { isWritten, takeCounted } from "./audit.ts";
import { AppError, GiveUp, isDatabaseRefusal } from "./errors.ts";
import { redactFields } from "./redact.ts";

/**
 * `security`: for the audit. `page`: a person should look now. A page is about our own state, never about what a request
 * asks for (hard case 40). Its cause is the event and the field `about`, one of few (a vendor, a tier, a node): it is
 * told once, and again each hour while it is said again. Where what it tells of can end, `allClear` is said on each good look.
 */
export type Level = "debug" | "info" | "warn" | "error" | "security" | "page";
export const LOG_LEVELS = ["debug", "info", "warn", "error"] as const;

const RANK: Record<Level, number> = { debug: 0, info: 1, warn: 2, error: 3, security: 4, page: 4 };
const SHIP_AFTER_MS = 1_000;
/** A request that had taken the lines on itself and died: the next one does it. */
const SHIP_LOST_MS = 15_000;
/** While the book can't be reached. What is dropped is still in the console. */
const MAX_PENDING_CHARS = 2_000_000;
/** The console cuts what is longer than 256 KB. */
const MAX_UNPRINTED_CHARS = 50_000;

type Scope = { shared: Record<string, unknown>; noted: Record<string, unknown> };

// State of the isolate: one environment, one threshold, one batch under way.
const scopes = new AsyncLocalStorage<Scope>();
let threshold = RANK.info;
let pending: LogBatch = emptyBatch();
/** Lines of the batch that the console has not had yet. A call for each would cost as much as a small request. */
let unprinted = "";
let shippingSince = 0;

/** Below it nothing is written; audit and pages always are. */
export function setLogLevel(level: (typeof LOG_LEVELS)[number]): void {
  threshold = RANK[level];
}

/** Writes one event. */
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
  // A page is never dropped: there are as many as causes.
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

/** Of a fault in background work: it is tried again, and a person is called where that mends nothing. */
export const levelOfFault = (error: unknown): "page" | "error" => (isDatabaseRefusal(error) ? "page" : "error");

/** What a page of that cause tells of is over; where there was none, nothing follows. */
export const allClear = (event: string, about?: Cause): void => void pending.cleared.add(causeOf(event, about));

type Cause = string | number;
const causeOf = (event: string, about: unknown): string => (about === undefined ? event : `${event} ${about as Cause}`);

function print(): void {
  if (unprinted !== "") console.log(unprinted);
  unprinted = "";
}

/** Runs work whose lines all carry `shared`: a request's id, a job's. */
export const withLogScope = <T>(shared: Record<string, unknown>, work: () => T): T =>
  scopes.run({ shared, noted: {} }, work);

/** Adds to the one wide event that ends the scope. */
export function note(fields: Record<string, unknown>): void {
  Object.assign(scopes.getStore()?.noted ?? {}, fields);
}

/** What was noted in this scope. */
export const noted = (): Record<string, unknown> => scopes.getStore()?.noted ?? {};

/**
 * Sends what is waiting to the book, a second from now and behind the response; one such batch at a time. `last` may add
 * lines to it.
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

/** Sends what is waiting now. Never rejects: a book that can't be reached must not fail what it tells of. */
export async function sendLogs(book: DurableObjectNamespace<LogBook>): Promise<void> {
  for (const counted of takeCounted(Date.now())) write("security", "lines_counted", counted);
  print();
  shippingSince = 0;
  // An all-clear writes no line: at LOG_LEVEL warn there may be none beside it.
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

/** For the next batch: all of it while there is room, pages before anything else. */
function keep(batch: LogBatch): void {
  for (const cause of batch.cleared) if (!(cause in pending.pages)) pending.cleared.add(cause);
  pending.pages = { ...pending.pages, ...batch.pages };
  if (pending.combined.length + batch.combined.length > MAX_PENDING_CHARS) return;
  for (const stream of ["combined", "error", "security"] as const) pending[stream] = batch[stream] + pending[stream];
}

function emptyBatch(): LogBatch {
  return { combined: "", error: "", security: "", pages: {}, cleared: new Set() };
}

/** What may be told of an error: everything of our own; name, numbers and place of any other; causes included. */
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

// D1 names the failing constraint or table, never a bound value.
const isDatabaseError = (error: Error): boolean => error.message.startsWith("D1_ERROR");
