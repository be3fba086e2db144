// Wallets that were generated for agents.
import { eq } from "drizzle-orm";
import type { Database } from "./client.ts";
import { agentWallets } from "./schema.ts";

export type Wallet = typeof agentWallets.$inferSelect;

/** Inserts an agent's wallet. True for the one caller whose wallet is stored under the agent id. */
export async function insertWallet(db: Database, wallet: Wallet): Promise<boolean> {
  const result = await db.insert(agentWallets).values(wallet).onConflictDoNothing();
  return result.meta.changes === 1;
}

export const loadWallet = async (db: Database, agentId: string): Promise<Wallet | null> =>
  (await db.select().from(agentWallets).where(eq(agentWallets.agentId, agentId)).get()) ?? null;
