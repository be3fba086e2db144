// How long the headers that we read may be.
import { AppError } from "../../errors.ts";

/** Throws 400 for a longer one: what is too long is not read, and no violation. */
export function requireShort(name: string, header: string | undefined | null, maxChars: number): void {
  if ((header?.length ?? 0) <= maxChars) return;
  throw new AppError("header_too_large", `The header ${name} may have at most ${maxChars} characters.`);
}
