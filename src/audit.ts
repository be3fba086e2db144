// How much one client may write into the audit: what an isolate writes of a client and an event within a minute. An IPv6 client
// has a /48 of names, which counts as one. Further lines are counted, and the counts told of, so that nobody washes away what
// others did (hard case 44).
import { blockOf } from "./access/client-name.ts";
import { Tally } from "./tally.ts";

const MINUTE_MS = 60_000;
const MAX_LINES_PER_MINUTE = 10;
/** Clients of one minute; what further ones cause is counted. */
const MAX_CLIENTS = 10_000;
/** What operators do is written, however much it is. */
const ALWAYS_WRITTEN: ReadonlySet<string> = new Set(["admin_call"]);

// State of the isolate, by event and address.
const written = new Map<string, number>();
let minute = 0;
let counted = new Tally<string>();

/** For an application that begins: nothing is written yet. */
export function countAnew(): void {
  written.clear();
  counted = new Tally();
}

/** Whether a line of this event is written; if not, it is counted. `now`: unix milliseconds. */
export function isWritten(event: string, address: unknown, now: number): boolean {
  if (typeof address !== "string" || ALWAYS_WRITTEN.has(event)) return true;
  const current = Math.floor(now / MINUTE_MS);
  if (current !== minute) {
    minute = current;
    written.clear();
  }
  const name = `${event} ${blockOf(address) ?? address}`;
  const lines = written.get(name) ?? 0;
  if (lines < MAX_LINES_PER_MINUTE && (lines > 0 || written.size < MAX_CLIENTS)) {
    written.set(name, lines + 1);
    return true;
  }
  counted.add(name);
  return false;
}

/** What was counted since: once a minute the ten most frequent by event and client, and the rest as a sum. */
export const takeCounted = (now: number): Record<string, unknown>[] =>
  counted.take(now).map((one) => {
    if (!("name" in one)) return { clients: one.names, count: one.count };
    const [of, address] = one.name.split(" ");
    return { of, address, count: one.count };
  });
