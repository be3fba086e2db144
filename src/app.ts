// The edge's application: order of middleware, the one error body, the mounted routes.
import { OpenAPIHono } from "@hono/zod-openapi";
import { type Context, Hono } from "hono";
import { bodyLimit } from "hono/body-limit";
import { cors } from "hono/cors";
import { HTTPException } from "hono/http-exception";
import { secureHeaders } from "hono/secure-headers";
import type { ContentfulStatusCode } from "hono/utils/http-status";
import { limited } from "./access/limits.ts";
import { type Chain, connectChain } from "./chain/client.ts";
import type { EdgeConfig } from "./config.ts";
import { type Database, openDatabase } from "./db/client.ts";
import { AppError, STATUS_OF } from "./errors.ts";
import { errorFields, log } from "./log.ts";
import { mountCredentials } from "./routes/credentials.ts";
import { mountDocuments } from "./routes/documents.ts";
import { mountHealth } from "./routes/health.ts";
import { mountStatus } from "./routes/status.ts";
import { mountTiers } from "./routes/tiers.ts";
import { mountVms } from "./routes/vms.ts";

const MAX_BODY_BYTES = 16 * 1_024;
const INTERNAL_SENTENCE = "Something went wrong on our side; try again, and name the request id if it persists.";

export type App = {
  Variables: { requestId: string; config: EdgeConfig; db: Database; chain: Chain };
};
export type Router = OpenAPIHono<App>;

/** Builds the application over one parsed environment. */
export function createApp(config: EdgeConfig): Router {
  const db = openDatabase(config.DB);
  const chain = connectChain(config);
  const app: Router = new OpenAPIHono<App>({
    defaultHook: (result) => {
      if (!result.success) throw invalid(result.error.issues);
    },
  });

  app.use(async (c, next) => {
    c.set("requestId", crypto.randomUUID());
    c.set("config", config);
    c.set("db", db);
    c.set("chain", chain);
    c.header("X-Request-Id", c.get("requestId"));
    await next();
  });
  app.use(
    secureHeaders({
      contentSecurityPolicy: { defaultSrc: ["'none'"], frameAncestors: ["'none'"] },
      crossOriginResourcePolicy: "cross-origin",
      referrerPolicy: "no-referrer",
    }),
  );
  app.use(
    cors({
      origin: "*",
      allowMethods: ["GET", "HEAD", "POST", "OPTIONS"],
      allowHeaders: ["Authorization", "Content-Type", "X-Access-Message"],
      exposeHeaders: [
        "X-Request-Id",
        "X-RateLimit-Limit",
        "X-RateLimit-Remaining",
        "X-RateLimit-Reset",
        "Retry-After",
        "Age",
      ],
      maxAge: 86_400,
    }),
  );
  app.use(bodyLimit({ maxSize: MAX_BODY_BYTES, onError: () => tooLarge() }));
  app.use(requireJson);

  mountHealth(app);
  mountTiers(app);
  mountCredentials(app);
  mountVms(app);
  mountStatus(app);
  mountDocuments(app);

  for (const path of new Set(app.routes.map((route) => route.path).filter((path) => path !== "/*"))) {
    app.all(path, limited("unknown"), (c) => {
      const methods = app.routes
        .filter((route) => route.path === path && route.method !== "ALL")
        .map((route) => route.method);
      c.header("Allow", [...new Set(methods), "OPTIONS"].join(", "));
      throw new AppError(
        "method_not_allowed",
        `${c.req.method} is not allowed here; use ${[...new Set(methods)].join(" or ")}.`,
      );
    });
  }
  app.all("*", limited("unknown"), () => {
    throw new AppError("not_found", "There is nothing at this path; /docs lists what there is.");
  });
  app.onError((error, c) => answerError(error, c, c.get("requestId")));
  return app;
}

/** Refuses every request with one body: what the edge serves under a wrong environment. */
export function createRefusal(error: AppError): Hono {
  const app = new Hono();
  app.all("*", (c) => answerError(error, c, crypto.randomUUID()));
  return app;
}

function answerError(error: Error, c: Context, requestId: string): Response {
  const known = error instanceof AppError ? error : fromHono(error);
  const status = known === null ? 500 : STATUS_OF[known.code];
  if (status >= 500) {
    log("error", "request_failed", {
      requestId,
      method: c.req.method,
      path: c.req.path,
      status,
      ...errorFields(error),
    });
  }
  // What a client reads of an unknown failure is one fixed sentence; of a known one, its own.
  const isPublic = known !== null && (known.code !== "internal_error" || error instanceof HTTPException);
  if (known?.retryAfterSeconds !== undefined) c.header("Retry-After", String(known.retryAfterSeconds));
  c.header("X-Request-Id", requestId);
  return c.json(
    {
      error: isPublic ? known.message : INTERNAL_SENTENCE,
      code: known?.code ?? "internal_error",
      requestId,
      ...(known?.details === undefined ? {} : { details: known.details }),
    },
    status as ContentfulStatusCode,
  );
}

function fromHono(error: Error): AppError | null {
  if (!(error instanceof HTTPException)) return null;
  if (error.status === 400) return new AppError("invalid_request", "The request body is not valid JSON.");
  if (error.status === 413) return tooLarge();
  return null;
}

function invalid(issues: readonly { path: PropertyKey[]; message: string }[]): AppError {
  const details = issues.map((issue) => ({ field: issue.path.join("."), message: issue.message }));
  const [first] = details;
  const sentence = first === undefined ? "The request is malformed." : `${first.field} ${first.message}.`;
  return new AppError("invalid_request", sentence, { details });
}

function tooLarge(): never {
  throw new AppError("body_too_large", `A request body may have at most ${MAX_BODY_BYTES} bytes.`);
}

const requireJson = async (c: Context, next: () => Promise<void>): Promise<void> => {
  const hasBody = c.req.method !== "GET" && c.req.method !== "HEAD" && (c.req.header("content-length") ?? "0") !== "0";
  const type = c.req.header("content-type") ?? "";
  if (hasBody && !/^application\/(?:[\w.+-]+\+)?json\s*(?:;|$)/i.test(type)) {
    throw new AppError("unsupported_media_type", "Send the body as application/json.");
  }
  await next();
};
