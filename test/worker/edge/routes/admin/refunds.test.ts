// What operators see and decide of refunds, and the claim of a token's owner (hard case 17).
import { runDurableObjectAlarm } from "cloudflare:test";
import { beforeEach, expect, test } from "vitest";
import { refunds } from "../../../../../src/db/schema.ts";
import { refundRow } from "../../../../rows.ts";
import { freshHeaders, transfer } from "../../../../world/agent.ts";
import { agent, chain } from "../../../chain.ts";
import { buyAndFail, type Deployment, deploy } from "../../../deployment.ts";
import { type Operator, operator } from "./operator.ts";

type Refund = { tokenId: number; kind: string; state: string; reason: string | null; amount: string; payTo: string };
type Page = { refunds: Refund[]; nextCursor?: string };
const because = { reason: "checked" };

/** What the sweep does for refunds, the wallet's alarm, and blocks until it is final. */
async function payOut(world: Deployment, minutes = 0): Promise<void> {
  world.sent.length = 0;
  await chain.mine(3);
  await world.sweep(Date.now() + minutes * 61_000);
  await world.drain();
  await chain.mine(4);
  await runDurableObjectAlarm(world.wallet);
  await world.sweep(Date.now() + (minutes + 1) * 61_000);
  await world.drain();
}
const refundOf = async (world: Deployment, tokenId: number) =>
  (await world.rows("SELECT * FROM refunds WHERE token_id = ?", tokenId))[0];
const claim = async (world: Deployment, index: number, tokenId: number) => {
  const answer = await world.request(`/credentials/${tokenId}/refund`, {
    method: "POST",
    headers: await freshHeaders("https://api.example", agent(index), tokenId, "/refund"),
  });
  return { status: answer.status, body: (await answer.json()) as { code?: string; refund?: object } };
};

let world: Deployment;
let ask: Operator;
beforeEach(async () => {
  world = await deploy({ provisioner: { REFUNDS: "manual" } });
  ask = operator(world, await world.operatorKey());
});

test("refunds by state, newest token first, in pages that split no token's two", async () => {
  const first = await buyAndFail(world);
  const second = await buyAndFail(world);
  const failed = await world.db.select().from(refunds);
  const late = { kind: "late", state: "recorded", owedSeconds: 60, amount: "347" } as const;
  // A payment stands for no token, perhaps.
  const ofPayment = { kind: "payment", tokenId: -1 } as const;
  await world.insert(
    refunds,
    ...failed.map(({ subject, tokenId }) => refundRow({ subject, tokenId, ...late })),
    ...["1", "2"].map((id) => refundRow({ subject: id.padStart(32, "0"), ...ofPayment })),
  );
  const all = (await ask<Page>("GET", "/admin/refunds")).body.refunds.map(({ tokenId, kind }) => `${tokenId} ${kind}`);
  expect(all).toEqual([
    ...[`${second} late`, `${second} failed`, `${first} late`, `${first} failed`],
    ...["null payment", "null payment"],
  ]);
  const paged = [];
  for (let cursor: string | undefined = ""; cursor !== undefined; ) {
    const query: string = cursor === "" ? "" : `&cursor=${cursor}`;
    const { body } = await ask<Page>("GET", `/admin/refunds?limit=1${query}`);
    paged.push(...body.refunds.map(({ tokenId, kind }) => `${tokenId} ${kind}`));
    cursor = body.nextCursor;
  }
  expect(paged).toEqual(all);
  const recorded = await ask<Page>("GET", "/admin/refunds?state=recorded");
  expect(recorded.body.refunds).toMatchObject([
    { tokenId: second, kind: "late", state: "recorded", amount: "0.000347", owedSeconds: 60 },
    { tokenId: first, kind: "late" },
  ]);
  expect((await ask("GET", "/admin/refunds?state=nonsense")).status).toBe(400);
  expect((await ask("GET", "/admin/refunds?cursor=7")).status).toBe(400);
});

test("where refunds are manual, an operator's word pays the buyer, once", async () => {
  const tokenId = await buyAndFail(world);
  expect(await refundOf(world, tokenId)).toMatchObject({ state: "waiting", reason: "manual" });
  const paid = await ask<Refund>("POST", `/admin/refunds/${tokenId}/failed/pay`, because);
  expect(paid).toMatchObject({ status: 200, body: { tokenId, kind: "failed", state: "due", amount: "0.50" } });
  await payOut(world);
  expect(await refundOf(world, tokenId)).toMatchObject({ state: "paid", recipient: agent(0).address });
  for (const what of ["pay", "cancel"]) {
    expect(await ask("POST", `/admin/refunds/${tokenId}/failed/${what}`, because)).toMatchObject({
      status: 409,
      body: { code: "not_payable" },
    });
  }
});

test("whom an operator names is paid only if the token is his in final history (hard case 17)", async () => {
  const tokenId = await buyAndFail(world);
  await transfer(chain, agent(0), agent(1).address, tokenId);
  await chain.mine(3);
  const pay = (payTo?: string) =>
    ask("POST", `/admin/refunds/${tokenId}/failed/pay`, { ...because, ...(payTo === undefined ? {} : { payTo }) });
  expect((await pay(agent(3).address)).status).toBe(200);
  await payOut(world);
  expect(await refundOf(world, tokenId)).toMatchObject({ state: "held", reason: "owner_changed", recipient: null });
  expect((await pay()).status).toBe(200);
  await payOut(world, 3);
  expect(await refundOf(world, tokenId)).toMatchObject({ state: "held", reason: "owner_is_not_the_buyer" });
  expect((await pay(agent(1).address)).status).toBe(200);
  await payOut(world, 6);
  expect(await refundOf(world, tokenId)).toMatchObject({ state: "paid", recipient: agent(1).address });
});

test("what was paid by hand is noted and never paid again; what is cancelled leaves room for a retry", async () => {
  const tokenId = await buyAndFail(world);
  const txHash = `0x${"ab".repeat(32)}`;
  const settled = await ask<Refund>("POST", `/admin/refunds/${tokenId}/failed/settle`, { ...because, txHash });
  expect(settled).toMatchObject({ status: 200, body: { state: "paid", reason: "by_hand", txHash } });
  expect((await ask("POST", `/admin/refunds/${tokenId}/failed/pay`, because)).status).toBe(409);
  const status = await (await world.request(`/status/${tokenId}`)).json();
  expect(status).toMatchObject({ refund: { state: "paid", txHash } });

  const other = await buyAndFail(world);
  expect((await ask("POST", `/admin/refunds/${other}/failed/cancel`, because)).status).toBe(200);
  expect(await refundOf(world, other)).toMatchObject({ state: "cancelled", reason: "by_hand" });
  expect(await (await world.request(`/status/${other}`)).json()).not.toHaveProperty("refund");
  const { body } = await ask<{ failures: { id: number; tokenId: number }[] }>("GET", "/admin/failed-provisionings");
  const failure = body.failures.find((one) => one.tokenId === other);
  expect((await ask("POST", `/admin/failed-provisionings/${failure?.id}/retry`)).status).toBe(202);
});

test.each([
  ["failed", "pay", {}],
  ["failed", "pay", { reason: "x", payTo: "0x12" }],
  ["failed", "settle", { reason: "x" }],
  ["failed", "settle", { reason: "x", txHash: "0x12" }],
  ["other", "pay", { reason: "x" }],
])("%s/%s with %j is malformed", async (kind, what, body) => {
  expect((await ask("POST", `/admin/refunds/1/${kind}/${what}`, body)).status).toBe(400);
});

test("a token, or a payment, without a refund is 404", async () => {
  const payment = "0".repeat(32);
  for (const of of ["900000/failed", `${payment}/payment`, "900000/payment", `${payment}/failed`]) {
    expect(await ask("POST", `/admin/refunds/${of}/pay`, because), of).toMatchObject({
      status: 404,
      body: { code: "refund_not_found" },
    });
  }
});

test("without a wallet's key nothing is begun: the refund is held until it is settled by hand", async () => {
  const tokenId = await buyAndFail(world);
  const { OPERATOR_PRIVATE_KEY: _, ...config } = world.provisioner;
  world.context.config = config as typeof world.provisioner;
  await ask("POST", `/admin/refunds/${tokenId}/failed/pay`, because);
  await payOut(world);
  expect(await refundOf(world, tokenId)).toMatchObject({ state: "held", reason: "no_wallet", recipient: null });
});

test("after a resale the owner claims the refund and is paid, once the ownership is final (hard case 17)", async () => {
  const automatic = await deploy();
  const tokenId = await buyAndFail(automatic);
  await transfer(chain, agent(0), agent(1).address, tokenId);
  await chain.mine(3);
  await automatic.scan();
  await payOut(automatic);
  expect(await refundOf(automatic, tokenId)).toMatchObject({ state: "held", reason: "owner_is_not_the_buyer" });
  expect(await claim(automatic, 0, tokenId)).toMatchObject({ status: 403, body: { code: "not_owner" } });
  const claimed = await claim(automatic, 1, tokenId);
  expect(claimed).toMatchObject({ status: 202, body: { refund: { state: "due", amount: "0.50", txHash: null } } });
  expect(await refundOf(automatic, tokenId)).toMatchObject({ pay_to: agent(1).address.toLowerCase() });
  await payOut(automatic, 3);
  expect(await refundOf(automatic, tokenId)).toMatchObject({ state: "paid", recipient: agent(1).address });
  // Asked again, it says how it stands.
  expect(await claim(automatic, 1, tokenId)).toMatchObject({ status: 202, body: { refund: { state: "paid" } } });
});

test("a claim by an owner who sells the token before it is final pays neither of the two; the new owner claims (hard case 17)", async () => {
  const automatic = await deploy();
  const tokenId = await buyAndFail(automatic);
  await transfer(chain, agent(0), agent(1).address, tokenId);
  await chain.mine(3);
  await automatic.scan();
  await payOut(automatic);
  await claim(automatic, 1, tokenId);
  await transfer(chain, agent(1), agent(2).address, tokenId);
  await chain.mine(3);
  await automatic.scan();
  await payOut(automatic, 3);
  expect(await refundOf(automatic, tokenId)).toMatchObject({ state: "held", reason: "owner_changed", recipient: null });
  expect((await claim(automatic, 2, tokenId)).status).toBe(202);
  await payOut(automatic, 6);
  expect(await refundOf(automatic, tokenId)).toMatchObject({ state: "paid", recipient: agent(2).address });
});

test("a claim waits while the transfer to the one who claims is not final (hard case 16)", async () => {
  const automatic = await deploy();
  const tokenId = await buyAndFail(automatic);
  await chain.mine(3);
  await automatic.sql.prepare("UPDATE refunds SET state = 'held', reason = 'owner_is_not_the_buyer'").run();
  await transfer(chain, agent(0), agent(1).address, tokenId);
  await automatic.scan();
  expect((await claim(automatic, 1, tokenId)).status).toBe(202);
  automatic.sent.length = 0;
  await automatic.sweep();
  await automatic.drain();
  expect(await refundOf(automatic, tokenId)).toMatchObject({ state: "due", recipient: null });
  await payOut(automatic, 3);
  expect(await refundOf(automatic, tokenId)).toMatchObject({ state: "paid", recipient: agent(1).address });
});

test("what waits for an operator can't be claimed, and where nothing is owed there is nothing to claim", async () => {
  const tokenId = await buyAndFail(world);
  await chain.mine(1);
  expect(await claim(world, 0, tokenId)).toMatchObject({ status: 409, body: { code: "not_claimable" } });
  const { tokenId: other } = await world.buy(1);
  await world.scan();
  await chain.mine(1);
  expect(await claim(world, 1, other)).toMatchObject({ status: 404, body: { code: "refund_not_found" } });
});
