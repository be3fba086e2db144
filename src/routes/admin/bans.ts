import { createRoute, z } from "@hono/zod-openapi";
import { forgetBan } from "../../access/bans.ts";
import { clientAddress, guardsOf } from "../../access/client-name.ts";
import { guardOf } from "../../access/guard.ts";
import type { Router } from "../../app.ts";
import { type BanRow, listBans } from "../../db/bans.ts";
import { note } from "../../log.ts";
import { isoOf, isoTime } from "../schemas.ts";
import { adminErrors, bodyOf, FOR_OPERATORS, jsonOf, limitQuery, reasonSchema } from "./shared.ts";

const MAX_BAN_SECONDS = 365 * 86_400;
const MAX_BANS = 1_000;

/** An address, a /64 as the list names it, or another Worker's zone; resolves to the name of its guard. */
const clientSchema = z
  .string()
  .max(300)
  .transform((text, context) => {
    const address = text.replace(/#cross-site$/, "");
    if (address === "unknown" || /^worker:[a-z0-9.-]+$/.test(address)) return address;
    const plain = address.replace(/\/64$/, "");
    if (z.ipv4().safeParse(plain).success || z.ipv6().safeParse(plain).success) return clientAddress(plain);
    context.addIssue("must be an IP address, or worker: and a zone");
    return z.NEVER;
  })
  .openapi({ type: "string", example: "203.0.113.7" });

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
  summary: "Bans in force",
  ...FOR_OPERATORS,
  request: { query: z.object({ limit: limitQuery(MAX_BANS, MAX_BANS) }) },
  responses: { 200: jsonOf("The bans", z.object({ bans: z.array(banSchema) })), ...adminErrors() },
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
        address: clientSchema,
        durationSeconds: z.int().min(1).max(MAX_BAN_SECONDS).openapi({ example: 3_600 }),
        reason: reasonSchema,
      }),
    ),
  },
  responses: { 201: jsonOf("Banned", banSchema), ...adminErrors() },
});

const liftBan = createRoute({
  method: "delete",
  path: "/admin/bans/{address}",
  summary: "Lift a ban",
  description: "Everywhere within BAN_CACHE_SECONDS. Forgets the violations as well.",
  ...FOR_OPERATORS,
  request: { params: z.object({ address: clientSchema }) },
  responses: { 200: jsonOf("Lifted, or there was none", z.object({ client: z.string() })), ...adminErrors() },
});

export function mountAdminBans(app: Router): void {
  app.openapi(readBans, async (c) => {
    const { limit } = c.req.valid("query");
    return c.json({ bans: (await listBans(c.var.db, Date.now(), limit)).map(bodyOfBan) }, 200);
  });

  app.openapi(addBan, async (c) => {
    const { address: client, durationSeconds, reason } = c.req.valid("json");
    const { config, operator: by } = c.var;
    const since = Date.now();
    const ban = { since, until: since + durationSeconds * 1_000, reason, by };
    await Promise.all(guardsOf(client).map((name) => guardOf(config, name).ban(ban)));
    note({ banned: client, durationSeconds, reason });
    return c.json(bodyOfBan({ client, ...ban }), 201);
  });

  app.openapi(liftBan, async (c) => {
    const { address: client } = c.req.valid("param");
    const names = guardsOf(client);
    await Promise.all(names.map((name) => guardOf(c.var.config, name).lift()));
    names.map(forgetBan);
    note({ lifted: client });
    return c.json({ client }, 200);
  });
}

const bodyOfBan = ({ client, since, until, reason, by }: BanRow) => ({
  client,
  since: isoOf(since) ?? "",
  until: isoOf(until) ?? "",
  reason,
  by,
});
