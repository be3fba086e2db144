// How much one client may write into the audit: what an isolate writes of a client and an event within a minute. Further lines
// are counted, and the counts told of, so that nobody washes away what others did (hard case 44). An IPv6 client has as many
// names as its /48 has blocks: those share an allowance of their own.

import { blockOf } from "./model/client-name.ts";
import { Tally } from "./tally.ts";

const MINUTE_MS = 60_000;
const MAX_LINES_PER_MINUTE = 10;
const MAX_LINES_OF_BLOCK = 30;
/** Of an event that names nobody, as what nodes say: requests may cause it, while one of them lies. */
const MAX_LINES_OF_NOBODY = 60;
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

/** What was counted since: once a minute the ten most frequent by event and client, and the rest as a sum. */
export const takeCounted = (now: number): Record<string, unknown>[] =>
  counted.take(now).map((one) => {
    if (!("name" in one)) return { clients: one.names, count: one.count };
    const [of, address] = one.name.split(" ");
    return { of, address, count: one.count };
  });
