// Whether machines are made at the moment, and what becomes of who buys meanwhile.
import { pausedDeadline } from "./machine-life.ts";

/** A scan that stands still for this long serves no purchase any more. */
export const SCAN_STALE_MS = 120_000;

export const SHOP_STATES = ["open", "paused", "stalled"] as const;
export type ShopState = (typeof SHOP_STATES)[number];

/** Where the scan stands, and since when provisioning is paused: unix milliseconds. */
export type Standing = { scannedAt: number; pausedSince: number | null };

/** `stalled`: purchases are not read from the chain. */
export const shopState = (standing: Standing | undefined, now: number): ShopState =>
  standing !== undefined && standing.pausedSince !== null
    ? "paused"
    : standing === undefined || now - standing.scannedAt >= SCAN_STALE_MS
      ? "stalled"
      : "open";

export const SHOP_SENTENCES: Record<ShopState, string> = {
  open: "Machines are being made.",
  paused:
    "Provisioning is paused: no machine is made and no order taken until it goes on. A purchase on the contract waits, until its /status says that its price goes back.",
  stalled:
    "Purchases are not being read from the chain at the moment: no order is taken. A purchase on the contract is served once they are.",
};

const WAITING: Record<ShopState, string> = {
  open: "The machine is being made.",
  paused: "Provisioning is paused: a machine that is not ordered yet is ordered once it goes on.",
  stalled: "The chain is not being read at the moment: the machine is made once it is.",
};

export type Delivery = {
  state: ShopState;
  message: string;
  /** Chain time. */
  until: number | null;
  otherwise: "refund" | "no_charge";
};

/** What a purchase on the contract that waits for its machine may count on; null: it has not been read yet. */
export function deliveryOf(
  vm: { deadline: number; putOff: number; createdAt: number; expiresAt: number; runningAt: number | null } | null,
  standing: Standing | undefined,
  now: number,
): Delivery {
  const state = shopState(standing, now);
  const owed = vm === null || vm.runningAt === null ? "its price" : "the price of the time that is left";
  const when = vm === null ? "a deadline that begins once the purchase is read" : "`until`";
  return {
    state,
    message: `${WAITING[state]} Where none runs by ${when}, ${owed} goes back to the buyer.`,
    until: vm === null ? null : state === "paused" ? pausedDeadline(vm) : vm.deadline,
    otherwise: "refund",
  };
}

/** The same for an order over x402; once it is charged, /status of its token has the deadline. */
export function deliveryOfOrder(
  deadline: number,
  isCharged: boolean,
  standing: Standing | undefined,
  now: number,
): Delivery {
  const state = shopState(standing, now);
  const end = isCharged ? "its token's deadline, the payment goes back" : "`until`, nothing is charged";
  return {
    state,
    message: `${WAITING[state]} Where none runs by ${end}.`,
    until: isCharged ? null : deadline,
    otherwise: isCharged ? "refund" : "no_charge",
  };
}
