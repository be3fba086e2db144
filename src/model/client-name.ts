// Whom a request counts for: the name of the client's guard.

/** Requests that Workers of other people send share this address, and Cloudflare names their zone in `CF-Worker`. */
const WORKERS_ADDRESS = "2a06:98c0:3600::103";
const ZONE = /^[a-z0-9.-]{1,253}$/i;
const CROSS_SITE = "#cross-site";

/**
 * Cloudflare's header alone names the client, never one that a client can set; IPv6 counts as its /64, the smallest block
 * that is handed out. What a web page makes its visitors' browsers send counts apart, so that it bans no visitor
 * (hard case 22).
 */
export function clientName(headers: Headers): string {
  const header = headers.get("cf-connecting-ip");
  const zone = header?.toLowerCase() === WORKERS_ADDRESS ? headers.get("cf-worker") : null;
  const name = zone !== null && ZONE.test(zone) ? `worker:${zone.toLowerCase()}` : clientAddress(header);
  return headers.get("sec-fetch-site") === "cross-site" ? name + CROSS_SITE : name;
}

/** An IPv4 address as it is, an IPv6 address as its /64, `unknown` where there is none. */
export function clientAddress(address: string | null): string {
  if (address === null || address === "") return "unknown";
  // An IPv4 client behind an IPv6 socket (RFC 4291, section 2.5.5.2).
  const mapped = /^::ffff:(\d+\.\d+\.\d+\.\d+)$/i.exec(address)?.[1];
  if (mapped !== undefined) return mapped;
  return address.includes(":") ? `${groupsOf(address).slice(0, 4).join(":")}::/64` : address;
}

/** The /48 of an IPv6 client, by whose name its own begins; null for any other. */
export function blockOf(client: string): string | null {
  const groups = client.endsWith("::/64") || client.endsWith(`::/64${CROSS_SITE}`) ? client.split(":") : [];
  return groups.length < 3 ? null : `${groups.slice(0, 3).join(":")}::/48`;
}

/** Both guards of a client, for a ban that is to hold however its requests come about. */
export const guardsOf = (client: string): string[] => [client, client + CROSS_SITE];

/**
 * The guards that a ban of this one binds (hard case 44): a client's own ban holds for its cross-site requests as well, since
 * whoever is banned can send that header. What web pages made its browsers send bans such requests alone
 * (hard case 22).
 */
export const boundBy = (name: string): string[] => (name.endsWith(CROSS_SITE) ? [name] : guardsOf(name));

function groupsOf(address: string): string[] {
  const [head = "", tail] = address.toLowerCase().split("::");
  const left = head === "" ? [] : head.split(":");
  const right = tail === undefined || tail === "" ? [] : tail.split(":");
  const zeros =
    tail === undefined ? [] : Array.from({ length: Math.max(0, 8 - left.length - right.length) }, () => "0");
  return [...left, ...zeros, ...right].map((group) => Number.parseInt(group, 16).toString(16));
}
