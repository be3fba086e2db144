// A payer at the paid routes, as the tests of them play it.

import { runDurableObjectAlarm } from "cloudflare:test";
import type { PaymentRequirements } from "@x402/core/types";
import type { LocalAccount } from "viem/accounts";
import { USDC_ADDRESS } from "../../../world/addresses.ts";
import { authorize, paymentHeaderV2, readQuote } from "../../../world/payer.ts";
import { chain, type Deployment } from "../../deployment.ts";

export type Order = { tier?: number; durationDays?: number; sshPublicKey?: string; region?: string };

export const post = (world: Deployment, path: string, body: object, headers: Record<string, string> = {}) =>
  world.request(path, {
    method: "POST",
    body: JSON.stringify(body),
    headers: { "content-type": "application/json", ...headers },
  });

/** The requirement that a route asks to be paid by. */
export async function quoteOf(answer: Response | Promise<Response>): Promise<PaymentRequirements> {
  const response = await answer;
  if (response.status !== 402) throw new Error(`no demand: ${response.status} ${await response.text()}`);
  const [requirement] = readQuote(response).accepts;
  if (requirement === undefined) throw new Error("a demand without a requirement");
  return requirement;
}

export const computeBody = ({ tier = 0, durationDays = 1, ...rest }: Order = {}) => ({ tier, durationDays, ...rest });

/** An authorization by the chain's clock, which other tests move ahead of ours. */
export async function signFor(payer: LocalAccount, requirement: PaymentRequirements) {
  const { timestamp } = await chain.reader.getBlock();
  const validBefore = String(Number(timestamp) + requirement.maxTimeoutSeconds);
  return authorize(payer, requirement, { validBefore });
}

/** Signs for a purchase; resolves with what to send. */
export async function signPurchaseOf(world: Deployment, payer: LocalAccount, order: Order = {}) {
  const body = computeBody(order);
  const requirement = await quoteOf(post(world, "/x402/purchase-compute", body));
  const signed = await signFor(payer, requirement);
  return { body, requirement, signed, headers: { "payment-signature": paymentHeaderV2(requirement, signed) } };
}

/** Orders a machine. */
export async function orderMachine(world: Deployment, payer: LocalAccount, order: Order = {}) {
  const prepared = await signPurchaseOf(world, payer, order);
  const answer = await post(world, "/x402/purchase-compute", prepared.body, prepared.headers);
  return { ...prepared, answer };
}

export const usdcOf = (account: `0x${string}`): Promise<bigint> =>
  chain.reader.readContract({
    address: USDC_ADDRESS,
    abi: [
      {
        type: "function",
        name: "balanceOf",
        stateMutability: "view",
        inputs: [{ type: "address" }],
        outputs: [{ type: "uint256" }],
      },
    ],
    functionName: "balanceOf",
    args: [account],
  });

/** Mines, scans and runs jobs until a payment is in one of these states and steps. */
export async function playUntil(
  world: Deployment,
  id: string,
  isDone: (payment: Record<string, unknown>) => boolean,
  rounds = 40,
): Promise<Record<string, unknown>> {
  const read = async () => (await world.rows("SELECT * FROM payments WHERE id = ?", id))[0];
  const reached = async () => {
    const row = await read();
    return row !== undefined && isDone(row);
  };
  for (let round = 0; round < rounds; round++) {
    await world.drain(reached, 30_000);
    if (await reached()) return (await read()) ?? {};
    await chain.mine(1);
    await world.scan();
    await world.drain(reached, 30_000);
    if (await reached()) return (await read()) ?? {};
    await world.sql.prepare("UPDATE payments SET wake_at = 0 WHERE wake_at IS NOT NULL AND step <> 'settle'").run();
    await world.sweep();
    await runDurableObjectAlarm(world.wallet);
  }
  throw new Error(`the payment stays at ${JSON.stringify(await read())}`);
}
