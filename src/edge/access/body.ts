// What a request's body may be, for the routes that take one: at most 16 KiB, and JSON. Goes behind the limiter.
import type { MiddlewareHandler } from "hono";
import { bodyLimit } from "hono/body-limit";
import { AppError } from "../../errors.ts";
import type { App } from "../http.ts";
import { requireShort } from "./headers.ts";

const MAX_BODY_BYTES = 16 * 1_024;
const MAX_TYPE_CHARS = 256;
const JSON_TYPE = /^application\/(?:[\w.+-]+\+)?json\s*(?:;|$)/i;

const limitBody: MiddlewareHandler<App> = bodyLimit({
  maxSize: MAX_BODY_BYTES,
  onError: () => {
    throw new AppError("body_too_large", `A request body may have at most ${MAX_BODY_BYTES} bytes.`);
  },
});

/** At most 16 KiB, and whole: a body without a length is read here, and one that breaks off is the client's error. */
export const limitedBody: MiddlewareHandler<App> = async (c, next) => {
  try {
    return await limitBody(c, next);
  } catch (cause) {
    if (cause instanceof AppError) throw cause;
    throw new AppError("invalid_request", "The request body could not be read to its end.", { cause });
  }
};

/** No body, an empty one, or JSON by its content type. */
export const jsonBody: MiddlewareHandler<App> = async (c, next) => {
  const type = c.req.header("content-type");
  requireShort("Content-Type", type, MAX_TYPE_CHARS);
  const hasBody = c.req.raw.body !== null && c.req.header("content-length") !== "0";
  if (hasBody && !JSON_TYPE.test(type ?? "")) {
    throw new AppError("unsupported_media_type", "Send the body as application/json.");
  }
  await next();
};
