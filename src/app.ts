// The edge's application: order of middleware, the one error body, the mounted routes.
import { OpenAPIHono } from "@hono/zod-openapi";
import { type Context, Hono } from "hono";
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

const INTERNAL_SENTENCE = "Something went wrong on our side; try again, and name the request id if it persists.";

const EXPOSED_HEADERS = "X-Request-Id,X-RateLimit-Limit,X-RateLimit-Remaining,X-RateLimit-Reset,Retry-After,Age";

export type App = {
  Variables: {
    requestId: string;
    config: EdgeConfig;
    db: Database;
    chain: Chain;
    /** Behind `limitedBeside`: resolves once the limiter lets the request pass, rejects with its refusal. */
    admitted: Promise<void>;
  };
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
    // Of CORS, an answer needs these two; the preflight has the rest.
    c.header("Access-Control-Allow-Origin", "*");
    c.header("Access-Control-Expose-Headers", EXPOSED_HEADERS);
    await next();
  });
  app.use(
    secureHeaders({
      // A route may set its own: the documents' page lets its own scripts run.
      overwrite: false,
      contentSecurityPolicy: { defaultSrc: ["'none'"], frameAncestors: ["'none'"] },
      crossOriginResourcePolicy: "cross-origin",
      referrerPolicy: "no-referrer",
      xFrameOptions: "DENY",
      // They speak to browsers that are gone, or about windows: nothing here opens one.
      crossOriginOpenerPolicy: false,
      originAgentCluster: false,
      xDnsPrefetchControl: false,
      xDownloadOptions: false,
      xPermittedCrossDomainPolicies: false,
      xXssProtection: false,
    }),
  );
  app.options(
    "*",
    cors({
      origin: "*",
      allowMethods: ["GET", "HEAD", "POST", "OPTIONS"],
      allowHeaders: ["Authorization", "Content-Type", "X-Access-Message"],
      maxAge: 86_400,
    }),
  );

  mountHealth(app);
  mountTiers(app);
  mountCredentials(app);
  mountVms(app);
  mountStatus(app);
  mountDocuments(app);

  refuseOtherMethods(app);
  app.all("*", limited("unknown"), () => {
    throw new AppError("not_found", "There is nothing at this path; /docs lists what there is.");
  });
  app.onError((error, c) => answerError(error, c, c.get("requestId")));
  return app;
}

/** Whatever a known path has no handler for is 405, with the methods that it has. */
function refuseOtherMethods(app: Router): void {
  const byPath = Map.groupBy(
    app.routes.filter((route) => route.method !== "ALL" && route.method !== "OPTIONS"),
    (route) => route.path,
  );
  for (const [path, routes] of byPath) {
    const methods = [...new Set(routes.map((route) => route.method))];
    app.all(path, limited("unknown"), (c) => {
      c.header("Allow", [...methods, "OPTIONS"].join(", "));
      throw new AppError("method_not_allowed", `${c.req.method} is not allowed here; use ${methods.join(" or ")}.`);
    });
  }
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
  // RFC 9110, section 11.6.1.
  if (status === 401) c.header("WWW-Authenticate", "Bearer");
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
  return null;
}

function invalid(issues: readonly { path: PropertyKey[]; message: string }[]): AppError {
  const details = issues.map((issue) => ({ field: issue.path.join("."), message: issue.message }));
  const [first] = details;
  const sentence = first === undefined ? "The request is malformed." : `${first.field} ${first.message}.`;
  return new AppError("invalid_request", sentence, { details });
}
