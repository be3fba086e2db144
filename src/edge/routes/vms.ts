import { createRoute, z } from "@hono/zod-openapi";
import { readTogether, statementsOf } from "../../db/reads.ts";
import { wireType } from "../../model/tiers.ts";
import { limited } from "../access/admission.ts";
import type { Router } from "../http.ts";
import {
  addressSchema,
  errorsOf,
  isoOfChain,
  isoTime,
  statusSchema,
  tokenIdSchema,
  wireTypeSchema,
} from "./schemas.ts";

const DEFAULT_LIMIT = 100;
const MAX_LIMIT = 500;
const ABOVE_ANY_TOKEN = 2 ** 53;

const vmSchema = z
  .object({
    token_id: z.number(),
    tier: z.number(),
    vm_type: wireTypeSchema,
    ssh_host: z.string().openapi({ description: "Empty until the machine runs." }),
    status: statusSchema,
    created_at: isoTime,
    expires_at: isoTime,
  })
  .openapi("Vm");

const route = createRoute({
  method: "get",
  path: "/vms/{address}",
  summary: "VMs whose tokens an address owns now, newest first",
  middleware: [limited("vms")] as const,
  request: {
    params: z.object({ address: addressSchema }),
    query: z.object({
      limit: z
        .string()
        .regex(/^\d{1,3}$/, "must be a number")
        .transform(Number)
        .pipe(z.number().min(1, "must be at least 1").max(MAX_LIMIT, `must be at most ${MAX_LIMIT}`))
        .optional()
        .openapi({ type: "integer", description: `1 to ${MAX_LIMIT}, default ${DEFAULT_LIMIT}` }),
      cursor: tokenIdSchema
        .optional()
        .openapi({ param: { name: "cursor", in: "query" }, description: "`nextCursor` of the page before." }),
    }),
  },
  responses: {
    200: {
      description: "The address's VMs; `count` is the total",
      content: {
        "application/json": {
          schema: z.object({
            address: z.string(),
            count: z.number(),
            vms: z.array(vmSchema),
            nextCursor: z.string().optional(),
          }),
        },
      },
    },
    ...errorsOf(400),
  },
});

export function mountVms(app: Router): void {
  app.openapi(route, async (c) => {
    const { db, config } = c.var;
    const { address } = c.req.valid("param");
    const { limit = DEFAULT_LIMIT, cursor } = c.req.valid("query");
    const owner = address.toLowerCase();
    const before = cursor === undefined ? ABOVE_ANY_TOKEN : Number(cursor);
    const { vmsOfOwner, countOfOwner } = statementsOf(db);
    const [rows, counts] = await readTogether(db, [vmsOfOwner, countOfOwner], { owner, before, limit });
    const last = rows.at(-1);
    return c.json(
      {
        address,
        count: counts[0]?.count ?? 0,
        vms: rows.map((row) => ({
          token_id: row.tokenId,
          tier: row.tier,
          vm_type: wireType(row.vmType),
          // What is ours is sold to somebody who has not paid for it yet (hard case 18).
          ssh_host: address === config.X402_PAY_TO ? "" : (row.sshHost ?? ""),
          status: row.status,
          created_at: isoOfChain(row.createdAt),
          expires_at: isoOfChain(row.expiresAt),
        })),
        ...(rows.length === limit && last !== undefined ? { nextCursor: String(last.tokenId) } : {}),
      },
      200,
    );
  });
}
