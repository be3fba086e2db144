// One machine from its payment to its end, through the public API; and its end whatever happens in between.
import { setTimeout as sleep } from "node:timers/promises";
import { z } from "zod";
import { formatUsdc } from "../../chain/contract.ts";
import { inTime } from "../../in-time.ts";
import { tokenOfLabel } from "../../model/purchase-key.ts";
import { vendorsOf } from "../../model/stock.ts";
import { createRunpod } from "../../provisioner/vendors/runpod.ts";
import type { Vendor } from "../../provisioner/vendors/vendor.ts";
import { createVultr } from "../../provisioner/vendors/vultr.ts";
import { ask, type Connection, callJson } from "../api.ts";
import { sentenceOf } from "../doctor/reason.ts";
import type { Settings } from "../settings.ts";
import { awaitPurchase, type Buyer, buy, type Offer, type Paid } from "./buyer.ts";
import { readPlace, tellVendorCost } from "./cost.ts";
import { freshHeaders, readCredentials, runOverSsh } from "./login.ts";

const POLL_MS = 2_000;
/** Operators' calls are limited to twenty a minute, and who goes on beyond that is banned. */
const ADMIN_POLL_MS = 10_000;
const CALL_MS = 15_000;
/** `/credentials` takes thirty requests an hour. */
const CREDENTIALS_POLL_MS = 5_000;
const CREDENTIALS_TRIES = 12;
/** An end takes a sweep at most, and a vendor's lock. */
const END_MS = 300_000;

const statusSchema = z.object({
  status: z.string(),
  purchase: z.unknown(),
  attempts: z.array(z.object({ provider: z.string(), region: z.string(), outcome: z.string().nullable() })),
  refund: z.object({ state: z.string(), amount: z.string() }).optional(),
});
type Status = z.output<typeof statusSchema>;

export type Trip = {
  settings: Settings;
  buyer: Buyer;
  offer: Offer;
  admin: Connection;
  /** How long the machine may take from its payment to its first login. */
  limitMs: number;
  interrupted: AbortSignal;
  onPhase: (name: string, seconds: number, more: string) => void;
};
export type Outcome = {
  paid: Paid;
  tokenId: number | null;
  /** What failed, and in which phase; null where nothing did. */
  failure: string | null;
  /** Null where there was nothing to end. */
  isGone: boolean | null;
  /** What the vendor takes, in words; null where nobody says so. */
  vendorCost: string | null;
  lastStatus: Status | null;
};

export const nothingYet = (): Outcome => ({
  paid: { approval: null, purchase: null, state: "none", cost: 0n, feesWei: 0n },
  tokenId: null,
  failure: null,
  isGone: null,
  vendorCost: null,
  lastStatus: null,
});

/** `outcome` is filled in as it happens, so that whoever leaves early can tell what is left. */
export async function makeTrip(trip: Trip, outcome: Outcome = nothingYet()): Promise<Outcome> {
  const phase = timer(trip);
  const began = performance.now();
  try {
    await buyAndLogIn(trip, outcome, phase);
  } catch (error) {
    outcome.failure = messageOf(error);
  }
  const { paid } = outcome;
  if (outcome.tokenId === null && paid.state === "sent" && paid.purchase !== null) {
    // Its answer was lost, or late: if it is mined, there is a machine to end.
    outcome.tokenId = await awaitPurchase(trip.buyer, trip.offer, paid, paid.purchase).catch(() => null);
  }
  if (outcome.tokenId !== null) {
    const place = await readPlace(trip.admin, outcome.tokenId);
    try {
      await endMachine(trip, outcome.tokenId, phase);
      outcome.isGone = true;
      const seconds = (performance.now() - began) / 1_000;
      outcome.vendorCost = place === null ? null : await tellVendorCost(trip.settings, place, seconds);
    } catch (error) {
      outcome.isGone = false;
      outcome.failure = [outcome.failure, messageOf(error)].filter((one) => one !== null).join("; then ");
    }
    outcome.lastStatus = await readStatus(trip, outcome.tokenId).catch(() => outcome.lastStatus);
  }
  return outcome;
}

type Phase = <T>(name: string, work: () => Promise<T>, tell?: (result: T) => string) => Promise<T>;

function timer({ onPhase }: Trip): Phase {
  return async (name, work, tell = () => "") => {
    const from = performance.now();
    try {
      const result = await work();
      onPhase(name, (performance.now() - from) / 1_000, tell(result));
      return result;
    } catch (error) {
      throw new Error(`${name}: ${messageOf(error)}`);
    }
  };
}

/** Without a full stop: a failure is told with another one, and with its phase. */
const messageOf = (error: unknown): string => sentenceOf(error).replace(/\.+$/, "");

async function buyAndLogIn(trip: Trip, outcome: Outcome, phase: Phase): Promise<void> {
  const { buyer, offer, limitMs, interrupted } = trip;
  const tokenId = await phase(
    "paid",
    () => buy(buyer, offer, outcome.paid),
    (token) => `${formatUsdc(offer.cost)} USDC for token ${token}`,
  );
  outcome.tokenId = tokenId;
  const until = Date.now() + limitMs;
  const reaches = async (isReached: (status: Status) => boolean): Promise<Status> => {
    for (;;) {
      interrupted.throwIfAborted();
      const status = await readStatus(trip, tokenId).catch((error: unknown) => {
        if (Date.now() > until) throw error;
        return null;
      });
      outcome.lastStatus = status ?? outcome.lastStatus;
      if (status !== null && isReached(status)) return status;
      if (status !== null && ["failed", "terminated", "expired"].includes(status.status)) {
        throw new Error(`the purchase is ${status.status}`);
      }
      if (Date.now() > until) throw new Error(`it took more than ${Math.round(limitMs / 1_000)} s`);
      await sleep(POLL_MS, undefined, { signal: interrupted });
    }
  };
  const last = ({ attempts }: Status) => attempts.at(-1);
  await phase("seen", () => reaches(({ purchase, status }) => purchase != null || status === "running"));
  await phase(
    "ordered",
    () => reaches(({ attempts }) => attempts.length > 0),
    (status) => `${last(status)?.provider} ${last(status)?.region}`,
  );
  await phase(
    "booted",
    () => reaches(({ status }) => status === "running"),
    ({ attempts }) => (attempts.length > 1 ? `at the attempt number ${attempts.length}` : ""),
  );
  await phase(
    "first login",
    () => logIn(trip, tokenId),
    (name) => `as ${name}`,
  );
}

async function readStatus({ admin }: Trip, tokenId: number): Promise<Status> {
  const answer = await ask(admin.url, `/status/${tokenId}`, { signal: AbortSignal.timeout(CALL_MS) });
  if (!answer.ok) throw new Error(`/status answers HTTP ${answer.status}`);
  return statusSchema.parse(await answer.json());
}

async function logIn({ admin: { url }, buyer, interrupted }: Trip, tokenId: number): Promise<string> {
  for (let tries = 1; ; tries++) {
    interrupted.throwIfAborted();
    const headers = await freshHeaders(buyer.account, buyer.config, url, tokenId, Date.now());
    const answer = await ask(url, `/credentials/${tokenId}`, { headers, signal: AbortSignal.timeout(CALL_MS) });
    if (answer.status === 200) {
      const name = (await runOverSsh(readCredentials(await answer.json()), "whoami")).trim();
      if (name !== "root") throw new Error(`the machine says that it is ${name || "nobody"}, not root`);
      return name;
    }
    const isWaiting = answer.status === 202 || answer.status === 503;
    if (!isWaiting || tries === CREDENTIALS_TRIES) throw new Error(`/credentials answers HTTP ${answer.status}`);
    await sleep(CREDENTIALS_POLL_MS, undefined, { signal: interrupted });
  }
}

/** Ends it by an operator's order and asks the vendors themselves. An interrupt does not keep it from that. */
async function endMachine(trip: Trip, tokenId: number, phase: Phase): Promise<void> {
  const { admin, settings, offer } = trip;
  const vendors = vendorsFor(settings, offer.tier);
  const until = Date.now() + END_MS;
  const again = async (look: () => Promise<boolean>, what: string, pauseMs = POLL_MS): Promise<void> => {
    for (let cause = ""; ; ) {
      const isDone = await look().catch((error: unknown) => {
        cause = `: ${messageOf(error)}`;
        return false;
      });
      if (isDone) return;
      if (Date.now() > until) throw new Error(`${what} after ${END_MS / 60_000} minutes${cause}`);
      await sleep(pauseMs);
    }
  };
  await phase("ended", async () => {
    const { status } = await readStatus(trip, tokenId).catch(() => ({ status: "unknown" }));
    if (status !== "failed" && status !== "terminated") {
      const order = () => callJson(admin, "POST", `/admin/vms/${tokenId}/terminate`, { reason: "smoke test" });
      await again(
        async () => (await inTime(order(), CALL_MS, () => new Error("no answer in time"))) !== null,
        "no end could be ordered",
        ADMIN_POLL_MS,
      );
    }
    await again(
      async () => ["terminated", "failed"].includes((await readStatus(trip, tokenId)).status),
      "it is not ended",
    );
  });
  await phase("gone", () => again(() => isGone(vendors, settings, tokenId), "the vendor still shows a machine of it"));
}

/** No vendor that sells this tier lists a machine that bears the token's number. */
async function isGone(vendors: readonly Vendor[], settings: Settings, tokenId: number): Promise<boolean> {
  const { DEPLOYMENT_ID } = settings.provisioner.config;
  const lists = await Promise.all(vendors.map((vendor) => vendor.list()));
  return !lists.flat().some(({ label }) => tokenOfLabel(DEPLOYMENT_ID, label) === tokenId);
}

/** Throws where the key of a vendor of that tier is not here: nobody could say then that the machine is gone. */
export function vendorsFor({ provisioner: { config, wrong } }: Settings, tier: number): Vendor[] {
  return vendorsOf(tier, config).map((name) => {
    const variable = name === "vultr" ? "VULTR_API_KEY" : "RUNPOD_API_KEY";
    if (wrong.has(variable))
      throw new Error(`Set ${variable} in .secrets/provisioner.json: it has to show that the machine is gone.`);
    return name === "vultr" ? createVultr(config) : createRunpod(config);
  });
}
