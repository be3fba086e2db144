// What a customer's agent does with its wallet: approve, buy, transfer, wait, sign. Runs in Node and in workerd.
import {
  type Address,
  type Hex,
  type PublicClient,
  parseAbi,
  parseEventLogs,
  type Transport,
  type Chain as ViemChain,
  type WalletClient,
} from "viem";
import type { LocalAccount } from "viem/accounts";
import { CONTRACT_ADDRESS, USDC_ADDRESS } from "./addresses.ts";
import { askAgain, fetchAgain } from "./http.ts";

const usdcAbi = parseAbi(["function approve(address spender, uint256 amount) returns (bool)"]);
const clawAbi = parseAbi([
  "function getTierConfig(uint8 tier) view returns (uint256 pricePerDay, bool active, string name)",
  "function purchaseVM(uint8 tier, uint16 durationDays) returns (uint256 tokenId)",
  "function transferFrom(address from, address to, uint256 tokenId)",
  "event Transfer(address indexed from, address indexed to, uint256 indexed tokenId)",
]);

export type Credentials = {
  tokenId: string;
  host: string;
  username: string;
  privateKey: string | null;
  type: "gcp" | "gpu-external";
  expiresAt: string;
  instructions: string;
  ssh: {
    port: number;
    privateKey: string | null;
    publicKey: string;
    fingerprint: string;
    knownHosts: string | null;
    deliveredAt: string | null;
    knownToFormerOwner: boolean;
  };
};
export type StatusBody = {
  status: string;
  expiresAt: string | null;
  attempts: { provider: string; region: string; outcome: string | null; startedAt: string; endedAt: string | null }[];
};

/** How a chain is reached: one client that reads, and wallets that pay. */
export type Clients = {
  reader: PublicClient;
  wallet: (account: LocalAccount) => WalletClient<Transport, ViemChain, LocalAccount>;
};

/** Approves exactly the price and buys. Resolves with the token's id once the purchase is mined. */
export async function buy(chain: Clients, agent: LocalAccount, tier: number, durationDays: number) {
  const wallet = chain.wallet(agent);
  const [pricePerDay] = await chain.reader.readContract({
    address: CONTRACT_ADDRESS,
    abi: clawAbi,
    functionName: "getTierConfig",
    args: [tier],
  });
  const cost = pricePerDay * BigInt(durationDays);
  const approval = await wallet.writeContract({
    address: USDC_ADDRESS,
    abi: usdcAbi,
    functionName: "approve",
    args: [CONTRACT_ADDRESS, cost],
  });
  await chain.reader.waitForTransactionReceipt({ hash: approval });
  const txHash = await wallet.writeContract({
    address: CONTRACT_ADDRESS,
    abi: clawAbi,
    functionName: "purchaseVM",
    args: [tier, durationDays],
  });
  const receipt = await chain.reader.waitForTransactionReceipt({ hash: txHash });
  const [minted] = parseEventLogs({ abi: clawAbi, eventName: "Transfer", logs: receipt.logs }).filter(
    (entry) => entry.address.toLowerCase() === CONTRACT_ADDRESS.toLowerCase(),
  );
  if (minted === undefined) throw new Error(`the purchase ${txHash} minted no token`);
  return { tokenId: Number(minted.args.tokenId), txHash, cost, blockNumber: Number(receipt.blockNumber) };
}

export async function transfer(chain: Clients, from: LocalAccount, to: Address, tokenId: number): Promise<Hex> {
  const hash = await chain.wallet(from).writeContract({
    address: CONTRACT_ADDRESS,
    abi: clawAbi,
    functionName: "transferFrom",
    args: [from.address, to, BigInt(tokenId)],
  });
  await chain.reader.waitForTransactionReceipt({ hash });
  return hash;
}

/** Whoever signs for a wallet. */
export type Signer = Pick<LocalAccount, "signMessage">;

/** Headers of the fixed form. */
export async function fixedHeaders(agent: Signer, tokenId: number): Promise<Record<string, string>> {
  return { authorization: `Bearer ${await agent.signMessage({ message: `ClawCloud Access Request: ${tokenId}` })}` };
}

/** Headers of the fresh form; `action` is the path behind the token id. */
export async function freshHeaders(
  api: string,
  agent: Signer,
  tokenId: number,
  action: "" | "/ack" | "/rotate" | "/refund" = "",
  fields: Record<string, string> = {},
): Promise<Record<string, string>> {
  const all = {
    Domain: new URL(api).host,
    URI: `${api}/credentials/${tokenId}${action}`,
    "Chain ID": "8453",
    Contract: CONTRACT_ADDRESS,
    Nonce: crypto.randomUUID().replaceAll("-", ""),
    "Issued At": new Date().toISOString(),
    ...fields,
  };
  const lines = Object.entries(all).map(([name, value]) => `${name}: ${value}`);
  const message = [`ClawCloud Access Request: ${tokenId}`, ...lines].join("\n");
  return {
    authorization: `Bearer ${await agent.signMessage({ message })}`,
    "x-access-message": Buffer.from(message).toString("base64"),
  };
}

/** The login of a token's machine: by the fresh form, which hands out the key again where the connection broke. */
export async function fetchCredentials(api: string, agent: Signer, tokenId: number): Promise<Credentials> {
  const answer = await askAgain(async () =>
    fetch(`${api}/credentials/${tokenId}`, { headers: await freshHeaders(api, agent, tokenId) }),
  );
  if (answer.status !== 200) throw new Error(`/credentials answered ${answer.status}: ${await answer.text()}`);
  return (await answer.json()) as Credentials;
}

/** Polls `/status` until it is one of these; every change is told. */
export async function waitForStatus(
  api: string,
  tokenId: number,
  wanted: readonly string[],
  options: { timeoutMs?: number; onChange?: (status: string, body: StatusBody) => void } = {},
): Promise<StatusBody> {
  const until = Date.now() + (options.timeoutMs ?? 120_000);
  let last = "";
  for (;;) {
    const response = await fetchAgain(`${api}/status/${tokenId}`);
    const body = (await response.json()) as StatusBody;
    if (response.ok && body.status !== last) {
      last = body.status;
      options.onChange?.(last, body);
    }
    if (wanted.includes(body.status)) return body;
    if (Date.now() > until)
      throw new Error(`token ${tokenId} is ${body.status ?? response.status}, not ${wanted.join(" or ")}`);
    // The limit is 100 a minute and address.
    await new Promise((resolve) => setTimeout(resolve, 700));
  }
}
