// Payments that fit nothing that is asked for, and those that only the chain can tell anything about: what they cost us.
import type { PaymentRequirements } from "@x402/core/types";
import type { Hex } from "viem";
import { generatePrivateKey, privateKeyToAccount } from "viem/accounts";
import { beforeEach, expect, test } from "vitest";
import { USDC_ADDRESS } from "../../../../world/addresses.ts";
import { type Authorization, type Payer, paymentHeaderV2, submit } from "../../../../world/payer.ts";
import { agent, chain } from "../../../chain.ts";
import { type Deployment, deploy } from "../../../deployment.ts";
import { addRpcFaults } from "../../../faults.ts";
import { computeBody, orderMachine, post, quoteOf, signFor } from "./till.ts";

const PATH = "/x402/purchase-compute";
const payer = agent(1);
let world: Deployment;
beforeEach(async () => {
  world = await deploy();
});

const told = async (answer: Response | Promise<Response>) => {
  const response = await answer;
  const { code, charged } = (await response.json()) as Record<string, unknown>;
  return { status: response.status, code, charged };
};
const from = (address: string) => ({ "cf-connecting-ip": address });
const rows = () => world.rows("SELECT amount, state, reason FROM payments");

let requirement: PaymentRequirements;
/** A payment of another amount than the price. */
async function stray(amount: bigint, by: Payer = payer, change: Partial<Authorization> = {}) {
  requirement = await quoteOf(post(world, PATH, computeBody()));
  const other = { ...requirement, amount: String(amount) };
  const signed = await signFor(by, other, change);
  const send = (headers: Record<string, string> = {}) =>
    told(post(world, PATH, computeBody(), { "payment-signature": paymentHeaderV2(other, signed), ...headers }));
  return { signed, send };
}

test("hard case 60: a stray use of nothing, or of less than a refund is worth, gets no row: each cost us a transaction", async () => {
  for (const [amount, charged] of [
    [0n, "none"],
    [9_999n, "yes"],
  ] as const) {
    const { signed, send } = await stray(amount);
    await submit(chain, agent(3), signed, USDC_ADDRESS);
    expect(await send(), String(amount)).toMatchObject({ status: 409, code: "payment_used", charged });
  }
  expect(await rows()).toEqual([]);
  const { signed, send } = await stray(10_000n);
  await submit(chain, agent(3), signed, USDC_ADDRESS);
  expect(await send()).toMatchObject({ status: 409, code: "payment_used", charged: "yes" });
  expect(await rows()).toEqual([{ amount: "10000", state: "refund_due", reason: "no_demand" }]);
});

test("hard case 37: a stray's row counts towards the cap of what is written: it came before any cap", async () => {
  world = await deploy({ edge: { RATE_LIMITS: "x402_all=1/60" } });
  const [first, second] = [await stray(20_000n), await stray(20_000n)];
  for (const { signed } of [first, second]) await submit(chain, agent(3), signed, USDC_ADDRESS);
  expect(await first.send()).toMatchObject({ status: 409, charged: "yes" });
  expect(await second.send()).toMatchObject({ status: 429, charged: "unknown" });
  expect(await rows()).toHaveLength(1);
});

test("hard case 44: a stray that its payer has not signed is not looked for, and gets no row once it is used", async () => {
  const { signed, send } = await stray(20_000n);
  await submit(chain, agent(3), signed, USDC_ADDRESS);
  const { signature } = await signFor(agent(2), { ...requirement, amount: "20000" }, signed.authorization);
  const forged = paymentHeaderV2({ ...requirement, amount: "20000" }, { ...signed, signature });
  expect(await send({ "payment-signature": forged })).toMatchObject({ status: 402, charged: "none" });
  expect(await rows()).toEqual([]);
  // Whoever asked the coin about it would get no answer.
  await addRpcFaults({ kind: "down", includes: "e94a0102" });
  expect(await send({ "payment-signature": forged })).toMatchObject({ status: 402, charged: "none" });
  expect(await send()).toMatchObject({ status: 503, charged: "unknown" });
});

const CAPS = "looks_block=2/60,looks_all=3/60";

test("hard case 44: looks for strays are counted over a /48 and over everybody: one /48 had 65,536 allowances of 60 a minute", async () => {
  world = await deploy({ edge: { RATE_LIMITS: CAPS } });
  const { send } = await stray(20_000n);
  const statuses = [];
  for (let host = 0; host < 4; host++) statuses.push((await send(from(`2001:db8:9:${host}::1`))).status);
  expect(statuses).toEqual([402, 402, 429, 429]);
  expect(await send(from("198.51.100.80"))).toMatchObject({ status: 402, charged: "none" });
  expect(await send(from("198.51.100.81"))).toMatchObject({ status: 429, charged: "unknown" });
  // Whoever has signed what is asked for is in nobody's way.
  expect((await orderMachine(world, payer)).answer.status).toBe(202);
});

test("hard case 44: so are signatures that only the chain can tell: a payment of an account with code cost 3,000,000 gas at each node", async () => {
  world = await deploy({ edge: { RATE_LIMITS: CAPS } });
  const wallet = privateKeyToAccount(generatePrivateKey()).address;
  // A contract that reverts.
  await chain.node.setCode({ address: wallet, bytecode: "0x60006000fd" });
  const { send } = await stray(500_000n, payer, { from: wallet });
  const statuses = [];
  for (let host = 0; host < 4; host++) statuses.push((await send(from(`2001:db8:9:${host}::1`))).status);
  expect(statuses).toEqual([402, 402, 429, 429]);
  expect((await orderMachine(world, payer)).answer.status).toBe(202);
});

test("hard case 44: and bodies whose signature is not the payer's key's", async () => {
  world = await deploy({ edge: { RATE_LIMITS: CAPS } });
  requirement = await quoteOf(post(world, PATH, computeBody()));
  const signed = await signFor(payer, requirement);
  const sshPublicKey = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIOMqqnkVzrm0SdG6UOoqKLsabgH5C9okWi0dh2l9GKJl";
  const send = (host: number, signature: Hex) =>
    post(
      world,
      PATH,
      { ...computeBody(), sshPublicKey },
      {
        "payment-signature": paymentHeaderV2(requirement, signed),
        "x-body-signature": signature,
        ...from(`2001:db8:9:${host}::1`),
      },
    );
  const statuses = [];
  for (let host = 0; host < 4; host++) statuses.push((await send(host, `0x${"12".repeat(65)}`)).status);
  expect(statuses).toEqual([401, 401, 429, 429]);
});
