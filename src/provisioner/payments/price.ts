// What a tier costs by two nodes, and whether a payment's price was quoted.
import { readHead, readTier } from "../../chain/client.ts";
import { askTwo } from "../../chain/witness.ts";
import type * as store from "../../db/payments.ts";
import type { Context } from "../context.ts";

/** What may pass between a quote's block and its payment's arrival, beside the time that a quote is kept. */
const QUOTE_SLACK_SECONDS = 120;

/** Two nodes, since money follows from it. */
export const agreedTier = ({ chain }: Context, tier: number, blockNumber?: bigint) =>
  askTwo(chain, (node) => readTier(chain, node, tier, blockNumber));

/** A price of a little while ago: the contract has to have said so at the block that the quote names. */
export async function wasQuoted(context: Context, row: store.Payment): Promise<boolean> {
  const { chain, config } = context;
  if (row.quotedBlock === null || row.tier === null) return false;
  const blockNumber = row.quotedBlock;
  const { pricePerDay } = await agreedTier(context, row.tier, BigInt(blockNumber));
  const block = await askTwo(chain, (node) => readHead(node, blockNumber));
  const age = row.createdAt / 1_000 - block.timestamp;
  return (
    BigInt(row.amount) === pricePerDay * BigInt(row.durationDays ?? 0) &&
    age <= config.QUOTE_SECONDS + QUOTE_SLACK_SECONDS
  );
}
