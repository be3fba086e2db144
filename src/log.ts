// One JSON line per event. Errors of other people's code are logged by an allow-list of fields: their messages may
// carry RPC keys, signed transactions or whole requests.
import { AppError, GiveUp } from "./errors.ts";

type Level = "debug" | "info" | "warn" | "error" | "security" | "page";

/** Writes one event. `page` means that a person should look now. */
export function log(level: Level, event: string, fields: Record<string, unknown> = {}): void {
  const line = JSON.stringify({ time: new Date().toISOString(), level, event, ...fields });
  if (level === "error" || level === "page") console.error(line);
  else if (level === "warn" || level === "security") console.warn(line);
  else console.log(line);
}

/** What may be told of an error: everything of our own; name, numbers and place of any other; causes included. */
export function errorFields(error: unknown): Record<string, unknown> {
  if (!(error instanceof Error)) return { error: typeof error };
  const known = error instanceof AppError || error instanceof GiveUp || "safeToLog" in error;
  const { code, status } = error as { code?: unknown; status?: unknown };
  return {
    error: error.name,
    ...(known || isDatabaseError(error) ? { message: error.message } : {}),
    ...(known
      ? {}
      : {
          at: error.stack
            ?.split("\n")
            .find((line) => /^\s+at /.test(line))
            ?.trim(),
        }),
    ...(typeof code === "string" || typeof code === "number" ? { code } : {}),
    ...(typeof status === "number" ? { status } : {}),
    ...(error.cause === undefined ? {} : { cause: errorFields(error.cause) }),
  };
}

// D1 names the failing constraint or table, never a bound value.
const isDatabaseError = (error: Error): boolean => error.message.startsWith("D1_ERROR");
