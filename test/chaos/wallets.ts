// The agents' wallets on a chain that takes blocks back. A wallet keeps what it has signed and sends it again until it
// stands; some agents change their mind meanwhile and sign another purchase in its place.
import { encodeFunctionData, type Hex, keccak256, maxUint256, parseAbi } from "viem";
import type { LocalAccount } from "viem/accounts";
import type { Random } from "../sim/random.ts";
import { CONTRACT_ADDRESS, USDC_ADDRESS } from "../world/addresses.ts";
import type { Chain } from "../world/chain.ts";

const abi = parseAbi([
  "function approve(address spender, uint256 amount)",
  "function purchaseVM(uint8 tier, uint16 durationDays)",
]);
const TIERS = 8;
const KEEP_MS = 1_000;
const CHANGE_OF_MIND = 0.3;
const GAS = { gas: 400_000n, maxFeePerGas: 100_000_000_000n, maxPriorityFeePerGas: 1_000_000_000n };

/** One nonce of one agent: whatever transaction uses it in the end is a purchase. */
type Order = { agent: LocalAccount; nonce: number; raw: Hex; hash: Hex; wasMined: boolean };

export type Wallets = Awaited<ReturnType<typeof openWallets>>;

/** Approves once for all; that is final before it resolves. */
export async function openWallets(chain: Chain, random: Random) {
  const orders: Order[] = [];
  const counts = { resent: 0, replaced: 0, reorgs: 0, blocks: 0, dropped: 0 };
  const nonces = new Map<LocalAccount, number>();
  await Promise.all(
    chain.agents.map(async (agent) => {
      const args = [CONTRACT_ADDRESS, maxUint256] as const;
      const call = { address: USDC_ADDRESS, abi, functionName: "approve", args } as const;
      const hash = await chain.wallet(agent).writeContract(call);
      await chain.reader.waitForTransactionReceipt({ hash });
      nonces.set(agent, await chain.reader.getTransactionCount({ address: agent.address }));
    }),
  );
  const approvedIn = await chain.reader.getBlockNumber();
  while ((await finalNumber()) < approvedIn) await wait(200);

  async function finalNumber(): Promise<bigint> {
    return (await chain.reader.getBlock({ blockTag: "finalized" })).number;
  }

  async function sign(agent: LocalAccount, nonce: number, tier: number): Promise<Pick<Order, "raw" | "hash">> {
    const data = encodeFunctionData({ abi, functionName: "purchaseVM", args: [tier, 1] });
    const { chainId } = chain;
    const raw = await chain.wallet(agent).signTransaction({ ...GAS, to: CONTRACT_ADDRESS, data, nonce, chainId });
    return { raw, hash: keccak256(raw) };
  }

  /** A refusal is no matter: what does not stand is sent again. */
  const send = (order: Order) =>
    chain.reader.sendRawTransaction({ serializedTransaction: order.raw }).then(
      () => true,
      () => false,
    );

  const isMined = ({ hash }: Order) =>
    chain.reader.getTransactionReceipt({ hash }).then(
      () => true,
      () => false,
    );

  async function buy(agentIndex: number, tier: number): Promise<void> {
    const agent = chain.agents[agentIndex % chain.agents.length];
    const nonce = agent && nonces.get(agent);
    if (agent === undefined || nonce === undefined) throw new Error("the world has no agents");
    nonces.set(agent, nonce + 1);
    const order = { agent, nonce, wasMined: false, ...(await sign(agent, nonce, tier)) };
    orders.push(order);
    await send(order);
  }

  /** Looks after every order that does not stand; in order of nonces, as nodes want them. True where all stand. */
  async function keepOnce(): Promise<boolean> {
    let allStand = true;
    for (const order of orders) {
      if (await isMined(order)) {
        order.wasMined = true;
        continue;
      }
      allStand = false;
      if (order.wasMined) {
        // The block that held it is gone.
        order.wasMined = false;
        if (random.unit() < CHANGE_OF_MIND) {
          Object.assign(order, await sign(order.agent, order.nonce, random.int(0, TIERS - 1)));
          counts.replaced += 1;
        } else counts.resent += 1;
      }
      await send(order);
    }
    return allStand;
  }

  let keeping = true;
  const keeper = (async () => {
    while (keeping) {
      await keepOnce();
      await wait(KEEP_MS);
    }
  })();

  /** Puts other blocks in the place of the last ones; a share of the senders' transactions is in them too, in another order. */
  async function reorg(depth: number, kept: number): Promise<void> {
    // No block may come between the look and the blow.
    await chain.node.setIntervalMining({ interval: 0 });
    try {
      const head = Number(await chain.reader.getBlockNumber());
      const bySender = new Map<string, Hex[]>();
      for (let number = head - depth + 1; number <= head; number++) {
        const block = await chain.reader.getBlock({ blockNumber: BigInt(number), includeTransactions: true });
        for (const { from, hash } of block.transactions) {
          bySender.set(from, [...(bySender.get(from) ?? []), await rawOf(hash)]);
        }
      }
      const all = [...bySender.values()];
      const queues = all.filter(() => random.unit() < kept).map((list) => [...list]);
      const again: Hex[] = [];
      while (queues.some((queue) => queue.length > 0)) {
        const next = random.pick(queues.filter((queue) => queue.length > 0))?.shift();
        if (next !== undefined) again.push(next);
      }
      const pairs = again.map((raw, i) => [raw, Math.floor((i * depth) / again.length)]);
      await request("anvil_reorg", [depth, pairs]);
      counts.reorgs += 1;
      counts.blocks += depth;
      counts.dropped += all.flat().length - again.length;
      // The new blocks bear the ancestor's time; the next ones go on from ours.
      await request("evm_setTime", [Date.now()]);
    } finally {
      await chain.node.setIntervalMining({ interval: 1 });
    }
  }

  const request = (method: string, params: unknown[]): Promise<unknown> =>
    chain.node.request({ method: method as never, params: params as never });

  const rawOf = async (hash: Hex): Promise<Hex> => (await request("eth_getRawTransactionByHash", [hash])) as Hex;

  return {
    orders,
    counts,
    buy,
    reorg,
    /** Until each order stands in final history; throws at `until`. */
    settle: async (until: number): Promise<void> => {
      let last: bigint | undefined;
      while (last === undefined || (await finalNumber()) < last) {
        if (Date.now() > until) throw new Error("not every purchase has come to stand on the chain");
        if (last === undefined && (await keepOnce())) last = await chain.reader.getBlockNumber();
        await wait(KEEP_MS);
      }
    },
    close: async (): Promise<void> => {
      keeping = false;
      await keeper;
    },
  };
}

const wait = (ms: number) => new Promise((resolve) => setTimeout(resolve, ms));
