// Redaction: removes secrets from every value of a log line. The rules match the form of a secret, so that a new call site
// needs no care. Fields with public values of the same form are listed below.

const REDACTED = "[redacted]";
const MAX_TEXT = 600;
const MAX_ITEMS = 50;
const MAX_DEPTH = 5;

/** Fields with public values that look like keys: hashes, labels, ids, and places in code. */
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
/** Fields with a client's IP address or an agent's wallet: the audit needs them. */
const ADDRESS_FIELDS = new Set(["address", "client"]);
const SECRET_FIELDS = /private|secret|signature|password|authorization|apikey|api_key|cookie|seed|mnemonic/i;

const RULES: readonly [RegExp, string][] = [
  [/-----BEGIN [\s\S]*?(?:-----END [A-Z0-9 ]+-----|$)/g, REDACTED],
  // An RPC URL may carry a provider's key in its userinfo, path or query.
  [/\b(https?:\/\/)(?:[^\s/@"']*@)?([^\s/?#"'@]+)[^\s"']*/g, "$1$2/…"],
  [/\bBearer\s+[^\s"']+/gi, `Bearer ${REDACTED}`],
  [/\becc:[0-9a-f:]+/gi, REDACTED],
  [/\b(?:claw|rpa|whsec|sk|ghp)_[\w+/=-]{8,}/g, REDACTED],
  // 32 or more bytes of hex: keys, signatures, signed transactions.
  [/(?:0x)?[0-9a-f]{64,}/gi, REDACTED],
  // 32 or more bytes of base64. A wallet's address has 42 characters and is public.
  [/[A-Za-z0-9+/_-]{43,}={0,2}/g, REDACTED],
  // A vendor's key.
  [/\b[A-Z0-9]{32,}\b/g, REDACTED],
];
// RFC 1918, RFC 6598, loopback, link-local; RFC 4193.
const PRIVATE_ADDRESS =
  /\b(?:10|127)(?:\.\d{1,3}){3}\b|\b192\.168(?:\.\d{1,3}){2}\b|\b169\.254(?:\.\d{1,3}){2}\b|\b172\.(?:1[6-9]|2\d|3[01])(?:\.\d{1,3}){2}\b|\b100\.(?:6[4-9]|[7-9]\d|1[01]\d|12[0-7])(?:\.\d{1,3}){2}\b|\b(?:f[cd][0-9a-f]{2}|fe80):[0-9a-f:]+/gi;
/** Every match of a rule for short secrets contains one of these. The other rules match 32 characters or more. */
const SUSPECT = /[:_]|\d\.\d|bearer/i;
const SHORTEST_RUN = 32;

/** A copy of a log line's fields without secrets. */
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

/** The text without secrets, cut to 600 characters. */
export function redactText(text: string, key = ""): string {
  if (text.length < SHORTEST_RUN && !SUSPECT.test(text)) return text;
  let safe = text;
  for (const [pattern, replacement] of RULES) safe = safe.replace(pattern, replacement);
  if (!ADDRESS_FIELDS.has(key)) safe = safe.replace(PRIVATE_ADDRESS, "[private address]");
  return safe.length > MAX_TEXT ? `${safe.slice(0, MAX_TEXT)}…` : safe;
}
