// The edge's application: order of middleware, the one error body, the mounted routes.
import { OpenAPIHono } from "@hono/zod-openapi";
import { type Context, Hono, type MiddlewareHandler } from "hono";
import { cors } from "hono/cors";
import { HTTPException } from "hono/http-exception";
import type { ContentfulStatusCode } from "hono/utils/http-status";
import { countAnew } from "../audit.ts";
import { connectChain } from "../chain/client.ts";
import { openDatabase } from "../db/client.ts";
import { AppError, isDatabaseUnavailable, STATUS_OF } from "../errors.ts";
import { errorFields, log, noted, setLogLevel, shipLogs, withLogScope } from "../log.ts";
import { clientName } from "../model/client-name.ts";
import { Connections } from "../outbound.ts";
import { limited, unlimited } from "./access/admission.ts";
import { logRefusals, refuseKnown } from "./access/known-clients.ts";
import { keyedOnly } from "./access/operators.ts";
import { placeOf } from "./access/place.ts";
import { screenRefused } from "./access/screening.ts";
import type { EdgeConfig } from "./config.ts";
import type { App, Router } from "./http.ts";
import { chargedField } from "./payments/charged.ts";
import { mountAdminBans } from "./routes/admin/bans.ts";
import { mountAdminKeys } from "./routes/admin/keys.ts";
import { mountAdminLogs } from "./routes/admin/logs.ts";
import { mountAdminMachines } from "./routes/admin/machines.ts";
import { mountAdminPayments } from "./routes/admin/payments.ts";
import { mountAdminRefunds } from "./routes/admin/refunds.ts";
import { mountAdminUpkeep } from "./routes/admin/upkeep.ts";
import { mountAgents } from "./routes/agents.ts";
import { mountCredentials } from "./routes/credentials.ts";
import { mountDocuments } from "./routes/documents.ts";
import { mountHealth } from "./routes/health.ts";
import { mountStatus } from "./routes/status.ts";
import { mountTiers } from "./routes/tiers.ts";
import { mountVms } from "./routes/vms.ts";
import { mountPaidCredentials } from "./routes/x402/credentials.ts";
import { mountDiscovery } from "./routes/x402/discovery.ts";
import { mountPurchases } from "./routes/x402/purchases.ts";

const INTERNAL_SENTENCE = "Something went wrong on our side; try again, and name the request id if it persists.";

/** Its failures last for seconds. */
const DATABASE_RETRY_SECONDS = 5;

/** Of CORS, an answer needs these two; the preflight has the rest. */
const CORS_HEADERS = {
  "Access-Control-Allow-Origin": "*",
  "Access-Control-Expose-Headers":
    "X-Request-Id,X-RateLimit-Limit,X-RateLimit-Remaining,X-RateLimit-Reset,RateLimit,RateLimit-Policy,Retry-After,Age,Preference-Applied,PAYMENT-REQUIRED,PAYMENT-RESPONSE,X-PAYMENT-RESPONSE",
};

/** Of every answer; what speaks to browsers that are gone, or about windows, is left out: nothing here opens one. */
const SECURE_HEADERS = {
  "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",
  "Cross-Origin-Resource-Policy": "cross-origin",
  "Referrer-Policy": "no-referrer",
  "Strict-Transport-Security": "max-age=15552000; includeSubDomains",
  "X-Content-Type-Options": "nosniff",
};

/** Failed authentication, for the audit. */
const DENIALS: ReadonlySet<string> = new Set([
  "signature_missing",
  "signature_invalid",
  "signature_expired",
  "nonce_used",
  "fresh_signature_required",
  "not_owner",
  "api_key_missing",
  "api_key_invalid",
  "payment_invalid",
  "body_signature_missing",
  "body_signature_invalid",
]);
/** Headers or body were not what a schema takes. */
const SCREENED: ReadonlySet<string> = new Set([
  "invalid_request",
  "signature_invalid",
  "api_key_invalid",
  "unsupported_media_type",
]);

/** Builds the application over one parsed environment. */
export function createApp(config: EdgeConfig): Router {
  setLogLevel(config.LOG_LEVEL);
  countAnew();
  const db = openDatabase(config.DB);
  const chain = connectChain(config);
  const app: Router = new OpenAPIHono<App>({
    defaultHook: (result) => {
      if (!result.success) throw invalid(result.error.issues);
    },
  });

  app.use((c, next) => {
    const requestId = crypto.randomUUID();
    c.set("requestId", requestId);
    c.set("client", clientName(c.req.raw.headers));
    c.set("config", config);
    c.set("db", db);
    c.set("chain", chain);
    c.header("X-Request-Id", requestId);
    c.header("Access-Control-Allow-Origin", CORS_HEADERS["Access-Control-Allow-Origin"]);
    c.header("Access-Control-Expose-Headers", CORS_HEADERS["Access-Control-Expose-Headers"]);
    const serve = async () => {
      const began = Date.now();
      await next();
      logRequest(c, Date.now() - began);
    };
    return withLogScope({ requestId }, () => new Connections().run(serve));
  });
  app.use(async (c, next) => {
    await next();
    for (const [name, value] of Object.entries(SECURE_HEADERS)) {
      // A route may set its own: the documents' page lets its own scripts run.
      if (!c.res.headers.has(name)) c.res.headers.set(name, value);
    }
  });
  // Only routes with tighter limits of their own need a preflight: this one is in no honest page's way.
  const preflight = cors({
    origin: "*",
    allowMethods: ["GET", "HEAD", "POST", "OPTIONS"],
    // The last one x402's clients send as a header of the request.
    allowHeaders: [
      "Authorization",
      "Content-Type",
      "X-Access-Message",
      "X-Body-Signature",
      "PAYMENT-SIGNATURE",
      "X-PAYMENT",
      "Prefer",
      "Access-Control-Expose-Headers",
    ],
    maxAge: 86_400,
  });
  app.options("/health", unlimited, preflight);
  app.options("*", limited("unknown"), preflight);

  mountHealth(app);
  mountTiers(app);
  mountCredentials(app);
  mountVms(app);
  mountStatus(app);
  mountAgents(app);
  mountPaidCredentials(app);
  mountPurchases(app);
  mountDiscovery(app);
  mountDocuments(app);
  mountAdminKeys(app);
  mountAdminBans(app);
  mountAdminMachines(app);
  mountAdminLogs(app);
  mountAdminRefunds(app);
  mountAdminPayments(app);
  mountAdminUpkeep(app);

  refuseOtherMethods(app);
  const nothingHere = () => {
    throw new AppError("not_found", "There is nothing at this path; /docs lists what there is.");
  };
  app.all("/admin/*", ...keyedOnly, nothingHere);
  app.all("*", limited("unknown"), nothingHere);
  app.onError((error, c) => answerScreened(error, c));
  return serveUnknown(app, config);
}

/** Whom this isolate knows as banned or over a limit never reaches the routes; lines go to the book behind the answer. */
function serveUnknown(app: Router, config: EdgeConfig): Router {
  const serve = app.fetch;
  const front = { app, config, headers: { ...CORS_HEADERS, ...SECURE_HEADERS }, refusals: new Map() };
  app.fetch = (request, env, ctx) => {
    const waitUntil = (work: Promise<unknown>) => ctx?.waitUntil(work);
    const answer = refuseKnown(front, request, waitUntil) ?? serve(request, env, ctx);
    if (ctx !== undefined) shipLogs(config.LOG_BOOK, waitUntil, () => logRefusals(Date.now()));
    return answer;
  };
  return app;
}

/** The one wide event of a request. */
function logRequest(c: Context<App>, ms: number): void {
  const { status } = c.res;
  const { error } = c;
  log(status >= 500 ? "error" : "info", "request", {
    method: c.req.method,
    ...placeOf(c),
    status,
    ms,
    address: c.get("client"),
    ray: c.req.header("cf-ray"),
    ...noted(),
    ...(error === undefined ? {} : status >= 500 ? errorFields(error) : { code: (error as Partial<AppError>).code }),
  });
}

/** Whatever a known path has no handler for is 405, with the methods that it has; under /admin for operators alone. */
function refuseOtherMethods(app: Router): void {
  const byPath = Map.groupBy(
    app.routes.filter((route) => route.method !== "ALL" && route.method !== "OPTIONS"),
    (route) => route.path,
  );
  for (const [path, routes] of byPath) {
    const methods = [...new Set(routes.map((route) => route.method))];
    const guards: readonly MiddlewareHandler<App>[] = path.startsWith("/admin/") ? keyedOnly : [limited("unknown")];
    for (const guard of guards) app.all(path, guard);
    app.all(path, (c) => {
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

/** What was refused as malformed or unproven is looked over for attacks before it is answered. */
async function answerScreened(error: Error, c: Context<App>): Promise<Response> {
  const code = asAppError(error)?.code;
  if (code !== undefined && DENIALS.has(code)) {
    log("security", "access_denied", { address: c.var.client, code, method: c.req.method, path: c.req.path });
  }
  if (code !== undefined && SCREENED.has(code)) {
    try {
      await screenRefused(c, fieldsOf(error));
    } catch (attack) {
      if (attack instanceof AppError) return answerError(attack, c, c.var.requestId);
      log("error", "not_screened", errorFields(attack));
    }
  }
  return answerError(error, c, c.var.requestId);
}

/** The fields that `invalid` names. */
const fieldsOf = (error: Error): string[] =>
  error instanceof AppError ? (error.details ?? []).map((detail) => (detail as { field?: string }).field ?? "") : [];

function answerError(error: Error, c: Context, requestId: string): Response {
  const known = asAppError(error);
  const status = known === null ? 500 : STATUS_OF[known.code];
  // What a client reads of an unknown failure is one fixed sentence; of a known one, its own.
  const isPublic = known !== null && (known.code !== "internal_error" || error instanceof HTTPException);
  // RFC 9110, section 11.6.1.
  if (status === 401) c.header("WWW-Authenticate", "Bearer");
  if (known?.retryAfterSeconds !== undefined) c.header("Retry-After", String(known.retryAfterSeconds));
  for (const [name, value] of Object.entries(known?.headers ?? {})) c.header(name, value);
  c.header("X-Request-Id", requestId);
  return c.json(
    {
      ...known?.body,
      error: isPublic ? known.message : INTERNAL_SENTENCE,
      code: known?.code ?? "internal_error",
      requestId,
      ...chargedField(c.req.path, c.req.raw.headers, known),
      ...(known?.details === undefined ? {} : { details: known.details }),
    },
    status as ContentfulStatusCode,
  );
}

/** Null for what no client can do anything about. */
function asAppError(error: Error): AppError | null {
  if (error instanceof AppError) return error;
  if (isDatabaseUnavailable(error)) {
    return new AppError("database_unavailable", "The database does not answer right now; try again in a few seconds.", {
      cause: error,
      retryAfterSeconds: DATABASE_RETRY_SECONDS,
    });
  }
  if (!(error instanceof HTTPException)) return null;
  if (error.status === 400) return new AppError("invalid_request", "The request body is not valid JSON.");
  if (error.status === 415) return new AppError("unsupported_media_type", "Send the body as application/json.");
  return null;
}

function invalid(issues: readonly { path: PropertyKey[]; message: string }[]): AppError {
  const details = issues.map((issue) => ({ field: issue.path.join("."), message: issue.message }));
  const [first] = details;
  const sentence = first === undefined ? "The request is malformed." : `${first.field || "The body"} ${first.message}.`;
  return new AppError("invalid_request", sentence, { details });
}
