// What a machine costs at its vendor for the time that it was there.
import { z } from "zod";
import { inTime } from "../../in-time.ts";
import { createRunpod } from "../../provisioner/vendors/runpod.ts";
import { type Connection, callJson } from "../api.ts";
import { readPlans } from "../doctor/vultr.ts";
import type { Settings } from "../settings.ts";

/** Vultr bills whole hours, of a month of 672. */
const HOURS_PER_MONTH = 672;
const NEWEST = 50;
const CALL_MS = 15_000;

const listSchema = z.object({
  vms: z.array(
    z.object({
      tokenId: z.number(),
      provider: z.string().nullable(),
      region: z.string().nullable(),
      plan: z.string().nullable(),
    }),
  ),
});
export type Place = { provider: string; region: string; plan: string };

/** Where a token's machine is; null where there is none, or nobody says so. */
export async function readPlace(admin: Connection, tokenId: number): Promise<Place | null> {
  // The machine's end waits for this.
  const asked = inTime(
    callJson(admin, "GET", `/admin/vms?limit=${NEWEST}`),
    CALL_MS,
    () => new Error("no answer in time"),
  );
  const list = listSchema.safeParse(await asked.catch(() => null));
  const { provider, region, plan } = list.data?.vms.find((vm) => vm.tokenId === tokenId) ?? {};
  return provider == null || region == null || plan == null ? null : { provider, region, plan };
}

/** A few words; null where the vendor's prices can't be read. */
export async function tellVendorCost(
  { provisioner: { config } }: Settings,
  { provider, region, plan }: Place,
  seconds: number,
): Promise<string | null> {
  try {
    if (provider === "vultr") {
      const monthly = (await readPlans(config)).find(({ id }) => id === plan)?.monthly_cost;
      const hours = Math.ceil(seconds / 3_600);
      return monthly == null
        ? null
        : `about ${((monthly / HOURS_PER_MONTH) * hours).toFixed(3)} USD at Vultr, which bills whole hours`;
    }
    const offer = (await createRunpod(config).catalog()).find((one) => one.plan === plan && one.region === region);
    const hourly = offer?.usdPerHour;
    return hourly === undefined
      ? null
      : `about ${((hourly * seconds) / 3_600).toFixed(4)} USD at RunPod, which bills seconds`;
  } catch {
    return null;
  }
}
