import { createRoute, z } from "@hono/zod-openapi";
import type { Context } from "hono";
import { readToken } from "../../chain/client.ts";
import { askFirst } from "../../chain/witness.ts";
import { statementsOf } from "../../db/reads.ts";
import { refundOf } from "../../db/refunds.ts";
import { AppError } from "../../errors.ts";
import { portsOf } from "../../model/ports.ts";
import { wireRefund } from "../../model/refund.ts";
import { deliveryOf, deliveryOfOrder } from "../../model/shop.ts";
import { wireType } from "../../model/tiers.ts";
import { limitedBeside, requireRoom } from "../access/admission.ts";
import { makeRoom } from "../access/bounded.ts";
import type { App, Router } from "../http.ts";
import {
  deliverySchema,
  errorsOf,
  isoOf,
  isoOfChain,
  isoTime,
  portSchema,
  refundSchema,
  statusSchema,
  tokenIdSchema,
  wireDelivery,
  wireTypeSchema,
} from "./schemas.ts";

const LOOK_CACHE_MS = 30_000;
const LOOK_CACHE_ENTRIES = 10_000;
// What the chain said of token ids that we don't know, so that nobody costs more than one call per id and half a minute.
const looks = new Map<number, { isThere: boolean; at: number }>();

const statusBody = z
  .object({
    tokenId: z.string(),
    status: statusSchema,
    tier: z.number().nullable().openapi({ description: "null until the purchase was read" }),
    type: wireTypeSchema.nullable(),
    createdAt: isoTime.nullable(),
    expiresAt: isoTime.nullable(),
    purchase: z.object({ txHash: z.string(), blockNumber: z.number() }).nullable(),
    attempts: z.array(
      z.object({
        provider: z.string(),
        region: z.string(),
        startedAt: isoTime,
        endedAt: isoTime.nullable(),
        outcome: z.string().nullable().openapi({
          description:
            "running; sold_out, refused or wait (asked again later) by the provider; of a machine that was made, boot_timeout (no login in time), no_address (no public address), died or vanished; lost: the order made none",
        }),
      }),
    ),
    ports: z.array(portSchema.omit({ host: true })).openapi({
      description: "TCP ports that are open beside SSH, as its order asked for them; SSH alone where there are none",
    }),
    delivery: deliverySchema.optional().openapi({ description: "While it waits for its machine" }),
    refund: refundSchema.optional().openapi({ description: "Where the buyer is owed something" }),
  })
  .openapi("Status");

const route = createRoute({
  method: "get",
  path: "/status/{tokenId}",
  summary: "Public status of a VM",
  description: "A token that the chain knows and that was not read yet is `provisioning`.",
  middleware: [limitedBeside("status")] as const,
  request: { params: z.object({ tokenId: tokenIdSchema }) },
  responses: {
    200: { description: "The VM's status", content: { "application/json": { schema: statusBody } } },
    ...errorsOf(400, 404, 502),
  },
});

export function mountStatus(app: Router): void {
  app.openapi(route, async (c) => {
    const db = c.get("db");
    const { tokenId } = c.req.valid("param");
    const now = Date.now();
    const reads = statementsOf(db);
    const [[vm]] = await Promise.all([reads.vmOfToken.all({ tokenId: Number(tokenId) }), c.get("admitted")]);
    if (vm === undefined) {
      await requireOnChain(c, Number(tokenId), now);
      const [standing] = await reads.cursor.all();
      const unread = { tier: null, type: null, createdAt: null, expiresAt: null, purchase: null };
      const delivery = wireDelivery(deliveryOf(null, standing, now));
      return c.json({ tokenId, status: "provisioning" as const, ...unread, attempts: [], ports: [], delivery }, 200);
    }
    const waits = vm.status === "provisioning";
    const [attempts, [standing]] = await Promise.all([
      vm.attempt === 0 ? [] : reads.attemptsOf.all({ incarnation: vm.incarnation, count: vm.attempt }),
      waits ? reads.cursor.all() : [],
    ]);
    // Ours until an order over x402 is charged: what is bought for it is paid back to nobody.
    const isOrders = vm.owner === c.get("config").X402_PAY_TO?.toLowerCase();
    const delivery = isOrders ? deliveryOfOrder(vm.deadline, false, standing, now) : deliveryOf(vm, standing, now);
    return c.json(
      {
        tokenId,
        status: vm.status,
        tier: vm.tier,
        type: wireType(vm.vmType),
        createdAt: isoOfChain(vm.createdAt),
        expiresAt: isoOfChain(vm.expiresAt),
        purchase: { txHash: vm.txHash, blockNumber: vm.blockNumber },
        attempts: attempts.map((attempt) => ({
          provider: attempt.provider,
          region: attempt.region,
          startedAt: isoOf(attempt.startedAt) ?? "",
          endedAt: isoOf(attempt.endedAt),
          outcome: attempt.outcome,
        })),
        ports: portsOf(vm).map(({ port, publicPort }) => ({ port, publicPort })),
        ...(waits ? { delivery: wireDelivery(delivery) } : {}),
        ...(vm.status === "failed" || vm.lateSeconds !== null ? wireRefund(await refundOf(db, vm.incarnation)) : {}),
      },
      200,
    );
  });
}

async function requireOnChain(c: Context<App>, tokenId: number, now: number): Promise<void> {
  const { chain } = c.var;
  let look = looks.get(tokenId);
  if (look === undefined || look.at <= now - LOOK_CACHE_MS) {
    await requireRoom(c.var, "lookups");
    const view = await askFirst(chain, (node) => readToken(chain, node, BigInt(tokenId)));
    looks.delete(tokenId);
    makeRoom(looks, LOOK_CACHE_ENTRIES);
    look = { isThere: view.owner !== null, at: now };
    looks.set(tokenId, look);
  }
  if (!look.isThere) throw new AppError("token_not_found", `There is no token ${tokenId}.`);
}
