// Attacks in the parts of a request that no schema has accepted: the URL before it is matched, and headers and body once
// they were refused. What validates is never looked at, so no legitimate call is flagged for what it says. Nothing here is
// what keeps us safe (every statement is prepared, every input has a schema): it is for the audit and for bans.
//
// No maintained detector runs in workerd (libinjection's ports are native). The rules follow OWASP's Core Rule Set 4, files
// REQUEST-942-APPLICATION-ATTACK-SQLI and REQUEST-941-APPLICATION-ATTACK-XSS; each names the rule that it is cut from.
import type { Context } from "hono";
import { AppError } from "../../errors.ts";
import { log } from "../../log.ts";
import { redactText } from "../../redact.ts";
import type { App } from "../http.ts";
import { violate } from "./guard.ts";
import { pathOf } from "./place.ts";

type Rule = { id: string; pattern: RegExp };

const RULES: readonly Rule[] = [
  // ' OR 1=1, " and x like y
  {
    id: "942180",
    pattern: /['"`)]\s*(?:\b(?:or|and|xor)\b|\|\||&&)[\s\S]{0,60}?(?:=|<|>|\blike\b|\bin\b|\bis\b|\bbetween\b)/i,
  },
  {
    id: "942130",
    pattern:
      /\b(?:or|and|xor|having|where|when)\b\s*(?:not\s+)?\(?\s*['"]?(\w{1,64})['"]?\s*(?:=|<>|<|>|like)\s*\(?['"]?\w/i,
  },
  { id: "942270", pattern: /\bunion\b[\s\S]{0,60}?\bselect\b/i },
  {
    id: "942190",
    pattern: /(?:[(;'"`]\s*select\b[\s\S]{1,120}?|\bselect\b[\w ]{0,100}[*(,'"@][\s\S]{0,120}?)\bfrom\b/i,
  },
  {
    id: "942350",
    pattern:
      /;\s*(?:select|insert|update|delete|drop|alter|create|exec|execute|truncate|declare|shutdown|attach|pragma)\b/i,
  },
  {
    id: "942360",
    pattern:
      /\b(?:insert\s+into|delete\s+from|drop\s+(?:table|database|view)|alter\s+table|truncate\s+table|update\s+\w+\s+set)\b/i,
  },
  {
    id: "942160",
    pattern:
      /\b(?:sleep|benchmark|pg_sleep|randomblob|load_file|extractvalue|updatexml|xp_cmdshell|generate_series|dbms_\w+\.\w+|utl_\w+\.\w+)\s*\(|\bwaitfor\s+delay\b/i,
  },
  {
    id: "942140",
    pattern:
      /\b(?:information_schema|sqlite_master|sqlite_schema|pg_catalog|pg_shadow|sysobjects|mysql\.user|all_tables|rdb\$\w+)\b/i,
  },
  {
    id: "942200",
    pattern:
      /\b(?:concat|char|chr|cast|convert|ascii|substr(?:ing)?|elt|iif|make_set|ctxsys\.\w+|hex|unhex|xmltype|upper|length)\s*\(\s*[\s\S]{0,80}?[),]/i,
  },
  {
    id: "942230",
    pattern:
      /\b(?:case\s+when|(?:order|group)\s+by\s+[\w(]|procedure\s+analyse|rlike\s*\(|into\s+(?:outfile|dumpfile))/i,
  },
  { id: "942440", pattern: /['"`]\s*(?:--|#|\/\*|;)|\)\s*(?:--|#)|\/\*[\s\S]{0,200}?\*\/|\/\*!/ },
  { id: "941110", pattern: /<\s*\/?\s*script\b/i },
  // Not base64 that happens to begin like a handler's name: its padding is the end.
  { id: "941120", pattern: /(?:^|[\s"'`/<;])on[a-z]{3,25}\s*=(?!=?$)/i },
  { id: "941170", pattern: /(?:java|vb|live)script\s*:|data\s*:\s*text\/html/i },
  {
    id: "941160",
    pattern:
      /<\s*(?:iframe|object|embed|applet|svg|math|img|image|body|style|link|meta|form|base|video|audio|details|marquee|input|button|isindex|xml|layer|template)\b/i,
  },
  {
    id: "941180",
    pattern: /document\s*\.\s*(?:cookie|write|location|domain)|\beval\s*\(|\balert\s*\(|srcdoc\s*=|expression\s*\(/i,
  },
];

/** Nothing of the above can be written with these alone. */
const HARMLESS = /^[\w\-./~?=&,]*$/;
/** What names another Worker is taken as it is, `union-select.example` too: nothing can be written with its letters. */
const WORKER_NAME = /\bworker(?::|%3a)[a-z0-9.-]+/gi;
const MAX_URL_CHARS = 2_048;
/** Headers that we read. How long each may be is said where it is read. */
const READ_HEADERS = ["authorization", "x-access-message", "x-api-key", "content-type"] as const;
const MAX_SCREENED_CHARS = 16_384;
const EXCERPT_CHARS = 60;
/** What is looked at for secrets around an excerpt: more than any that has no end of its own. */
const MARGIN_CHARS = 500;

/** The rule that a text breaks, and what stands around the place, or null. */
export function findAttack(input: string): { rule: string; excerpt: string } | null {
  // No rule is about how much space there is, and long runs of it would cost the rules their time.
  const text = input.slice(0, MAX_SCREENED_CHARS).replace(/\s+/g, " ");
  for (const { id, pattern } of RULES) {
    const match = pattern.exec(text);
    if (match === null) continue;
    // Secrets go before anything is cut: half of one would no longer look like one.
    const before = redactText(text.slice(0, match.index).slice(-MARGIN_CHARS)).slice(-EXCERPT_CHARS);
    const after = redactText(text.slice(match.index + match[0].length).slice(0, MARGIN_CHARS)).slice(0, EXCERPT_CHARS);
    return { rule: id, excerpt: before + redactText(match[0]) + after };
  }
  return null;
}

/** Refuses a URL that is too long, and an attack in it (400). */
export async function screenUrl(c: Context<App>): Promise<void> {
  const { url } = c.req.raw;
  const start = url.indexOf("/", url.indexOf("//") + 2);
  const target = start === -1 ? "/" : url.slice(start);
  if (target.length > MAX_URL_CHARS) {
    throw new AppError("uri_too_long", `Path and query may have at most ${MAX_URL_CHARS} characters.`);
  }
  await refuseAttack(c, "url", textsOfUrl(target));
}

/** What is looked at of a path and query: as it came, and decoded. Nothing where neither can be an attack. */
export function textsOfUrl(target: string): string[] {
  const rest = target.replace(WORKER_NAME, "worker");
  return HARMLESS.test(rest) ? [] : [rest, decode(rest)];
}

/** Looks at headers and body that were refused anyway, of the body at the refused `fields`. Resolves where they are no attack. */
export async function screenRefused(c: Context<App>, fields: readonly string[]): Promise<void> {
  const { headers } = c.req.raw;
  const message = headers.get("x-access-message");
  for (const name of READ_HEADERS) {
    const value = headers.get(name);
    if (value !== null) await refuseAttack(c, name, [value]);
  }
  if (message !== null) await refuseAttack(c, "x-access-message", [Buffer.from(message, "base64").toString()]);
  // Only what was read already: a body that nobody asked for stays unread.
  const body = c.req.bodyCache.text ?? c.req.bodyCache.json;
  if (body === undefined) return;
  // One that broke off was refused for that: there is nothing to look at.
  const text: unknown = await Promise.resolve(body).catch(() => undefined);
  if (text !== undefined) await refuseAttack(c, "body", refusedParts(text, fields));
}

/** What was refused of a body: the named fields, or all of it. What the schema took beside them may say what it likes. */
function refusedParts(body: unknown, fields: readonly string[]): string[] {
  if (fields.length === 0 || fields.includes("")) return [textOf(body)];
  try {
    const parsed: unknown = typeof body === "string" ? JSON.parse(body) : body;
    return fields.map((field) => textOf(valueAt(parsed, field.split("."))));
  } catch {
    return [textOf(body)];
  }
}

const textOf = (value: unknown): string => (typeof value === "string" ? value : (JSON.stringify(value) ?? ""));

const valueAt = (value: unknown, [key, ...rest]: readonly string[]): unknown =>
  key === undefined || typeof value !== "object" || value === null
    ? value
    : valueAt((value as Record<string, unknown>)[key], rest);

async function refuseAttack(c: Context<App>, where: string, texts: readonly string[]): Promise<void> {
  const attack = texts.map(findAttack).find((found) => found !== null);
  if (attack === undefined) return;
  log("security", "injection_attempt", {
    address: c.get("client"),
    method: c.req.method,
    route: pathOf(c, EXCERPT_CHARS),
    where,
    rule: attack.rule,
    input: attack.excerpt,
  });
  await violate(c, "injection");
  throw new AppError(
    "injection_refused",
    "The request looks like an injection attempt and was refused; repeated ones ban the address.",
  );
}

function decode(text: string): string {
  const spaced = text.replaceAll("+", " ");
  try {
    const once = decodeURIComponent(spaced);
    return once.includes("%") ? safeDecode(once) : once;
  } catch {
    return unescapeBytes(spaced);
  }
}

function safeDecode(text: string): string {
  try {
    return decodeURIComponent(text);
  } catch {
    return text;
  }
}

/** What is no UTF-8 is looked at byte by byte. */
const unescapeBytes = (text: string): string =>
  text.replace(/%([0-9a-f]{2})/gi, (_, hex: string) => String.fromCharCode(Number.parseInt(hex, 16)));
