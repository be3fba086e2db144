import { buy } from "../../world/agent.ts";
import { agent, chain } from "../chain.ts";
import type { Deployment } from "../deployment.ts";
import { clearRpcFaults } from "../faults.ts";

/** A sale of tier 1 that nodes keep to themselves until the scan has passed it by so many blocks, and one behind it that all show. */
export async function hideSale(world: Deployment, { blocks }: { blocks: number }): Promise<{ tokenId: number }> {
  const hidden = await buy(chain, agent(1), 1, 1);
  await chain.mine(blocks);
  await world.scan();
  await clearRpcFaults();
  await buy(chain, agent(2), 0, 1);
  await world.scan();
  return hidden;
}
