// Who owns a token: by a signature that the chain's owner made, as two sources see it where it matters.
import type { Context, MiddlewareHandler } from "hono";
import type { Address } from "viem";
import { ChainUnavailable, readToken, type TokenView } from "../../chain/client.ts";
import { factoryOf, isContractSignature, whyNotSigned } from "../../chain/contract-signature.ts";
import { askFirst, readAgreedToken } from "../../chain/witness.ts";
import { markFreshOwner } from "../../db/delivery.ts";
import { openDispute } from "../../db/disputes.ts";
import { paymentOfPurchase } from "../../db/payments.ts";
import { isNonceUsed, readTogether, statementsOf, useNonce } from "../../db/reads.ts";
import { refundOf } from "../../db/refunds.ts";
import type { Vm } from "../../db/schema.ts";
import { AppError } from "../../errors.ts";
import { log } from "../../log.ts";
import { parseIncarnation } from "../../model/purchase-key.ts";
import { wireRefund } from "../../model/refund.ts";
import type { App } from "../http.ts";
import { tokenIdSchema } from "../routes/schemas.ts";
import { knownFull, requireRoom } from "./admission.ts";
import { banRefusal } from "./bans.ts";
import { ACTIONS, type Action, readSignature, type Signed } from "./signature.ts";

const SETTLING_SECONDS = 3;

/**
 * A ban of the address does not shut out the owner of a token whose signature is recovered here without asking anybody:
 * who owns it, our own index says, and that only lifts the ban for this request (hard case 22).
 */
export const ownerIfBanned: MiddlewareHandler<App> = async (c, next) => {
  const { bannedUntil, db } = c.var;
  if (bannedUntil !== null) {
    const tokenId = tokenIdSchema.safeParse(c.req.param("tokenId")).data;
    const signed = tokenId === undefined ? null : await readSigned(c, Number(tokenId), actionOf(c)).catch(() => null);
    if (!(await isOwnerHere(db, Number(tokenId), signed?.signer))) throw banRefusal(bannedUntil, Date.now());
  }
  await next();
};

/** By our own index, which asks nobody. */
async function isOwnerHere(db: Services["db"], tokenId: number, signer: Address | null = null): Promise<boolean> {
  const [vm] = signer === null ? [] : await statementsOf(db).vmOfToken.all({ tokenId });
  return vm !== undefined && vm.owner === signer?.toLowerCase();
}
const actionOf = (c: Context<App>): Action => {
  const last = c.req.path.split("/").at(-1);
  return ACTIONS.find((action) => action === last) ?? "credentials";
};

type Services = App["Variables"];
export type Door = {
  vm: Vm;
  publicKey: string | null;
  hostPublicKey: string | null;
  /** The buyer whose own key it is, lower case. */
  broughtBy: string | null;
  /** What the owner was sold sealed, and when. */
  sealed: string | null;
  sealedAt: number | null;
  /** 1 where somebody beside the owner was given the key. */
  isHeldElsewhere: number;
};
/** A token as our rows and the chain show it at this moment. */
export type Sight = {
  door: Door | null;
  vm: Vm | null;
  view: TokenView;
  /** The last block that we scanned. */
  scanned: number;
};
export type Admission = Sight & { signed: Signed; owner: Address };

/**
 * Lets the owner in, or throws: 401, then 404, then 403 (hard case 7). Ownership and validity are the chain's at this
 * moment; our own tables never grant anything, but they veto.
 */
export async function admitOwner(
  c: Context<App>,
  tokenIdText: string,
  action: Action,
  now: number,
): Promise<Admission> {
  const admission = await checkOwner(c, tokenIdText, action, now);
  await spendNonce(c.var, admission);
  return admission;
}

/** The same, and a fresh signature is not used up yet: see `spendNonce`. */
export async function checkOwner(
  c: Context<App>,
  tokenIdText: string,
  action: Action,
  now: number,
): Promise<Admission> {
  const tokenId = Number(tokenIdText);
  const signed = await readSigned(c, tokenId, action, now);
  if (action !== "credentials" && signed.fresh === null) {
    throw new AppError("fresh_signature_required", "This takes the fresh form of signature (X-Access-Message).");
  }
  // Whoever is not the owner makes us ask the chain: a /48 has as many addresses, and allowances, as it likes (hard case 44).
  const full = knownFull(c.var, "looks");
  if (full !== null && !(await isOwnerHere(c.var.db, tokenId, signed.signer))) throw full;
  const sight = await seeToken(c.var, tokenId, now);
  if (signed.signer === null || signed.signer !== sight.view.owner) await requireRoom(c.var, "looks");
  const isOwner = await ownerSigned(c.var, sight.view.owner, signed);
  if (!isOwner && signed.problem !== null) throw signed.problem;
  const who = isOwner ? sight.view.owner : (signed.signer ?? null);
  const hint = factoryHint(c.var, signed);
  const owner = await requireHolder(c.var, sight, tokenId, who, action, now, hint).catch(async (error: unknown) => {
    const { owner: account } = sight.view;
    if (!(error instanceof AppError) || error.code !== "not_owner" || account === null) throw error;
    // Through a factory a wallet was asked, or the hint says why not.
    if (factoryOf(signed.signature) !== null) throw error;
    // A smart wallet that is not deployed can't be asked.
    const why = await whyNotSigned(c.var.chain, account, signed.signature, error.message);
    throw new AppError("not_owner", why, { cause: error });
  });
  return { ...sight, signed, owner };
}

/** Lets in whoever owns the token by what the chain says, given the account that somebody else has proved to be his. */
export async function admitHolder(services: Services, tokenId: number, holder: Address, now: number): Promise<Sight> {
  const sight = await seeToken(services, tokenId, now);
  await requireHolder(services, sight, tokenId, holder, "credentials", now);
  return sight;
}

async function seeToken({ db, chain, config }: Services, tokenId: number, now: number): Promise<Sight> {
  const { doorOfToken, cursor } = statementsOf(db);
  const [[doors, cursors], first] = await Promise.all([
    readTogether(db, [doorOfToken, cursor], { tokenId }),
    askFirst(chain, (node) => readToken(chain, node, BigInt(tokenId))).catch((error: Error) => error),
  ]);
  const door = doors[0] ?? null;
  const vm = door?.vm ?? null;
  if (vm !== null) requireSameToken(vm, tokenId, config);
  const scanned = cursors[0]?.blockNumber ?? 0;
  const usable = (view: TokenView) => isUsable(view, scanned, config.CHAIN_MAX_AGE_SECONDS, now);
  if (first instanceof Error) throw first;
  const view = usable(first) ? first : await askFirst(chain, (node) => readToken(chain, node, BigInt(tokenId)), usable);
  if (vm === null || isExpected(view, vm)) return { door, vm, view, scanned };
  // One node, or our rows: the owner is not turned away on one node's word.
  const agreed = await readAgreedToken(chain, tokenId).catch(() => view);
  return { door, vm, view: usable(agreed) ? agreed : view, scanned };
}

/** Whether the chain, as one node shows it, is as our rows have it. */
const isExpected = ({ owner, valid, blockTimestamp }: TokenView, vm: Vm): boolean =>
  (owner?.toLowerCase() ?? "") === vm.owner && (valid || blockTimestamp >= vm.expiresAt);

/** Paid for over x402, and still ours: its payer has read that it is settled, and comes at once. */
async function isOnItsWay({ db, config }: Services, vm: Vm, owner: Address, who: Address | null): Promise<boolean> {
  if (who === null || owner.toLowerCase() !== config.X402_PAY_TO?.toLowerCase()) return false;
  const payment = await paymentOfPurchase(db, vm.incarnation);
  return payment?.state === "settled" && payment.step !== "idle" && payment.payer === who.toLowerCase();
}

/** `who`: the account that asks, null where its signature is of none; `hint`: what it may try. Resolves with the owner. */
async function requireHolder(
  services: Services,
  { vm, view }: Sight,
  tokenId: number,
  who: Address | null,
  action: Action,
  now: number,
  hint = "",
): Promise<Address> {
  const { db } = services;
  if (view.owner === null) {
    if (vm !== null && vm.owner === "")
      throw new AppError("vm_terminated", `Token ${tokenId} was burned and its VM ended.`);
    throw new AppError("token_not_found", `There is no token ${tokenId}.`);
  }
  if (vm?.status === "terminated") throw new AppError("vm_terminated", `The VM of token ${tokenId} was ended.`);
  if (vm?.status === "failed" && action !== "refund") {
    const { refund } = wireRefund(await refundOf(db, vm.incarnation));
    const rest = refund === undefined ? "an operator has the case" : `its refund is ${refund.state}`;
    throw new AppError("vm_failed", `No vendor could provide the VM of token ${tokenId}; ${rest}.`, {
      details: [{ cause: vm.failure, ...(refund === undefined ? {} : { refund }) }],
    });
  }
  if (who !== view.owner) {
    if (vm !== null && (await isOnItsWay(services, vm, view.owner, who))) {
      throw new AppError("ownership_settling", "The token is on its way to its payer; try again in a few seconds.", {
        retryAfterSeconds: SETTLING_SECONDS,
      });
    }
    throw new AppError("not_owner", `${who ?? "Whoever signed"} does not own token ${tokenId}.${hint}`);
  }
  if (!view.valid && action !== "refund")
    throw new AppError("token_expired", `The paid time of token ${tokenId} is over.`);
  if (vm !== null && vm.owner !== view.owner.toLowerCase()) {
    // A transfer that one of the two has not seen: a few seconds settle it, or else the sweep does.
    await openDispute(db, tokenId, now);
    throw new AppError("ownership_settling", "A transfer of this token is settling; try again in a few seconds.", {
      retryAfterSeconds: SETTLING_SECONDS,
    });
  }
  return view.owner;
}

/** Throws 401 where a fresh signature was used before: known before a charge, and used up after it. */
export async function requireUnspent({ db }: Services, { signed, owner }: Admission): Promise<void> {
  if (signed.fresh !== null && (await isNonceUsed(db, owner, signed.fresh.nonce))) throw nonceUsed();
}

const nonceUsed = () =>
  new AppError("nonce_used", "This fresh signature was used before: sign a new one with another nonce.");

/** Uses a fresh signature up, and notes that its owner has the fresh form. Throws 401 where it was used before. */
export async function spendNonce({ db }: Services, { signed, vm, owner: account }: Admission): Promise<void> {
  if (signed.fresh === null) return;
  if (!(await useNonce(db, account, signed.fresh.nonce, signed.fresh.expiresAt))) throw nonceUsed();
  const owner = account.toLowerCase();
  if (vm !== null && vm.freshOwner !== owner) await markFreshOwner(db, vm.incarnation, owner);
}

/** By a plain account's signature, or by what a contract that owns the token says of it. */
async function ownerSigned({ chain, config }: Services, owner: Address | null, signed: Signed): Promise<boolean> {
  if (owner === null || signed.signer === owner) return owner !== null;
  return isContractSignature(chain, owner, { ...signed, factories: config.WALLET_FACTORIES });
}

/** For a smart wallet that is not deployed yet, and whose factory we do not run. */
function factoryHint({ config }: Services, { signature }: Signed): string {
  const factory = factoryOf(signature);
  if (factory === null || config.WALLET_FACTORIES.includes(factory)) return "";
  return ` The signature names a factory that is not known here, ${factory}: deploy the smart wallet first.`;
}

const readSigned = (c: Context<App>, tokenId: number, action: Action, now = Date.now()): Promise<Signed> =>
  readSignature({
    authorization: c.req.header("authorization"),
    accessMessage: c.req.header("x-access-message"),
    host: new URL(c.req.url).host,
    tokenId,
    action,
    config: c.var.config,
    now,
  });

/** Not older than what we scanned, nor than a node that stands still may be. */
const isUsable = (view: TokenView, scanned: number, maxAgeSeconds: number, now: number): boolean =>
  view.blockNumber >= scanned && now / 1_000 - view.blockTimestamp <= maxAgeSeconds;

/** A row that names another token than its key was somebody's work (hard case 6). */
function requireSameToken(vm: Vm, tokenId: number, config: Services["config"]): void {
  const of = parseIncarnation(vm.incarnation);
  const same =
    of.tokenId === tokenId &&
    of.contract === config.CONTRACT_ADDRESS.toLowerCase() &&
    of.deploymentId === config.DEPLOYMENT_ID;
  if (same) return;
  log("security", "row_of_another_token", { tokenId, incarnation: vm.incarnation });
  throw new AppError("internal_error", `The row of token ${tokenId} belongs to another incarnation.`);
}

/** Two nodes, both up to date, have to see this owner. */
export async function requireSecondWitness(
  { chain, config }: Services,
  tokenId: number,
  view: TokenView,
  owner: Address,
  scanned: number,
  now: number,
): Promise<void> {
  const agreed = await readAgreedToken(chain, tokenId);
  if (!isUsable(agreed, scanned, config.CHAIN_MAX_AGE_SECONDS, now)) throw new ChainUnavailable();
  if (agreed.owner === owner && agreed.valid === view.valid) return;
  throw new AppError("ownership_settling", "The chain's nodes disagree about this token; try again in a few seconds.", {
    retryAfterSeconds: SETTLING_SECONDS,
  });
}
