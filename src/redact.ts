// What no log line may carry, taken out of every value on its way into one. Rules go by what a secret looks like, so that
// a new call site needs no care; fields whose values look alike and are public are named below.

const REDACTED = "[redacted]";
const MAX_TEXT = 600;
const MAX_ITEMS = 50;
const MAX_DEPTH = 5;

/** Public identifiers of ours that look like keys: hashes, labels, ids, and places in code. */
const PUBLIC_FIELDS = new Set([
  "txHash",
  "blockHash",
  "incarnation",
  "label",
  "order",
  "requestId",
  "ray",
  "instanceId",
  "at",
]);
/** The client's own address, and an agent's wallet: what audits are about. */
const ADDRESS_FIELDS = new Set(["address", "client"]);
const SECRET_FIELDS = /private|secret|signature|password|authorization|apikey|api_key|cookie|seed|mnemonic/i;

const RULES: readonly [RegExp, string][] = [
  [/-----BEGIN [\s\S]*?(?:-----END [A-Z0-9 ]+-----|$)/g, REDACTED],
  // Beyond the host an address of ours may carry a provider's key.
  [/\b(https?:\/\/)(?:[^\s/@"']*@)?([^\s/?#"'@]+)[^\s"']*/g, "$1$2/…"],
  [/\bBearer\s+[^\s"']+/gi, `Bearer ${REDACTED}`],
  [/\becc:[0-9a-f:]+/gi, REDACTED],
  [/\b(?:claw|rpa|whsec|sk|ghp)_[\w+/=-]{8,}/g, REDACTED],
  // 32 bytes of hex and more: keys, signatures, signed transactions.
  [/(?:0x)?[0-9a-f]{64,}/gi, REDACTED],
  // As much in base64. A wallet's address, 42 characters, is public.
  [/[A-Za-z0-9+/_-]{43,}={0,2}/g, REDACTED],
  // A vendor's key.
  [/\b[A-Z0-9]{32,}\b/g, REDACTED],
];
// RFC 1918, RFC 6598, loopback, link-local; RFC 4193.
const PRIVATE_ADDRESS =
  /\b(?:10|127)(?:\.\d{1,3}){3}\b|\b192\.168(?:\.\d{1,3}){2}\b|\b169\.254(?:\.\d{1,3}){2}\b|\b172\.(?:1[6-9]|2\d|3[01])(?:\.\d{1,3}){2}\b|\b100\.(?:6[4-9]|[7-9]\d|1[01]\d|12[0-7])(?:\.\d{1,3}){2}\b|\b(?:f[cd][0-9a-f]{2}|fe80):[0-9a-f:]+/gi;
/** What every rule for something short needs one of; the others begin at 32 characters. */
const SUSPECT = /[:_]|\d\.\d|bearer/i;
const SHORTEST_RUN = 32;

/** A copy of a line's fields without anything that looks like a secret. */
export function redactFields(fields: Record<string, unknown>, depth = 0): Record<string, unknown> {
  const safe: Record<string, unknown> = {};
  for (const key of Object.keys(fields)) {
    const value = fields[key];
    if (value === undefined) continue;
    if (typeof value === "number" || typeof value === "boolean" || value === null) safe[key] = value;
    else if (SECRET_FIELDS.test(key)) safe[key] = REDACTED;
    else safe[key] = redact(value, key, depth);
  }
  return safe;
}

function redact(value: unknown, key: string, depth: number): unknown {
  if (typeof value === "string") return PUBLIC_FIELDS.has(key) ? value.slice(0, MAX_TEXT) : redactText(value, key);
  if (typeof value === "bigint") return value.toString();
  if (typeof value !== "object" || value === null) return value;
  if (depth >= MAX_DEPTH) return "…";
  if (Array.isArray(value)) return value.slice(0, MAX_ITEMS).map((item) => redact(item, key, depth + 1));
  return redactFields(value as Record<string, unknown>, depth + 1);
}

/** Text without secrets, at most 600 characters. */
export function redactText(text: string, key = ""): string {
  if (text.length < SHORTEST_RUN && !SUSPECT.test(text)) return text;
  let safe = text;
  for (const [pattern, replacement] of RULES) safe = safe.replace(pattern, replacement);
  if (!ADDRESS_FIELDS.has(key)) safe = safe.replace(PRIVATE_ADDRESS, "[private address]");
  return safe.length > MAX_TEXT ? `${safe.slice(0, MAX_TEXT)}…` : safe;
}
