// One HTTP call to a vendor: timeout, size cap, a text for operators with the secrets taken out.
import type { z } from "zod";
import { log } from "../../log.ts";
import type { VendorName } from "../../model/stock.ts";
import { inTurn } from "../../outbound.ts";
import { parseJson } from "../../parse-json.ts";
import { VendorError } from "./vendor.ts";

const MAX_ANSWER_BYTES = 8_000_000;
const DETAIL_CHARS = 500;
/** Whoever says longer is asked again all the same: a wrong date must not close a vendor for good. */
const MAX_RETRY_AFTER_SECONDS = 3_600;
export const USER_AGENT = "clawcloud-provisioner/1.3";

export type VendorAccess = { vendor: VendorName; baseUrl: string; apiKey: string; timeoutMs: number };
export type VendorAnswer = { status: number; body: unknown; headers: Headers; detail: string };

/**
 * Sends one request and returns whatever came back, whatever its status. Throws `VendorError` `unknown` when no answer
 * arrived in time or it can't be read: the caller decides what that means for its verb. Nothing is repeated here.
 */
export async function callVendor(
  access: VendorAccess,
  method: "GET" | "POST" | "PATCH" | "DELETE",
  path: string,
  body?: object,
): Promise<VendorAnswer> {
  return inTurn(() => send(access, method, path, body));
}

async function send(
  access: VendorAccess,
  method: Parameters<typeof callVendor>[1],
  path: string,
  body?: object,
): Promise<VendorAnswer> {
  const { vendor, baseUrl, apiKey, timeoutMs } = access;
  const limit = new AbortController();
  // A timer that outlives its answer would keep the vendors' gate, an object, in memory.
  const timer = setTimeout(() => limit.abort(new DOMException("no answer in time", "TimeoutError")), timeoutMs);
  try {
    const response = await fetch(`${baseUrl}${path}`, {
      method,
      headers: {
        authorization: `Bearer ${apiKey}`,
        accept: "application/json",
        "user-agent": USER_AGENT,
        ...(body === undefined ? {} : { "content-type": "application/json" }),
      },
      ...(body === undefined ? {} : { body: JSON.stringify(body) }),
      // A redirect would send the order, and the key, to an address that nobody configured.
      redirect: "manual",
      signal: limit.signal,
    });
    const text = await response.text();
    if (text.length > MAX_ANSWER_BYTES) throw new Error("the answer is too large");
    return {
      status: response.status,
      headers: response.headers,
      body: parseJson(text),
      // Only refusals are quoted: a successful answer carries passwords and keys.
      detail: response.ok ? `${method} ${response.status}` : `${method} ${response.status} ${quote(text, apiKey)}`,
    };
  } catch (cause) {
    const reason = cause instanceof Error && cause.name === "TimeoutError" ? "no answer in time" : "no readable answer";
    throw new VendorError(vendor, "unknown", `${method} ${path.split("?")[0]}: ${reason}`, { cause });
  } finally {
    clearTimeout(timer);
  }
}

/** Seconds to wait by `Retry-After`, which is seconds or a date (RFC 9110), an hour at most; undefined where it is neither. */
export function retryAfter(headers: Headers): number | undefined {
  const value = headers.get("retry-after")?.trim() ?? "";
  if (/^\d+(\.\d+)?$/.test(value)) return boundWait(Number(value));
  // Anything else may look like a date to the parser: a bare number is a year.
  const until = /\d\d:\d\d:\d\d/.test(value) ? Date.parse(value) : Number.NaN;
  if (Number.isNaN(until)) return undefined;
  // By the vendor's own clock where it tells the time.
  const now = Date.parse(headers.get("date") ?? "");
  return boundWait((until - (Number.isNaN(now) ? Date.now() : now)) / 1_000);
}

export const boundWait = (seconds: number): number =>
  Math.ceil(Math.min(MAX_RETRY_AFTER_SECONDS, Math.max(0, seconds)));

/** Official clients take every 2xx to a change as success, whatever its body: so do we. */
export const isSuccess = ({ status }: VendorAnswer): boolean => status >= 200 && status < 300;

/** The answer in the documented shape; throws `VendorError` `unknown`. */
export function parseAnswer<T>(vendor: VendorName, answer: VendorAnswer, schema: z.ZodType<T>): T {
  const result = schema.safeParse(answer.body);
  if (result.success) return result.data;
  throw new VendorError(vendor, "unknown", `${answer.detail}: the answer has another shape than documented`);
}

/** The rows of a list that can be read: an odd one, of whomever, must not hide the others. It is logged, and left out. */
export function readRows<T>(vendor: VendorName, rows: readonly unknown[], schema: z.ZodType<T>): T[] {
  const read = rows.map((row) => schema.safeParse(row));
  const odd = read.find((result) => !result.success);
  if (odd !== undefined) {
    const count = read.filter((result) => !result.success).length;
    const fields = odd.error?.issues.map((issue) => issue.path.join("."));
    log("warn", "vendor_rows_left_out", { vendor, count, of: rows.length, fields });
  }
  return read.flatMap((result) => (result.success ? [result.data] : []));
}

/**
 * The machines of a list. A row of ours without an id would be missed: then the list is not complete (hard case 51).
 * `name` is the field that bears our label.
 */
export function readMachines<T>(
  vendor: VendorName,
  rows: readonly unknown[],
  schema: z.ZodType<T>,
  name: "label" | "name",
  { DEPLOYMENT_ID }: { DEPLOYMENT_ID: string },
): T[] {
  const isOurs = (row: unknown) =>
    String((row as Record<string, unknown> | null)?.[name]).startsWith(`clawcloud-${DEPLOYMENT_ID}-`);
  if (rows.some((row) => isOurs(row) && !schema.safeParse(row).success)) {
    throw new VendorError(vendor, "wait", "a list names a machine of ours that can't be read");
  }
  return readRows(vendor, rows, schema);
}

/** Of a vendor's date: see `Machine.createdAt`. */
export function timeOf(date: string | null | undefined): number {
  const at = Date.parse(date ?? "");
  return Number.isNaN(at) ? Number.POSITIVE_INFINITY : at;
}

/** What a vendor says, without keys and passwords. */
export function quote(text: string, apiKey: string): string {
  return (
    text
      .replaceAll(apiKey, "[key]")
      // A body quoted inside a message is escaped.
      .replaceAll('\\"', '"')
      .replace(/[A-Za-z0-9+/=_-]{40,}/g, "[long value]")
      .replace(/-----BEGIN[^-]*PRIVATE KEY-----[\s\S]*?(-----END[^-]*-----|$)/g, "[private key]")
      .replace(/("?(?:default_password|password|user_data|env)"?\s*[:=]\s*)("[^"]*"|\{[^}]*\}|\S+)/gi, "$1[removed]")
      .slice(0, DETAIL_CHARS)
  );
}
