// Why a call failed, in a few words for a table. What a service said itself is quoted; where it carries a secret, the table
// leaves that out.
import {
  BaseError,
  HttpRequestError,
  RpcRequestError,
  TimeoutError,
  WaitForTransactionReceiptTimeoutError,
} from "viem";
import { z } from "zod";
import { AppError } from "../../errors.ts";
import { VendorError } from "../../provisioner/vendors/vendor.ts";
import { networkReason } from "../network.ts";

const QUOTE_CHARS = 160;
const NO_JSON = "it answers what is no JSON";

/** Without a full stop: it is a part of a sentence. */
export const reasonOf = (error: unknown): string => reason(error).replace(/\.+$/, "");

function reason(error: unknown): string {
  if (error instanceof BaseError) {
    if (error.walk((one) => one instanceof TimeoutError) !== null) return "no answer in time";
    const told = error.walk((one) => one instanceof RpcRequestError);
    if (told instanceof RpcRequestError) return `it answers error ${told.code}: ${quote(told.details)}`;
    const page = error.walk((one) => one instanceof HttpRequestError);
    if (page instanceof HttpRequestError && page.status !== undefined) return `it answers HTTP ${page.status}`;
    if (error.walk((one) => one instanceof SyntaxError) !== null) return NO_JSON;
    if (error instanceof WaitForTransactionReceiptTimeoutError) return "the transaction was not mined in time";
    return networkReason(error) ?? (page === null ? quote(error.shortMessage) : "the connection failed");
  }
  if (error instanceof VendorError)
    return [quote(error.message), networkReason(error.cause)].filter(Boolean).join("; ");
  if (error instanceof AppError) return quote(error.message);
  if (error instanceof SyntaxError) return NO_JSON;
  if (error instanceof z.ZodError) return "it answers in another shape than expected";
  return networkReason(error) ?? (error instanceof Error ? `${error.name}: ${quote(error.message)}` : "it failed");
}

/** Our own errors say what to do; of others the reason alone is told. */
export function sentenceOf(error: unknown): string {
  const isOurs = error instanceof Error && Object.getPrototypeOf(error) === Error.prototype && !("code" in error);
  return isOurs ? error.message : reasonOf(error);
}

/** The last word is left out where it would be cut: half of a secret is not known for one (see `hideSecrets`). */
export function quote(text: string): string {
  const line = text.replaceAll(/\s+/g, " ").trim();
  return line.length > QUOTE_CHARS ? `${line.slice(0, QUOTE_CHARS + 1).replace(/\S+$/, "")}…` : line;
}
