// Operators: a key that works, on every route under /admin. Each call is audited, each wrong key is a violation, and a right
// one works from a banned address too, so that nobody locks himself out.
import type { MiddlewareHandler } from "hono";
import { hashKey, isWellFormedKey, readKey } from "../../credentials/admin-key.ts";
import { type AdminKey, findLiveKey, hasLiveKey, touchKey } from "../../db/admin-keys.ts";
import { AppError } from "../../errors.ts";
import { log, note, noted } from "../../log.ts";
import type { App } from "../http.ts";
import { limitedEvenIfBanned } from "./admission.ts";
import { banRefusal } from "./bans.ts";
import { jsonBody, limitedBody } from "./body.ts";
import { violate } from "./guard.ts";
import { requireShort } from "./headers.ts";
import { placeOf } from "./place.ts";

const DAY_MS = 86_400_000;
export const KEY_LIFE_MS = 90 * DAY_MS;
const WARN_AFTER_MS = 76 * DAY_MS;
const TOUCH_EVERY_MS = 60_000;
const MAX_KEY_CHARS = 256;
/** Whoever holds the secret of the deployment, before there is any other key. */
export const BOOTSTRAP = "bootstrap";

const requireOperator: MiddlewareHandler<App> = async (c, next) => {
  const { db, bannedUntil } = c.var;
  const now = Date.now();
  const key = readKey(c.req.raw.headers);
  // A ban says no more than that it is one.
  if (bannedUntil === null) requireShort("X-API-Key", key, MAX_KEY_CHARS);
  const refuse = async (code: "api_key_missing" | "api_key_invalid", sentence: string): Promise<never> => {
    if (key !== null) await violate(c, "admin_key");
    throw bannedUntil === null ? new AppError(code, sentence) : banRefusal(bannedUntil, now);
  };
  if (key === null) return refuse("api_key_missing", "Send an operator's key as `X-API-Key` or as a Bearer token.");
  if (!isWellFormedKey(key)) return refuse("api_key_invalid", "The key is mistyped: its checksum is wrong.");
  const known = await findLiveKey(db, hashKey(key), now);
  if (known === null && !isBootstrap(key, c.var.config.ADMIN_API_KEY)) {
    return refuse("api_key_invalid", "The key is unknown, expired or revoked.");
  }
  if (known === null) {
    // The deployment's own secret: it opens one door, once (hard case 23).
    if (c.req.method !== "POST" || c.req.path !== "/admin/keys" || (await hasLiveKey(db, now))) {
      throw new AppError(
        "api_key_invalid",
        "ADMIN_API_KEY only makes the first key, with POST /admin/keys, while there is none.",
      );
    }
  } else {
    await touchKey(db, known.id, now, TOUCH_EVERY_MS);
    warnOfExpiry(known, now, (name, value) => c.header(name, value));
  }
  c.set("operator", known?.id ?? BOOTSTRAP);
  note({ operator: c.var.operator });
  c.header("Cache-Control", "no-store");
  await next();
  log("security", "admin_call", {
    ...placeOf(c),
    ...noted(),
    address: c.var.client,
    method: c.req.method,
    status: c.res.status,
  });
};

/** In front of every path under /admin, whether there is a route or not. */
export const keyedOnly = [limitedEvenIfBanned("admin"), requireOperator] as const;
/** In front of every route of the operators: the rules of bodies as well. */
export const operatorsOnly = [...keyedOnly, limitedBody, jsonBody] as const;

const isBootstrap = (key: string, secret: string | undefined): boolean =>
  // Hashes: comparing them tells nothing of how much of the key was right.
  secret !== undefined && hashKey(key) === hashKey(secret);

function warnOfExpiry(key: AdminKey, now: number, set: (name: string, value: string) => void): void {
  if (now < key.createdAt + WARN_AFTER_MS) return;
  set("X-API-Key-Expires", new Date(key.expiresAt).toISOString());
}
