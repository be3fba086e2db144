// Why a call failed, in a few words for a table. What a service said itself is quoted; where it carries a secret, the table
// leaves that out.
import { BaseError, HttpRequestError, RpcRequestError, TimeoutError } from "viem";
import { AppError } from "../../errors.ts";
import { VendorError } from "../../provisioner/vendors/vendor.ts";

const QUOTE_CHARS = 160;
const NO_JSON = "it answers what is no JSON";

export function reasonOf(error: unknown): string {
  if (error instanceof BaseError) {
    if (error.walk((one) => one instanceof TimeoutError) !== null) return "no answer in time";
    const told = error.walk((one) => one instanceof RpcRequestError);
    if (told instanceof RpcRequestError) return `it answers error ${told.code}: ${quote(told.details)}`;
    const page = error.walk((one) => one instanceof HttpRequestError);
    if (page instanceof HttpRequestError && page.status !== undefined) return `it answers HTTP ${page.status}`;
    if (error.walk((one) => one instanceof SyntaxError) !== null) return NO_JSON;
    return codeOf(error) ?? quote(error.shortMessage);
  }
  if (error instanceof VendorError) return [quote(error.message), codeOf(error.cause)].filter(Boolean).join("; ");
  if (error instanceof AppError) return quote(error.message);
  if (error instanceof SyntaxError) return NO_JSON;
  if (error instanceof Error && /Timeout|Abort/.test(error.name)) return "no answer in time";
  return codeOf(error) ?? (error instanceof Error ? `${error.name}: ${quote(error.message)}` : "it failed");
}

const WORDS: Readonly<Record<string, string>> = {
  ECONNREFUSED: "nobody listens there",
  ENOTFOUND: "its name is not known",
  EAI_AGAIN: "its name can't be looked up",
  ECONNRESET: "the connection broke",
  ETIMEDOUT: "no answer in time",
  UND_ERR_CONNECT_TIMEOUT: "no answer in time",
};

/** The system's code of an error or of what caused it. */
function codeOf(error: unknown): string | undefined {
  for (let one = error; one instanceof Error; one = one.cause) {
    const { code } = one as { code?: unknown };
    if (typeof code === "string") return WORDS[code] ?? code;
  }
  return undefined;
}

/** The last word is left out where it would be cut: half of a secret is not known for one (see `hideSecrets`). */
export function quote(text: string): string {
  const line = text.replaceAll(/\s+/g, " ").trim();
  return line.length > QUOTE_CHARS ? `${line.slice(0, QUOTE_CHARS + 1).replace(/\S+$/, "")}…` : line;
}
