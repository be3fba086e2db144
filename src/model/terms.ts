// What a machine is made for where an order over x402 is behind its purchase: written to the machine's row when its order is
// linked, and read whenever a machine is made for it, the first or a later one.
import { z } from "zod";
import { log } from "../log.ts";
import { parseJson } from "../parse-json.ts";

const schema = z.object({
  /** The payment's id. */
  payment: z.string(),
  /** Lower-case address. */
  payer: z.string(),
  /** The payer's own, one `type base64` line. */
  sshPublicKey: z.string().nullable(),
  region: z.string().nullable(),
  ports: z.string().nullable(),
  /** What was paid for a day, 10^-6 USDC: a vendor's offer may cost a share of it. */
  pricePerDay: z.number(),
});

export type Terms = z.infer<typeof schema>;

export const termsOf = ({
  id,
  payer,
  sshPublicKey,
  region,
  ports,
  amount,
  durationDays,
}: {
  id: string;
  payer: string;
  sshPublicKey: string | null;
  region: string | null;
  ports: string | null;
  amount: string;
  durationDays: number | null;
}): Terms => ({ payment: id, payer, sshPublicKey, region, ports, pricePerDay: Number(amount) / (durationDays ?? 1) });

/** As the row keeps them. */
export const formatTerms = (terms: Terms): string => JSON.stringify(terms);

/** Null for a purchase on the contract, and where the row can't be read: then it is made as for one. */
export function readTerms({ incarnation, terms }: { incarnation: string; terms: string | null }): Terms | null {
  if (terms === null) return null;
  const { data } = schema.safeParse(parseJson(terms));
  if (data === undefined) log("error", "terms_unreadable", { incarnation });
  return data ?? null;
}

/** What stands behind a machine whose token is ours. */
export type OrderBehind =
  /** What it asks for, and by when the machine has to run: chain time, null for no limit. */
  | { kind: "open"; terms: Terms; deadline: number | null }
  /** Its order is not known yet. */
  | { kind: "unlinked" }
  /** Its order has come to nothing, or has another token. */
  | { kind: "over" };
