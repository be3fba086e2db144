// What an error of a paid route says of the payment that came with the request: whoever reads it has to know whether another
// one may be signed.
import type { AppError, Charged } from "../errors.ts";

const PAID_PATHS: ReadonlySet<string> = new Set(["/x402/purchase-compute", "/x402/vm-credentials"]);
/** A request that is refused so is malformed: it can't be the repetition of one that was taken. */
const MALFORMED: ReadonlySet<number> = new Set([400, 405, 413, 415]);

/** The field `charged` of an error's body; nothing on other routes. What nobody has looked into is unknown. */
export function chargedField(
  path: string,
  headers: Headers,
  status: number,
  error: AppError | null,
): { charged?: Charged } {
  if (!PAID_PATHS.has(path)) return {};
  if (error?.charged !== undefined) return { charged: error.charged };
  const shown = headers.has("payment-signature") || headers.has("x-payment");
  return { charged: shown && !MALFORMED.has(status) ? "unknown" : "none" };
}
