// `npm run doctor -- runpod`: the key and its rights, the cards of tiers 4 to 7, the image, the money.
import { z } from "zod";
import { tokenOfLabel } from "../../model/purchase-key.ts";
import type { Offer } from "../../model/stock.ts";
import { RUNPOD_GPUS } from "../../model/stock.ts";
import type { ProvisionerConfig } from "../../provisioner/config.ts";
import { callVendor, type VendorAnswer } from "../../provisioner/vendors/request.ts";
import { createRunpod, oldRunpodBalance, runpodBalance } from "../../provisioner/vendors/runpod.ts";
import { VendorError } from "../../provisioner/vendors/vendor.ts";
import { type Finding, missing, needed, note, type Part, unread, well } from "./finding.ts";
import { reasonOf } from "./reason.ts";
import { askForTag } from "./registry.ts";
import { keyTodo } from "./vendor-key.ts";

const LIMIT_MS = 15_000;
/** RunPod's ids are letters and digits. */
const NO_POD = "/v2/pods/no-such-pod";

const myselfSchema = z.object({
  data: z.object({
    myself: oldRunpodBalance.extend({
      currentSpendPerHr: z.number().nullish(),
      spendLimit: z.number().nullish(),
    }),
  }),
});

export const examineRunpod: Part = async (settings) => {
  const { config: given } = settings.provisioner;
  const config = { ...given, VENDOR_TIMEOUT_MS: Math.min(given.VENDOR_TIMEOUT_MS, LIMIT_MS) };
  const absent = missing(settings, "provisioner", "RUNPOD_API_KEY");
  if (absent !== null) return [absent, await lookAtImage(config)];
  const [key, cards, image, balance] = await Promise.all([
    lookAtKey(config),
    lookAtCards(config),
    lookAtImage(config),
    lookAtBalance(config),
  ]);
  return [...key, ...cards, image, balance];
};

const call = (config: ProvisionerConfig, method: "GET" | "PATCH" | "POST", path: string, body?: object) =>
  callVendor(
    {
      vendor: "runpod",
      baseUrl: config.RUNPOD_API_URL,
      apiKey: config.RUNPOD_API_KEY,
      timeoutMs: config.VENDOR_TIMEOUT_MS,
    },
    method,
    path,
    body,
  );

async function lookAtKey(config: ProvisionerConfig): Promise<Finding[]> {
  try {
    const pods = await createRunpod(config).list();
    const ours = pods.filter(({ label }) => tokenOfLabel(config.DEPLOYMENT_ID, label) !== null);
    const machines = well("pods", `${pods.length} in the account, ${ours.length} of this deployment`);
    return [await lookAtRights(config), machines];
  } catch (error) {
    const status = error instanceof VendorError ? error.status : undefined;
    const todo = keyTodo("runpod", status, "");
    if (todo !== null) return [needed("key", reasonOf(error), todo)];
    return [unread("key", error)];
  }
}

/**
 * No read tells a key that may only read from another one. So a pod that does not exist is asked to change nothing: with
 * every right that is "not found", with too few it is "forbidden".
 */
async function lookAtRights(config: ProvisionerConfig): Promise<Finding> {
  const answer = await call(config, "PATCH", NO_POD, {});
  if (answer.status !== 401 && answer.status !== 403) return well("key", "reads pods, and may change them");
  const todo = "Give RunPod's key the permission All, or Restricted with Read/Write for pods: this one only reads.";
  return needed("key", `reads pods and may not change them: ${answer.detail}`, todo);
}

async function lookAtCards(config: ProvisionerConfig): Promise<Finding[]> {
  try {
    const offers = await createRunpod(config).catalog();
    return Object.entries(RUNPOD_GPUS).map(([tier, sizes]) => tellCards(Number(tier), sizes, offers, config));
  } catch (error) {
    return [unread("cards", error)];
  }
}

function tellCards(
  tier: number,
  sizes: readonly (readonly string[])[],
  offers: readonly Offer[],
  config: ProvisionerConfig,
): Finding {
  const what = `tier ${tier}`;
  const cards = sizes.flat().map((plan) => ({ plan, offers: offers.filter((offer) => offer.plan === plan) }));
  const answer = cards
    .map(({ plan, offers: all }) => `${plan}: ${all.map(tellOffer).join(", ") || "not listed"}`)
    .join("; ");
  const inStock = (plans: readonly string[]) =>
    offers.some((offer) => plans.includes(offer.plan) && offer.stock !== "none");
  if (!inStock(sizes.flat())) {
    const todo = `Raise RUNPOD_CLOUDS (${config.RUNPOD_CLOUDS.join(", ")}), or wait: of tier ${tier} no card is in stock, nor one that may stand in for it.`;
    return needed(what, answer, todo);
  }
  return inStock(sizes[0] ?? []) ? well(what, answer) : note(what, `${answer}; a larger one stands in`);
}

const tellOffer = ({ region, stock, usdPerHour }: Offer): string =>
  `${region} ${stock}${usdPerHour === undefined ? "" : ` ${usdPerHour} USD/h`}`;

async function lookAtImage(config: ProvisionerConfig): Promise<Finding> {
  const what = "image";
  const image = config.RUNPOD_IMAGE;
  try {
    const answer = await askForTag(image, config.VENDOR_TIMEOUT_MS);
    if (answer.state === "there") return well(what, `${image} is at its registry`);
    if (answer.state === "absent") {
      const todo = `Set RUNPOD_IMAGE to a tag that its registry has: there is no ${image}.`;
      return needed(what, `${image}: HTTP ${answer.status}`, todo);
    }
    if (config.RUNPOD_REGISTRY !== undefined) return note(what, `${image} is private; pods log in by RUNPOD_REGISTRY`);
    const todo = `Check RUNPOD_IMAGE: its registry shows ${image} to nobody without an account (HTTP ${answer.status}), or has no such image.`;
    return needed(what, `${image}: HTTP ${answer.status}`, todo);
  } catch (error) {
    return note(what, `${image}: its registry can't be asked from here (${reasonOf(error)})`);
  }
}

async function lookAtBalance(config: ProvisionerConfig): Promise<Finding> {
  const what = "balance";
  try {
    const answer = await call(config, "GET", "/v2/billing/balance");
    const told = runpodBalance.safeParse(answer.body);
    if (answer.status === 200 && told.success) {
      const { balanceAmount: balance, billingMode: mode } = told.data;
      return tellBalance(config, balance, `${balance.toFixed(2)} USD, ${mode.toLowerCase()}`, mode === "PREPAID");
    }
    return await lookAtOldBalance(config, answer);
  } catch (error) {
    return note(what, `not read: ${reasonOf(error)}`);
  }
}

/** Where the newer question is not known yet, the GraphQL API still tells; RunPod ends it in 2027. */
async function lookAtOldBalance(config: ProvisionerConfig, refused: VendorAnswer): Promise<Finding> {
  const query = "query { myself { clientBalance currentSpendPerHr spendLimit } }";
  const told = myselfSchema.safeParse((await call(config, "POST", "/graphql", { query })).body);
  if (!told.success) return note("balance", `not told to this key: ${refused.detail}; look at RunPod's console`);
  const { clientBalance: balance, currentSpendPerHr: spend, spendLimit: limit } = told.data.data.myself;
  const answer = `${balance.toFixed(2)} USD; it spends ${spend ?? "unknown"} of at most ${limit ?? "unknown"} USD/h`;
  return tellBalance(config, balance, answer, true);
}

function tellBalance(
  { LOW_RUNPOD_USD }: ProvisionerConfig,
  balance: number,
  answer: string,
  isPrepaid: boolean,
): Finding {
  if (!isPrepaid || balance >= LOW_RUNPOD_USD) return well("balance", answer);
  const todo = `Pay in at RunPod: at ${balance.toFixed(2)} USD it soon takes no order, and at zero it ends pods with their disks.`;
  return needed("balance", answer, todo);
}
