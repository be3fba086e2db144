// The edge Worker's switchboard: requests to the application, the cron to the scan; the two objects.
import type { Hono } from "hono";
import { AppError } from "../errors.ts";
import { allClear, errorFields, log, sendLogs, setLogLevel, shipLogs } from "../log.ts";
import { createApp, createRefusal } from "./app.ts";
import { type EdgeBindings, edgeConfig } from "./config.ts";
import { pollChain } from "./cron.ts";
import type { Router } from "./http.ts";

export { IpGuard } from "../../durable-objects/ip-guard.ts";
export { LogBook } from "../../durable-objects/log-book.ts";

const apps = new WeakMap<object, Router | Hono>();

export default {
  async fetch(request, env, ctx) {
    return (apps.get(env) ?? build(env)).fetch(request, env, ctx);
  },

  async scheduled(_event, env, ctx) {
    try {
      const config = edgeConfig(env);
      setLogLevel(config.LOG_LEVEL);
      await pollChain(config, () => shipLogs(config.LOG_BOOK, (work) => ctx.waitUntil(work)));
      allClear("cron_failed");
    } catch (error) {
      log("page", "cron_failed", errorFields(error));
      throw error;
    } finally {
      if (env.LOG_BOOK !== undefined) ctx.waitUntil(sendLogs(env.LOG_BOOK));
    }
  },
} satisfies ExportedHandler<EdgeBindings>;

/** One application per isolate, or the refusal to run that a wrong environment deserves. */
function build(env: EdgeBindings): Router | Hono {
  try {
    const app = createApp(edgeConfig(env));
    apps.set(env, app);
    allClear("misconfigured");
    return app;
  } catch (error) {
    if (!(error instanceof AppError)) throw error;
    log("page", "misconfigured", errorFields(error));
    return createRefusal(error);
  }
}
