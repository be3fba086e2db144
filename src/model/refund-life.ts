// The life of a refund: what is owed for a purchase, a late machine or a payment. A state is a stage. src/README.md draws this
// table.
import { type Life, requireMove } from "./lives.ts";

/** What is owed: a purchase that failed, the time that a machine came late, a payment that bought nothing. */
export const REFUND_KINDS = ["failed", "late", "payment"] as const;
export type RefundKind = (typeof REFUND_KINDS)[number];

/**
 * `wire`: the word of the public API. `undecided`: an operator may decide. `unpaid`: no money can have moved, so that the purchase
 * may go back to work (hard case 17).
 */
const REFUND_LIFE = {
  // Owed by configuration to nobody: kept for the books.
  recorded: { becomes: ["due", "paid", "cancelled"], wire: "recorded", undecided: true },
  // An operator decides.
  waiting: { becomes: ["due", "paid", "cancelled"], wire: "held", undecided: true, unpaid: true },
  due: { becomes: ["paying", "held", "paid", "cancelled"], wire: "due", unpaid: true },
  // Not for us to decide: the token's owner claims it, or an operator looks.
  held: { becomes: ["due", "paid", "cancelled"], wire: "held", undecided: true },
  // The operator wallet has the order: from here on money may have moved.
  paying: { becomes: ["paid", "due", "held"], wire: "due" },
  paid: { becomes: [], wire: "paid" },
  // What went back to work, or was undone by a reorg, and came to nothing again is owed again; an operator may have paid it.
  cancelled: { becomes: ["recorded", "waiting", "due", "paid"], wire: null, unpaid: true },
} as const;

export type RefundState = keyof typeof REFUND_LIFE;
type Flag = "undecided" | "unpaid";
type WireState = Exclude<(typeof REFUND_LIFE)[RefundState]["wire"], null>;

export const refundLife: Life<RefundState> & Record<RefundState, { wire: WireState | null } & { [F in Flag]?: true }> =
  REFUND_LIFE;
export const REFUND_STATES = Object.keys(REFUND_LIFE) as [RefundState, ...RefundState[]];

/** States with a flag. */
export const refundStatesThat = (flag: Flag): RefundState[] => REFUND_STATES.filter((state) => refundLife[state][flag]);

/** `sent`: its transaction is out, and not final yet. */
export const WIRE_REFUND_STATES = ["recorded", "due", "held", "sent", "paid"] as const satisfies readonly (
  | WireState
  | "sent"
)[];

/** Throws `ForbiddenMove` unless a refund in any of these states may go to the other. */
export const requireRefundMove = (from: readonly RefundState[], to: RefundState): void =>
  requireMove("refund", refundLife, from, to);
