// What is asked of payments costs the same however many old rows there are, and what strangers leave goes away (hard case 37).
import { beforeEach, expect, test } from "vitest";
import * as store from "../../../src/db/payments.ts";
import { payments } from "../../../src/db/schema.ts";
import { wakePayments } from "../../../src/db/wake.ts";
import { paymentRow } from "../../rows.ts";
import { type Deployment, deploy } from "../deployment.ts";
import { billOf } from "../meter.ts";

const DAY_MS = 24 * 3_600_000;
const PAYER = `0x${"1".repeat(40)}`;
let world: Deployment;
beforeEach(async () => {
  world = await deploy();
});

/** So many rows of one kind; each has a payer of its own unless told. */
const insert = (prefix: string, count: number, columns: Partial<store.NewPayment>) =>
  world.insert(
    payments,
    ...Array.from({ length: count }, (_, i) => paymentRow({ id: `${prefix}${i + 1}`, ...columns })),
  );

test("hard case 37: limits, the market, a repeated order and the sweep read no old rows, whoever made them", async () => {
  const now = Date.now();
  const row = { id: "none", payer: PAYER, amount: "1", captureFirst: false };
  const limits = { balance: 10n, float: 10n, uncaptured: 10n };
  const cost = async (work: () => Promise<unknown>) => (await billOf(work)).rowsRead;
  const costs = async () => [
    await cost(() => store.exceededLimit(world.db, row, limits, now, "all")),
    await cost(() => store.readMarket(world.db, now)),
    await cost(() => store.sameOrder(world.db, { payer: PAYER, request: "r", since: now - 60_000 })),
    await cost(() => wakePayments(world.db, now, 100)),
    await cost(async () => store.forgetPayments(world.db, now - DAY_MS, 100)),
  ];
  const before = await costs();
  const old = { boughtAt: 1, endedAt: 1 };
  const kinds = [
    { state: "settled", ...old },
    { state: "released", ...old },
    { state: "refunded", ...old },
    { state: "held", ...old },
    { state: "released", endedAt: now },
    { state: "releasing", wakeAt: now + 1 },
    { state: "releasing", wakeAt: now + 1, boughtAt: 1 },
  ] as const;
  for (const [i, columns] of kinds.entries()) {
    await insert(`a${i}-`, 500, columns);
    await insert(`b${i}-`, 500, { ...columns, payer: PAYER });
  }
  const after = await costs();
  for (const [i, rows] of after.entries()) expect(rows - (before[i] ?? 0), `query ${i}`).toBeLessThanOrEqual(3);
});

test("hard case 37: however many rows strangers leave, real work is woken first", async () => {
  const now = Date.now();
  await insert("claimed-", 1_000, { state: "claimed", wakeAt: 1 });
  await insert("given-up-", 1_000, { state: "releasing", wakeAt: 2 });
  await insert("authorized-", 3, { state: "authorized", wakeAt: now - 3 });
  await insert("refund-", 3, { state: "refund_due", wakeAt: now - 2 });
  await insert("bought-", 3, { state: "releasing", boughtAt: 1, wakeAt: now - 1 });
  let woken: { payment: string }[] = [];
  const { rowsRead } = await billOf(async () => {
    woken = await wakePayments(world.db, now, 20);
  });
  expect(
    woken
      .slice(0, 9)
      .map(({ payment }) => payment)
      .sort(),
  ).toEqual([
    ...[1, 2, 3].map((i) => `authorized-${i}`),
    ...[1, 2, 3].map((i) => `bought-${i}`),
    ...[1, 2, 3].map((i) => `refund-${i}`),
  ]);
  expect(woken).toHaveLength(9 + 4);
  expect(rowsRead).toBeLessThan(200);
});

test("hard case 37: what was never authorized goes a day after final history has let it go; nothing else does", async () => {
  const now = Date.now();
  const endedAt = now - DAY_MS - 1;
  const kept = {
    young: { state: "released", endedAt: now - DAY_MS + 60_000 },
    bought: { state: "released", endedAt, boughtAt: 1, cost: "1" },
    refused: { state: "released", endedAt, reason: "capture_refused" },
    held: { state: "released", endedAt, held: true },
    open: { state: "releasing" },
    settled: { state: "settled", endedAt },
    refunded: { state: "refunded", endedAt, settleTx: "0x1" },
    undone: { state: "released", endedAt, incarnation: "x" },
  } as const;
  for (const [name, columns] of Object.entries(kept)) await insert(name, 1, columns);
  await insert("gone", 3, { state: "released", endedAt, reason: "balance" });
  await world.sweep(now);
  const left = await world.rows("SELECT id FROM payments ORDER BY id");
  expect(left.map(({ id }) => id)).toEqual(
    Object.keys(kept)
      .map((name) => `${name}1`)
      .sort(),
  );
});

test("a claim is made once, and not beside an order for the same", async () => {
  const claim = (id: string, nonce: string) =>
    paymentRow({ id, payer: PAYER, nonce, state: "claimed", step: "settle", captureFirst: true, createdAt: 5 });
  const unless = { payer: PAYER, request: "r", since: 4 };
  expect(await store.claimPayment(world.db, claim("a", "1"), unless)).toMatchObject({
    id: "a",
    captureFirst: true,
    held: false,
    generation: 1,
    tier: null,
  });
  expect(await store.claimPayment(world.db, claim("a", "1"))).toBeNull();
  expect(await store.claimPayment(world.db, claim("b", "2"), unless)).toBeNull();
  expect(await store.claimPayment(world.db, claim("b", "2"), { ...unless, since: 5 })).toMatchObject({ id: "b" });
  expect(await store.claimPayment(world.db, claim("c", "3"))).toMatchObject({ id: "c" });
});
