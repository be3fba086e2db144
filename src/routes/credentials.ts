import { createRoute, z } from "@hono/zod-openapi";
import type { Context, MiddlewareHandler } from "hono";
import type { Address } from "viem";
import { limitedEvenIfBanned } from "../access/admission.ts";
import { banRefusal } from "../access/bans.ts";
import { jsonBody, limitedBody } from "../access/body.ts";
import { type Action, readSignature, type Signed } from "../access/signature.ts";
import type { App, Router } from "../app.ts";
import { askFirst, askTwo, type Chain, isContractSignature, readToken, type TokenView } from "../chain/client.ts";
import { parseIncarnation } from "../chain/incarnation.ts";
import { fingerprint, knownHostsLine } from "../credentials/ssh-keys.ts";
import { acknowledge, markFreshOwner } from "../db/delivery.ts";
import { openDispute } from "../db/disputes.ts";
import { readTogether, statementsOf, useNonce } from "../db/reads.ts";
import type { Vm } from "../db/vms.ts";
import { AppError } from "../errors.ts";
import { log } from "../log.ts";
import { deliverKey, deliveryDecision } from "../vms/delivery.ts";
import { STEP_SENTENCES } from "../vms/states.ts";
import { wireType } from "../vms/tiers.ts";
import { errorsOf, isoOf, isoOfChain, isoTime, tokenIdSchema, wireTypeSchema } from "./schemas.ts";

const SETTLING_SECONDS = 3;
// Thirty requests an hour: every ten seconds while most machines come up, then seldom. `/status` allows 100 a minute.
const FIRST_WAIT_SECONDS = 10;
const FIRST_WAITS_UNTIL_SECONDS = 120;
const LATER_WAIT_SECONDS = 240;
const USERNAME = "root";

const params = z.object({ tokenId: tokenIdSchema });
// A HEAD would run the handler and drop the body, and the key's one delivery with it.
const refuseHead: MiddlewareHandler<App> = async (c, next) => {
  if (c.req.method === "HEAD") throw new AppError("method_not_allowed", "HEAD is not allowed here; use GET.");
  await next();
};
/**
 * A ban of the address does not shut out the owner of a token whose signature is recovered here without asking anybody:
 * who owns it, our own index says, and that only lifts the ban for this request (hard case 22).
 */
const ownerIfBanned: MiddlewareHandler<App> = async (c, next) => {
  const { bannedUntil, db } = c.var;
  if (bannedUntil !== null) {
    const tokenId = tokenIdSchema.safeParse(c.req.param("tokenId")).data;
    const signed = tokenId === undefined ? null : await readSigned(c, Number(tokenId), actionOf(c)).catch(() => null);
    const [vm] = signed?.signer == null ? [] : await statementsOf(db).vmOfToken.all({ tokenId: Number(tokenId) });
    if (vm === undefined || vm.owner !== signed?.signer?.toLowerCase()) throw banRefusal(bannedUntil, Date.now());
  }
  await next();
};
const actionOf = (c: Context<App>): Action => (c.req.path.endsWith("/ack") ? "ack" : "credentials");
// Read by hand: a missing or malformed one is 401, not 400.
const SIGNED = {
  security: [{ walletSignature: [] }],
  parameters: [
    {
      in: "header",
      name: "X-Access-Message",
      schema: { type: "string" },
      description:
        "The fresh message in base64: the same first line, then the lines `Domain: `, `URI: `, `Chain ID: `, `Contract: `, `Nonce: `, `Issued At: ` as in EIP-4361. Good for 5 minutes, once.",
    },
  ],
} satisfies Partial<Parameters<typeof createRoute>[0]>;

const credentialsSchema = z
  .object({
    tokenId: z.string(),
    host: z.string(),
    username: z.string(),
    privateKey: z.string().nullable().openapi({ description: "null for gpu-external: see ssh.privateKey" }),
    tier: z.number(),
    type: wireTypeSchema,
    expiresAt: isoTime,
    instructions: z
      .string()
      .openapi({ description: "The SSH command; save ssh.privateKey under the name in it first." }),
    ssh: z.object({
      port: z.number(),
      privateKey: z.string().nullable().openapi({ description: "Handed out once; null afterwards" }),
      publicKey: z.string(),
      fingerprint: z.string(),
      knownHosts: z.string().nullable(),
      deliveredAt: isoTime.nullable(),
    }),
  })
  .openapi("Credentials");

const provisioningSchema = z
  .object({
    tokenId: z.string(),
    status: z.literal("provisioning"),
    step: z.string(),
    message: z.string(),
    attempts: z.number(),
    statusUrl: z.string(),
  })
  .openapi("Provisioning");

const readRoute = createRoute({
  method: "get",
  path: "/credentials/{tokenId}",
  summary: "SSH credentials, for the token's owner",
  middleware: [limitedEvenIfBanned("credentials"), refuseHead, ownerIfBanned] as const,
  ...SIGNED,
  request: { params },
  responses: {
    200: { description: "The VM is ready", content: { "application/json": { schema: credentialsSchema } } },
    202: {
      description: "Provisioning; ask again after Retry-After",
      content: { "application/json": { schema: provisioningSchema } },
    },
    ...errorsOf(400, 401, 404, 502, 503),
  },
});

const ackRoute = createRoute({
  method: "post",
  path: "/credentials/{tokenId}/ack",
  summary: "The owner has the key: erase the stored copy",
  description: "Fresh form of signature only, its URI naming this path. 409 before the key was delivered.",
  middleware: [limitedEvenIfBanned("credentials"), ownerIfBanned, limitedBody, jsonBody] as const,
  ...SIGNED,
  request: { params },
  responses: {
    200: {
      description: "Erased",
      content: {
        "application/json": {
          schema: z.object({ tokenId: z.string(), deliveredAt: isoTime, acknowledgedAt: isoTime }),
        },
      },
    },
    ...errorsOf(400, 401, 404, 409, 413, 415, 502, 503),
  },
});

export function mountCredentials(app: Router): void {
  app.openAPIRegistry.registerComponent("securitySchemes", "walletSignature", {
    type: "http",
    scheme: "bearer",
    bearerFormat: "0x…, EIP-191",
    description:
      "The owner's EIP-191 signature of `ClawCloud Access Request: {tokenId}` (the fixed form, where the service takes it) or of the fresh message: 65 bytes of a plain account, or what a smart wallet gives, deployed (ERC-1271) or not yet (ERC-6492).",
  });
  app.openapi(readRoute, async (c) => {
    const { tokenId } = c.req.valid("param");
    const now = Date.now();
    const { door, vm, view, signed, owner, scanned } = await admit(c, tokenId, "credentials", now);
    c.header("Cache-Control", "no-store");
    if (door === null || vm === null || vm.status === "provisioning") {
      const age = vm === null ? 0 : view.blockTimestamp - vm.createdAt;
      c.header("Retry-After", String(age < FIRST_WAITS_UNTIL_SECONDS ? FIRST_WAIT_SECONDS : LATER_WAIT_SECONDS));
      const step = vm?.step ?? "create";
      return c.json(
        {
          tokenId,
          status: "provisioning" as const,
          step,
          message: STEP_SENTENCES[step],
          attempts: vm?.attempt ?? 0,
          statusUrl: `${c.var.config.PUBLIC_URLS[0]}/status/${tokenId}`,
        },
        202,
      );
    }
    const delivery = {
      db: c.var.db,
      config: c.var.config,
      owner: owner.toLowerCase(),
      fresh: signed.fresh !== null,
      now,
    };
    // A private key's first delivery takes two witnesses; everything else one.
    if (deliveryDecision(vm, delivery) === "first")
      await requireSecondWitness(c.var, vm.tokenId, view, owner, scanned, now);
    const { privateKey, deliveredAt } = await deliverKey(vm, delivery);
    if (privateKey !== null) log("info", "key_delivered", { requestId: c.get("requestId"), tokenId });
    return c.json(credentialsBody(tokenId, door, privateKey, deliveredAt), 200);
  });

  app.openapi(ackRoute, async (c) => {
    const { tokenId } = c.req.valid("param");
    const now = Date.now();
    const { vm, owner } = await admit(c, tokenId, "ack", now);
    // What another owner was given is not this one's to acknowledge.
    if (vm === null || vm.deliveredAt === null || vm.deliveredTo !== owner.toLowerCase()) {
      throw new AppError("not_delivered", "The key was not delivered yet: fetch /credentials first.");
    }
    await acknowledge(c.var.db, vm.incarnation, now);
    const acknowledgedAt = isoOf(vm.acknowledgedAt ?? now) ?? "";
    return c.json({ tokenId, deliveredAt: isoOf(vm.deliveredAt) ?? "", acknowledgedAt }, 200);
  });
}

type Services = App["Variables"];
type Door = { vm: Vm; publicKey: string | null; hostPublicKey: string | null };
type Admission = {
  door: Door | null;
  vm: Vm | null;
  view: TokenView;
  signed: Signed;
  owner: Address;
  /** The last block that we scanned. */
  scanned: number;
};

/**
 * Lets the owner in, or throws: 401, then 404, then 403 (hard case 7). Ownership and validity are the chain's at this
 * moment; our own tables never grant anything, but they veto.
 */
async function admit(c: Context<App>, tokenIdText: string, action: Action, now: number): Promise<Admission> {
  const { db, chain, config } = c.var;
  const tokenId = Number(tokenIdText);
  const signed = await readSigned(c, tokenId, action, now);
  if (action === "ack" && signed.fresh === null) {
    throw new AppError(
      "fresh_signature_required",
      "Acknowledging takes the fresh form of signature (X-Access-Message).",
    );
  }
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

  const isOwner = await ownerSigned(chain, view.owner, signed);
  if (!isOwner && signed.problem !== null) throw signed.problem;
  if (view.owner === null) {
    if (vm !== null && vm.owner === "")
      throw new AppError("vm_terminated", `Token ${tokenId} was burned and its VM ended.`);
    throw new AppError("token_not_found", `There is no token ${tokenId}.`);
  }
  if (vm?.status === "terminated") throw new AppError("vm_terminated", `The VM of token ${tokenId} was ended.`);
  if (vm?.status === "failed") {
    throw new AppError("vm_failed", `No vendor could provide the VM of token ${tokenId}; an operator has the case.`, {
      details: [{ cause: vm.failure }],
    });
  }
  if (!isOwner) throw new AppError("not_owner", `${signed.signer ?? "Whoever signed"} does not own token ${tokenId}.`);
  if (!view.valid) throw new AppError("token_expired", `The paid time of token ${tokenId} is over.`);
  if (vm !== null && vm.owner !== view.owner.toLowerCase()) {
    // A transfer that one of the two has not seen: a few seconds settle it, or else the sweep does.
    await openDispute(db, tokenId, now);
    throw new AppError("ownership_settling", "A transfer of this token is settling; try again in a few seconds.", {
      retryAfterSeconds: SETTLING_SECONDS,
    });
  }
  if (signed.fresh !== null && !(await useNonce(db, view.owner, signed.fresh.nonce, signed.fresh.expiresAt))) {
    throw new AppError("nonce_used", "This fresh signature was used before: sign a new one with another nonce.");
  }
  const owner = view.owner.toLowerCase();
  if (signed.fresh !== null && vm !== null && vm.freshOwner !== owner) {
    await markFreshOwner(db, vm.incarnation, owner);
  }
  return { door, vm, view, signed, owner: view.owner, scanned };
}

/** By a plain account's signature, or by what a contract that owns the token says of it. */
async function ownerSigned(chain: Chain, owner: Address | null, signed: Signed): Promise<boolean> {
  if (owner === null || signed.signer === owner) return owner !== null;
  const plain = signed.signer !== null || signed.problem !== null;
  return isContractSignature(chain, owner, { ...signed, plain });
}

const readSigned = (c: Context<App>, tokenId: number, action: Action, now = Date.now()): Promise<Signed> =>
  readSignature({
    authorization: c.req.header("authorization"),
    accessMessage: c.req.header("x-access-message"),
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
async function requireSecondWitness(
  { chain, config }: Services,
  tokenId: number,
  view: TokenView,
  owner: Address,
  scanned: number,
  now: number,
): Promise<void> {
  const agreed = await askTwo(
    chain,
    async (node) => {
      const seen = await readToken(chain, node, BigInt(tokenId));
      if (isUsable(seen, scanned, config.CHAIN_MAX_AGE_SECONDS, now)) return seen;
      throw new AppError("chain_unavailable", "A node is behind.");
    },
    (seen) => `${seen.owner}/${seen.valid}`,
  );
  if (agreed.owner === owner && agreed.valid === view.valid) return;
  throw new AppError("ownership_settling", "The chain's nodes disagree about this token; try again in a few seconds.", {
    retryAfterSeconds: SETTLING_SECONDS,
  });
}

function credentialsBody(tokenId: string, door: Door, privateKey: string | null, deliveredAt: number | null) {
  const { vm, publicKey, hostPublicKey } = door;
  const { sshHost: host, sshPort: port } = vm;
  if (host === null || port === null || publicKey === null) {
    throw new AppError("internal_error", `The running VM of token ${tokenId} has no address or key.`);
  }
  const type = wireType(vm.vmType);
  return {
    tokenId,
    host,
    username: USERNAME,
    privateKey: type === "gcp" ? privateKey : null,
    tier: vm.tier,
    type,
    expiresAt: isoOfChain(vm.expiresAt),
    instructions: `ssh -i clawcloud-${tokenId}.pem -o StrictHostKeyChecking=accept-new -p ${port} ${USERNAME}@${host}`,
    ssh: {
      port,
      privateKey,
      publicKey,
      fingerprint: fingerprint(publicKey),
      // Unknown for machines that were imported.
      knownHosts: hostPublicKey === null || hostPublicKey === "" ? null : knownHostsLine(host, port, hostPublicKey),
      deliveredAt: isoOf(deliveredAt),
    },
  };
}
