import { createRoute, z } from "@hono/zod-openapi";
import type { MiddlewareHandler } from "hono";
import { fingerprint, knownHostsLine } from "../../credentials/ssh-keys.ts";
import { acknowledge, orderRotation } from "../../db/delivery.ts";
import { statementsOf } from "../../db/reads.ts";
import { claimRefund, refundOf } from "../../db/refunds.ts";
import type { Vm } from "../../db/schema.ts";
import { AppError } from "../../errors.ts";
import { log } from "../../log.ts";
import { STEP_SENTENCES } from "../../model/machine-life.ts";
import { portsOf } from "../../model/ports.ts";
import { wireRefund } from "../../model/refund.ts";
import { deliveryOf } from "../../model/shop.ts";
import { wireType } from "../../model/tiers.ts";
import { countRotation, limitedEvenIfBanned } from "../access/admission.ts";
import { jsonBody, limitedBody } from "../access/body.ts";
import { admitOwner, type Door, ownerIfBanned, requireSecondWitness } from "../access/owner.ts";
import { deliverKey, deliveryDecision } from "../delivery.ts";
import type { App, Router } from "../http.ts";
import { enqueue } from "../sweep.ts";
import { pollAgainAfter } from "../waits.ts";
import {
  deliverySchema,
  errorsOf,
  isoOf,
  isoOfChain,
  isoTime,
  portSchema,
  refundSchema,
  tokenIdSchema,
  wireDelivery,
  wireTypeSchema,
} from "./schemas.ts";

const USERNAME = "root";

const params = z.object({ tokenId: tokenIdSchema });
// A HEAD would run the handler and drop the body, and the key's one delivery with it.
export const refuseHead: MiddlewareHandler<App> = async (c, next) => {
  if (c.req.method === "HEAD") throw new AppError("method_not_allowed", "HEAD is not allowed here; use GET.");
  await next();
};
// Read by hand: a missing or malformed one is 401, not 400.
const SIGNED = {
  security: [{ walletSignature: [] }],
  parameters: [
    {
      in: "header",
      name: "X-Access-Message",
      schema: { type: "string" },
      description:
        "The fresh message in base64: the same first line, then the lines `Domain: ` (the host that is asked), `URI: `, `Chain ID: `, `Contract: `, `Nonce: `, `Issued At: ` and, where they are wanted, `Expiration Time: ` and `Not Before: ` as in EIP-4361; no other. Good for 5 minutes at most, once.",
    },
  ],
} satisfies Partial<Parameters<typeof createRoute>[0]>;

export const credentialsSchema = z
  .object({
    tokenId: z.string(),
    host: z.string(),
    username: z.string(),
    privateKey: z.string().nullable().openapi({ description: "null for gpu-external: see ssh.privateKey" }),
    sealedPrivateKey: z.string().nullable().openapi({
      description:
        "What the owner was sold sealed over x402 (/x402/vm-credentials): the key, encrypted to the owner's public key as `ecc:<ephemeral key>:<iv>:<tag>:<ciphertext>` (ECIES, eciesjs 0.5). The same text until it is acknowledged.",
    }),
    tier: z.number(),
    type: wireTypeSchema,
    expiresAt: isoTime,
    instructions: z
      .string()
      .openapi({ description: "The SSH command; save ssh.privateKey under the name in it first." }),
    ports: z
      .array(portSchema)
      .openapi({ description: "TCP ports that are open beside SSH; none unless its order asked for them" }),
    ssh: z.object({
      port: z.number(),
      privateKey: z.string().nullable().openapi({ description: "Handed out once; null afterwards" }),
      publicKey: z.string(),
      fingerprint: z.string(),
      knownHosts: z.string().nullable(),
      deliveredAt: isoTime.nullable(),
      knownToFormerOwner: z.boolean().openapi({
        description:
          "true: somebody beside the token's owner may have this key, as a former owner who was given it, in clear or sealed, or brought it. POST /credentials/{tokenId}/rotate gives the machine another one.",
      }),
    }),
  })
  .openapi("Credentials");

export const provisioningSchema = z
  .object({
    tokenId: z.string(),
    status: z.literal("provisioning"),
    step: z.string(),
    message: z.string(),
    attempts: z.number(),
    statusUrl: z.string(),
    delivery: deliverySchema.optional(),
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
    ...errorsOf(400, 401, 404, 502),
  },
});

/** A POST by the owner, whose fresh signature names the path. */
const OWNERS_ORDER = {
  method: "post" as const,
  middleware: [limitedEvenIfBanned("credentials"), ownerIfBanned, limitedBody, jsonBody],
  ...SIGNED,
  request: { params },
};

const ackRoute = createRoute({
  ...OWNERS_ORDER,
  path: "/credentials/{tokenId}/ack",
  summary: "The owner has the key: erase the stored copy",
  description: "Fresh form of signature only, its URI naming this path. 409 before the key was delivered.",
  responses: {
    200: {
      description: "Erased",
      content: {
        "application/json": {
          schema: z.object({ tokenId: z.string(), deliveredAt: isoTime, acknowledgedAt: isoTime }),
        },
      },
    },
    ...errorsOf(400, 401, 404, 409, 413, 415, 502),
  },
});

const rotateRoute = createRoute({
  ...OWNERS_ORDER,
  path: "/credentials/{tokenId}/rotate",
  summary: "Give the machine another key",
  description:
    "Fresh form of signature only, its URI naming this path. Login key and host key are new and everything on the machine is lost: a VM is reinstalled, a GPU given back and another one ordered. Meanwhile `/credentials` answers 202; a machine that can't be had in time ends in a refund of the time that is left. Six times within 24 hours per token and owner.",
  responses: {
    202: {
      description: "Ordered; ask `/credentials` for the new key after Retry-After",
      content: { "application/json": { schema: provisioningSchema } },
    },
    ...errorsOf(400, 401, 404, 409, 413, 415, 502),
  },
});

const claimRoute = createRoute({
  ...OWNERS_ORDER,
  path: "/credentials/{tokenId}/refund",
  summary: "Claim the refund of a failed purchase, as the token's owner",
  description:
    "Fresh form of signature only, its URI naming this path. A buyer who still owns the token is paid without it; a token that was resold pays whoever owns it and asks.",
  responses: {
    202: {
      description: "How the refund stands; it is paid once the ownership is final",
      content: { "application/json": { schema: z.object({ tokenId: z.string(), refund: refundSchema }) } },
    },
    ...errorsOf(400, 401, 404, 409, 413, 415, 502),
  },
});

export function mountCredentials(app: Router): void {
  app.openAPIRegistry.registerComponent("securitySchemes", "walletSignature", {
    type: "http",
    scheme: "bearer",
    bearerFormat: "0x…, EIP-191",
    description:
      "The owner's EIP-191 signature of `ClawCloud Access Request: {tokenId}` (the fixed form, where the service takes it) or of the fresh message: 65 bytes of a plain account (64 by EIP-2098), or what a smart wallet gives, deployed (ERC-1271) or not yet (ERC-6492).",
  });
  app.openapi(readRoute, async (c) => {
    const { tokenId } = c.req.valid("param");
    const now = Date.now();
    const { door, vm, view, signed, owner, scanned } = await admitOwner(c, tokenId, "credentials", now);
    c.header("Cache-Control", "no-store");
    if (door === null || vm === null || vm.status === "provisioning" || vm.sshHost === null) {
      const age = vm === null ? null : view.blockTimestamp - beganAt(vm, c.var.config);
      c.header("Retry-After", String(pollAgainAfter(age, c.var.budget)));
      return c.json(await waitingBody(c.var, tokenId, vm, now), 202);
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
    const key = { privateKey, deliveredAt, sealedPrivateKey: door.sealed };
    return c.json(credentialsBody(tokenId, door, key, owner.toLowerCase()), 200);
  });

  app.openapi(ackRoute, async (c) => {
    const { tokenId } = c.req.valid("param");
    const now = Date.now();
    const { vm, door, owner } = await admitOwner(c, tokenId, "ack", now);
    // What another owner was given is not this one's to acknowledge.
    const deliveredAt = vm?.deliveredTo === owner.toLowerCase() ? vm.deliveredAt : (door?.sealedAt ?? null);
    if (vm === null || deliveredAt === null) {
      throw new AppError("not_delivered", "The key was not delivered yet: fetch /credentials first.");
    }
    await acknowledge(c.var.db, vm, now);
    const acknowledgedAt = isoOf(vm.acknowledgedAt ?? now) ?? "";
    return c.json({ tokenId, deliveredAt: isoOf(deliveredAt) ?? "", acknowledgedAt }, 200);
  });

  app.openapi(rotateRoute, async (c) => {
    const { tokenId } = c.req.valid("param");
    const { db, config } = c.var;
    const now = Date.now();
    const { vm, view, owner, scanned } = await admitOwner(c, tokenId, "rotate", now);
    // It can't be undone, so it takes two witnesses.
    await requireSecondWitness(c.var, Number(tokenId), view, owner, scanned, now);
    const order = (running: Vm) => orderRotation(db, running, now, config.PROVISION_DEADLINE_SECONDS);
    const queued =
      vm?.status === "running" ? await countRotation(c, tokenId, owner.toLowerCase(), () => order(vm)) : null;
    if (vm === null || queued === null) {
      throw new AppError(
        "nothing_to_rotate",
        `The VM of token ${tokenId} does not run now: there is no key to replace.`,
      );
    }
    await enqueue(config.JOBS, [queued]);
    log("security", "rotation_ordered", { tokenId, owner });
    c.header("Retry-After", String(pollAgainAfter(0, c.var.budget)));
    return c.json(provisioningBody(config, tokenId, "rotate", vm.attempt), 202);
  });

  app.openapi(claimRoute, async (c) => {
    const { tokenId } = c.req.valid("param");
    const { db } = c.var;
    const now = Date.now();
    const { vm, owner } = await admitOwner(c, tokenId, "refund", now);
    const claimed = vm !== null && (await claimRefund(db, vm.incarnation, owner.toLowerCase(), now));
    if (claimed) log("security", "refund_claimed", { tokenId, owner });
    const { refund } = wireRefund(vm === null ? null : await refundOf(db, vm.incarnation));
    if (refund === undefined) throw new AppError("refund_not_found", `Nothing is owed for token ${tokenId}.`);
    if (refund.state === "held" || refund.state === "recorded") {
      throw new AppError("not_claimable", `The refund of token ${tokenId} waits for an operator.`);
    }
    return c.json({ tokenId, refund }, 202);
  });
}

/** Chain time since when its owner waits. */
export const beganAt = (vm: Vm, { PROVISION_DEADLINE_SECONDS }: App["Variables"]["config"]): number =>
  vm.runningAt === null ? vm.createdAt : vm.deadline - PROVISION_DEADLINE_SECONDS;

const provisioningBody = (
  { PUBLIC_URLS }: App["Variables"]["config"],
  tokenId: string,
  step: keyof typeof STEP_SENTENCES,
  attempts: number,
) => ({
  tokenId,
  status: "provisioning" as const,
  step,
  message: STEP_SENTENCES[step],
  attempts,
  statusUrl: `${PUBLIC_URLS[0]}/status/${tokenId}`,
});

/** The same with what the owner may count on meanwhile. */
export async function waitingBody({ config, db }: App["Variables"], tokenId: string, vm: Vm | null, now: number) {
  const [standing] = await statementsOf(db).cursor.all();
  const delivery = wireDelivery(deliveryOf(vm, standing, now));
  return { ...provisioningBody(config, tokenId, vm?.step ?? "create", vm?.attempt ?? 0), delivery };
}

/** The login key as one answer has it. */
export type GivenKey = { privateKey: string | null; deliveredAt: number | null; sealedPrivateKey: string | null };

export function credentialsBody(
  tokenId: string,
  door: Door,
  { privateKey, deliveredAt, sealedPrivateKey }: GivenKey,
  owner: string,
) {
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
    sealedPrivateKey,
    tier: vm.tier,
    type,
    expiresAt: isoOfChain(vm.expiresAt),
    instructions: `ssh -i clawcloud-${tokenId}.pem -o StrictHostKeyChecking=accept-new -p ${port} ${USERNAME}@${host}`,
    ports: portsOf(vm),
    ssh: {
      port,
      privateKey,
      publicKey,
      fingerprint: fingerprint(publicKey),
      // Unknown for machines that were imported.
      knownHosts: hostPublicKey === null || hostPublicKey === "" ? null : knownHostsLine(host, port, hostPublicKey),
      deliveredAt: isoOf(deliveredAt),
      knownToFormerOwner: isKnownToOthers(door, owner),
    },
  };
}

/** Somebody beside the owner brought the key or was given it: in clear, which the machine's row keeps too, or sealed (hard case 41). */
const isKnownToOthers = ({ vm, broughtBy, isHeldElsewhere }: Door, owner: string): boolean =>
  vm.knownToFormer ||
  isHeldElsewhere === 1 ||
  [vm.deliveredTo, broughtBy].some((address) => address !== null && address !== owner);
