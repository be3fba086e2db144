import { createRoute, z } from "@hono/zod-openapi";
import { listFailures, listVms, loadFailure, orderEnd, retryFailed } from "../../../db/operators.ts";
import { AppError } from "../../../errors.ts";
import { note } from "../../../log.ts";
import { TIERS, wireType } from "../../../model/tiers.ts";
import type { Router } from "../../http.ts";
import { enqueue } from "../../sweep.ts";
import { isoOf, isoOfChain, isoTime, statusSchema, tokenIdSchema } from "../schemas.ts";
import { adminErrors, bodyOf, FOR_OPERATORS, jsonOf, limitQuery, reasonSchema } from "./shared.ts";

const MAX_PAGE = 500;
const ABOVE_ANY_TOKEN = 2 ** 53;

const vmSchema = z
  .object({
    tokenId: z.number(),
    status: statusSchema,
    step: z.string(),
    tier: z.number(),
    type: z.string(),
    owner: z.string(),
    provider: z.string().nullable(),
    region: z.string().nullable(),
    plan: z.string().nullable(),
    instanceId: z.string().nullable(),
    sshHost: z.string().nullable(),
    attempt: z.number(),
    failure: z.string().nullable(),
    txHash: z.string(),
    createdAt: isoTime,
    expiresAt: isoTime,
  })
  .openapi("OperatorsVm");

const failureSchema = z
  .object({
    id: z.number(),
    tokenId: z.number(),
    tier: z.number(),
    cause: z.string(),
    detail: z.string(),
    attempts: z.number(),
    createdAt: isoTime,
    resolvedAt: isoTime.nullable(),
  })
  .openapi("FailedProvisioning");

const readVms = createRoute({
  method: "get",
  path: "/admin/vms",
  summary: "VMs by status, newest first",
  ...FOR_OPERATORS,
  request: {
    query: z.object({
      status: statusSchema.optional(),
      limit: limitQuery(MAX_PAGE, 100),
      cursor: tokenIdSchema.optional().openapi({ param: { name: "cursor", in: "query" } }),
    }),
  },
  responses: {
    200: jsonOf("The VMs", z.object({ vms: z.array(vmSchema), nextCursor: z.string().optional() })),
    ...adminErrors(),
  },
});

const endVm = createRoute({
  method: "post",
  path: "/admin/vms/{tokenId}/terminate",
  summary: "End a VM, whatever its paid time says",
  description: "The machine is deleted at its vendor and its key erased. Not undone, and not refunded by itself.",
  ...FOR_OPERATORS,
  request: { params: z.object({ tokenId: tokenIdSchema }), body: bodyOf(z.strictObject({ reason: reasonSchema })) },
  responses: {
    202: jsonOf("Ordered; `/status` says when it is done", z.object({ tokenId: z.string() })),
    ...adminErrors(409),
  },
});

const readFailures = createRoute({
  method: "get",
  path: "/admin/failed-provisionings",
  summary: "Purchases that ended without a machine, and why; oldest first",
  ...FOR_OPERATORS,
  request: {
    query: z.object({
      settled: z.enum(["true", "false"]).optional().openapi({ description: "true: also those that were settled" }),
      limit: limitQuery(MAX_PAGE, 100),
      cursor: tokenIdSchema
        .optional()
        .openapi({ param: { name: "cursor", in: "query" }, description: "`nextCursor` of the page before" }),
    }),
  },
  responses: {
    200: jsonOf("The failures", z.object({ failures: z.array(failureSchema), nextCursor: z.string().optional() })),
    ...adminErrors(),
  },
});

const retryFailure = createRoute({
  method: "post",
  path: "/admin/failed-provisionings/{id}/retry",
  summary: "Send a failed purchase back to work, with a new deadline",
  ...FOR_OPERATORS,
  request: {
    params: z.object({
      id: z
        .string()
        .regex(/^[1-9]\d{0,14}$/, "must be a failure's id")
        .transform(Number)
        .openapi({ type: "integer" }),
    }),
  },
  responses: {
    202: jsonOf("Queued", z.object({ id: z.number(), tokenId: z.string() })),
    ...adminErrors(404, 409),
  },
});

export function mountAdminMachines(app: Router): void {
  app.openapi(readVms, async (c) => {
    const { status, limit, cursor } = c.req.valid("query");
    const rows = await listVms(c.var.db, status, cursor === undefined ? ABOVE_ANY_TOKEN : Number(cursor), limit);
    const vms = rows.map((row) => ({
      ...row,
      type: wireType(TIERS[row.tier]?.type ?? "vm"),
      createdAt: isoOfChain(row.createdAt),
      expiresAt: isoOfChain(row.expiresAt),
    }));
    return c.json({ vms, ...nextCursor(rows.length === limit ? rows.at(-1)?.tokenId : undefined) }, 200);
  });

  app.openapi(endVm, async (c) => {
    const { tokenId } = c.req.valid("param");
    const { reason } = c.req.valid("json");
    const queued = await orderEnd(c.var.db, Number(tokenId), Date.now());
    if (queued === null) throw new AppError("nothing_to_end", `Token ${tokenId} has no VM that could be ended.`);
    note({ reason, incarnation: queued.incarnation });
    await enqueue(c.var.config.JOBS, [queued]);
    return c.json({ tokenId }, 202);
  });

  app.openapi(readFailures, async (c) => {
    const { settled, limit, cursor } = c.req.valid("query");
    const rows = await listFailures(c.var.db, settled === "true", Number(cursor ?? 0), limit);
    const failures = rows.map(({ incarnation: _incarnation, ...row }) => ({
      ...row,
      createdAt: isoOf(row.createdAt) ?? "",
      resolvedAt: isoOf(row.resolvedAt),
    }));
    return c.json({ failures, ...nextCursor(rows.length === limit ? rows.at(-1)?.id : undefined) }, 200);
  });

  app.openapi(retryFailure, async (c) => {
    const { id } = c.req.valid("param");
    const { db, config } = c.var;
    const failure = await loadFailure(db, id);
    if (failure === null) throw new AppError("failure_not_found", `There is no failed provisioning ${id}.`);
    const queued = await retryFailed(db, failure.incarnation, Date.now(), {
      deadlineSeconds: config.PROVISION_DEADLINE_SECONDS,
      graceSeconds: config.EXPIRY_GRACE_SECONDS,
    });
    if (queued === null) {
      throw new AppError(
        "not_retryable",
        `Token ${failure.tokenId} is not waiting for a retry: it was settled, replaced, or a machine of it is still being ended.`,
      );
    }
    note({ incarnation: queued.incarnation });
    await enqueue(config.JOBS, [queued]);
    return c.json({ id, tokenId: String(failure.tokenId) }, 202);
  });
}

const nextCursor = (last: number | undefined) => (last === undefined ? {} : { nextCursor: String(last) });
