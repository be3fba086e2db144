// A real x402 facilitator on the local chain: the packages' own, with a wallet of its own, behind an HTTP server that can be
// told to fail, to lie and to lose its answers.
import { randomBytes } from "node:crypto";
import { setTimeout as sleep } from "node:timers/promises";
import type { PaymentPayload, PaymentRequirements } from "@x402/core/types";
import { type Context, Hono } from "hono";
import type { Hex } from "viem";
import { z } from "zod";
import { USDC_ADDRESS } from "./addresses.ts";
import { type Chain, usdcAbi } from "./chain.ts";
import { makeSettlers } from "./facilitator-wallet.ts";
import { listen } from "./server.ts";

const common = { times: z.int().min(1).optional(), ms: z.int().min(0).optional() };
const eitherCall = { call: z.enum(["verify", "settle"]), ...common };

/**
 * What the facilitator does to one of its calls, `times` times, instead of answering honestly:
 * - `down`: 503
 * - `hang`: no answer for `ms`, two minutes unless told
 * - `nonsense`: 200 with JSON that is no answer
 * - `error`: 500 with a text that has an RPC URL with its key in it
 * - `refuse`: no, for `reason`; with `afterUse` only once the authorization is used on the chain, as by somebody faster
 * - `lost_answer`: settles, then answers 504
 * - `late`: answers 504 at once, and settles `ms` later
 * - `pending`: answers `settlement_pending` with the hash of a transaction that is sent `ms` later
 * - `lies_success`: yes, with the hash of no transaction
 * - `lies_failure`: settles, then says no
 *
 * `ms` of every other kind is how long it waits before it answers.
 */
const faultSchema = z.discriminatedUnion("kind", [
  z.strictObject({ kind: z.enum(["down", "hang", "nonsense", "error"]), ...eitherCall }),
  z.strictObject({ kind: z.literal("refuse"), reason: z.string(), afterUse: z.boolean().optional(), ...eitherCall }),
  z.strictObject({
    kind: z.enum(["lost_answer", "late", "pending", "lies_success", "lies_failure"]),
    call: z.literal("settle"),
    ...common,
  }),
]);
export type FacilitatorFault = z.input<typeof faultSchema>;

export type FacilitatorExchange = {
  method: string;
  path: string;
  body: unknown;
  status: number;
  answer: unknown;
  at: number;
};
export type FacilitatorOptions = {
  /** Asked of every call but the controls' where it is given. */
  bearerToken?: string;
  port?: number;
};

type Payment = { paymentPayload: PaymentPayload; paymentRequirements: PaymentRequirements };

const MAX_JOURNAL = 5_000;
const HANG_MS = 120_000;
const LOOK_MS = 20;

export async function startFacilitator(chain: Chain, options: FacilitatorOptions = {}) {
  const faults: FacilitatorFault[] = [];
  const journal: FacilitatorExchange[] = [];
  const stopping = new AbortController();
  const rpcKey = randomBytes(16).toString("hex");
  const { honest, slow } = makeSettlers(chain);

  const app = new Hono();
  app.get("/control/journal", (c) => c.json(journal));
  app.get("/control/faults", (c) => c.json(faults));
  app.post("/control/faults", async (c) => {
    const fault = faultSchema.safeParse(await c.req.json().catch(() => null));
    if (!fault.success) return c.json({ error: z.prettifyError(fault.error) }, 400);
    faults.push(fault.data);
    return c.json(fault.data, 201);
  });
  app.delete("/control/faults", (c) => {
    faults.length = 0;
    return c.body(null, 204);
  });

  app.use(async (c, next) => {
    const at = Date.now();
    const body = jsonOf(await c.req.raw.clone().text());
    await next();
    const answer = jsonOf(await c.res.clone().text());
    journal.push({ method: c.req.method, path: c.req.path, body, status: c.res.status, answer, at });
    if (journal.length > MAX_JOURNAL) journal.shift();
  });
  app.use(async (c, next) => {
    const { bearerToken } = options;
    if (bearerToken !== undefined && c.req.header("authorization") !== `Bearer ${bearerToken}`)
      return c.json({ error: "unauthorized" }, 401);
    return next();
  });
  app.get("/supported", (c) => c.json(honest.getSupported()));
  app.post("/verify", async (c) => {
    const { paymentPayload, paymentRequirements }: Payment = await c.req.json();
    const fault = takeFault("verify");
    if (fault === undefined) return c.json(await honest.verify(paymentPayload, paymentRequirements));
    if (fault.kind !== "refuse") return misbehave(c, fault);
    await pause(fault.ms ?? 0, c.req.raw.signal);
    return c.json({ isValid: false, invalidReason: fault.reason, payer: payerOf(paymentPayload) });
  });
  app.post("/settle", async (c) => {
    const { paymentPayload, paymentRequirements }: Payment = await c.req.json();
    const fault = takeFault("settle");
    const answer = { network: paymentRequirements.network, payer: payerOf(paymentPayload) };
    const no = (errorReason: string) => ({ success: false, errorReason, transaction: "", ...answer });
    const settle = () => honest.settle(paymentPayload, paymentRequirements);
    if (fault === undefined) return c.json(await settle());
    switch (fault.kind) {
      case "late":
        void sleep(fault.ms ?? 0, undefined, { signal: stopping.signal, ref: false })
          .then(settle)
          .catch(() => undefined);
        return c.json({ error: "upstream timed out" }, 504);
      case "pending":
        return c.json(await slow(fault.ms ?? 0).settle(paymentPayload, paymentRequirements));
      case "lost_answer":
        await settle();
        await pause(fault.ms ?? 0, c.req.raw.signal);
        return c.json({ error: "upstream timed out" }, 504);
      case "lies_failure":
        await settle();
        await pause(fault.ms ?? 0, c.req.raw.signal);
        return c.json(no("unexpected_settle_error"));
      case "lies_success":
        await pause(fault.ms ?? 0, c.req.raw.signal);
        return c.json({ success: true, transaction: `0x${randomBytes(32).toString("hex")}`, ...answer });
      case "refuse":
        await pause(fault.ms ?? 0, c.req.raw.signal);
        while (fault.afterUse && !c.req.raw.signal.aborted && !(await isUsed(paymentPayload))) {
          await pause(LOOK_MS, c.req.raw.signal);
        }
        return c.json(no(fault.reason));
      default:
        return misbehave(c, fault);
    }
  });
  app.onError((error, c) => c.json({ error: error.message }, 500));

  /** The first fault for this call, used up by one. */
  function takeFault(call: "verify" | "settle"): FacilitatorFault | undefined {
    const index = faults.findIndex((fault) => fault.call === call);
    const fault = faults[index];
    if (fault === undefined) return undefined;
    if (fault.times !== undefined && --fault.times <= 0) faults.splice(index, 1);
    return { ...fault };
  }

  function isUsed({ payload }: PaymentPayload): Promise<boolean> {
    const { from, nonce } = payload["authorization"] as { from: Hex; nonce: Hex };
    const args = [from, nonce];
    const call = { address: USDC_ADDRESS as Hex, abi: usdcAbi, functionName: "authorizationState", args };
    return chain.reader.readContract(call) as Promise<boolean>;
  }

  async function misbehave(c: Context, fault: FacilitatorFault): Promise<Response> {
    await pause(fault.ms ?? (fault.kind === "hang" ? HANG_MS : 0), c.req.raw.signal);
    if (fault.kind === "down") return c.text("Service Unavailable", 503);
    if (fault.kind === "nonsense") return c.json({ status: "ok", data: [] });
    if (fault.kind === "hang") return c.body(null, 504);
    return c.text(`HTTP request failed. URL: https://base-mainnet.g.alchemy.com/v2/${rpcKey} Status: 429`, 500);
  }

  /** Ends early with the client or the server. */
  const pause = (ms: number, client: AbortSignal) =>
    sleep(ms, undefined, { signal: AbortSignal.any([client, stopping.signal]) }).catch(() => undefined);

  const { port, stop } = await listen(app.fetch, options.port);
  const url = `http://127.0.0.1:${port}`;
  return {
    url,
    controlUrl: `${url}/control`,
    /** The key in what `error` answers. */
    rpcKey,
    setFaults: (...list: FacilitatorFault[]) => {
      faults.splice(0, faults.length, ...list.map((fault) => ({ ...fault })));
    },
    journal,
    stop: () => {
      stopping.abort();
      return stop();
    },
  };
}

function jsonOf(text: string): unknown {
  try {
    return JSON.parse(text);
  } catch {
    return text === "" ? null : text;
  }
}

const payerOf = ({ payload }: PaymentPayload) => (payload["authorization"] as { from?: string } | undefined)?.from;
