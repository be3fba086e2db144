// `npm run doctor -- vultr`: the key, the account, and what is still sold of what tiers 0 to 3 are made of.
import { request as askHttp } from "node:http";
import { request as askHttps } from "node:https";
import { isIP } from "node:net";
import { z } from "zod";
import { tokenOfLabel } from "../../model/purchase-key.ts";
import { VULTR_GPU_PLANS, VULTR_PLANS } from "../../model/stock.ts";
import type { ProvisionerConfig } from "../../provisioner/config.ts";
import { callVendor } from "../../provisioner/vendors/request.ts";
import { VendorError } from "../../provisioner/vendors/vendor.ts";
import { createVultr, vultrBalance } from "../../provisioner/vendors/vultr.ts";
import { type Finding, missing, needed, note, type Part, unread, well } from "./finding.ts";
import { quote, reasonOf } from "./reason.ts";
import { keyTodo } from "./vendor-key.ts";

const LIMIT_MS = 15_000;
const MAX_ANSWER_CHARS = 200_000;
/** What an order needs: machines, and the firewall group. */
const RIGHTS = ["provisioning", "subscriptions", "firewall"];

const accountSchema = z.object({
  account: z.object({
    acls: z.array(z.string()).nullish(),
    // A key without the right `billing` is told none.
    balance: vultrBalance.shape.balance.nullish(),
    pending_charges: vultrBalance.shape.pending_charges.nullish(),
  }),
});
const planSchema = z.object({ id: z.string(), monthly_cost: z.number().nullish() });
type Plan = z.output<typeof planSchema>;
const plansSchema = z.object({ plans: z.array(planSchema) });
const regionsSchema = z.object({ regions: z.array(z.object({ id: z.string() })) });
const osSchema = z.object({ os: z.array(z.object({ name: z.string() })) });

export const examineVultr: Part = async (settings) => {
  const absent = missing(settings, "provisioner", "VULTR_API_KEY");
  if (absent !== null) return [absent];
  const { config: given } = settings.provisioner;
  const config = { ...given, VENDOR_TIMEOUT_MS: Math.min(given.VENDOR_TIMEOUT_MS, LIMIT_MS) };
  const [account, os, plans, machines] = await Promise.all([
    lookAtAccount(config),
    lookAtOs(config),
    lookAtPlans(config),
    lookAtMachines(config),
  ]);
  return [...account, os, ...plans, machines];
};

type Told = { status: number; text: string } | { unreachable: string };

/** Asked by IPv4 or by IPv6, which `fetch` does not let us choose. */
function askAccount(
  { VULTR_API_URL, VULTR_API_KEY, VENDOR_TIMEOUT_MS }: ProvisionerConfig,
  family: 4 | 6,
): Promise<Told> {
  const url = `${VULTR_API_URL}/account`;
  const send = url.startsWith("https:") ? askHttps : askHttp;
  const headers = { authorization: `Bearer ${VULTR_API_KEY}`, accept: "application/json" };
  const signal = AbortSignal.timeout(VENDOR_TIMEOUT_MS);
  return new Promise((resolve) => {
    const failed = (error: unknown) => resolve({ unreachable: reasonOf(error) });
    const asked = send(url, { family, headers, signal, agent: false }, (answer) => {
      let text = "";
      answer.on("data", (part: Buffer) => {
        if (text.length < MAX_ANSWER_CHARS) text += part.toString();
      });
      answer.on("end", () => resolve({ status: answer.statusCode ?? 0, text }));
      answer.on("error", failed);
    });
    asked.on("error", failed);
    asked.end();
  });
}

async function lookAtAccount(config: ProvisionerConfig): Promise<Finding[]> {
  const { hostname } = new URL(config.VULTR_API_URL);
  const literal = isIP(hostname.replace(/^\[|\]$/g, ""));
  const families = ([4, 6] as const).filter((family) => literal === 0 || literal === family);
  const told = await Promise.all(families.map(async (family) => ({ family, told: await askAccount(config, family) })));
  const reached = told.flatMap((one) => ("status" in one.told ? [{ family: one.family, ...one.told }] : []));
  const [any] = told;
  if (reached.length === 0) {
    const reason = any !== undefined && "unreachable" in any.told ? any.told.unreachable : "nothing to ask";
    const todo = `Make sure that this machine reaches ${hostname}: the key can't be tried (${reason}).`;
    return [needed("key", `Vultr can't be asked: ${reason}`, todo)];
  }
  const refused = reached.filter(({ status }) => status !== 200);
  const taken = reached.find(({ status }) => status === 200);
  return [
    ...(refused.length === 0 ? [] : [tellRefusal(refused)]),
    ...(taken === undefined
      ? []
      : tellAccount(
          taken.text,
          reached.map(({ family }) => family),
          config.LOW_VULTR_USD,
        )),
  ];
}

function tellRefusal(refused: { family: 4 | 6; status: number; text: string }[]): Finding {
  const from = refused.map(({ family }) => `IPv${family}`).join(" and ");
  const [{ status, text } = { status: 0, text: "" }] = refused;
  const said = quote(errorOf(text));
  const answer = `refused from ${from}: HTTP ${status} ${said}`;
  const todo = keyTodo("vultr", status, said, from);
  if (todo !== null) return needed("key", answer, todo);
  return needed("key", answer, `Ask again later: Vultr answers ${status} to a question about the account.`);
}

function errorOf(text: string): string {
  try {
    const { error } = z.object({ error: z.string() }).parse(JSON.parse(text));
    return error;
  } catch {
    return "without a reason";
  }
}

function tellAccount(text: string, families: readonly (4 | 6)[], lowUsd: number): Finding[] {
  const from = families.map((family) => `IPv${family}`).join(" and ");
  const switches =
    families.length === 2
      ? "its list of addresses can't be read: allow any of both kinds, since Workers leave from many"
      : `nothing was asked from IPv${families[0] === 4 ? 6 : 4}: allow any address of both kinds, since Workers leave from many`;
  let account: z.output<typeof accountSchema>["account"];
  try {
    ({ account } = accountSchema.parse(JSON.parse(text)));
  } catch {
    const todo =
      "Ask again later, and compare VULTR_API_URL: the answer about the account is not as Vultr documents it.";
    return [needed("key", "an answer of another shape than documented", todo)];
  }
  const lacking = account.acls == null ? [] : RIGHTS.filter((right) => !account.acls?.includes(right));
  const key =
    lacking.length > 0
      ? needed(
          "key",
          `taken from ${from}; without the rights ${lacking.join(", ")}`,
          `Give the user of Vultr's key the rights ${lacking.join(", ")}: machines can't be made or ended without them.`,
        )
      : note("key", `taken from ${from}; ${switches}`);
  return [key, tellBalance(account, lowUsd)];
}

/** Vultr writes what was paid in advance below zero, as its example's last payment is. */
function tellBalance(
  { balance, pending_charges: pending }: z.output<typeof accountSchema>["account"],
  lowUsd: number,
): Finding {
  const answer = `balance ${balance ?? "unknown"} USD (below zero is credit), charges of this month ${pending ?? "unknown"} USD; how many machines the account may have, no API tells`;
  if (balance != null && balance > 0)
    return needed("account", answer, `Pay what Vultr's account owes: ${balance} USD.`);
  // With 0, Vultr charges a card afterwards.
  if (lowUsd === 0 || balance == null || -balance - (pending ?? 0) >= lowUsd) return well("account", answer);
  return needed("account", answer, `Pay in at Vultr: less is left than LOW_VULTR_USD, ${lowUsd} USD.`);
}

async function read<T>(config: ProvisionerConfig, path: string, schema: z.ZodType<T>): Promise<T> {
  const access = {
    vendor: "vultr" as const,
    baseUrl: config.VULTR_API_URL,
    apiKey: config.VULTR_API_KEY,
    timeoutMs: config.VENDOR_TIMEOUT_MS,
  };
  const answer = await callVendor(access, "GET", path);
  if (answer.status !== 200) throw new VendorError("vultr", "page", answer.detail);
  const parsed = schema.safeParse(answer.body);
  if (parsed.success) return parsed.data;
  throw new VendorError("vultr", "unknown", `${path} is answered in another shape than documented`);
}

async function lookAtOs(config: ProvisionerConfig): Promise<Finding> {
  try {
    const { os } = await read(config, "/os?per_page=500", osSchema);
    if (os.some(({ name }) => name === config.VULTR_OS)) return well("operating system", config.VULTR_OS);
    const family = config.VULTR_OS.split(" ")[0] ?? "";
    const near = os.map(({ name }) => name).filter((name) => name.startsWith(family));
    const todo = `Set VULTR_OS to one of Vultr's names${near.length === 0 ? "" : `, like ${near.slice(-3).join(", ")}`}: it has no "${config.VULTR_OS}", and no machine is ordered without one.`;
    return needed("operating system", `Vultr has no "${config.VULTR_OS}"`, todo);
  } catch (error) {
    return unread("operating system", error);
  }
}

/** Everything that Vultr lists, with its price. */
export const readPlans = async (config: ProvisionerConfig): Promise<Plan[]> =>
  (await read(config, "/plans?per_page=500", plansSchema)).plans;

async function lookAtPlans(config: ProvisionerConfig): Promise<Finding[]> {
  try {
    const [plans, { regions }] = await Promise.all([
      readPlans(config),
      read(config, "/regions?per_page=500", regionsSchema),
    ]);
    const known = config.VULTR_REGIONS.filter((region) => regions.some(({ id }) => id === region));
    const unknown = config.VULTR_REGIONS.filter((region) => !known.includes(region));
    const offers = await createVultr({ ...config, VULTR_REGIONS: known }).catalog();
    const wanted: [number, string][] = [
      ...VULTR_PLANS.map((plan, tier): [number, string] => [tier, plan]),
      ...(config.VULTR_GPUS
        ? Object.entries(VULTR_GPU_PLANS).flatMap(([tier, sizes]) =>
            sizes.flat().map((plan): [number, string] => [Number(tier), plan]),
          )
        : []),
    ];
    const sold = wanted.map(([tier, plan]) => {
      const inStock = offers.filter((offer) => offer.plan === plan && offer.stock !== "none");
      return tellPlan(
        tier,
        plan,
        plans,
        inStock.map(({ region }) => region),
        known,
      );
    });
    if (unknown.length === 0) return [well("regions", known.join(", ")), ...sold];
    const todo = `Take ${unknown.join(", ")} out of VULTR_REGIONS: Vultr has no such region.`;
    return [needed("regions", `${known.join(", ")}; not ${unknown.join(", ")}`, todo), ...sold];
  } catch (error) {
    return [unread("plans", error)];
  }
}

function tellPlan(
  tier: number,
  plan: string,
  plans: readonly Plan[],
  inStock: readonly string[],
  regions: readonly string[],
): Finding {
  const what = `tier ${tier}`;
  const listed = plans.find(({ id }) => id === plan);
  if (listed === undefined) {
    const todo = `Ask for a release with another plan for tier ${tier}: Vultr sells no ${plan} any more.`;
    return needed(what, `${plan} is no longer listed`, todo);
  }
  const price = listed.monthly_cost == null ? "" : `, ${listed.monthly_cost} USD a month`;
  const answer = `${plan}${price}: in stock in ${inStock.length} of ${regions.length} regions`;
  if (inStock.length === 0) {
    const todo = `Raise VULTR_REGIONS, or wait: ${plan} (tier ${tier}) is in stock in none of ${regions.join(", ")}.`;
    return needed(what, answer, todo);
  }
  const out = regions.filter((region) => !inStock.includes(region));
  return out.length === 0 ? well(what, answer) : note(what, `${answer}; not in ${out.join(", ")}`);
}

async function lookAtMachines(config: ProvisionerConfig): Promise<Finding> {
  try {
    const machines = await createVultr(config).list();
    const ours = machines.filter(({ label }) => tokenOfLabel(config.DEPLOYMENT_ID, label) !== null);
    return well("machines", `${machines.length} in the account, ${ours.length} of this deployment`);
  } catch (error) {
    return unread("machines", error);
  }
}
