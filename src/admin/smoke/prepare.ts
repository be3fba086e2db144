// Everything that the smoke test's purchase and its end will need, tried before anything is paid.
import { z } from "zod";
import type { Vendor } from "../../provisioner/vendors/vendor.ts";
import { ask, callJson, connect } from "../api.ts";
import { reasonOf } from "../doctor/reason.ts";
import { keyTodo } from "../doctor/vendor-key.ts";
import type { Settings } from "../settings.ts";
import { KEY_VARIABLE, openBuyer, readOffer } from "./buyer.ts";
import { type Trip, vendorsFor } from "./run.ts";

export type Options = { tier: string; url: string; minutes: string };
export type Prepared = Omit<Trip, "interrupted" | "onPhase">;

const CALL_MS = 15_000;
const MAX_MINUTES = 1_440;

const shopSchema = z.object({
  tiers: z.array(z.object({ tier: z.number(), stock: z.string() })),
  delivery: z.object({ state: z.string(), message: z.string() }),
});

/** What nothing that is printed may contain. */
export const secretsOf = (settings: Settings): string[] => [
  ...settings.secrets,
  ...[process.env[KEY_VARIABLE]?.replace(/^0x/, ""), process.env["CLAWCLOUD_ADMIN_KEY"]].flatMap((one) => one || []),
];

/** Throws, with what to do, where something is in the way. */
export async function prepare(settings: Settings, { tier: text, url, minutes }: Options): Promise<Prepared> {
  const tier = Number(text);
  if (!/^[0-7]$/.test(text)) throw new Error("Give --tier a number from 0 to 7.");
  if (!(Number(minutes) > 0 && Number(minutes) < MAX_MINUTES)) throw new Error("Give --minutes a number below a day.");
  const buyer = openBuyer(settings);
  const admin = connect({ url });
  await Promise.all(vendorsFor(settings, tier).map(requireList));
  await callJson(admin, "GET", "/admin/vms?limit=1");
  await requireOpen(admin.url, tier);
  const offer = await readOffer(buyer, tier);
  return {
    settings,
    buyer,
    offer,
    admin,
    limitMs: Number(minutes) * 60_000,
  };
}

async function requireList(vendor: Vendor): Promise<void> {
  try {
    await vendor.list();
  } catch (error) {
    const { status, message } = error as { status?: number; message: string };
    const why = `Mend what keeps the vendor from listing its machines, and try again: ${reasonOf(error)}.`;
    throw new Error(keyTodo(vendor.name, status, message) ?? why);
  }
}

async function requireOpen(url: string, tier: number): Promise<void> {
  const read = (path: string) => ask(url, path, { signal: AbortSignal.timeout(CALL_MS) });
  const health = await read("/health");
  if (!health.ok) throw new Error(`Wait until ${url} serves: its /health answers HTTP ${health.status}.`);
  const shop = shopSchema.safeParse(await (await read("/tiers")).json().catch(() => null));
  if (!shop.success) throw new Error(`Check --url: /tiers of ${url} is not answered as this product does.`);
  const { delivery, tiers } = shop.data;
  if (delivery.state !== "open") throw new Error(`Wait until machines are made: ${delivery.message}`);
  if (tiers.find((one) => one.tier === tier)?.stock === "none") {
    throw new Error(`Wait, or take another tier: no vendor has a machine of tier ${tier} now.`);
  }
}
