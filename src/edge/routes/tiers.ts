import { createRoute, z } from "@hono/zod-openapi";
import { formatUsdc } from "../../chain/contract.ts";
import { readTogether, statementsOf } from "../../db/reads.ts";
import type { StoredTiers } from "../../db/sweep.ts";
import { AppError } from "../../errors.ts";
import { errorFields, log } from "../../log.ts";
import { SHOP_SENTENCES, SHOP_STATES, type Standing, shopState } from "../../model/shop.ts";
import type { StockByVendor } from "../../model/stock.ts";
import { recentStock, stockOf } from "../../model/stock.ts";
import { TIERS, wireType } from "../../model/tiers.ts";
import { limited } from "../access/admission.ts";
import type { Router } from "../http.ts";
import { refreshTiers } from "../sweep.ts";
import { errorsOf, isoOf, isoTime, wireTypeSchema } from "./schemas.ts";

const DAYS_PER_MONTH = 30n;
/** What a vendor has refused, or a pause, is told within this. */
const CACHE_MS = 5_000;

const tierSchema = z
  .object({
    tier: z.number().openapi({ description: "0-7", example: 0 }),
    name: z.string(),
    pricePerDay: z.string().openapi({ description: "USDC", example: "0.50" }),
    pricePerMonth: z.string().openapi({ description: "USDC for 30 days", example: "15.00" }),
    active: z.boolean(),
    type: wireTypeSchema,
    specs: z.object({
      vcpu: z.number(),
      memoryGb: z.number(),
      gpu: z.string().nullable(),
      diskGb: z.number(),
    }),
    stock: z.enum(["high", "low", "none", "unknown"]),
  })
  .openapi("Tier");

const shopSchema = z
  .object({
    state: z.enum(SHOP_STATES).openapi({ description: "stalled: purchases are not read from the chain" }),
    since: isoTime.nullable().openapi({ description: "Since when it is paused" }),
    message: z.string(),
  })
  .openapi("Shop", { description: "Whether machines are made at the moment" });

const route = createRoute({
  method: "get",
  path: "/tiers",
  summary: "Tiers with prices from the contract and stock from the vendors",
  middleware: [limited("tiers")] as const,
  responses: {
    200: {
      description: "All tiers",
      content: { "application/json": { schema: z.object({ tiers: z.array(tierSchema), delivery: shopSchema }) } },
    },
    ...errorsOf(),
  },
});

type Cached = {
  tiers: z.infer<typeof tierSchema>[];
  tiersAt: number;
  listedAt: number;
  /** What the list is made from: it is made again when nothing can be read, since stock ages. */
  stored: StoredTiers;
  stock: StockByVendor;
  /** What it says of the shop, it says by the time of the answer: nobody scans while nothing can be read. */
  standing: Standing | undefined;
};
// Per isolate; a warm answer reads nothing.
const cache = new WeakMap<object, Cached>();

export function mountTiers(app: Router): void {
  app.openapi(route, async (c) => {
    const db = c.get("db");
    const chain = c.get("chain");
    const config = c.get("config");
    const now = Date.now();
    let known = cache.get(config);
    if (known === undefined || now - known.listedAt > CACHE_MS) {
      // The others have the list that there is meanwhile.
      if (known !== undefined) cache.set(config, { ...known, listedAt: now });
      try {
        const reads = statementsOf(db);
        const [[row], [standing]] = await readTogether(db, [reads.catalog, reads.cursor]);
        const stored = row?.tiers ?? (await firstRead(() => refreshTiers(db, chain, now)));
        const stock = row?.stock ?? {};
        known = {
          tiers: listTiers(stored, stock, now),
          tiersAt: row?.tiersAt ?? now,
          listedAt: now,
          stored,
          stock,
          standing,
        };
      } catch (error) {
        // Once seen, an answer is better than none: its age is in the header.
        if (known === undefined) throw error;
        log("warn", "tiers_not_refreshed", errorFields(error));
        known = { ...known, tiers: listTiers(known.stored, known.stock, now), listedAt: now };
      }
      cache.set(config, known);
    }
    c.header("Age", String(Math.max(0, Math.floor((now - known.tiersAt) / 1_000))));
    c.header("Cache-Control", `public, max-age=${CACHE_MS / 1_000}`);
    return c.json({ tiers: known.tiers, delivery: deliveryState(known.standing, now) }, 200);
  });
}

function deliveryState(standing: Standing | undefined, now: number): z.infer<typeof shopSchema> {
  const state = shopState(standing, now);
  return { state, since: isoOf(standing?.pausedSince ?? null), message: SHOP_SENTENCES[state] };
}

function listTiers(stored: StoredTiers, stock: StockByVendor, now: number): Cached["tiers"] {
  const recent = recentStock(stock, now);
  return stored.flatMap(({ tier, name, active, pricePerDayUsdc6 }) => {
    const spec = TIERS[tier];
    if (spec === undefined) return [];
    const pricePerDay = BigInt(pricePerDayUsdc6);
    return [
      {
        tier,
        name,
        pricePerDay: formatUsdc(pricePerDay),
        pricePerMonth: formatUsdc(pricePerDay * DAYS_PER_MONTH),
        active,
        type: wireType(spec.type),
        specs: spec.specs,
        stock: stockOf(tier, recent),
      },
    ];
  });
}

/** Before the first sweep nothing is stored yet: the contract is asked once. */
async function firstRead(read: () => Promise<StoredTiers>): Promise<StoredTiers> {
  try {
    return await read();
  } catch (cause) {
    if (!(cause instanceof AppError)) throw cause;
    throw new AppError("tiers_unavailable", "Prices can't be read from the chain yet; try again in a few seconds.", {
      cause,
      retryAfterSeconds: 5,
    });
  }
}
