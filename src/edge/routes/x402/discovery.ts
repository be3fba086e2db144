// GET /.well-known/x402: what is sold here over x402, for crawlers and for agents that have only the host. `resources` is
// the list that x402scan reads; `items` says of each what facilitators' catalogs (Bazaar) say.
import { createRoute, z } from "@hono/zod-openapi";
import { statementsOf } from "../../../db/reads.ts";
import { limited } from "../../access/admission.ts";
import type { Router } from "../../http.ts";
import { type Demand, requirementOf, type Till, tillOf } from "../../payments/wire.ts";
import { errorsOf } from "../schemas.ts";
import { credentialsDemand } from "./credentials.ts";
import { isCapturedFirst } from "./offer.ts";
import { computeDemand } from "./purchases.ts";

const itemSchema = z.object({
  resource: z.string(),
  type: z.literal("http"),
  method: z.enum(["GET", "POST"]),
  x402Version: z.literal(2),
  description: z.string(),
  accepts: z.array(z.record(z.string(), z.unknown())),
  extensions: z.record(z.string(), z.unknown()),
});

const route = createRoute({
  method: "get",
  path: "/.well-known/x402",
  summary: "What is sold over x402",
  middleware: [limited("documents")] as const,
  responses: {
    200: {
      description: "The paid routes; the price of a machine is per tier and day, here for one day",
      content: {
        "application/json": {
          schema: z.object({
            version: z.literal(1),
            x402Version: z.literal(2),
            resources: z.array(z.string()),
            items: z.array(itemSchema),
          }),
        },
      },
    },
    ...errorsOf(),
  },
});

export function mountDiscovery(app: Router): void {
  app.openapi(route, async (c) => {
    const { config, db } = c.var;
    const till = await tillOf(config);
    const [api] = config.PUBLIC_URLS;
    const [row] = await statementsOf(db).catalog.all();
    const tiers = (row?.tiers ?? []).filter(({ active }) => active);
    const machines = tiers.map(({ tier, pricePerDayUsdc6 }) => {
      const amount = BigInt(pricePerDayUsdc6);
      return computeDemand(amount, { tier, durationDays: 1 }, isCapturedFirst(config, tier, amount, 0n));
    });
    const credentials = credentialsDemand(config);
    const items = [await itemOf(till, `${api}${credentials.path}`, "GET", credentials, [credentials])];
    const [any] = machines;
    if (any !== undefined) {
      const description =
        "A ClawCloud machine: tier and days are in the body, /tiers has the prices. SSH alone is open, unless `ports` asks for more.";
      items.push(await itemOf(till, `${api}${any.path}`, "POST", { ...any, description }, machines));
    }
    c.header("Cache-Control", "public, max-age=30");
    const resources = items.map(({ resource }) => resource);
    return c.json({ version: 1 as const, x402Version: 2 as const, resources, items }, 200);
  });
}

async function itemOf(
  till: Till,
  resource: string,
  method: "GET" | "POST",
  { description, discovery }: Demand,
  demands: readonly Demand[],
): Promise<z.infer<typeof itemSchema>> {
  const { input, output, schema } = discovery;
  return {
    resource,
    type: "http",
    method,
    x402Version: 2,
    description,
    accepts: await Promise.all(demands.map(async (demand) => ({ ...(await requirementOf(till, demand)) }))),
    extensions: { bazaar: { info: { input, output }, schema } },
  };
}
