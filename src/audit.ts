// Limits of the audit: the lines that an isolate writes per minute about one event of one client. Further lines are counted and
// the counts are logged, so that a client can't push the lines about others out of the log (hard case 44). An IPv6 client can
// use every /64 of its /48, so all clients of a /48 share another limit.

import { blockOf } from "./model/client-name.ts";
import { Tally } from "./tally.ts";

const MINUTE_MS = 60_000;
const MAX_LINES_PER_MINUTE = 10;
const MAX_LINES_OF_BLOCK = 30;
/** Lines of an event without a client, such as a disagreement of nodes: requests can cause it while a node lies. */
const MAX_LINES_OF_NOBODY = 60;
/** The most clients per minute; the lines of further clients are counted. */
const MAX_CLIENTS = 10_000;
/** Events without a limit: operators' calls are always written. */
const ALWAYS_WRITTEN: ReadonlySet<string> = new Set(["admin_call"]);

// State of the isolate: lines of this minute by event and client, or by event and /48.
const written = new Map<string, number>();
let minute = 0;
let counted = new Tally<string>();

/** Resets the counts, for a new application. */
export function countAnew(): void {
  written.clear();
  counted = new Tally();
}

/** Whether a line of this event may be written. A line that may not is counted. `now`: unix milliseconds. */
export function isWritten(event: string, address: unknown, now: number): boolean {
  if (ALWAYS_WRITTEN.has(event)) return true;
  const current = Math.floor(now / MINUTE_MS);
  if (current !== minute) {
    minute = current;
    written.clear();
  }
  const client = typeof address === "string" ? address : null;
  const name = client === null ? event : `${event} ${client}`;
  const block = client === null ? null : blockOf(client);
  const allowances: [string, number][] = [[name, client === null ? MAX_LINES_OF_NOBODY : MAX_LINES_PER_MINUTE]];
  if (block !== null) allowances.push([`${event} ${block}`, MAX_LINES_OF_BLOCK]);
  const hasRoom = ([key, most]: [string, number]) => {
    const lines = written.get(key) ?? 0;
    return lines < most && (lines > 0 || client === null || written.size < MAX_CLIENTS);
  };
  if (!allowances.every(hasRoom)) {
    counted.add(name);
    return false;
  }
  for (const [key] of allowances) written.set(key, (written.get(key) ?? 0) + 1);
  return true;
}

/** The counts, once a minute: the ten highest by event and client, and the sum of the rest. */
export const takeCounted = (now: number): Record<string, unknown>[] =>
  counted.take(now).map((one) => {
    if (!("name" in one)) return { clients: one.names, count: one.count };
    const [of, address] = one.name.split(" ");
    return { of, address, count: one.count };
  });
