// What has to be true in the end, asked of those who know: the chain who bought what and who got money, the vendors which
// machines there are, the API what it says, and the machines themselves whom they let in.
import { type Hex, parseAbi, parseEventLogs } from "viem";
import { CONTRACT_ADDRESS, USDC_ADDRESS } from "../world/addresses.ts";
import { type Credentials, freshHeaders } from "../world/agent.ts";
import type { Chain } from "../world/chain.ts";
import { runOverSsh } from "../world/ssh-client.ts";
import type { Parts } from "../world/world.ts";
import { CLIENT, type Workers } from "./workers.ts";

const abi = parseAbi([
  "event VMPurchased(uint256 indexed tokenId, address indexed buyer, uint8 tier, uint16 durationDays, uint256 purchaseDate, uint256 totalCost)",
]);
const coinAbi = parseAbi(["event Transfer(address indexed from, address indexed to, uint256 value)"]);
const PARALLEL = 8;
const LOOK_AGAIN_MS = 2_000;
const LOOKS_PER_WORD = 15;

export type Sale = { tokenId: number; buyer: string; tier: number; totalCost: bigint; txHash: Hex };
export type Payout = { to: string; value: bigint; txHash: Hex };

type Status = {
  status: string;
  purchase: { txHash: string; blockNumber: number } | null;
  attempts: { outcome: string | null }[];
  refund?: { state: string; amount: string; txHash: string | null };
};

/** How one purchase ended; null while it has not. */
type End = { kind: "running" } | { kind: "refunded"; txHash: string };

export type Verdict = { sales: Sale[]; running: number; refunded: number; attempts: number; wrong: string[] };

/** Every purchase that stands, by the chain. */
export async function readSales({ reader }: Chain): Promise<Sale[]> {
  const logs = await reader.getLogs({ address: CONTRACT_ADDRESS, fromBlock: 0n, toBlock: "latest" });
  return parseEventLogs({ abi, logs }).map(({ args, transactionHash }) => ({
    tokenId: Number(args.tokenId),
    buyer: args.buyer,
    tier: args.tier,
    totalCost: args.totalCost,
    txHash: transactionHash,
  }));
}

/** Everything that the operator wallet has paid, by the chain. */
async function readPayouts({ reader, operator }: Chain): Promise<Payout[]> {
  const logs = await reader.getLogs({ address: USDC_ADDRESS, fromBlock: 0n, toBlock: "latest" });
  return parseEventLogs({ abi: coinAbi, logs })
    .filter(({ args }) => args.from.toLowerCase() === operator.address.toLowerCase())
    .map(({ args, transactionHash }) => ({ to: args.to, value: args.value, txHash: transactionHash }));
}

/** Machines at both vendors: label and id. */
const machinesOf = ({ vultr, runpod }: Parts) => [
  ...[...vultr.instances.values()].map(({ id, label, hostname }) => ({ id, label, hostname })),
  ...[...runpod.pods.values()].map(({ id, name }) => ({ id, label: name, hostname: id })),
];

type Case = {
  parts: Parts;
  workers: Workers;
  /** How many purchases have to stand. */
  expected: number;
  until: number;
  say: (text: string) => void;
};

/** Waits until nothing is wrong any more; at `until` it says what is. */
export async function judge({ parts, workers, expected, until, say }: Case): Promise<Verdict> {
  const sales = await readSales(parts.chain);
  const ends = new Map<number, End>();
  const statuses = new Map<number, Status | string>();
  const loggedIn = new Map<number, string>();
  let looks = 0;
  for (;;) {
    await inParallel(
      sales.filter((sale) => ends.get(sale.tokenId) === undefined),
      async (sale) => {
        const status = await readStatus(workers, sale.tokenId);
        statuses.set(sale.tokenId, status);
        const end = typeof status === "string" ? null : endOf(sale, status);
        if (end !== null) ends.set(sale.tokenId, end);
      },
    );
    const running = sales.filter((sale) => ends.get(sale.tokenId)?.kind === "running");
    await inParallel(
      running.filter((sale) => !loggedIn.has(sale.tokenId)),
      async (sale) => {
        const hostname = await logIn(parts.chain, workers, sale);
        if (typeof hostname === "string") loggedIn.set(sale.tokenId, hostname);
        else statuses.set(sale.tokenId, hostname.problem);
      },
    );
    const wrong = [
      ...(sales.length === expected ? [] : [`the chain holds ${sales.length} purchases of ${expected}`]),
      ...sales
        .filter((sale) => ends.get(sale.tokenId) === undefined)
        .map(({ tokenId }) => `token ${tokenId} has not ended: ${tell(statuses.get(tokenId))}`),
      ...running
        .filter((sale) => !loggedIn.has(sale.tokenId))
        .map(({ tokenId }) => `token ${tokenId} runs and lets nobody in: ${tell(statuses.get(tokenId))}`),
      ...wrongMachines(parts, running, loggedIn),
      ...wrongPayouts(sales, ends, await readPayouts(parts.chain)),
      ...(await wrongCounts(parts.chain, workers, sales)),
    ];
    if (wrong.length === 0 || Date.now() > until) {
      const attempts = [...statuses.values()].flatMap((one) => (typeof one === "string" ? [] : one.attempts)).length;
      return { sales, running: running.length, refunded: ends.size - running.length, attempts, wrong };
    }
    if (looks++ % LOOKS_PER_WORD === 0) say(`${ends.size} of ${sales.length} have their end`);
    await new Promise((resolve) => setTimeout(resolve, LOOK_AGAIN_MS));
  }
}

function endOf(sale: Sale, { status, purchase, refund }: Status): End | null {
  // Of a purchase that stands no more.
  if (purchase?.txHash !== sale.txHash) return null;
  if (status === "running") return { kind: "running" };
  if (status === "failed" && refund?.state === "paid" && refund.txHash !== null) {
    return { kind: "refunded", txHash: refund.txHash };
  }
  return null;
}

/** Each running token has one machine, the one that let its owner in; there is no other. */
function wrongMachines(parts: Parts, running: readonly Sale[], loggedIn: ReadonlyMap<number, string>): string[] {
  const machines = machinesOf(parts);
  const familyOf = ({ tokenId, txHash }: Sale) => `clawcloud-local-${tokenId}-${txHash.slice(2, 10)}-0-`;
  const explained = new Set<string>();
  const wrong = running.flatMap((sale) => {
    const own = machines.filter((machine) => machine.label.startsWith(familyOf(sale)));
    for (const { id } of own) explained.add(id);
    if (own.length !== 1) return [`token ${sale.tokenId} has ${own.length} machines`];
    const hostname = loggedIn.get(sale.tokenId);
    if (hostname === undefined || hostname === own[0]?.hostname) return [];
    return [`token ${sale.tokenId} opens ${hostname}, and has ${own[0]?.hostname}`];
  });
  const left = machines.filter((machine) => !explained.has(machine.id));
  return [...wrong, ...left.map(({ label, id }) => `no running token explains machine ${label} (${id})`)];
}

/** Each refunded token's price has gone to its buyer, in a transaction of its own; nothing else has left the wallet. */
function wrongPayouts(sales: readonly Sale[], ends: ReadonlyMap<number, End>, payouts: readonly Payout[]): string[] {
  const open = [...payouts];
  const wrong = sales.flatMap((sale) => {
    const end = ends.get(sale.tokenId);
    if (end?.kind !== "refunded") return [];
    const index = open.findIndex((payout) => payout.txHash === end.txHash);
    const [payout] = index === -1 ? [] : open.splice(index, 1);
    const asOwed = payout?.to.toLowerCase() === sale.buyer.toLowerCase() && payout.value === sale.totalCost;
    return asOwed ? [] : [`token ${sale.tokenId}: no payment of ${sale.totalCost} to its buyer in ${end.txHash}`];
  });
  return [...wrong, ...open.map(({ to, value, txHash }) => `${value} left for ${to} without a reason, in ${txHash}`)];
}

/** What `/vms` counts is what the chain sold. */
async function wrongCounts({ agents }: Chain, workers: Workers, sales: readonly Sale[]): Promise<string[]> {
  const wrong: string[] = [];
  for (const { address } of agents) {
    const bought = sales.filter((sale) => sale.buyer.toLowerCase() === address.toLowerCase()).length;
    const answer = await ask(workers, `/vms/${address}`);
    const count = answer?.ok ? ((await answer.json()) as { count: number }).count : undefined;
    if (count !== bought) wrong.push(`${address} bought ${bought}, and /vms says ${count}`);
  }
  return wrong;
}

async function readStatus(workers: Workers, tokenId: number): Promise<Status | string> {
  const answer = await ask(workers, `/status/${tokenId}`);
  if (answer === null) return "no answer";
  return answer.ok ? ((await answer.json()) as Status) : `${answer.status} ${await answer.text()}`;
}

/** Asks for the key as the owner does and runs a command with it: the machine's own name. */
async function logIn(chain: Chain, workers: Workers, sale: Sale): Promise<string | { problem: string }> {
  const owner = chain.agents.find((agent) => agent.address.toLowerCase() === sale.buyer.toLowerCase());
  if (owner === undefined) return { problem: `${sale.buyer} is no agent of this world` };
  try {
    const headers = await freshHeaders(workers.url, owner, sale.tokenId);
    const answer = await ask(workers, `/credentials/${sale.tokenId}`, headers);
    if (answer?.status !== 200) return { problem: `/credentials: ${answer?.status} ${await answer?.text()}` };
    const { output, code } = await runOverSsh((await answer.json()) as Credentials, "hostname");
    return code === 0 ? output.trim() : { problem: `hostname ended with ${code}` };
  } catch (error) {
    return { problem: String(error) };
  }
}

const ask = (workers: Workers, path: string, headers: Record<string, string> = {}): Promise<Response | null> =>
  fetch(`${workers.url}${path}`, {
    headers: { "cf-connecting-ip": CLIENT, ...headers },
    signal: AbortSignal.timeout(10_000),
  }).catch(() => null);

const tell = (status: Status | string | undefined): string =>
  typeof status === "string" ? status : JSON.stringify(status ?? null);

async function inParallel<T>(list: readonly T[], work: (one: T) => Promise<void>): Promise<void> {
  const rest = [...list];
  const worker = async () => {
    for (let one = rest.shift(); one !== undefined; one = rest.shift()) await work(one);
  };
  await Promise.all(Array.from({ length: PARALLEL }, worker));
}
