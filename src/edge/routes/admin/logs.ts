import { createRoute, z } from "@hono/zod-openapi";
import { type LogBook, STREAMS } from "../../../../durable-objects/log-book.ts";
import { AppError } from "../../../errors.ts";
import { inTime } from "../../../in-time.ts";
import { errorFields, log } from "../../../log.ts";
import type { EdgeConfig } from "../../config.ts";
import type { Router } from "../../http.ts";
import { isoOf, isoTime } from "../schemas.ts";
import { adminErrors, clientSchema, FOR_OPERATORS, jsonOf, limitQuery } from "./shared.ts";

const MAX_EVENTS = 1_000;
/** A file of the book is some megabytes. */
const BOOK_TIMEOUT_MS = 10_000;
const BOOK_RETRY_SECONDS = 5;

const streamSchema = z.enum(STREAMS);
const timeQuery = z.iso
  .datetime({ offset: true, error: "must be a time in ISO 8601, like 2026-02-03T12:00:00Z" })
  .transform((value) => Date.parse(value))
  .optional()
  .openapi({ type: "string", format: "date-time" });

const readFiles = createRoute({
  method: "get",
  path: "/admin/logs",
  summary: "Log files: three streams, at most 5 MB a file, five files a stream",
  ...FOR_OPERATORS,
  responses: {
    200: jsonOf(
      "The files; 0 is being written",
      z.object({
        files: z.array(
          z.object({ stream: streamSchema, file: z.number(), bytes: z.number(), from: isoTime, to: isoTime }),
        ),
      }),
    ),
    ...adminErrors(),
  },
});

const readFile = createRoute({
  method: "get",
  path: "/admin/logs/{stream}",
  summary: "A log file, one JSON object a line",
  ...FOR_OPERATORS,
  request: {
    params: z.object({ stream: streamSchema }),
    query: z.object({
      file: z
        .string()
        .regex(/^[0-4]$/, "must be 0 (the newest) to 4")
        .transform(Number)
        .optional()
        .openapi({ type: "integer", minimum: 0, maximum: 4 }),
    }),
  },
  responses: {
    200: { description: "The lines", content: { "text/plain": { schema: z.string() } } },
    ...adminErrors(404),
  },
});

const readEvents = createRoute({
  method: "get",
  path: "/admin/security-events",
  summary: "Security events, newest first",
  ...FOR_OPERATORS,
  request: {
    query: z.object({
      event: z
        .string()
        .regex(/^[a-z_]{1,60}$/, "must be an event's name")
        .optional(),
      address: clientSchema.optional(),
      since: timeQuery,
      until: timeQuery,
      limit: limitQuery(MAX_EVENTS, 100),
    }),
  },
  responses: {
    200: jsonOf("The events", z.object({ events: z.array(z.record(z.string(), z.unknown())) })),
    ...adminErrors(),
  },
});

/** Asks the log book. Where it can't be reached, the lines are in `wrangler tail` alone for the moment. */
async function askBook<T>({ LOG_BOOK }: EdgeConfig, ask: (book: DurableObjectStub<LogBook>) => Promise<T>): Promise<T> {
  try {
    const answer = ask(LOG_BOOK.get(LOG_BOOK.idFromName("book")));
    return await inTime(answer, BOOK_TIMEOUT_MS, () => new Error("the log book did not answer in time"));
  } catch (error) {
    log("error", "log_unavailable", errorFields(error));
    throw new AppError("log_unavailable", "The log book can't be read right now; try again in a few seconds.", {
      cause: error,
      retryAfterSeconds: BOOK_RETRY_SECONDS,
    });
  }
}

export function mountAdminLogs(app: Router): void {
  app.openapi(readFiles, async (c) => {
    const files = await askBook(c.var.config, (book) => book.files());
    const body = files.map(({ stream, index, bytes, from, to }) => ({
      stream,
      file: index,
      bytes,
      from: isoOf(from) ?? "",
      to: isoOf(to) ?? "",
    }));
    return c.json({ files: body }, 200);
  });

  app.openapi(readFile, async (c) => {
    const { stream } = c.req.valid("param");
    const { file = 0 } = c.req.valid("query");
    const lines = await askBook(c.var.config, (book) => book.read(stream, file));
    if (lines === null) throw new AppError("log_not_found", `The stream ${stream} has no file ${file}.`);
    c.header("Content-Disposition", `attachment; filename="${stream}${file === 0 ? "" : `.${file}`}.log"`);
    return c.text(lines, 200);
  });

  app.openapi(readEvents, async (c) => {
    const { event, address, since, until, limit } = c.req.valid("query");
    const filter = {
      limit,
      ...(event === undefined ? {} : { event }),
      ...(address === undefined ? {} : { address }),
      ...(since === undefined ? {} : { since }),
      ...(until === undefined ? {} : { until }),
    };
    const events: unknown = await askBook(c.var.config, (book) => book.events(filter));
    return c.json({ events: events as Record<string, unknown>[] }, 200);
  });
}
