import { expect, test } from "vitest";
import { stateIn } from "../../../src/db/schema.ts";
import { ForbiddenMove, type Life } from "../../../src/model/lives.ts";
import { machineLife, requireMachineMove } from "../../../src/model/machine-life.ts";
import {
  paymentLife,
  paymentStageOf,
  requirePaymentMove,
  type StagedPayment,
  statesThat,
} from "../../../src/model/payment-life.ts";
import { refundLife, requireRefundMove } from "../../../src/model/refund-life.ts";

const LIVES: Record<string, { life: Life<string>; first: string[]; last: string[] }> = {
  machine: { life: machineLife, first: ["provisioning/create"], last: ["terminated/idle", "failed/idle"] },
  payment: {
    life: paymentLife,
    // An earlier version has written the second.
    first: ["claimed/settle", "refunding/refund"],
    last: ["settled/idle", "released/idle", "refunded/idle", "held/idle"],
  },
  refund: { life: refundLife, first: ["recorded", "waiting", "due"], last: ["paid", "cancelled", "recorded"] },
};

/** The stages that follow from these, themselves included. */
function reachable(life: Life<string>, from: readonly string[]): Set<string> {
  const seen = new Set(from);
  for (const stage of seen) for (const next of life[stage]?.becomes ?? []) seen.add(next);
  return seen;
}

test.each(Object.entries(LIVES))(
  "every stage of a %s is reached, and none is a dead end",
  (_thing, { life, first, last }) => {
    const stages = Object.keys(life);
    expect(stages.filter((stage) => !reachable(life, first).has(stage))).toEqual([]);
    expect(stages.filter((stage) => !last.some((end) => reachable(life, [stage]).has(end)))).toEqual([]);
  },
);

const ORDER: StagedPayment = {
  kind: "compute",
  state: "authorized",
  step: "buy",
  tier: 0,
  durationDays: 1,
  cost: null,
  boughtAt: null,
  tokenId: null,
  incarnation: null,
  purchaseTx: null,
  transferTx: null,
};

test("the phase of a payment is told by the columns that its stage has set", () => {
  const costed = { ...ORDER, cost: "1000000", boughtAt: 1 };
  const linked = { ...costed, tokenId: 1, incarnation: "a", purchaseTx: "0x1" };
  expect([ORDER, costed, { ...costed, purchaseTx: "0x1" }].map(paymentStageOf)).toEqual([
    "authorized/buy/choose",
    "authorized/buy/order",
    "authorized/buy/await",
  ]);
  expect(paymentStageOf({ ...ORDER, step: "capture" })).toBe("authorized/capture/first");
  expect(paymentStageOf({ ...linked, step: "capture" })).toBe("authorized/capture/last");
  expect(paymentStageOf({ ...linked, state: "settled", step: "deliver", transferTx: "0x2" })).toBe(
    "settled/deliver/watch",
  );
});

test("a row without a column of its stage is at no stage, and may only be held: somebody wrote it (hard case 34)", () => {
  const forged: StagedPayment = { ...ORDER, state: "settled", step: "deliver" };
  expect(paymentStageOf(forged)).toBeNull();
  expect(() => requirePaymentMove(forged, { ...forged, state: "refund_due", step: "refund" })).toThrow(ForbiddenMove);
  expect(() => requirePaymentMove(forged, { ...forged, state: "held", step: "idle" })).not.toThrow();
});

test("a move that a life does not have is refused", () => {
  expect(() => requireMachineMove(["failed/idle", "running/idle"], "running/scrub")).toThrow(
    "A machine does not go from failed/idle to running/scrub.",
  );
  expect(() => requirePaymentMove(ORDER, { ...ORDER, state: "settled", step: "deliver" })).toThrow(ForbiddenMove);
  expect(() => requireRefundMove(["paying"], "cancelled")).toThrow("A refund does not go from paying to cancelled.");
});

test("index conditions are in the words that the migrations have", () => {
  expect(stateIn(statesThat("open"))).toBe("state IN ('claimed', 'authorized', 'settling')");
  expect(stateIn(["released"])).toBe("state = 'released'");
});
