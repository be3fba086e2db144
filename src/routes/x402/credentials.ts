// GET /x402/vm-credentials: a token's credentials for a small payment by its owner. A payment is no login (hard case 1): it
// may have been signed for somebody else's site. So keys go out beside the owner's own signature, or sealed to the payer.
import { createRoute, z } from "@hono/zod-openapi";
import { hexToBytes, utf8ToBytes } from "@noble/hashes/utils.js";
import type { Context } from "hono";
import { getAddress } from "viem";
import { admitHolder, checkOwner, requireSecondWitness, type Sight, spendNonce } from "../../access/owner.ts";
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
} from "../../access/payment-gate.ts";
import { chargedOf } from "../../access/payment-use.ts";
import {
  type Demand,
  paymentRequired,
  readPayment,
  receiptHeaders,
  type Till,
  tillOf,
} from "../../access/payment-wire.ts";
import type { App, Router } from "../../app.ts";
import { formatUsdc } from "../../chain/contract.ts";
import type { EdgeConfig } from "../../config.ts";
import { encrypt } from "../../credentials/ecies.ts";
import { markServed, type Payment } from "../../db/payments.ts";
import { AppError } from "../../errors.ts";
import { log } from "../../log.ts";
import { deliverKey, readStoredKey } from "../../vms/delivery.ts";
import { CREDENTIALS_SECONDS } from "../../vms/payments.ts";
import { pollAgainAfter } from "../../vms/waits.ts";
import {
  beganAt,
  credentialsBody,
  credentialsSchema,
  provisioningBody,
  provisioningSchema,
  refuseHead,
} from "../credentials.ts";
import { paidErrorsOf, tokenIdSchema } from "../schemas.ts";
import { discoveryOf, PAYMENT_HEADERS, paidRoute, settlingSchema } from "./shared.ts";

const paidSchema = credentialsSchema
  .extend({
    sealedPrivateKey: z.string().nullable().openapi({
      description:
        "Without the owner's signature: the key, encrypted to the payer's public key as `ecc:<ephemeral key>:<iv>:<tag>:<ciphertext>` (ECIES, eciesjs 0.5)",
    }),
    payment: z.object({ purchaseId: z.string(), amount: z.string(), transaction: z.string() }),
  })
  .openapi("PaidCredentials");

const route = createRoute({
  method: "get",
  path: "/x402/vm-credentials",
  summary: "SSH credentials for a payment by the token's owner",
  description:
    "x402 of either version. The payer has to own the token; that is checked before anything is charged, and nobody pays for a 202, 403 or 404. With the owner's signature (`Authorization`, as for /credentials) the body is that of /credentials; without it the key comes sealed to the payer's public key. Payments of smart wallets have no public key: they need the signature. The same payment, or another with the same payment-identifier, is never charged twice.",
  middleware: [...paidRoute, refuseHead] as const,
  parameters: PAYMENT_HEADERS,
  request: { query: z.object({ tokenId: tokenIdSchema.openapi({ param: { name: "tokenId", in: "query" } }) }) },
  responses: {
    200: { description: "The VM is ready", content: { "application/json": { schema: paidSchema } } },
    202: {
      description: "Provisioning (nothing was charged), or the payment is being settled: send the same request again",
      content: { "application/json": { schema: z.union([provisioningSchema, settlingSchema]) } },
    },
    ...paidErrorsOf(400, 401, 402, 404, 409, 502, 503),
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
    const checked = await checkPayment(c.var, till, payment, [demand]);
    const admission = await admit(c, tokenId, checked, now);
    const { vm, door, view } = admission.sight;
    if (door === null || vm === null || vm.status === "provisioning" || vm.sshHost === null) {
      const age = vm === null ? null : view.blockTimestamp - beganAt(vm, config);
      c.header("Retry-After", String(pollAgainAfter(age, c.var.budget)));
      return c.json(provisioningBody(config, tokenId, vm?.step ?? "create", vm?.attempt ?? 0), 202);
    }
    if (vm.sshPrivateKey === null && admission.signed === null) {
      throw new AppError(
        "key_erased",
        `The key of token ${tokenId} is not kept any more, so there is nothing to sell: /credentials/${tokenId} tells the rest for a signature.`,
      );
    }
    const request = requestHash(`credentials/${tokenId}`);
    const paid = await takePayment(c.var, till, checked, { request, tokenId: Number(tokenId) }, admission, now);
    if ("pending" in paid) {
      c.header("Retry-After", PENDING_RETRY_AFTER);
      return c.json(pending(paid.pending, config), 202);
    }
    const { row } = paid;
    await admission.spend();
    const key = await keyFor(c, checked, admission, now);
    if ((await markServed(c.var.db, row.id, now)) === null) throw used(row);
    log("info", "credentials_paid", { tokenId, payment: row.id, sealed: key.sealedPrivateKey !== null });
    const settleTx = row.settleTx ?? "";
    for (const [name, value] of Object.entries(receiptHeaders(config, checked.payment.authorization.from, settleTx)))
      c.header(name, value);
    return c.json(
      {
        ...credentialsBody(tokenId, door, key.privateKey, key.deliveredAt, admission.owner),
        sealedPrivateKey: key.sealedPrivateKey,
        payment: { purchaseId: row.id, amount: formatUsdc(BigInt(row.amount)), transaction: settleTx },
      },
      200,
    );
  });
}

type Admitted = {
  sight: Sight;
  /** Lower case. */
  owner: string;
  /** Null where there is no signature of the owner's beside the payment. */
  signed: { fresh: boolean } | null;
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
    return { sight, owner: payer, signed: null, spend: async () => undefined };
  }
  const admission = await checkOwner(c, tokenId, "credentials", now);
  if (admission.owner.toLowerCase() !== payer)
    throw new AppError("not_owner", `The payer does not own token ${tokenId}.`);
  return {
    sight: admission,
    owner: payer,
    signed: { fresh: admission.signed.fresh !== null },
    spend: () => spendNonce(c.var, admission),
  };
}

/** A settled row, or the one that is still on its way. Whatever was served already is served again to its owner alone. */
async function takePayment(
  services: App["Variables"],
  till: Till,
  checked: Checked,
  what: { request: string; tokenId: number },
  { sight, signed }: Admitted,
  now: number,
): Promise<{ row: Payment } | { pending: Payment }> {
  const known = await findClaim(services, checked);
  if (known !== null) requireSameRequest(known, checked, what.request);
  if (known?.state === "settled") {
    // The request that settled it may be about to answer.
    if (known.servedAt === null && !isStale(known, now)) return { pending: known };
    const isNamed = checked.payment.identifier !== null && known.identifier === checked.payment.identifier;
    if (known.servedAt === null || isNamed || signed !== null) return { row: known };
    throw used(known);
  }
  if (known === null) await requireWindow(services, till, checked, sight.view.blockTimestamp, now);
  const row =
    known === null
      ? await claim(services, checked, { kind: "credentials", ...what }, sight.view, now)
      : await takeUp(services, known, checked, now);
  if (row === null) {
    const latest = known ?? (await findClaim(services, checked));
    if (latest === null || ["claimed", "settling", "settled"].includes(latest.state)) {
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

const used = (row: Payment): AppError =>
  new AppError(
    "payment_used",
    "This payment was used before. GET /x402/purchases/{id} says what became of it; for the key again, send the owner's signature beside it.",
    {
      details: [{ purchaseId: row.id, state: row.state, transaction: row.settleTx }],
      charged: chargedOf(row),
    },
  );

/**
 * In clear by the rules of /credentials where the owner signed for it. Sealed, it is not counted as the delivery: whoever
 * relays somebody's payment must not be able to spend that.
 */
async function keyFor(c: Context<App>, { publicKey }: Checked, { sight, owner, signed }: Admitted, now: number) {
  const { vm, view, scanned } = sight;
  if (vm === null) throw new Error("a machine that runs has a row");
  await requireSecondWitness(c.var, vm.tokenId, view, getAddress(owner), scanned, now);
  const delivery = { db: c.var.db, config: c.var.config, owner, now, fresh: signed?.fresh ?? true };
  if (signed !== null) return { ...(await deliverKey(vm, delivery)), sealedPrivateKey: null };
  const key = await readStoredKey(vm, delivery);
  const sealed =
    key === null ? null : await encrypt(hexToBytes((publicKey ?? "").replace(/^0x/, "")), utf8ToBytes(key));
  return { privateKey: null, deliveredAt: vm.deliveredAt, sealedPrivateKey: sealed };
}
