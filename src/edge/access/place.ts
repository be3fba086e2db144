// Where a request went, as log lines name it.
import type { Context } from "hono";
import { routePath } from "hono/route";
import { redactText } from "../../redact.ts";
import type { App } from "../http.ts";

const MAX_PATH_CHARS = 100;

/** The route with its parameters; where none matches, the path. A line's `address` is the client's: a wallet is `wallet`. */
export function placeOf(c: Context<App>): Record<string, string | undefined> {
  const route = routePath(c);
  if (route.endsWith("*")) return { route, path: pathOf(c, MAX_PATH_CHARS) };
  const { address: wallet, ...params } = c.req.param() as Record<string, string>;
  return { route, wallet, ...params };
}

/** Secrets go before anything is cut: half of one would no longer look like one. */
export const pathOf = (c: Context<App>, maxChars: number): string => redactText(c.req.path).slice(0, maxChars);
