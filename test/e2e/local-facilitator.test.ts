// The local facilitator is a real one: stock clients pay through it, and its faults are what they say.
import { type ServerType, serve } from "@hono/node-server";
import { encodePaymentRequiredHeader, HTTPFacilitatorClient } from "@x402/core/http";
import type { PaymentPayload, PaymentRequirements } from "@x402/core/types";
import { Hono } from "hono";
import type { Hex } from "viem";
import { afterAll, beforeAll, beforeEach, expect, test } from "vitest";
import { USDC_ADDRESS } from "../world/addresses.ts";
import { type Chain, startChain, usdcAbi } from "../world/chain.ts";
import { type FacilitatorFault, startFacilitator } from "../world/facilitator.ts";
import {
  authorize,
  cancel,
  paymentHeaderV1,
  paymentHeaderV2,
  readQuote,
  type SignedPayment,
  submit,
} from "../world/payer.ts";
import { payFetch, payFetchV1 } from "../world/payer-clients.ts";

const TOKEN = "a token of this test only";
const PRICE = 2_000_000n;

let chain: Chain;
let facilitator: Awaited<ReturnType<typeof startFacilitator>>;
let client: HTTPFacilitatorClient;
let shop: ServerType;
let shopUrl: string;
beforeAll(async () => {
  chain = await startChain({ blockTimeSeconds: 0 });
  facilitator = await startFacilitator(chain, { bearerToken: TOKEN });
  client = clientWith(TOKEN);
  shop = await new Promise<ServerType>((resolve) => {
    const started = serve({ fetch: makeShop().fetch, hostname: "127.0.0.1", port: 0 }, ({ port }) => {
      shopUrl = `http://127.0.0.1:${port}/thing`;
      resolve(started);
    });
  });
});
beforeEach(async () => {
  await fetch(`${facilitator.controlUrl}/faults`, { method: "DELETE" });
});
afterAll(async () => {
  shop?.close();
  await facilitator?.stop();
  await chain?.stop();
});

function clientWith(token: string, timeoutMs = 20_000) {
  const headers = { authorization: `Bearer ${token}` };
  const createAuthHeaders = async () => ({ verify: headers, settle: headers, supported: headers });
  return new HTTPFacilitatorClient({ url: facilitator.url, timeoutMs, createAuthHeaders });
}
const agent = (index: number) => {
  const account = chain.agents[index];
  if (account === undefined) throw new Error(`there is no agent ${index}`);
  return account;
};
const earned = () =>
  chain.reader.readContract({
    address: USDC_ADDRESS,
    abi: usdcAbi,
    functionName: "balanceOf",
    args: [chain.operator.address],
  }) as Promise<bigint>;
const requirement = (): PaymentRequirements => ({
  scheme: "exact",
  network: "eip155:8453",
  asset: USDC_ADDRESS,
  amount: String(PRICE),
  payTo: chain.operator.address,
  maxTimeoutSeconds: 60,
  extra: { name: "USD Coin", version: "2" },
});
const requirementV1 = () => {
  const { amount, network: _, ...rest } = requirement();
  const resource = { resource: shopUrl, description: "ein schönes Ding", mimeType: "application/json" };
  return { ...rest, ...resource, network: "base", maxAmountRequired: amount };
};
const payment = async (): Promise<PaymentPayload> => ({
  x402Version: 2,
  accepted: requirement(),
  payload: await authorize(agent(0), requirement()),
});

/** Sells one thing to clients of either version, with no care taken. */
function makeShop() {
  return new Hono().get("/thing", async (c) => {
    const header = c.req.header("payment-signature") ?? c.req.header("x-payment");
    if (header === undefined) {
      const resource = { url: shopUrl, description: "ein schönes Ding" };
      c.header("PAYMENT-REQUIRED", encodePaymentRequiredHeader({ x402Version: 2, resource, accepts: [requirement()] }));
      return c.json({ x402Version: 1, accepts: [requirementV1()] }, 402);
    }
    const payload = JSON.parse(Buffer.from(header, "base64").toString()) as PaymentPayload;
    const wanted = payload.x402Version === 1 ? (requirementV1() as unknown as PaymentRequirements) : requirement();
    const verified = await client.verify(payload, wanted);
    if (!verified.isValid) return c.json(verified, 402);
    const settled = await client.settle(payload, wanted);
    return c.json(settled, settled.success ? 200 : 402);
  });
}

async function addFault(fault: FacilitatorFault): Promise<void> {
  const answer = await fetch(`${facilitator.controlUrl}/faults`, { method: "POST", body: JSON.stringify(fault) });
  expect(answer.status).toBe(201);
}

test("it names what it serves, to whoever has the token", async () => {
  expect(await client.getSupported()).toEqual({
    kinds: [
      { x402Version: 2, scheme: "exact", network: "eip155:8453" },
      { x402Version: 1, scheme: "exact", network: "base" },
    ],
    extensions: [],
    signers: { "eip155:*": [chain.facilitator.address] },
  });
  await expect(clientWith("another").getSupported()).rejects.toThrow("401");
  await expect(clientWith("another").verify(await payment(), requirement())).rejects.toThrow("401");
});

test("stock clients of both versions and headers made by hand pay through it", async () => {
  const byHand = async (name: string, value: (quoted: PaymentRequirements) => Promise<string>) => {
    const [quoted] = readQuote(await fetch(shopUrl)).accepts;
    if (quoted === undefined) throw new Error("the shop quotes nothing");
    return fetch(shopUrl, { headers: { [name]: await value(quoted) } });
  };
  const ways = [
    () => payFetch(agent(0))(shopUrl),
    () => payFetchV1(agent(0))(shopUrl),
    () => byHand("PAYMENT-SIGNATURE", async (quoted) => paymentHeaderV2(quoted, await authorize(agent(0), quoted))),
    () => byHand("X-PAYMENT", async (quoted) => paymentHeaderV1(quoted, await authorize(agent(0), quoted))),
  ];
  for (const pay of ways) {
    const before = await earned();
    const answer = await pay();
    const body = (await answer.json()) as { success: boolean; transaction: Hex; payer: string };
    expect(body).toMatchObject({ success: true, payer: agent(0).address });
    expect((await chain.reader.getTransactionReceipt({ hash: body.transaction })).status).toBe("success");
    expect(await earned()).toBe(before + PRICE);
  }
  const calls = facilitator.journal.slice(-8).map(({ method, path, status }) => `${method} ${path} ${status}`);
  expect(new Set(calls)).toEqual(new Set(["POST /verify 200", "POST /settle 200"]));
});

test("one payment settled five times at once moves its money once", async () => {
  const [before, paid] = [await earned(), await payment()];
  const settled = await Promise.all(Array.from({ length: 5 }, () => client.settle(paid, requirement())));
  expect(settled.filter(({ success }) => success)).toHaveLength(1);
  expect(await earned()).toBe(before + PRICE);
  expect((await client.settle(paid, requirement())).errorReason).toBe("invalid_exact_evm_nonce_already_used");
  expect((await client.verify(paid, requirement())).invalidReason).toBe("invalid_exact_evm_nonce_already_used");
  // Those that failed leave no gap in its wallet's nonces.
  expect(await client.settle(await payment(), requirement())).toMatchObject({ success: true });
});

test("faults of either call: down, hanging, nonsense, an error that tells too much, a refusal", async () => {
  const paid = await payment();
  const before = await earned();
  for (const call of ["verify", "settle"] as const) {
    const ask = () => client[call](paid, requirement());
    await addFault({ call, kind: "down", times: 1 });
    await expect(ask()).rejects.toThrow(`${call} failed (503)`);
    await addFault({ call, kind: "hang", times: 1 });
    await expect(clientWith(TOKEN, 500)[call](paid, requirement())).rejects.toThrow("timed out");
    await addFault({ call, kind: "nonsense", times: 1 });
    await expect(ask()).rejects.toThrow(`${call} returned invalid data`);
    await addFault({ call, kind: "error", times: 1 });
    await expect(ask()).rejects.toThrow(facilitator.rpcKey);
    await addFault({ call, kind: "refuse", reason: "insufficient_funds", times: 1 });
    const refused = {
      payer: agent(0).address,
      [call === "verify" ? "invalidReason" : "errorReason"]: "insufficient_funds",
    };
    expect(await ask()).toMatchObject(refused);
  }
  expect(await earned()).toBe(before);
  expect(await (await fetch(`${facilitator.controlUrl}/faults`)).json()).toEqual([]);
  expect(await client.settle(paid, requirement())).toMatchObject({ success: true });
  await expect(addFault({ call: "verify", kind: "late" } as never)).rejects.toThrow();
});

test("faults of settling: a lost answer, a late one, two lies, a pending one that the next call finds", async () => {
  const settle = async (fault: FacilitatorFault, paid: PaymentPayload) => {
    await addFault(fault);
    const before = await earned();
    const answer = await client.settle(paid, requirement()).catch((error: Error) => error.message);
    return { answer, moved: (await earned()) - before };
  };
  const once = { call: "settle", times: 1 } as const;

  expect(await settle({ ...once, kind: "lost_answer" }, await payment())).toMatchObject({
    answer: expect.stringContaining("504"),
    moved: PRICE,
  });
  expect(await settle({ ...once, kind: "lies_failure" }, await payment())).toMatchObject({
    answer: { success: false, errorReason: "unexpected_settle_error", transaction: "" },
    moved: PRICE,
  });
  const lie = await settle({ ...once, kind: "lies_success" }, await payment());
  expect(lie).toMatchObject({ answer: { success: true, transaction: expect.any(String) }, moved: 0n });

  const before = await earned();
  expect(await settle({ ...once, kind: "late", ms: 300 }, await payment())).toMatchObject({ moved: 0n });
  await expect.poll(earned, { timeout: 120_000 }).toBe(before + PRICE);

  const slow = await payment();
  const pending = await settle({ ...once, kind: "pending", ms: 300 }, slow);
  expect(pending).toMatchObject({ answer: { success: false, errorReason: "settlement_pending" }, moved: 0n });
  const { transaction } = pending.answer as { transaction: Hex };
  expect(await client.settle(slow, requirement())).toMatchObject({ success: true, transaction });
  expect(await earned()).toBe(before + 2n * PRICE);
});

test("what the chain would refuse, it refuses with a reason", async () => {
  const reasonFor = async (signed: SignedPayment, wanted = requirement()) => {
    const { isValid, invalidReason } = await client.verify(
      { x402Version: 2, accepted: wanted, payload: signed },
      wanted,
    );
    return isValid ? "valid" : invalidReason;
  };
  const taken = await authorize(agent(0), requirement());
  await submit(chain, agent(1), taken, USDC_ADDRESS);
  expect(await reasonFor(taken)).toBe("invalid_exact_evm_nonce_already_used");
  const canceled = await authorize(agent(0), requirement());
  await cancel(chain, agent(0), canceled, USDC_ADDRESS);
  expect(await reasonFor(canceled)).toBe("invalid_exact_evm_nonce_already_used");
  const dear = { ...requirement(), amount: "1000000000000" };
  expect(await reasonFor(await authorize(agent(0), dear), dear)).toBe("invalid_exact_evm_insufficient_balance");
  const { authorization } = await authorize(agent(0), requirement());
  const { signature } = await authorize(agent(1), requirement());
  expect(await reasonFor({ authorization, signature })).toBe("invalid_exact_evm_signature");
});
