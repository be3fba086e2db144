import { createRoute, z } from "@hono/zod-openapi";
import { secp256k1 } from "@noble/curves/secp256k1.js";
import { bytesToHex, hexToBytes } from "@noble/hashes/utils.js";
import { privateKeyToAddress } from "viem/accounts";
import { encrypt } from "../../credentials/ecies.ts";
import { keyRing } from "../../credentials/key-ring.ts";
import { insertWallet, loadWallet, type Wallet } from "../../db/wallets.ts";
import { AppError } from "../../errors.ts";
import { log } from "../../log.ts";
import { capped, limited } from "../access/admission.ts";
import { jsonBody, limitedBody } from "../access/body.ts";
import type { Router } from "../http.ts";
import { errorsOf, isoOf, isoTime } from "./schemas.ts";

const publicKeySchema = z
  .string()
  .regex(/^(0x)?([0-9a-fA-F]{66}|[0-9a-fA-F]{130})$/, "must be a secp256k1 public key, 33 or 65 bytes of hex")
  .transform((hex, context) => {
    try {
      return secp256k1.Point.fromHex(hex.replace(/^0x/, "")).toBytes(true);
    } catch {
      context.addIssue("must be a point of secp256k1");
      return z.NEVER;
    }
  })
  .openapi({
    type: "string",
    pattern: "^(0x)?([0-9a-fA-F]{66}|[0-9a-fA-F]{130})$",
    description: "secp256k1, 33 or 65 bytes of hex: the key then comes sealed to it.",
  });

const walletSchema = z
  .object({
    agentId: z.string(),
    address: z.string(),
    createdAt: isoTime,
    privateKey: z.string().optional().openapi({ description: "32 bytes of hex; shown once, without publicKey alone" }),
    sealedPrivateKey: z.string().optional().openapi({
      description:
        "With publicKey: `ecc:<ephemeral key>:<iv>:<tag>:<ciphertext>` of the 32 bytes, as eciesjs 0.5 opens it with the parts joined",
    }),
  })
  .openapi("AgentWallet");

const route = createRoute({
  method: "post",
  path: "/agents/generate-wallet",
  summary: "A new wallet for an agent",
  description:
    "Shown once, so store it first. With publicKey the same caller gets the same sealed key again; without it a lost answer is a lost wallet. An agent id is a name: it grants nothing.",
  middleware: [limited("wallets"), capped("wallets"), limitedBody, jsonBody] as const,
  request: {
    body: {
      required: true,
      content: {
        "application/json": {
          schema: z.strictObject({
            agentId: z
              .string()
              .regex(/^[A-Za-z0-9][A-Za-z0-9_-]{2,63}$/, "must be 3 to 64 letters, digits, - or _, the first no - or _")
              .openapi({ example: "agent-7" }),
            publicKey: publicKeySchema.optional(),
          }),
        },
      },
    },
  },
  responses: {
    201: { description: "The wallet", content: { "application/json": { schema: walletSchema } } },
    ...errorsOf(400, 409, 413, 415),
  },
});

export function mountAgents(app: Router): void {
  app.openapi(route, async (c) => {
    const { agentId, publicKey } = c.req.valid("json");
    const { db, config } = c.var;
    c.header("Cache-Control", "no-store");
    const recipientPublicKey = publicKey === undefined ? null : bytesToHex(publicKey);
    const known = await loadWallet(db, agentId);
    if (known !== null) return c.json(sameCaller(known, recipientPublicKey), 201);
    const secret = secp256k1.utils.randomSecretKey();
    const { sealed, keyId } = await keyRing(config).seal({ kind: "wallet", subject: agentId, attempt: 0 }, secret);
    const wallet: Wallet = {
      agentId,
      address: privateKeyToAddress(`0x${bytesToHex(secret)}`),
      privateKey: sealed,
      keyId,
      recipientPublicKey,
      sealedPrivateKey: recipientPublicKey === null ? null : await encrypt(hexToBytes(recipientPublicKey), secret),
      createdAt: Date.now(),
    };
    if (!(await insertWallet(db, wallet))) {
      // Two requests at once: the other one's wallet stands.
      const winner = await loadWallet(db, agentId);
      if (winner === null) throw taken(agentId);
      return c.json(sameCaller(winner, recipientPublicKey), 201);
    }
    log("security", "wallet_made", { address: c.var.client, agentId, wallet: wallet.address });
    const key = recipientPublicKey === null ? { privateKey: `0x${bytesToHex(secret)}` } : {};
    return c.json({ ...body(wallet), ...key }, 201);
  });
}

/** A lost answer again, for who can show the public key that it was sealed to. */
function sameCaller(wallet: Wallet, recipientPublicKey: string | null) {
  if (recipientPublicKey === null || wallet.recipientPublicKey !== recipientPublicKey) throw taken(wallet.agentId);
  return body(wallet);
}

const taken = (agentId: string) =>
  new AppError("agent_exists", `There is a wallet for agent ${agentId} already; choose another id.`);

const body = ({ agentId, address, createdAt, sealedPrivateKey }: Wallet) => ({
  agentId,
  address,
  createdAt: isoOf(createdAt) ?? "",
  ...(sealedPrivateKey === null ? {} : { sealedPrivateKey }),
});
