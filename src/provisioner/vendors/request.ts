// One HTTP call to a vendor: timeout, size cap, a text for operators with the secrets taken out.
import { inTurn } from "../../outbound.ts";
import { VendorError, type VendorName } from "./vendor.ts";

const MAX_ANSWER_BYTES = 8_000_000;
const DETAIL_CHARS = 500;
const USER_AGENT = "clawcloud-provisioner/1.3";

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

/** Seconds to wait by `Retry-After` (whole seconds), or undefined. */
export function retryAfter(headers: Headers): number | undefined {
  const seconds = Number(headers.get("retry-after") ?? Number.NaN);
  return Number.isInteger(seconds) && seconds >= 0 ? seconds : undefined;
}

function quote(text: string, apiKey: string): string {
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

function parseJson(text: string): unknown {
  if (text === "") return null;
  try {
    return JSON.parse(text);
  } catch {
    return null;
  }
}
