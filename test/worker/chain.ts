// The chain of this workerd and the accounts on it.
import {
  createPublicClient,
  createTestClient,
  createWalletClient,
  defineChain,
  encodeFunctionData,
  type Hex,
  http,
  parseAbi,
  publicActions,
  walletActions,
} from "viem";
import type { LocalAccount } from "viem/accounts";
import { developmentAccount } from "../world/accounts.ts";
import { CONTRACT_ADDRESS, USDC_ADDRESS } from "../world/addresses.ts";
import { parts } from "./bindings.ts";

const agents = Array.from({ length: 5 }, (_, index) => developmentAccount(index));
export const operator = developmentAccount(8);
export const deployer = developmentAccount(9);
export const agent = (index: number): LocalAccount => {
  const account = agents[index];
  if (account === undefined) throw new Error(`there is no agent ${index}`);
  return account;
};

const chainDefinition = defineChain({
  id: 8453,
  name: "Base (local)",
  nativeCurrency: { name: "Ether", symbol: "ETH", decimals: 18 },
  rpcUrls: { default: { http: [parts.chainUrl] } },
});
// On a busy machine a few hundred blocks take anvil more than the ten seconds that a client waits by default.
const transport = http(parts.chainUrl, { retryCount: 0, timeout: 60_000 });
const clientOptions = { chain: chainDefinition, transport, pollingInterval: 20, cacheTime: 0 };

/** Some transactions are never mined. */
const SETTLED_MS = 2_000;

/** Until what was sent is mined: the node says that it has a transaction a moment before it mines it. */
async function settled(): Promise<void> {
  if (!(await node.getAutomine())) return;
  const end = Date.now() + SETTLED_MS;
  while ((await node.getTxpoolStatus()).pending > 0 && Date.now() < end)
    await new Promise((resolve) => setTimeout(resolve, 2));
}
const node = createTestClient({ mode: "anvil", ...clientOptions })
  .extend(publicActions)
  .extend(walletActions);
/** What a test looks at is there once it has been sent. */
const settledTransport: typeof transport = (options) => {
  const sent = transport(options);
  return {
    ...sent,
    request: async (body) => {
      if (LOOKS.has(body.method)) await settled();
      return sent.request(body);
    },
  } as typeof sent;
};
const LOOKS = new Set(["eth_call", "eth_getBalance"]);

/** The chain as a customer and as a test reach it. It mines on each transaction; `mine` adds empty blocks. */
export const chain = {
  reader: createPublicClient({ ...clientOptions, transport: settledTransport }),
  wallet: (account: LocalAccount) => createWalletClient({ ...clientOptions, account }),
  node,
  /**
   * All in one second: over a second's edge the final block, two below the head, would stay older than the head, and what
   * waits for final history would wait for good.
   */
  mine: async (blocks = 1) => {
    await node.mine({ blocks: 1 });
    if (blocks === 1) return;
    await node.setBlockTimestampInterval({ interval: 0 });
    await node.mine({ blocks: blocks - 1 });
    await node.removeBlockTimestampInterval();
  },
  settled,
  /** Takes the newest blocks away; what was in them waits again. */
  rollback: async (blocks: number) => {
    await chain.settled();
    await chain.node.request({ method: "anvil_rollback" as never, params: [blocks] as never });
  },
  /** What waits to be mined: whatever a test left there has the nonces of the next one. */
  dropAll: () => chain.node.request({ method: "anvil_dropAllTransactions" as never }),
};

const purchaseAbi = parseAbi([
  "function approve(address spender, uint256 amount)",
  "function purchaseVM(uint8 tier, uint16 durationDays)",
]);

/** Approves the price of tier 0 for a day and signs the purchase, which a test may send more than once. */
export async function signPurchase(account: LocalAccount): Promise<Hex> {
  const wallet = chain.wallet(account);
  const approval = await wallet.writeContract({
    address: USDC_ADDRESS,
    abi: purchaseAbi,
    functionName: "approve",
    args: [CONTRACT_ADDRESS, 500_000n],
  });
  await chain.reader.waitForTransactionReceipt({ hash: approval });
  const data = encodeFunctionData({ abi: purchaseAbi, functionName: "purchaseVM", args: [0, 1] });
  return wallet.signTransaction(await wallet.prepareTransactionRequest({ to: CONTRACT_ADDRESS, data, gas: 500_000n }));
}
