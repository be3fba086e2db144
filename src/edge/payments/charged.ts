// What an error of a paid route says of the payment that came with the request: whoever reads it has to know whether another
// one may be signed.
import type { AppError, Charged } from "../../errors.ts";

const PAID_PATHS: ReadonlySet<string> = new Set(["/x402/purchase-compute", "/x402/vm-credentials"]);

/**
 * The field `charged` of an error's body; nothing on other routes. What nobody has looked into is unknown: a stranger may have
 * submitted the payment beside a body that won't do.
 */
export function chargedField(path: string, headers: Headers, error: AppError | null): { charged?: Charged } {
  if (!PAID_PATHS.has(path)) return {};
  if (error?.charged !== undefined) return { charged: error.charged };
  const shown = headers.has("payment-signature") || headers.has("x-payment");
  return { charged: shown ? "unknown" : "none" };
}
