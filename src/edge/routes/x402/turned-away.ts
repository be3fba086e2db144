// Whoever is turned away at /x402/vm-credentials reads what became of the payment that came along (hard cases 58 and 60).
import { readHead } from "../../../chain/client.ts";
import { askFirst } from "../../../chain/witness.ts";
import { loadPayment, type Payment as Row } from "../../../db/payments.ts";
import { AppError } from "../../../errors.ts";
import { requireRoom } from "../../access/admission.ts";
import type { App } from "../../http.ts";
import { type Checked, claim, markSettled, namesOf, refuseStray } from "../../payments/gate.ts";
import { chargedOf, type Head, lookForUse, refusal } from "../../payments/use.ts";
import type { Demand, Payment, Till } from "../../payments/wire.ts";

type Services = App["Variables"];
/** What a payment is for. */
export type PaidFor = { request: string; tokenId: number };

/** What is said to a payment that does not pay what is asked: its row's word, or the chain's. */
export async function misfit(
  services: Services,
  till: Till,
  payment: Payment,
  demand: Demand,
  error: unknown,
  now: number,
): Promise<unknown> {
  if (!(error instanceof AppError) || error.code !== "payment_required") return error;
  const known = await loadPayment(services.db, namesOf(services.config, payment).id);
  // A demand tells its payer to sign another one.
  if (known !== null) return chargedOf(known) === "none" ? refusal(error, "none") : used(known);
  return refuseStray(services, till, payment, demand, () => headOf(services), error, now);
}

async function headOf({ chain }: Services): Promise<Head> {
  const { number: blockNumber, timestamp: blockTimestamp } = await askFirst(chain, (node) => readHead(node));
  return { blockNumber, blockTimestamp };
}

/**
 * Whoever is turned away has to know whether another payment may be signed: its row says so, or the chain. What somebody has
 * submitted gets its row: its payer may come again, or it is paid back after a while (hard case 60).
 */
export async function tellCharged(
  services: Services,
  till: Till,
  checked: Checked,
  what: PaidFor,
  error: unknown,
  now: number,
): Promise<unknown> {
  if (!(error instanceof AppError) || error.charged !== undefined) return error;
  const known = await loadPayment(services.db, checked.id);
  // Without a look it stays unknown.
  const look = async () => {
    await requireRoom(services, "looks");
    const head = await headOf(services);
    const use = await lookForUse(services, till, checked, head);
    if (typeof use === "string") return use;
    await requireRoom(services, "x402");
    // Its identifier may be another payment's.
    const shown = { ...checked, payment: { ...checked.payment, identifier: null } };
    const row = await claim(services, shown, { kind: "credentials", ...what }, head, now);
    return row !== null && (await markSettled(services, row, use, now)) !== null ? "yes" : "unknown";
  };
  const charged = known === null ? await look().catch(() => "unknown" as const) : chargedOf(known);
  error.charged = charged === "used" ? "unknown" : charged;
  return error;
}

export const used = (row: Row): AppError =>
  new AppError(
    "payment_used",
    "This payment was used before. GET /x402/purchases/{id} says what became of it; for the key again, send the owner's signature beside it.",
    {
      details: [{ purchaseId: row.id, state: row.state, transaction: row.settleTx }],
      charged: chargedOf(row),
    },
  );
