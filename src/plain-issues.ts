// The default messages of schemas, in place of zod's: a client or operator reads them.
import { z } from "zod";

const NOUNS: Readonly<Record<string, string>> = {
  array: "a list",
  boolean: "true or false",
  int: "a whole number",
  number: "a number",
  object: "a JSON object",
  record: "a JSON object",
  string: "text",
};
const FORMATS: Readonly<Record<string, string>> = {
  url: "an http(s) URL",
  ipv4: "an IP address",
  ipv6: "an IP address",
};

type Issue = Parameters<z.core.$ZodErrorMap>[0];

/** A predicate that follows the value's name: "must be a number". */
function sentenceOf(issue: Issue): string {
  switch (issue.code) {
    case "invalid_type":
      return issue.input === undefined ? "is missing" : `must be ${NOUNS[issue.expected] ?? issue.expected}`;
    case "invalid_value":
      return `must be ${issue.values.length === 1 ? "" : "one of "}${issue.values.join(", ")}`;
    case "unrecognized_keys":
      return `must not have the field ${issue.keys.join(", ")}`;
    case "too_small":
      return `must ${amountOf(issue.origin, "at least", issue.minimum)}`;
    case "too_big":
      return `must ${amountOf(issue.origin, "at most", issue.maximum)}`;
    case "invalid_format":
      return FORMATS[issue.format] === undefined ? "has the wrong format" : `must be ${FORMATS[issue.format]}`;
    default:
      return "is not valid";
  }
}

function amountOf(origin: string, bound: string, limit: number | bigint): string {
  if (origin === "string") return `have ${bound} ${limit} ${limit === 1 ? "character" : "characters"}`;
  if (origin === "array" || origin === "set") return `have ${bound} ${limit} ${limit === 1 ? "entry" : "entries"}`;
  return `be ${bound} ${limit}`;
}

z.config({ customError: sentenceOf });
