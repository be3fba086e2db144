// A payer at the paid routes, as the tests of them play it.

import { runDurableObjectAlarm } from "cloudflare:test";
import type { PaymentRequirements } from "@x402/core/types";
import { type Hex, parseAbi } from "viem";
import type { LocalAccount } from "viem/accounts";
import { CONTRACT_ADDRESS, USDC_ADDRESS } from "../../../../world/addresses.ts";
import {
  type Authorization,
  authorize,
  type Payer,
  paymentHeaderV2,
  readQuote,
  type SignedPayment,
  submit,
} from "../../../../world/payer.ts";
import { chain, deployer, operator } from "../../../chain.ts";
import type { Deployment, Row } from "../../../deployment.ts";

export type Order = {
  tier?: number;
  durationDays?: number;
  sshPublicKey?: string;
  region?: string;
  ports?: readonly number[];
};

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
export async function signFor(
  payer: Payer,
  requirement: PaymentRequirements,
  overrides: Partial<Authorization> = {},
): Promise<SignedPayment> {
  const { timestamp } = await chain.reader.getBlock();
  const validBefore = String(Number(timestamp) + requirement.maxTimeoutSeconds);
  return authorize(payer, requirement, { validBefore, ...overrides });
}

/** Signs for a purchase; resolves with what to send. */
export async function signPurchaseOf(
  world: Deployment,
  payer: Payer,
  order: Order = {},
  overrides: Partial<Authorization> = {},
) {
  const body = computeBody(order);
  const requirement = await quoteOf(post(world, "/x402/purchase-compute", body));
  const signed = await signFor(payer, requirement, overrides);
  return { body, requirement, signed, headers: { "payment-signature": paymentHeaderV2(requirement, signed) } };
}

/** Orders a machine. */
export async function orderMachine(
  world: Deployment,
  payer: Payer,
  order: Order = {},
  overrides: Partial<Authorization> = {},
) {
  const prepared = await signPurchaseOf(world, payer, order, overrides);
  const answer = await post(world, "/x402/purchase-compute", prepared.body, prepared.headers);
  return { ...prepared, answer };
}

/** Orders a machine that has to be accepted; resolves with the purchase's id beside what was sent. */
export async function accepted(...order: Parameters<typeof orderMachine>) {
  const sent = await orderMachine(...order);
  const body = (await sent.answer.json()) as { purchaseId: string };
  if (sent.answer.status !== 202) throw new Error(`not accepted: ${sent.answer.status} ${JSON.stringify(body)}`);
  return { ...sent, id: body.purchaseId };
}

/** Where a payment may have to be; the token of one that is delivered is its payer's. */
export const at = (step: string) => (payment: Row) => payment["step"] === step;
export const inState = (state: string) => (payment: Row) => payment["state"] === state;
export const isDelivered = ({ step }: Row) => step === "close" || step === "idle";

/** Delays of jobs are cut to this. */
const DELAY_MS = 15;

/** The contract and the coin, as buyers, strangers and their owner call them. */
export const claw = {
  address: CONTRACT_ADDRESS,
  abi: parseAbi([
    "function ownerOf(uint256 tokenId) view returns (address)",
    "function nextTokenId() view returns (uint256)",
    "function setTier(uint8 tier, uint256 pricePerDay, bool active, string name)",
    "function setTransfersPaused(bool paused)",
  ]),
} as const;
export const coin = {
  address: USDC_ADDRESS,
  abi: parseAbi([
    "function transfer(address to, uint256 amount) returns (bool)",
    "function setBlocked(address account, bool isBlocked)",
    "function allowance(address owner, address spender) view returns (uint256)",
    "function balanceOf(address account) view returns (uint256)",
  ]),
} as const;

export const mined = async (sent: Promise<Hex>) => chain.reader.waitForTransactionReceipt({ hash: await sent });
/** How many tokens there are. */
export const sold = (): Promise<bigint> => chain.reader.readContract({ ...claw, functionName: "nextTokenId" });
export const ownerOf = (tokenId: unknown): Promise<Hex> =>
  chain.reader.readContract({ ...claw, functionName: "ownerOf", args: [BigInt(tokenId as number)] });
export const usdcOf = (account: Hex): Promise<bigint> =>
  chain.reader.readContract({ ...coin, functionName: "balanceOf", args: [account] });
export const give = (from: LocalAccount, to: Hex, amount: bigint) =>
  mined(chain.wallet(from).writeContract({ ...coin, functionName: "transfer", args: [to, amount] }));
/** The coin's own list: it takes nothing for such an account, nor from it. */
export const setBlocked = (account: Hex, isBlocked: boolean) =>
  mined(chain.wallet(deployer).writeContract({ ...coin, functionName: "setBlocked", args: [account, isBlocked] }));
/** Price and activity of tier 0. */
export const setTier = (price: bigint, active = true) =>
  mined(
    chain
      .wallet(deployer)
      .writeContract({ ...claw, functionName: "setTier", args: [0, price, active, "VM 1 vCPU / 1 GB"] }),
  );

/** What somebody has signed to pay us, as the operator wallet is told of it. */
export async function signedTo(payer: LocalAccount, value: bigint, fields: Partial<Authorization> = {}) {
  const { number, timestamp } = await chain.reader.getBlock();
  const requirement = {
    network: "eip155:8453",
    asset: USDC_ADDRESS,
    amount: String(value),
    payTo: operator.address,
    maxTimeoutSeconds: 1_200,
    extra: { name: "USD Coin", version: "2" },
  } as unknown as PaymentRequirements;
  const validBefore = String(Number(timestamp) + 1_200);
  const signed = await authorize(payer, requirement, { validBefore, ...fields });
  const { authorization, signature } = signed;
  const times = { validAfter: Number(authorization.validAfter), validBefore: Number(authorization.validBefore) };
  return { signed, payment: { ...authorization, ...times, signature, fromBlock: Number(number) } };
}

/** The same, paid and in final history. */
export async function paidUs(payer: LocalAccount, value: bigint) {
  const { signed, payment } = await signedTo(payer, value);
  await submit(chain, deployer, signed, USDC_ADDRESS);
  await chain.mine(4);
  return payment;
}

/**
 * Plays orders through whatever goes wrong, as the queue and the crons do: a job, scan or sweep that throws comes again, and
 * blocks come between them. Stops right after the job by which it is done; throws with the payments as they stand after so many rounds.
 */
export async function playOn(world: Deployment, isDone: () => Promise<boolean>, rounds = 40): Promise<void> {
  const again = () => undefined;
  for (let round = 0; round < rounds; round++) {
    for (let left = world.sent.length; left > 0; left--) {
      const job = world.sent.shift();
      if (job === undefined) break;
      if (job.delaySeconds > 0) await new Promise((resolve) => setTimeout(resolve, DELAY_MS));
      await world.run(job.body).catch(() => world.sent.push(job));
      if (await isDone()) return;
    }
    if (await isDone()) return;
    await chain.mine(1);
    await world.scan().catch(again);
    for (const table of ["payments", "refunds"]) {
      await world.sql.prepare(`UPDATE ${table} SET wake_at = 0 WHERE wake_at IS NOT NULL`).run();
    }
    await world.sweep().catch(again);
    await runDurableObjectAlarm(world.wallet);
  }
  throw new Error(`it is not done: ${JSON.stringify(await world.rows("SELECT * FROM payments"))}`);
}

/** Until a machine runs. */
export const machineRuns = (world: Deployment) =>
  playOn(world, async () => (await world.rows("SELECT 1 FROM vms WHERE status = 'running'")).length > 0);

/** Mines, scans and runs jobs until a payment is in one of these states and steps. */
export async function playUntil(
  world: Deployment,
  id: string,
  isDone: (payment: Row) => boolean,
  rounds = 40,
): Promise<Row> {
  const reached = async () => {
    const row = await world.payment(id);
    return "id" in row && isDone(row);
  };
  for (let round = 0; round < rounds; round++) {
    await world.drain(reached);
    if (await reached()) return world.payment(id);
    await chain.mine(1);
    await world.scan();
    await world.drain(reached);
    if (await reached()) return world.payment(id);
    await world.sql.prepare("UPDATE payments SET wake_at = 0 WHERE wake_at IS NOT NULL AND step <> 'settle'").run();
    await world.sql.prepare("UPDATE refunds SET wake_at = 0 WHERE wake_at IS NOT NULL").run();
    await world.sweep();
    await runDurableObjectAlarm(world.wallet);
  }
  throw new Error(`the payment stays at ${JSON.stringify(await world.payment(id))}`);
}
