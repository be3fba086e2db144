// `Prefer: wait=N` (RFC 7240): how long a client wants its answer to be held until there is something to tell.
import { requireShort } from "./headers.ts";

const MAX_WAIT_SECONDS = 60;
const MAX_HEADER_CHARS = 1_024;

/**
 * Seconds; null where none are asked for. As the RFC has it, the first of several counts, and what can't be understood is
 * as if it were not there. Throws 400 for a header that is too long.
 */
export function preferredWait(headers: Headers): number | null {
  const header = headers.get("prefer");
  requireShort("Prefer", header, MAX_HEADER_CHARS);
  const wait = (header ?? "").split(",").find((preference) => /^\s*wait\s*(?:[=;]|$)/i.test(preference));
  const seconds = /^\s*wait\s*=\s*"?(\d{1,9})"?\s*(?:;|$)/i.exec(wait ?? "")?.[1];
  return seconds === undefined ? null : Math.min(Number(seconds), MAX_WAIT_SECONDS);
}
