import { createRoute, z } from "@hono/zod-openapi";
import { bytesToHex, randomBytes } from "@noble/hashes/utils.js";
import { hashKey, makeAdminKey } from "../../../credentials/admin-key.ts";
import { type AdminKey, insertFirstKey, insertKey, listKeys, revokeKey } from "../../../db/admin-keys.ts";
import { AppError } from "../../../errors.ts";
import { note } from "../../../log.ts";
import { BOOTSTRAP, KEY_LIFE_MS } from "../../access/operators.ts";
import type { Router } from "../../http.ts";
import { isoOf, isoTime } from "../schemas.ts";
import { adminErrors, bodyOf, FOR_OPERATORS, jsonOf } from "./shared.ts";

const MAX_KEYS = 200;

const keySchema = z
  .object({
    id: z.string(),
    name: z.string(),
    createdAt: isoTime,
    expiresAt: isoTime,
    lastUsedAt: isoTime.nullable(),
    revokedAt: isoTime.nullable(),
  })
  .openapi("AdminKey");

const createKey = createRoute({
  method: "post",
  path: "/admin/keys",
  summary: "A new operator's key, shown once",
  description: "Good for 90 days. ADMIN_API_KEY makes the first one, while there is none.",
  ...FOR_OPERATORS,
  request: { body: bodyOf(z.strictObject({ name: z.string().trim().min(1).max(100) })) },
  responses: { 201: jsonOf("The key", keySchema.extend({ key: z.string() })), ...adminErrors(409) },
});

const readKeys = createRoute({
  method: "get",
  path: "/admin/keys",
  summary: "Operators' keys, newest first; never the keys themselves",
  ...FOR_OPERATORS,
  responses: { 200: jsonOf("The keys", z.object({ keys: z.array(keySchema) })), ...adminErrors() },
});

const deleteKey = createRoute({
  method: "delete",
  path: "/admin/keys/{id}",
  summary: "Revoke a key, at once",
  ...FOR_OPERATORS,
  request: { params: z.object({ id: z.string().regex(/^key_[0-9a-f]{12}$/, "must be a key's id") }) },
  responses: { 200: jsonOf("Revoked", z.object({ id: z.string(), revokedAt: isoTime })), ...adminErrors(404) },
});

export function mountAdminKeys(app: Router): void {
  app.openAPIRegistry.registerComponent("securitySchemes", "adminKey", {
    type: "apiKey",
    in: "header",
    name: "X-API-Key",
    description:
      "An operator's key; or as `Authorization: Bearer`. From its 76th day on, `X-API-Key-Expires` names its end.",
  });
  app.openapi(createKey, async (c) => {
    const { name } = c.req.valid("json");
    const { db, operator } = c.var;
    const now = Date.now();
    const key = makeAdminKey();
    const row: AdminKey = {
      id: `key_${bytesToHex(randomBytes(6))}`,
      name,
      hash: hashKey(key),
      createdAt: now,
      expiresAt: now + KEY_LIFE_MS,
      lastUsedAt: null,
      revokedAt: null,
    };
    if (operator !== BOOTSTRAP) await insertKey(db, row);
    else if (!(await insertFirstKey(db, row, now))) {
      throw new AppError("api_key_exists", "Another first key was made at this moment: use that one.");
    }
    note({ made: row.id });
    return c.json({ ...bodyOfKey(row), key }, 201);
  });

  app.openapi(readKeys, async (c) => {
    const keys = await listKeys(c.var.db, MAX_KEYS);
    return c.json({ keys: keys.map(bodyOfKey) }, 200);
  });

  app.openapi(deleteKey, async (c) => {
    const { id } = c.req.valid("param");
    const now = Date.now();
    if (!(await revokeKey(c.var.db, id, now))) {
      throw new AppError("api_key_not_found", `There is no key ${id} that still works.`);
    }
    return c.json({ id, revokedAt: isoOf(now) ?? "" }, 200);
  });
}

const bodyOfKey = ({ id, name, createdAt, expiresAt, lastUsedAt, revokedAt }: AdminKey) => ({
  id,
  name,
  createdAt: isoOf(createdAt) ?? "",
  expiresAt: isoOf(expiresAt) ?? "",
  lastUsedAt: isoOf(lastUsedAt),
  revokedAt: isoOf(revokedAt),
});
