import { createRoute, z } from "@hono/zod-openapi";
import { type BanRow, listBans } from "../../../db/bans.ts";
import { note } from "../../../log.ts";
import { guardsOf } from "../../../model/client-name.ts";
import { forgetBan } from "../../access/bans.ts";
import { guardOf, orderGuard } from "../../access/guard.ts";
import type { Router } from "../../http.ts";
import { isoOf, isoTime, tokenIdSchema } from "../schemas.ts";
import { adminErrors, bodyOf, FOR_OPERATORS, jsonOf, limitQuery, reasonSchema, wholeClientSchema } from "./shared.ts";

const MAX_BAN_SECONDS = 365 * 86_400;
const MAX_PAGE = 500;
const ABOVE_ANY_NUMBER = 2 ** 53;

const banSchema = z
  .object({
    client: z.string().openapi({ description: "`#cross-site`: what web pages made this address's browsers send" }),
    since: isoTime,
    until: isoTime,
    reason: z.string(),
    by: z.string().openapi({ description: "`auto`, or an operator's key" }),
  })
  .openapi("Ban");

const readBans = createRoute({
  method: "get",
  path: "/admin/bans",
  summary: "Bans in force, the client that was banned last first",
  ...FOR_OPERATORS,
  request: {
    query: z.object({
      limit: limitQuery(MAX_PAGE, 100),
      cursor: tokenIdSchema
        .optional()
        .openapi({ param: { name: "cursor", in: "query" }, description: "`nextCursor` of the page before" }),
    }),
  },
  responses: {
    200: jsonOf("The bans", z.object({ bans: z.array(banSchema), nextCursor: z.string().optional() })),
    ...adminErrors(),
  },
});

const addBan = createRoute({
  method: "post",
  path: "/admin/bans",
  summary: "Ban an address",
  description: "In force at once. An IPv6 address stands for its /64.",
  ...FOR_OPERATORS,
  request: {
    body: bodyOf(
      z.strictObject({
        address: wholeClientSchema,
        durationSeconds: z.int().min(1).max(MAX_BAN_SECONDS).openapi({ example: 3_600 }),
        reason: reasonSchema,
      }),
    ),
  },
  responses: { 201: jsonOf("Banned", banSchema), ...adminErrors() },
});

const liftBan = createRoute({
  method: "delete",
  path: "/admin/bans/{client}",
  summary: "Lift a ban",
  description: "Everywhere within BAN_CACHE_SECONDS. Forgets the violations as well.",
  ...FOR_OPERATORS,
  request: { params: z.object({ client: wholeClientSchema }) },
  responses: {
    200: jsonOf("Lifted, or there was none", z.object({ client: z.string(), wasBanned: z.boolean() })),
    ...adminErrors(),
  },
});

export function mountAdminBans(app: Router): void {
  app.openapi(readBans, async (c) => {
    const { limit, cursor } = c.req.valid("query");
    const before = cursor === undefined ? ABOVE_ANY_NUMBER : Number(cursor);
    const rows = await listBans(c.var.db, Date.now(), before, limit);
    const last = rows.length === limit ? rows.at(-1) : undefined;
    return c.json({ bans: rows.map(bodyOfBan), ...(last && { nextCursor: String(last.number) }) }, 200);
  });

  app.openapi(addBan, async (c) => {
    const { address: client, durationSeconds, reason } = c.req.valid("json");
    const { config, operator: by } = c.var;
    const since = Date.now();
    const ban = { since, until: since + durationSeconds * 1_000, reason, by };
    await Promise.all(guardsOf(client).map((name) => orderGuard(guardOf(config, name).ban(ban))));
    note({ banned: client, durationSeconds, reason });
    return c.json(bodyOfBan({ client, ...ban }), 201);
  });

  app.openapi(liftBan, async (c) => {
    const { client } = c.req.valid("param");
    const names = guardsOf(client);
    const lifted = await Promise.all(names.map((name) => orderGuard(guardOf(c.var.config, name).lift())));
    names.map(forgetBan);
    note({ lifted: client });
    return c.json({ client, wasBanned: lifted.includes(true) }, 200);
  });
}

const bodyOfBan = ({ client, since, until, reason, by }: BanRow) => ({
  client,
  since: isoOf(since) ?? "",
  until: isoOf(until) ?? "",
  reason,
  by,
});
