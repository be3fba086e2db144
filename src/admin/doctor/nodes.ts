// Each RPC URL by itself: what it is, how far it is, and whether it gives what the product asks of nodes.
import { type Address, type Hex, hexToNumber, http, numberToHex } from "viem";
import { type Chain, type Head, type Node, readHead, readTier } from "../../chain/client.ts";
import { salesTopics } from "../../chain/contract.ts";
import { namedRange } from "../../chain/log-ranges.ts";
import { LogsRefused, readPiece } from "../../chain/logs.ts";
import { callsOf, simulate } from "../../chain/orders.ts";
import type { EdgeConfig } from "../../edge/config.ts";
import { inTime } from "../../in-time.ts";
import { type Finding, needed, note, well } from "./finding.ts";
import { reasonOf } from "./reason.ts";

/** `head` and `final` are null where the node does not show them. */
export type Looked = { node: Node; label: string; usable: boolean; head: Head | null; final: Head | null };
export type Asked = { config: EdgeConfig; chain: Chain; wallet: Address | null; now: () => number };

const WIDEST_BLOCKS = 10_000;
const MAX_PROBES = 12;
const PROBES_MS = 25_000;
/** Below it an hour's blocks take more than eighteen requests of each node. */
const NARROW_BLOCKS = 100;
/** Base's final block is some twenty minutes old; at two hours the product pages. */
const OLD_FINAL_SECONDS = 3_600;
const STATE_HOURS = [1, 6, 24];
/** A refund or a check goes back hours, a quote a day at most. */
const LEAST_STATE_HOURS = 6;
const HOUR_BLOCKS = 1_800;

/** `rpc-0` and its provider: no more of the URL, which may carry a key. */
export function labelOf(index: number, url: string): string {
  const { hostname, host } = new URL(url);
  const isName = /[a-z]$/i.test(hostname) && hostname.includes(".");
  return `rpc-${index} ${isName ? hostname.split(".").slice(-2).join(".") : host}`;
}

export async function lookAtNode(
  asked: Asked,
  node: Node,
  label: string,
  url: string,
): Promise<{ looked: Looked; findings: Finding[] }> {
  const nothing: Looked = { node, label, usable: false, head: null, final: null };
  const id = await readChainId(url, asked.config.RPC_TIMEOUT_MS);
  if (typeof id !== "number") {
    const todo = `Correct or replace the URL of ${label} in RPC_URLS: ${id.reason}.`;
    return { looked: nothing, findings: [needed(label, id.reason, todo)] };
  }
  if (id !== asked.config.CHAIN_ID) {
    const todo = `Replace the URL of ${label} in RPC_URLS: it is of chain ${id}, and CHAIN_ID is ${asked.config.CHAIN_ID}.`;
    return { looked: nothing, findings: [needed(label, `chain ${id}`, todo)] };
  }
  const blocks = await lookAtBlocks(asked, node, label);
  const looked = { ...nothing, ...blocks.read, usable: blocks.read.head !== null };
  if (blocks.read.head === null) return { looked, findings: blocks.findings };
  const { head } = blocks.read;
  const logs = await lookAtLogs(asked, node, label, head.number);
  return {
    looked,
    findings: [
      ...blocks.findings,
      logs.finding,
      await lookAtReceipts(asked, node, label, { head: head.number, widest: logs.given }),
      await lookAtSimulation(asked, node, label),
      await lookAtState(asked, node, label, head.number),
    ],
  };
}

/** Past the product's client, which takes no answer from a node of another chain. */
async function readChainId(url: string, timeoutMs: number): Promise<number | { reason: string }> {
  const { request } = http(url, { retryCount: 0, timeout: timeoutMs })({});
  try {
    const id = hexToNumber((await request({ method: "eth_chainId" })) as Hex);
    return Number.isSafeInteger(id) ? id : { reason: "it answers eth_chainId with what is no number" };
  } catch (error) {
    return { reason: reasonOf(error) };
  }
}

async function lookAtBlocks({ config, now }: Asked, node: Node, label: string) {
  const findings: Finding[] = [];
  const read: { head: Head | null; final: Head | null } = { head: null, final: null };
  const what = `${label} blocks`;
  try {
    read.head = await readHead(node);
    read.final = await readHead(node, "finalized");
  } catch (error) {
    const which = read.head === null ? "head" : "final block";
    const todo = `Replace ${label} in RPC_URLS: it does not show its ${which} (${reasonOf(error)}).`;
    return { read, findings: [needed(what, `no ${which}: ${reasonOf(error)}`, todo)] };
  }
  const { head, final } = read;
  const age = (one: Head) => Math.max(0, Math.round(now() / 1_000) - one.timestamp);
  const answer = `chain ${config.CHAIN_ID}, head ${head.number} (${span(age(head))} old), final ${final.number} (${span(age(final))} old)`;
  if (age(head) > config.CHAIN_MAX_AGE_SECONDS) {
    const todo = `Replace ${label} in RPC_URLS, or wait: its head is ${span(age(head))} old, and above ${config.CHAIN_MAX_AGE_SECONDS} s (CHAIN_MAX_AGE_SECONDS) it is not believed.`;
    findings.push(needed(what, answer, todo));
  } else if (final.number >= head.number) {
    const todo = `Replace ${label} in RPC_URLS: it calls its newest block final, so that a reorg could take back what was paid for.`;
    findings.push(needed(what, answer, todo));
  } else if (age(final) > OLD_FINAL_SECONDS) {
    const todo = `Wait, or replace ${label} in RPC_URLS: its final block is ${span(age(final))} old, and nothing ends or is refunded meanwhile.`;
    findings.push(needed(what, answer, todo));
  } else findings.push(well(what, answer));
  return { read, findings };
}

/** How many blocks one eth_getLogs may span, found as the product finds it, and beyond what the product asks for. */
async function lookAtLogs({ config }: Asked, node: Node, label: string, head: number) {
  const most = Math.min(WIDEST_BLOCKS, head + 1);
  let given = 0;
  let refused = most + 1;
  let ask = most;
  let reason = "";
  const until = Date.now() + PROBES_MS;
  for (let tries = 0; tries < MAX_PROBES && given < ask && refused - given > 1 && Date.now() < until; tries++) {
    try {
      const filter = { address: config.CONTRACT_ADDRESS, topics: [salesTopics(config.PURCHASE_EVENT)] };
      await readPiece({ ...node, maxRange: ask, spans: {} }, "sales", filter, head - ask + 1, head);
      given = ask;
    } catch (error) {
      reason = reasonOf(error instanceof LogsRefused ? error.cause : error);
      if (!(error instanceof LogsRefused)) break;
      refused = ask;
      const named = namedRange(error.cause, ask);
      if (named !== null && named > given) {
        ask = named;
        continue;
      }
    }
    if (refused - given <= Math.max(1, given / 8)) break;
    ask = given === 0 ? Math.max(1, Math.floor(refused / 4)) : Math.floor((given + refused) / 2);
  }
  return { given, finding: tellLogs(label, given, given === most ? null : reason) };
}

/** `refusal`: of more blocks; null where all were given. */
function tellLogs(label: string, given: number, refusal: string | null): Finding {
  const what = `${label} logs`;
  if (given === 0) {
    const todo = `Replace ${label} in RPC_URLS: it gives no logs of a single block (${refusal}).`;
    return needed(what, `none: ${refusal}`, todo);
  }
  if (refusal === null) return well(what, `${given} blocks in one request`);
  const answer = `about ${given} blocks in one request; of more ${refusal}`;
  if (given >= NARROW_BLOCKS) return well(what, answer);
  const todo = `Take a larger plan for ${label} or another provider: logs of ${given} blocks at a time are enough to go on, and too few to catch up.`;
  return needed(what, answer, todo);
}

/** Whether a receipt has the logs that eth_getLogs shows of its transaction: many nodes leave them out. */
async function lookAtReceipts({ config }: Asked, node: Node, label: string, range: Range): Promise<Finding> {
  const what = `${label} receipts`;
  try {
    const shown = await findLog(node, config, range);
    if (shown === null) return note(what, "no log in the last blocks to look at");
    const hash = shown.transactionHash;
    const receipt = await node.client.getTransactionReceipt({ hash });
    if (receipt.logs.some(({ logIndex, data }) => logIndex === shown.logIndex && data === shown.data)) {
      return well(what, `with their logs (block ${receipt.blockNumber})`);
    }
    const todo = `Replace ${label} in RPC_URLS: its receipts leave out logs, and a payment counts by its receipt alone.`;
    return needed(what, "without their logs", todo);
  } catch (error) {
    const todo = `Replace ${label} in RPC_URLS: it does not give the receipt of a transaction whose log it shows.`;
    return needed(what, reasonOf(error), todo);
  }
}

type Range = { head: number; widest: number };

/** On Base the coin moves in each block; a chain that nobody uses is looked through as far as the node lets us. */
async function findLog({ client }: Node, { USDC_ADDRESS: address }: EdgeConfig, { head, widest }: Range) {
  for (const blocks of new Set([1, 5, 100, widest].filter((one) => one <= widest))) {
    const fromBlock = BigInt(head - blocks + 1);
    const [shown] = await client.getLogs({ address, fromBlock, toBlock: BigInt(head) });
    if (shown !== undefined) return shown;
  }
  return null;
}

/** A purchase and its approval on top of the newest block, as it is played before each is signed. */
async function lookAtSimulation({ config, chain, wallet }: Asked, node: Node, label: string): Promise<Finding> {
  const what = `${label} eth_simulateV1`;
  const from = wallet ?? config.CONTRACT_ADDRESS;
  try {
    const tier = await readTier(chain, node, 0).catch(() => null);
    const cost = String(tier?.pricePerDay ?? 0n);
    const order = { kind: "purchase", id: "", payment: "", tier: 0, durationDays: 1, cost } as const;
    const addresses = { contract: config.CONTRACT_ADDRESS, coin: config.USDC_ADDRESS, operator: from };
    const [, bought] = await simulate(node, from, callsOf(order, addresses));
    const succeeds = bought !== undefined && hexToNumber(bought.status) === 1;
    if (wallet === null) return well(what, "known");
    return well(what, succeeds ? "a purchase plays through" : "known; a purchase by the wallet would revert now");
  } catch (error) {
    const todo = `Replace ${label} in RPC_URLS: without eth_simulateV1 nothing can be bought for an order over x402 through it.`;
    return needed(what, reasonOf(error), todo);
  }
}

async function lookAtState({ config }: Asked, node: Node, label: string, head: number): Promise<Finding> {
  const what = `${label} state`;
  let kept = 0;
  let reason = "";
  for (const hours of STATE_HOURS) {
    const block = Math.max(0, head - hours * HOUR_BLOCKS);
    try {
      await node.client.request({ method: "eth_getBalance", params: [config.CONTRACT_ADDRESS, numberToHex(block)] });
      kept = hours;
    } catch (error) {
      reason = reasonOf(error);
      break;
    }
    if (block === 0) return well(what, "of every block of this chain");
  }
  const answer = kept === 0 ? `of less than an hour: ${reason}` : `of the last ${kept} hours`;
  if (kept >= LEAST_STATE_HOURS) return well(what, answer);
  const todo = `Replace ${label} in RPC_URLS by a node that keeps state for a day: it shows none older than ${kept === 0 ? "an hour" : `${kept} h`}, and old prices and balances are asked for.`;
  return needed(what, answer, todo);
}

/** The newest final block that all of these nodes have, and whose answer there differs from most. */
export async function lookAtAgreement(nodes: readonly Looked[], timeoutMs: number): Promise<Finding> {
  const what = "agreement";
  const numbers = nodes.flatMap(({ final }) => (final === null ? [] : [final.number]));
  if (numbers.length < 2) {
    const todo = "Put three or more URLs of different providers into RPC_URLS: two nodes have to say the same.";
    return needed(what, `${numbers.length} node${numbers.length === 1 ? "" : "s"} to compare`, todo);
  }
  const number = Math.min(...numbers);
  const shown = await Promise.all(
    nodes.map(async ({ node, label }) => {
      const look = readHead(node, number).then(({ hash }) => hash as string);
      const hash = await inTime(look, timeoutMs, () => new Error("late")).catch(() => "none");
      return { label, hash };
    }),
  );
  const counts = Map.groupBy(shown, ({ hash }) => hash);
  const [most = []] = [...counts.values()].sort((a, b) => b.length - a.length);
  const others = shown.filter((one) => !most.includes(one)).map(({ label }) => label);
  if (others.length === 0) return well(what, `${most.length} nodes show the same block ${number}`);
  const todo = `Replace ${others.join(" and ")} in RPC_URLS: at block ${number} it shows another block than the others, or none.`;
  return needed(what, `${others.join(", ")} differ at block ${number}`, todo);
}

/** Seconds as a person reads them. */
function span(seconds: number): string {
  if (seconds < 120) return `${seconds} s`;
  if (seconds < 7_200) return `${Math.round(seconds / 60)} min`;
  return `${Math.round(seconds / 3_600)} h`;
}
