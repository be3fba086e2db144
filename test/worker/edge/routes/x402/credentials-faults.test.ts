// What goes wrong between a payment and its answer: facilitators that fail, lie and are late, strangers who are faster,
// requests sent again. Charged once at most, nobody is told to pay twice, and the chain has the last word (hard case 2).
import { beforeEach, expect, test } from "vitest";
import { USDC_ADDRESS } from "../../../../world/addresses.ts";
import { fixedHeaders } from "../../../../world/agent.ts";
import type { FacilitatorFault } from "../../../../world/facilitator.ts";
import { cancel, submit } from "../../../../world/payer.ts";
import { parts } from "../../../bindings.ts";
import { agent, chain } from "../../../chain.ts";
import { buyAndRun, type Deployment, deploy, PATIENCE_MS } from "../../../deployment.ts";
import { addFacilitatorFault, addRpcFault, clearFacilitatorFaults, clearRpcFaults } from "../../../faults.ts";
import { ask, leaveBehind, PRICE, prepare, quote, unseal, v2 } from "./paid-credentials.ts";
import { signFor, usdcOf } from "./till.ts";

const payer = agent(0);
let world: Deployment;
let tokenId: number;
let before: bigint;
beforeEach(async () => {
  world = await deploy({ edge: { FACILITATOR_TIMEOUT_MS: "3000" } });
  tokenId = await buyAndRun(world, 0);
  before = await usdcOf(payer.address);
});

const charged = async () => before - (await usdcOf(payer.address));
const states = async () => (await world.payments()).map(({ state }) => state as string);
const once = { call: "settle", times: 1 } as const;

test("five identical requests at once are charged once; whoever lost asks again", async () => {
  const { headers } = await prepare(world, tokenId);
  const answers = await Promise.all(Array.from({ length: 5 }, () => ask(world, tokenId, headers)));
  const statuses = answers.map(({ status }) => status).sort();
  expect(statuses).toEqual([200, 202, 202, 202, 202]);
  for (const lost of answers.filter(({ status }) => status === 202)) {
    expect(lost.headers.get("retry-after")).toBe("2");
    expect(lost.body).toMatchObject({ status: "settling", purchaseId: expect.any(String) });
  }
  expect(await charged()).toBe(PRICE);
  expect(await states()).toEqual(["settled"]);
  // The same payment gets the same sealed key; in clear it comes by its owner's signature.
  const first = answers.find(({ status }) => status === 200)?.body["sealedPrivateKey"];
  expect((await ask(world, tokenId, headers)).body).toMatchObject({ privateKey: null, sealedPrivateKey: first });
  const again = await ask(world, tokenId, { ...headers, ...(await fixedHeaders(payer, tokenId)) });
  expect(again).toMatchObject({ status: 200, body: { privateKey: expect.stringContaining("PRIVATE KEY") } });
  expect(await charged()).toBe(PRICE);
});

test("five at once whose first was cut off after settling: one of the next gets the credentials", async () => {
  const { headers } = await prepare(world, tokenId);
  expect((await ask(world, tokenId, headers)).status).toBe(200);
  await world.sql
    .prepare("UPDATE payments SET served_at = NULL, step = 'settle', settled_at = settled_at - 15000")
    .run();
  const answers = await Promise.all(Array.from({ length: 5 }, () => ask(world, tokenId, headers)));
  const statuses = answers.map(({ status }) => status);
  expect(statuses).toContain(200);
  expect(statuses.filter((status) => status !== 200 && status !== 202)).toEqual([]);
  expect(await charged()).toBe(PRICE);
});

const SETTLED_ALL_THE_SAME: [string, FacilitatorFault][] = [
  ["its answer is lost", { ...once, kind: "lost_answer" }],
  ["it settles after its answer", { ...once, kind: "late", ms: 300 }],
  ["it settles and says that it failed", { ...once, kind: "lies_failure" }],
  ["it calls the settlement pending", { ...once, kind: "pending", ms: 300 }],
];
test.each(SETTLED_ALL_THE_SAME)("a settlement is found on the chain where %s: 200, charged once", async (_, fault) => {
  const { headers } = await prepare(world, tokenId);
  await addFacilitatorFault(fault);
  const answer = await ask(world, tokenId, headers);
  expect(answer.status, answer.text).toBe(200);
  expect(unseal(0, answer.body["sealedPrivateKey"])).toContain("PRIVATE KEY");
  expect(await charged()).toBe(PRICE);
  expect(await states()).toEqual(["settled"]);
});

test("a settlement that lands after the answer: 202, and the same payment asks again", async () => {
  const { headers, signed } = await prepare(world, tokenId);
  await addFacilitatorFault({ ...once, kind: "down" });
  const first = await ask(world, tokenId, headers);
  expect(first.status).toBe(202);
  expect(first.headers.get("retry-after")).toBe("2");
  const { purchaseId } = first.body as { purchaseId: string };
  expect(first.body).toEqual({
    purchaseId,
    status: "settling",
    charged: "unknown",
    message: expect.stringContaining("don't sign another one"),
    statusUrl: `https://api.example/x402/purchases/${purchaseId}`,
  });
  const told = await (await world.request(`/x402/purchases/${purchaseId}`)).json();
  expect(told).toMatchObject({ status: "authorized", charged: false });
  await submit(chain, agent(1), signed, USDC_ADDRESS);
  expect((await ask(world, tokenId, headers)).status).toBe(202);
  await leaveBehind(world);
  const answer = await ask(world, tokenId, headers);
  expect(answer).toMatchObject({ status: 200, body: { payment: { purchaseId } } });
  expect(await charged()).toBe(PRICE);
});

test("a settlement that never happened is tried again with the same payment", async () => {
  const { headers } = await prepare(world, tokenId);
  await addFacilitatorFault({ ...once, kind: "error" });
  const first = await ask(world, tokenId, headers);
  expect(first.status).toBe(202);
  expect(first.text).not.toContain(parts.facilitatorRpcKey);
  await leaveBehind(world);
  expect((await ask(world, tokenId, headers)).status).toBe(200);
  expect(await charged()).toBe(PRICE);
});

test("a facilitator that says success of no transaction: 202 and never 200, and released in the end", async () => {
  const { headers } = await prepare(world, tokenId);
  await addFacilitatorFault({ call: "settle", kind: "lies_success" });
  for (let i = 0; i < 2; i++) {
    expect((await ask(world, tokenId, headers)).status).toBe(202);
    await leaveBehind(world);
  }
  expect(await charged()).toBe(0n);
  const [row] = await world.payments();
  const { timestamp } = await chain.reader.getBlock();
  await chain.node.setNextBlockTimestamp({
    timestamp: BigInt(Math.max(Number(timestamp), row?.["valid_before"])) + 1n,
  });
  await chain.mine(4);
  await world.sql.prepare("UPDATE payments SET wake_at = 0").run();
  await world.sweep();
  await world.drain();
  expect(await world.payments()).toMatchObject([{ state: "released", reason: "not_settled", settle_tx: null }]);
  expect((await ask(world, tokenId, headers)).status).toBe(409);
  const told = await (await world.request(`/x402/purchases/${row?.["id"]}`)).json();
  expect(told).toMatchObject({ status: "released", charged: false });
});

test.each([
  ["down", 503, "facilitator_unavailable"],
  ["hang", 503, "facilitator_unavailable"],
  ["error", 503, "facilitator_unavailable"],
  ["nonsense", 502, "facilitator_answered_nonsense"],
] as const)(
  "a facilitator that is '%s' at verify: %i and never 402, none of its words; the same payment works afterwards",
  async (kind, status, code) => {
    const { headers } = await prepare(world, tokenId);
    await addFacilitatorFault({ call: "verify", kind });
    const failed = await ask(world, tokenId, headers);
    expect(failed.status).toBe(status);
    expect(failed.headers.get("retry-after")).toBe("5");
    expect(failed.headers.get("payment-required")).toBeNull();
    expect(failed.body).toEqual({
      code,
      error: expect.stringContaining("Send the same payment again."),
      requestId: expect.any(String),
      charged: "none",
    });
    expect(failed.text).not.toContain(parts.facilitatorRpcKey);
    await clearFacilitatorFaults();
    expect((await ask(world, tokenId, headers)).status).toBe(200);
    expect(await charged()).toBe(PRICE);
  },
);

test("a quote needs no facilitator", async () => {
  const nobody = await deploy({ edge: { FACILITATOR_URL: "http://127.0.0.1:9" } });
  expect(await quote(nobody, tokenId)).toMatchObject({ amount: "10000" });
});

test("what the facilitator refuses is 402 in our words, and can be paid by another authorization", async () => {
  const { headers } = await prepare(world, tokenId);
  const reason = `insufficient_funds at https://node.example/${parts.facilitatorRpcKey}`;
  await addFacilitatorFault({ call: "verify", kind: "refuse", reason, times: 1 });
  const refused = await ask(world, tokenId, headers);
  expect([refused.status, refused.body["error"]]).toEqual([402, "The payer's USDC balance is below the price."]);
  expect(refused.text).not.toContain(parts.facilitatorRpcKey);
  expect(await states()).toEqual(["releasing"]);
  expect((await ask(world, tokenId, (await prepare(world, tokenId)).headers)).status).toBe(200);
  expect(await charged()).toBe(PRICE);
});

test("hard case 2: somebody submits the authorization before it is verified: 200, charged once", async () => {
  const { headers, signed } = await prepare(world, tokenId);
  const hash = await submit(chain, agent(1), signed, USDC_ADDRESS);
  const answer = await ask(world, tokenId, headers);
  expect(answer).toMatchObject({ status: 200, body: { payment: { transaction: hash } } });
  expect(await charged()).toBe(PRICE);
});

test("hard case 2: somebody submits it between verify and settle: 200, charged once", async () => {
  const { headers, signed } = await prepare(world, tokenId);
  // What a facilitator says whose own transaction came second.
  const reason = "invalid_exact_evm_nonce_already_used";
  await addFacilitatorFault({ ...once, kind: "refuse", reason, afterUse: true });
  const asked = ask(world, tokenId, headers);
  await expect.poll(states, { timeout: PATIENCE_MS, interval: 20 }).toEqual(["settling"]);
  const hash = await submit(chain, agent(1), signed, USDC_ADDRESS);
  expect(await asked).toMatchObject({ status: 200, body: { payment: { transaction: hash } } });
  expect(await charged()).toBe(PRICE);
});

test("a settlement that is refused for what a stranger's did in the newest block is no refusal: the use was looked up a block earlier (hard case 28)", async () => {
  const { headers, signed } = await prepare(world, tokenId);
  await addFacilitatorFault({ ...once, kind: "refuse", reason: "insufficient_funds", afterUse: true });
  const asked = ask(world, tokenId, headers);
  await expect.poll(states, { timeout: PATIENCE_MS, interval: 20 }).toEqual(["settling"]);
  await addRpcFault({ kind: "lag", blocks: 1 }, "third");
  await addRpcFault({ kind: "delay", ms: 300 });
  const hash = await submit(chain, agent(1), signed, USDC_ADDRESS);
  expect(await asked).toMatchObject({ status: 200, body: { payment: { transaction: hash } } });
  await clearRpcFaults();
  expect(await charged()).toBe(PRICE);
});

test("an authorization that its payer took back is 402, though its nonce reads as used", async () => {
  const { headers, signed } = await prepare(world, tokenId);
  await cancel(chain, payer, signed, USDC_ADDRESS);
  const refused = await ask(world, tokenId, headers);
  expect(refused).toMatchObject({ status: 402, body: { code: "payment_required" } });
  expect(refused.body["error"]).toBe("The authorization was used or cancelled before: sign a new one.");
  expect(await charged()).toBe(0n);
  expect((await ask(world, tokenId, headers)).status).toBe(409);
});

test("a payment that was made for one token is good for no other", async () => {
  const other = await buyAndRun(world, 0);
  before = await usdcOf(payer.address);
  const { headers } = await prepare(world, tokenId);
  expect((await ask(world, tokenId, headers)).status).toBe(200);
  const [row] = await world.payments();
  const reused = await ask(world, other, headers);
  expect(reused).toMatchObject({
    status: 409,
    body: { code: "payment_used", details: [{ purchaseId: row?.["id"] }] },
  });
  expect(reused.text).not.toContain("ecc:");
  expect(await charged()).toBe(PRICE);
});

test("payment-identifier: another authorization under it is not charged, and gets the sealed key again", async () => {
  const other = await buyAndRun(world, 0);
  before = await usdcOf(payer.address);
  const id = `agent-${crypto.randomUUID()}`;
  const requirement = await quote(world, tokenId);
  const fresh = async (index = 0) => v2(requirement, await signFor(agent(index), requirement), id);
  const first = await ask(world, tokenId, await fresh());
  expect(first.status).toBe(200);
  const again = await ask(world, tokenId, await fresh());
  expect(again.status, again.text).toBe(200);
  expect(again.body["payment"]).toEqual(first.body["payment"]);
  expect(again.body["sealedPrivateKey"]).toBe(first.body["sealedPrivateKey"]);
  expect(unseal(0, again.body["sealedPrivateKey"])).toContain("PRIVATE KEY");
  expect(await ask(world, other, await fresh())).toMatchObject({ status: 409, body: { code: "identifier_used" } });
  expect(await charged()).toBe(PRICE);
  // Another payer's same identifier is another payment.
  const theirs = await buyAndRun(world, 1);
  expect((await ask(world, theirs, await fresh(1))).status).toBe(200);
  expect(await world.payments()).toHaveLength(2);
});

test("payment-identifier: while the first is being settled, another authorization under it completes the first", async () => {
  const id = `agent-${crypto.randomUUID()}`;
  const requirement = await quote(world, tokenId);
  const [first, second] = [await signFor(payer, requirement), await signFor(payer, requirement)];
  await addFacilitatorFault({ ...once, kind: "down" });
  expect((await ask(world, tokenId, v2(requirement, first, id))).status).toBe(202);
  await leaveBehind(world);
  expect((await ask(world, tokenId, v2(requirement, second, id))).status).toBe(200);
  // Whoever still has the first one can't charge it a second time.
  await submit(chain, agent(1), first, USDC_ADDRESS).catch(() => undefined);
  expect(await charged()).toBe(PRICE);
  expect(await world.payments()).toMatchObject([{ nonce: first.authorization.nonce, state: "settled" }]);
});
