// The life of a payment by x402. A stage is `state/step`, and a phase where the columns of one pair tell two or three stages
// apart: the state is where the money is, the step is what is done next. src/README.md draws this table.
import type { Charged } from "../errors.ts";
import { ForbiddenMove, type Life, requireMove } from "./lives.ts";

/**
 * Where the money is. `wire`: the word of the public API. `charged`: whether money has moved and not come back. `open`: it has
 * not moved as far as we know, and may. `wanted`: what was asked for may still be delivered. `moved`: it came to us.
 */
const STATES = {
  // Nobody has vouched for it yet.
  claimed: { wire: "unpaid", charged: "unknown", open: true, wanted: true },
  authorized: { wire: "authorized", charged: "unknown", open: true, wanted: true },
  // It may be on its way to us, and the chain alone knows.
  settling: { wire: "authorized", charged: "unknown", open: true, wanted: true },
  settled: { wire: "settled", charged: "yes", wanted: true, moved: true },
  // We have given it up, and anybody can submit it until its time is over.
  releasing: { wire: "releasing", charged: "unknown" },
  released: { wire: "released", charged: "none" },
  refund_due: { wire: "settled", charged: "yes", moved: true },
  // Written before refunds of payments were in the ledger of refunds: the wallet has the order.
  refunding: { wire: "settled", charged: "yes", moved: true },
  refunded: { wire: "refunded", charged: "none", moved: true },
  // The rows and the chain disagree, or the refund is not for us to decide: an operator decides.
  held: { wire: "settled", charged: "unknown" },
} as const;

export type PaymentState = keyof typeof STATES;
type StateFlag = "open" | "wanted" | "moved";
export type WireState = (typeof STATES)[PaymentState]["wire"];

export const paymentStates: Readonly<
  Record<PaymentState, { wire: WireState; charged: Charged } & { [F in StateFlag]?: true }>
> = STATES;
export const PAYMENT_STATES = Object.keys(STATES) as [PaymentState, ...PaymentState[]];
export const WIRE_PAYMENT_STATES = [...new Set(PAYMENT_STATES.map((state) => STATES[state].wire))] as [
  WireState,
  ...WireState[],
];

/** States with a flag. */
export const statesThat = (flag: StateFlag): PaymentState[] =>
  PAYMENT_STATES.filter((state) => paymentStates[state][flag]);

const ORDER = ["tier", "durationDays"] as const;
/** The token's purchase is ordered from the wallet. */
const COSTED = [...ORDER, "cost", "boughtAt"] as const;
/** A token and a machine stand for the order. */
const LINKED = [...ORDER, "tokenId", "incarnation", "purchaseTx"] as const;

const CHECKED = "The payment is being checked before anything is bought.";
const BOUGHT = "The token is being bought.";
const MOVED = "The machine is being made; the payment may have been taken already.";
const PAID = "The payment was taken; the machine is being made.";
const TAKEN = "The machine answers; the payment is being taken.";
const TAKEN_FIRST = "The payment is being taken; a machine is had after it.";
const DELIVERED = "The payment was taken; the token is on its way to the payer.";
const SETTLED = "The payment is being settled.";
const REFUNDED = "The payment was taken and nothing was delivered: it is being paid back.";
const NOTHING = "Nothing is left to do.";

/** Why a payment is held whose refund an operator has cancelled: that calls nobody. */
export const CANCELLED_BY_HAND = "refund_cancelled";

/** `has`: columns that are set at a stage. `sentence`: what the public API says, which answers "was I charged, and for what?". */
const PAYMENT_LIFE = {
  // Credentials are claimed, settled and served within the request that they pay; the sweep ends what a request left. An order is
  // claimed by its request as well.
  "claimed/settle": {
    becomes: [
      "settling/settle",
      "settled/settle",
      "authorized/check",
      "settled/check",
      "releasing/release",
      "refund_due/refund",
    ],
    sentence: SETTLED,
  },
  "settling/settle": { becomes: ["settled/settle", "releasing/release"], sentence: SETTLED },
  "settled/settle": { becomes: ["settled/close/answer", "refund_due/refund"], sentence: SETTLED },
  "settled/close/answer": {
    becomes: ["settled/idle", "held/idle"],
    has: ["tokenId"],
    sentence: "The token is the payer's.",
  },

  // An order: the payment is checked, a token is bought with our money, a machine is made, the payment is taken, the token goes to
  // the payer. Orders that are captured first go from `check` to `capture/first`.
  "authorized/check": {
    becomes: ["authorized/buy/choose", "authorized/capture/first", "settled/buy/choose", "releasing/release"],
    sentence: CHECKED,
  },
  "settled/check": { becomes: ["settled/buy/choose", "refund_due/refund"], sentence: CHECKED },
  // A held token serves the order, or one is bought.
  "authorized/buy/choose": {
    becomes: ["authorized/buy/order", "authorized/provision", "releasing/release"],
    has: ORDER,
    sentence: BOUGHT,
  },
  "settled/buy/choose": {
    becomes: ["settled/buy/order", "settled/provision", "refund_due/refund"],
    has: ORDER,
    sentence: PAID,
  },
  // The wallet has the order. A purchase that reverts is chosen again.
  "authorized/buy/order": {
    becomes: ["authorized/buy/await", "authorized/buy/choose", "authorized/provision", "releasing/release"],
    has: COSTED,
    sentence: BOUGHT,
  },
  "settled/buy/order": {
    becomes: [
      "settled/buy/await",
      "settled/buy/choose",
      "settled/provision",
      "settled/close/order",
      "refund_due/refund",
    ],
    has: COSTED,
    sentence: PAID,
  },
  // Its transaction is out; the scan will see the purchase.
  "authorized/buy/await": {
    becomes: ["authorized/provision", "authorized/buy/choose", "releasing/release"],
    has: [...COSTED, "purchaseTx"],
    sentence: BOUGHT,
  },
  "settled/buy/await": {
    becomes: ["settled/provision", "settled/close/order", "settled/buy/choose", "refund_due/refund"],
    has: [...COSTED, "purchaseTx"],
    sentence: PAID,
  },
  "authorized/provision": {
    becomes: ["authorized/capture/last", "releasing/release"],
    has: LINKED,
    sentence: "The machine is being made. Nothing was charged yet.",
  },
  // A reorg gave the order another machine while its capture was out.
  "settling/provision": { becomes: ["settling/capture/last", "releasing/release"], has: LINKED, sentence: MOVED },
  "settled/provision": {
    becomes: ["settled/deliver/send", "settled/close/order", "refund_due/refund"],
    has: LINKED,
    sentence: PAID,
  },
  "authorized/capture/first": {
    becomes: ["settling/capture/first", "settled/buy/choose", "releasing/release"],
    has: ORDER,
    sentence: TAKEN_FIRST,
  },
  "settling/capture/first": { becomes: ["settled/buy/choose", "releasing/release"], has: ORDER, sentence: TAKEN_FIRST },
  "authorized/capture/last": {
    becomes: ["settling/capture/last", "settled/deliver/send", "authorized/provision", "releasing/release"],
    has: LINKED,
    sentence: TAKEN,
  },
  "settling/capture/last": {
    becomes: ["settled/deliver/send", "settling/provision", "releasing/release"],
    has: LINKED,
    sentence: TAKEN,
  },
  "settled/deliver/send": {
    becomes: ["settled/deliver/watch", "settled/close/order", "settled/provision", "refund_due/refund"],
    has: LINKED,
    sentence: DELIVERED,
  },
  "settled/deliver/watch": {
    becomes: ["settled/close/order", "settled/provision", "refund_due/refund"],
    has: [...LINKED, "transferTx"],
    sentence: DELIVERED,
  },
  // Final history has yet to show the payment and the token's transfer.
  "settled/close/order": {
    becomes: ["settled/idle", "settled/deliver/send", "settled/deliver/watch", "settled/provision", "held/idle"],
    has: LINKED,
    sentence: "The token is the payer's.",
  },
  // The same payment is shown again for the key that it paid for: its answer is closed once more.
  "settled/idle": { becomes: ["settled/close/answer"], sentence: NOTHING },

  // Nothing was delivered. Its payer may show the payment once more where it was given up for a passing reason.
  "releasing/release": {
    becomes: ["released/idle", "refund_due/refund", "claimed/settle"],
    sentence: "Nothing was delivered and nothing is charged. The authorization can't be used once its time is over.",
  },
  "released/idle": { becomes: [], sentence: "Nothing was charged, and the authorization can't be used any more." },
  // Its refund is not in the ledger yet.
  "refund_due/refund": { becomes: ["refund_due/idle", "held/idle"], sentence: REFUNDED },
  "refunding/refund": { becomes: ["refund_due/idle", "held/idle"], sentence: REFUNDED },
  // Its refund is: from here on that alone is worked on, and moves the payment. A reorg may undo the charge.
  "refund_due/idle": { becomes: ["refunded/idle", "releasing/release", "held/idle"], sentence: REFUNDED },
  "refunded/idle": { becomes: [], sentence: "The payment was paid back." },
  "held/idle": { becomes: ["refund_due/refund", "refunded/idle"], sentence: "An operator is looking into it." },
} as const;

export type PaymentStage = keyof typeof PAYMENT_LIFE;
type StepOf<Stage> = Stage extends `${string}/${infer S}/${string}`
  ? S
  : Stage extends `${string}/${infer S}`
    ? S
    : never;
export type PaymentStep = StepOf<PaymentStage>;

type Columns = (typeof LINKED | typeof COSTED)[number] | "transferTx";
/** Columns that are set at every one of these stages. */
export type FilledAt<Stage extends PaymentStage> = (typeof PAYMENT_LIFE)[Stage] extends {
  has: readonly (infer C extends Columns)[];
}
  ? C
  : never;

export const paymentLife: Life<PaymentStage> & Record<PaymentStage, { has?: readonly Columns[]; sentence: string }> =
  PAYMENT_LIFE;
export const PAYMENT_STAGES = Object.keys(PAYMENT_LIFE) as PaymentStage[];
export const PAYMENT_STEPS = [...new Set(PAYMENT_STAGES.map((stage) => stage.split("/")[1]))] as [
  PaymentStep,
  ...PaymentStep[],
];

/** What tells a payment's stage. */
export type StagedPayment = {
  state: PaymentState;
  step: PaymentStep;
  kind: "credentials" | "compute";
} & { [C in Columns]: unknown };

const PHASES: { [S in PaymentStep]?: (row: StagedPayment) => string } = {
  buy: ({ cost, purchaseTx }) => (cost === null ? "choose" : purchaseTx === null ? "order" : "await"),
  capture: ({ incarnation }) => (incarnation === null ? "first" : "last"),
  deliver: ({ transferTx }) => (transferTx === null ? "send" : "watch"),
  close: ({ kind }) => (kind === "compute" ? "order" : "answer"),
};

/** A row's stage. Null where it is at none, or lacks a column of its stage: whoever writes rows by hand can write such a row. */
export function paymentStageOf(row: StagedPayment): PaymentStage | null {
  const phase = PHASES[row.step]?.(row);
  const stage = `${row.state}/${row.step}${phase === undefined ? "" : `/${phase}`}` as PaymentStage;
  const known: (typeof paymentLife)[PaymentStage] | undefined = paymentLife[stage];
  return known === undefined || known.has?.some((column) => row[column] === null) ? null : stage;
}

/** Throws `ForbiddenMove` unless a payment may go from one row to the other. What is at no stage may only be held. */
export function requirePaymentMove(from: StagedPayment, to: StagedPayment): void {
  const [before, after] = [paymentStageOf(from), paymentStageOf(to)];
  if (before === null && after === "held/idle") return;
  const nameOf = ({ state, step }: StagedPayment) => `${state}/${step}, incomplete,`;
  if (before === null || after === null)
    throw new ForbiddenMove("payment", before ?? nameOf(from), after ?? nameOf(to));
  requireMove("payment", paymentLife, before, after);
}
