import { createRoute, z } from "@hono/zod-openapi";
import { keyRing } from "../../../credentials/key-ring.ts";
import { reencrypt } from "../../../credentials/reencrypt.ts";
import { countSealed, SEALED_IN } from "../../../db/data-keys.ts";
import { listPauses, pause, resume } from "../../../db/pauses.ts";
import { loadCursor } from "../../../db/scan.ts";
import { loadCatalog } from "../../../db/sweep.ts";
import { AppError } from "../../../errors.ts";
import { note } from "../../../log.ts";
import { rescan } from "../../gaps.ts";
import type { Router } from "../../http.ts";
import { enqueue } from "../../sweep.ts";
import { isoOf, isoTime } from "../schemas.ts";
import { adminErrors, bodyOf, FOR_OPERATORS, jsonOf, reasonSchema } from "./shared.ts";

/** 25 log queries at each node with the default range. */
const MAX_SCAN_BLOCKS = 50_000;
/** An ECIES pair takes about 1 ms of CPU, and one invocation may run 1,000 statements. */
const MAX_REENCRYPTED = 400;
const REENCRYPTED_BY_DEFAULT = 200;

const VENDORS = ["vultr", "runpod"] as const;
const pausable = z.enum(["provisioning", "payouts"]);
const pauseSchema = z.object({ what: pausable, since: isoTime, reason: z.string(), by: z.string() }).openapi("Pause");
const blockNumber = z.int().min(0);

const readKeys = createRoute({
  method: "get",
  path: "/admin/data-keys",
  summary: "Data keys and how many stored secrets each one seals",
  description: "A retired key with no secrets left can be taken out of RETIRED_DATA_KEYS.",
  ...FOR_OPERATORS,
  responses: {
    200: jsonOf(
      "The keys",
      z.object({
        keys: z.array(
          z.object({
            id: z.string().nullable().openapi({ description: "null: from before there were key ids" }),
            current: z.boolean(),
            held: z.boolean().openapi({ description: "false: what it seals can't be opened" }),
            secrets: z.object({ vms: z.number(), attempts: z.number(), wallets: z.number() }),
          }),
        ),
      }),
    ),
    ...adminErrors(),
  },
});

const runReencryption = createRoute({
  method: "post",
  path: "/admin/data-keys/reencrypt",
  summary: "Bring secrets under the current data key, a batch at a time",
  description: "Call again with `next` until it is null. May be cut off or run twice.",
  ...FOR_OPERATORS,
  request: {
    body: bodyOf(
      z.strictObject({ after: z.string().max(200).optional(), limit: z.int().min(1).max(MAX_REENCRYPTED).optional() }),
    ),
  },
  responses: {
    200: jsonOf(
      "What this batch did",
      z.object({
        reencrypted: z.number(),
        skipped: z.number(),
        unreadable: z.number(),
        next: z.string().nullable(),
        remaining: z.number(),
      }),
    ),
    ...adminErrors(),
  },
});

const scanRange = createRoute({
  method: "post",
  path: "/admin/scan",
  summary: "Read a range of blocks again, from every node",
  description: `At most ${MAX_SCAN_BLOCKS} blocks; what the scan itself has not reached is left to it. Where nodes give few blocks a request it ends before \`toBlock\`: the answer's \`toBlock\` is the last one that was read. Call again from the next one on until \`next\` is null.`,
  ...FOR_OPERATORS,
  request: { body: bodyOf(z.strictObject({ fromBlock: blockNumber, toBlock: blockNumber })) },
  responses: {
    200: jsonOf(
      "Read",
      z.object({
        fromBlock: z.number(),
        toBlock: z.number(),
        queued: z.number(),
        next: z.number().nullable().openapi({ description: "The block to go on from" }),
      }),
    ),
    ...adminErrors(502),
  },
});

const readVendors = createRoute({
  method: "get",
  path: "/admin/vendors",
  summary: "What our accounts at the vendors can still spend, as read with their catalogs",
  description:
    "`balanceUsd` is null where it could not be read, where the account is billed afterwards, or where LOW_VULTR_USD or LOW_RUNPOD_USD is 0.",
  ...FOR_OPERATORS,
  responses: {
    200: jsonOf(
      "The vendors whose catalogs were read",
      z.object({
        vendors: z.array(
          z.object({ vendor: z.enum(VENDORS), balanceUsd: z.number().nullable(), readAt: isoTime }).openapi("Vendor"),
        ),
      }),
    ),
    ...adminErrors(),
  },
});

const readPauses = createRoute({
  method: "get",
  path: "/admin/pauses",
  summary: "What is paused",
  ...FOR_OPERATORS,
  responses: { 200: jsonOf("The pauses", z.object({ pauses: z.array(pauseSchema) })), ...adminErrors() },
});

const setPause = createRoute({
  method: "put",
  path: "/admin/pauses/{what}",
  summary: "Pause provisioning or payouts",
  description:
    "Provisioning: no machine is ordered; those under way go on, and deadlines wait. Payouts: no money leaves.",
  ...FOR_OPERATORS,
  request: { params: z.object({ what: pausable }), body: bodyOf(z.strictObject({ reason: reasonSchema })) },
  responses: { 200: jsonOf("Paused", z.object({ pauses: z.array(pauseSchema) })), ...adminErrors() },
});

const endPause = createRoute({
  method: "delete",
  path: "/admin/pauses/{what}",
  summary: "Resume",
  ...FOR_OPERATORS,
  request: { params: z.object({ what: pausable }) },
  responses: { 200: jsonOf("Resumed", z.object({ pauses: z.array(pauseSchema) })), ...adminErrors() },
});

export function mountAdminUpkeep(app: Router): void {
  app.openapi(readKeys, async (c) => {
    const ring = keyRing(c.var.config);
    const counts = await countSealed(c.var.db);
    const ids = [...new Set([ring.current, ...ring.ids, ...counts.map(({ keyId }) => keyId)])];
    const secretsOf = (id: string | null) =>
      Object.fromEntries(
        SEALED_IN.map((table) => [table, counts.find((one) => one.table === table && one.keyId === id)?.rows ?? 0]),
      ) as Record<(typeof SEALED_IN)[number], number>;
    const keys = ids.map((id) => ({
      id,
      current: id === ring.current,
      held: id === null || ring.ids.includes(id),
      secrets: secretsOf(id),
    }));
    return c.json({ keys }, 200);
  });

  app.openapi(runReencryption, async (c) => {
    const { after, limit = REENCRYPTED_BY_DEFAULT } = c.req.valid("json");
    const ring = keyRing(c.var.config);
    const progress = await reencrypt(c.var.db, ring, { after, limit });
    const counts = await countSealed(c.var.db);
    const remaining = counts.filter(({ keyId }) => keyId !== ring.current).reduce((sum, { rows }) => sum + rows, 0);
    note({ reencrypted: progress.reencrypted, remaining });
    return c.json({ ...progress, remaining }, 200);
  });

  app.openapi(scanRange, async (c) => {
    const { fromBlock, toBlock } = c.req.valid("json");
    const { db, chain, config } = c.var;
    const cursor = await loadCursor(db);
    const end = Math.min(toBlock, cursor?.blockNumber ?? -1);
    if (fromBlock > end) {
      throw new AppError(
        "invalid_request",
        `fromBlock must not be above toBlock, nor above ${cursor?.blockNumber ?? "the first scan"}.`,
      );
    }
    if (end - fromBlock >= MAX_SCAN_BLOCKS) {
      throw new AppError("invalid_request", `A range may have at most ${MAX_SCAN_BLOCKS} blocks.`);
    }
    const { queued, toBlock: last } = await rescan({ db, chain, config, now: Date.now() }, { fromBlock, toBlock: end });
    await enqueue(config.JOBS, queued);
    const body = { fromBlock, toBlock: last, queued: queued.length, next: last < end ? last + 1 : null };
    note(body);
    return c.json(body, 200);
  });

  app.openapi(readVendors, async (c) => {
    const { stock } = (await loadCatalog(c.var.db)) ?? {};
    const vendors = VENDORS.flatMap((vendor) => {
      const read = stock?.[vendor];
      if (read === undefined) return [];
      return [{ vendor, balanceUsd: read.balanceUsd ?? null, readAt: isoOf(read.readAt) ?? "" }];
    });
    return c.json({ vendors }, 200);
  });

  app.openapi(readPauses, async (c) => c.json(await pausesBody(c.var.db), 200));

  app.openapi(setPause, async (c) => {
    const { what } = c.req.valid("param");
    const { reason } = c.req.valid("json");
    const { db, operator: by } = c.var;
    await pause(db, { what, since: Date.now(), reason, by });
    note({ paused: what, reason });
    return c.json(await pausesBody(db), 200);
  });

  app.openapi(endPause, async (c) => {
    const { what } = c.req.valid("param");
    await resume(c.var.db, what, Date.now());
    note({ resumed: what });
    return c.json(await pausesBody(c.var.db), 200);
  });
}

const pausesBody = async (db: Parameters<typeof listPauses>[0]) => ({
  pauses: (await listPauses(db)).map((row) => ({ ...row, since: isoOf(row.since) ?? "" })),
});
