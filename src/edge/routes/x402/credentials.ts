// GET /x402/vm-credentials: a token's credentials for a small payment by its owner. A payment is no login (hard case 1): it
// may have been signed for somebody else's site. So keys go out beside the owner's own signature, or sealed to the payer.
import { createRoute, z } from "@hono/zod-openapi";
import { hexToBytes, utf8ToBytes } from "@noble/hashes/utils.js";
import type { Context } from "hono";
import { getAddress } from "viem";
import { formatUsdc } from "../../../chain/contract.ts";
import { encrypt } from "../../../credentials/ecies.ts";
import { giveSealed } from "../../../db/delivery.ts";
import { loadPayment, movePayment, type Payment } from "../../../db/payments.ts";
import type { Vm } from "../../../db/schema.ts";
import { loadVm } from "../../../db/vms.ts";
import { AppError } from "../../../errors.ts";
import { log } from "../../../log.ts";
import { CREDENTIALS_SECONDS } from "../../../model/payment.ts";
import { paymentStates } from "../../../model/payment-life.ts";
import { requireRoom } from "../../access/admission.ts";
import {
  admitHolder,
  checkOwner,
  type Door,
  requireSecondWitness,
  requireUnspent,
  type Sight,
  spendNonce,
} from "../../access/owner.ts";
import type { EdgeConfig } from "../../config.ts";
import { deliverKey, deliveryDecision, readStoredKey } from "../../delivery.ts";
import type { App, Router } from "../../http.ts";
import {
  type Checked,
  checkPayment,
  claim,
  findClaim,
  isStale,
  markSettled,
  PENDING_RETRY_AFTER,
  pending,
  requestHash,
  requireSameRequest,
  requireWindow,
  settle,
  takeUp,
  verify,
} from "../../payments/gate.ts";
import { type Demand, paymentRequired, readPayment, receiptHeaders, type Till, tillOf } from "../../payments/wire.ts";
import { pollAgainAfter } from "../../waits.ts";
import {
  beganAt,
  credentialsBody,
  credentialsSchema,
  type GivenKey,
  provisioningSchema,
  refuseHead,
  waitingBody,
} from "../credentials.ts";
import { paidErrorsOf, tokenIdSchema } from "../schemas.ts";
import { discoveryOf, PAYMENT_HEADERS, paidRoute, settlingSchema } from "./shared.ts";
import { misfit, type PaidFor, tellCharged, used } from "./turned-away.ts";

const paidSchema = credentialsSchema
  .extend({ payment: z.object({ purchaseId: z.string(), amount: z.string(), transaction: z.string() }) })
  .openapi("PaidCredentials");

const route = createRoute({
  method: "get",
  path: "/x402/vm-credentials",
  summary: "SSH credentials for a payment by the token's owner",
  description:
    "x402 of either version. The payer has to own the token, and there has to be a key to hand out: both are checked before anything is charged, and nobody pays for a 202, 401, 403, 404 or 409. With the owner's signature (`Authorization`, as for /credentials) the body is that of /credentials; without it the key comes sealed to the payer's public key. Payments of smart wallets have no public key: they need the signature. The same payment, or another with the same payment-identifier, is never charged twice: it brings the sealed key again until the owner has acknowledged it, and where none was ever sent it is paid back.",
  middleware: [...paidRoute, refuseHead] as const,
  parameters: PAYMENT_HEADERS,
  request: { query: z.object({ tokenId: tokenIdSchema.openapi({ param: { name: "tokenId", in: "query" } }) }) },
  responses: {
    200: { description: "The VM is ready", content: { "application/json": { schema: paidSchema } } },
    202: {
      description: "Provisioning (nothing was charged), or the payment is being settled: send the same request again",
      content: { "application/json": { schema: z.union([provisioningSchema, settlingSchema]) } },
    },
    ...paidErrorsOf(400, 401, 402, 404, 409, 502),
  },
});

const DISCOVERY = discoveryOf(
  "GET",
  { tokenId: "42" },
  { tokenId: { type: "string", description: "The NFT's token id; the payer has to own it." } },
  ["tokenId"],
  { tokenId: "42", host: "203.0.113.7", username: "root", sealedPrivateKey: "ecc:…", tier: 0, type: "gcp" },
);

export const credentialsDemand = ({ CREDENTIALS_PRICE_USDC }: EdgeConfig, tokenId?: string): Demand => ({
  amount: CREDENTIALS_PRICE_USDC,
  seconds: CREDENTIALS_SECONDS,
  path: `/x402/vm-credentials${tokenId === undefined ? "" : `?tokenId=${tokenId}`}`,
  description: "SSH credentials of a ClawCloud VM, for the owner of its token.",
  discovery: DISCOVERY,
});

const NO_KEY: GivenKey = { privateKey: null, deliveredAt: null, sealedPrivateKey: null };

export function mountPaidCredentials(app: Router): void {
  app.openapi(route, async (c) => {
    const { tokenId } = c.req.valid("query");
    const { config } = c.var;
    const now = Date.now();
    const till = await tillOf(config);
    const demand = credentialsDemand(config, tokenId);
    const payment = readPayment(c.req.raw.headers, config);
    c.header("Cache-Control", "no-store");
    if (payment === null) {
      throw await paymentRequired(
        till,
        config,
        demand,
        "Pay from the wallet that owns the token, then send the same request with the payment.",
      );
    }
    const checked = await checkPayment(c.var, till, payment, [demand]).catch(async (error: unknown) => {
      throw await misfit(c.var, till, payment, demand, error, now);
    });
    const request = requestHash(`credentials/${tokenId}`);
    const what = { request, tokenId: Number(tokenId) };
    const turnAway = async (error: unknown) => {
      throw await tellCharged(c.var, till, checked, what, error, now);
    };
    const admission = await admit(c, tokenId, checked, now).catch(turnAway);
    const { vm, door, view } = admission.sight;
    if (door === null || vm === null || vm.status === "provisioning" || vm.sshHost === null) {
      const age = vm === null ? null : view.blockTimestamp - beganAt(vm, config);
      c.header("Retry-After", String(pollAgainAfter(age, c.var.budget)));
      return c.json(await waitingBody(c.var, tokenId, vm, now), 202);
    }
    const known = await findClaim(c.var, checked);
    if (known !== null) requireSameRequest(known, checked, request);
    const answer = (row: Payment, key: GivenKey) => {
      const settleTx = row.settleTx ?? "";
      const receipt = receiptHeaders(config, checked.payment.authorization.from, settleTx);
      for (const [name, value] of Object.entries(receipt)) c.header(name, value);
      const paid = { purchaseId: row.id, amount: formatUsdc(BigInt(row.amount)), transaction: settleTx };
      return c.json({ ...credentialsBody(tokenId, door, key, admission.owner), payment: paid }, 200);
    };
    const isServed = known?.state === "settled" && known.servedAt !== null;
    if (isServed && admission.signed === null) {
      // Whoever sends it again, only the owner opens it.
      if (door.sealed === null) throw used(known);
      return answer(known, { privateKey: null, deliveredAt: vm.deliveredAt, sealedPrivateKey: door.sealed });
    }
    // Throws where there is no address to tell.
    credentialsBody(tokenId, door, NO_KEY, admission.owner);
    const offer = await prepare(c.var, door, checked, admission, now).catch(turnAway);
    if (isServed) return answer(known, await handOver(c.var, door, offer, admission, { served: known }, now));
    const paid = await takePayment(c.var, till, checked, what, { known, sight: admission.sight }, now);
    if ("pending" in paid) {
      c.header("Retry-After", PENDING_RETRY_AFTER);
      return c.json(pending(paid.pending, config), 202);
    }
    const { row } = paid;
    // From here on it is charged: whatever fails is asked for again with the same payment, or is paid back.
    const key = await handOver(c.var, door, offer, admission, { charged: row }, now);
    log("info", "credentials_paid", { tokenId, payment: row.id, sealed: key.privateKey === null });
    return answer(row, key);
  });
}

type Admitted = {
  sight: Sight;
  /** Lower case. */
  owner: string;
  /** Null where there is no signature of the owner's beside the payment. */
  signed: { fresh: boolean } | null;
  /** Throws where the signature was used before, and uses it up. */
  requireUnspent: () => Promise<void>;
  spend: () => Promise<void>;
};

/** The payer owns the token; a signature beside the payment is the same owner's. */
async function admit(c: Context<App>, tokenId: string, { payer, publicKey }: Checked, now: number): Promise<Admitted> {
  if (c.req.header("authorization") === undefined) {
    const sight = await admitHolder(c.var, Number(tokenId), getAddress(payer), now);
    if (publicKey === null) {
      throw new AppError(
        "signature_missing",
        "A smart wallet's payment has no public key to seal to: send the owner's signature as well (Authorization).",
      );
    }
    const nothing = async () => undefined;
    return { sight, owner: payer, signed: null, requireUnspent: nothing, spend: nothing };
  }
  const admission = await checkOwner(c, tokenId, "credentials", now);
  if (admission.owner.toLowerCase() !== payer)
    throw new AppError("not_owner", `The payer does not own token ${tokenId}.`);
  return {
    sight: admission,
    owner: payer,
    signed: { fresh: admission.signed.fresh !== null },
    requireUnspent: () => requireUnspent(c.var, admission),
    spend: () => spendNonce(c.var, admission),
  };
}

/** What the answer will hand out: a sealed key as it is, or the stored one by the rules of /credentials. */
type Offer = { sealed: string } | { clear: true };

/** Decides what would leave, with everything that could keep it from leaving; throws where it is nothing. Writes nothing. */
async function prepare(
  services: App["Variables"],
  door: Door,
  { publicKey }: Checked,
  { sight, owner, signed, requireUnspent: requireUnspentSignature }: Admitted,
  now: number,
): Promise<Offer> {
  const { config } = services;
  const { vm } = door;
  const again = signed === null ? door.sealed : null;
  const decide = (fresh: boolean) => deliveryDecision(vm, { owner, fresh, now, config });
  if (again === null && decide(signed?.fresh ?? true) === "withheld") {
    throw nothingToSell(door, decide(true) !== "withheld");
  }
  await requireUnspentSignature();
  await requireSecondWitness(services, vm.tokenId, sight.view, getAddress(owner), sight.scanned, now);
  if (again !== null) return { sealed: again };
  const key = await readStoredKey(vm, config);
  if (key === null) throw nothingToSell(door, false);
  if (signed !== null) return { clear: true };
  return { sealed: await encrypt(hexToBytes((publicKey ?? "").replace(/^0x/, "")), utf8ToBytes(key)) };
}

function nothingToSell({ vm: { tokenId }, broughtBy }: Door, isKept: boolean): AppError {
  const rest = `/credentials/${tokenId} tells the rest for a signature.`;
  if (broughtBy !== null) {
    const sentence = `The machine of token ${tokenId} opens with the key that its buyer brought, so there is none to sell: ${rest}`;
    return new AppError("key_brought", sentence);
  }
  if (!isKept) {
    return new AppError(
      "key_erased",
      `The key of token ${tokenId} is not kept any more, so there is nothing to sell: ${rest}`,
    );
  }
  return new AppError(
    "fresh_signature_required",
    `The key of token ${tokenId} comes by the fresh form of signature alone (X-Access-Message), or sealed without one.`,
  );
}

/** A settled row, or the one that is still on its way. */
async function takePayment(
  services: App["Variables"],
  till: Till,
  checked: Checked,
  what: PaidFor,
  { known, sight }: { known: Payment | null; sight: Sight },
  now: number,
): Promise<{ row: Payment } | { pending: Payment }> {
  // The request that settled it may be about to answer.
  if (known?.state === "settled") return isStale(known, now) ? { row: known } : { pending: known };
  if (known === null) {
    await requireWindow(services, till, checked, sight.view.blockTimestamp, now).catch(async (error: unknown) => {
      throw await misfit(services, till, checked.payment, checked.demand, error, now);
    });
    await requireRoom(services, "x402");
  }
  const row =
    known === null
      ? await claim(services, checked, { kind: "credentials", ...what }, sight.view, now)
      : await takeUp(services, known, checked, now);
  if (row === null) {
    const latest = known ?? (await findClaim(services, checked));
    if (latest === null || paymentStates[latest.state].wanted) {
      return { pending: latest ?? ({ id: checked.id } as Payment) };
    }
    throw used(latest);
  }
  const verified =
    row.state === "settling" ? ({ verdict: "valid" } as const) : await verify(services, till, row, checked);
  const settled =
    verified.verdict === "paid"
      ? await markSettled(services, row, verified, now)
      : verified.verdict === "unclear"
        ? null
        : await settle(services, till, row, checked, now);
  return settled === null ? { pending: row } : { row: settled };
}

/**
 * Hands out what was offered, in one write with the note that the payment was served. A sealed answer is not counted as the
 * key's delivery: whoever relays somebody's payment must not be able to spend that (hard case 1).
 */
async function handOver(
  services: App["Variables"],
  { vm }: Door,
  offer: Offer,
  { owner, signed, spend }: Admitted,
  paid: { charged: Payment } | { served: Payment },
  now: number,
): Promise<GivenKey> {
  const { db, config } = services;
  if ("sealed" in offer && "charged" in paid) {
    const sealed = await giveSealed(db, vm, { owner, sealed: offer.sealed, payment: paid.charged.id, now });
    if (sealed === null) throw await notServed(services, paid.charged.id, vm, now);
    return { privateKey: null, deliveredAt: vm.deliveredAt, sealedPrivateKey: sealed };
  }
  await spend();
  const delivery = { db, config, owner, now, fresh: signed?.fresh ?? false };
  const key = await deliverKey(vm, { ...delivery, ...("charged" in paid ? { payment: paid.charged.id } : {}) });
  if (key.privateKey !== null) return { ...key, sealedPrivateKey: null };
  throw "charged" in paid ? await notServed(services, paid.charged.id, vm, now) : handedOut();
}

/** Charged, and what was offered is gone: it goes back at once, unless another request has just handed it out. */
async function notServed({ db }: App["Variables"], id: string, vm: Vm, now: number): Promise<AppError> {
  const [row, latest] = [await loadPayment(db, id), await loadVm(db, vm.incarnation)];
  if (row === null) throw new Error("a payment that was charged has a row");
  if (row.state !== "settled" || row.servedAt !== null) return used(row);
  if (latest !== null && isSame(latest, vm) && latest.sshPrivateKey !== null) return handedOut();
  await movePayment(db, row, { state: "refund_due", step: "refund", reason: "not_served", wakeAt: now });
  return new AppError(
    "key_gone",
    "The key went while the payment was being taken: it is paid back, and GET /x402/purchases/{id} says when.",
    { details: [{ purchaseId: row.id }] },
  );
}

/** The machine that was asked about, and still its owner's. */
const isSame = (latest: Vm, vm: Vm): boolean =>
  latest.current &&
  latest.owner === vm.owner &&
  latest.attempt === vm.attempt &&
  (latest.status === "running" || latest.status === "expired");

const handedOut = (): AppError =>
  new AppError(
    "fresh_signature_required",
    "The key was handed out meanwhile: send the same payment again, with a new signature of the fresh form or without one.",
  );
