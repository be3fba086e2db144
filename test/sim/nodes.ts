// Three RPC nodes over the model chain. Any of them may lag, follow an abandoned branch, not answer or take small ranges
// alone; one of them, the first more often than not, may lie.
import { decodeFunctionData, type Hex, keccak256, multicall3Abi, toFunctionSelector } from "viem";
import { MULTICALL3 } from "../../src/chain/contract.ts";
import { CONTRACT_ADDRESS, USDC_ADDRESS } from "../world/addresses.ts";
import type { Block, ModelChain } from "./chain.ts";
import { type LogEntry, purchaseLog, word } from "./chain-logs.ts";
import { isValid, readCall, useKey, ZERO } from "./contracts.ts";
import { type Answer, answer, failure } from "./http.ts";
import {
  CAPS,
  CHAIN_ID,
  DAY_AHEAD,
  elsewhere,
  logsPage,
  nonsense,
  ODDITIES,
  type Oddity,
  OTHER_CHAIN_ID,
  type Plan,
  rangeRefusal,
} from "./oddities.ts";
import type { Runtime } from "./runtime.ts";

const GAS_PRICE_TIP = 1_000_000n;
const OWNER_OF = toFunctionSelector("ownerOf(uint256)");
const IS_VALID = toFunctionSelector("isTokenValid(uint256)");
const TIER = toFunctionSelector("getTierConfig(uint8)");
const BALANCE = toFunctionSelector("balanceOf(address)");
const BLOCK_NUMBER = toFunctionSelector("getBlockNumber()");
const ETHER = toFunctionSelector("getEthBalance(address)");
const USE = toFunctionSelector("authorizationState(address,bytes32)");
const IS_SIGNED = toFunctionSelector("isValidSignature(bytes32,bytes)");
/** The OP stack's price list: what a transaction costs on the chain below. */
const PRICE_LIST = "0x420000000000000000000000000000000000000f";
const L1_FEE = 1_000_000_000n;
const WEI = 10n ** 20n;
const LIES = [
  "no_logs",
  "double_logs",
  "invented_sale",
  "invalid_tokens",
  "no_receipts",
  "final_is_head",
  "money",
  "uses",
] as const;

type Call = { id: unknown; method: string; params: unknown[] };
type View = { blocks: readonly Block[]; head: number };
type Inner = { target: string; callData: Hex };
type Sent = { from?: Hex; to?: Hex; data?: Hex; input?: Hex };
type Filter = { address?: string; fromBlock: Hex; toBlock: Hex; topics?: readonly (Hex | readonly Hex[] | null)[] };

const decoded = new Map<Hex, readonly Inner[]>();

export class ModelNode {
  readonly #chain: ModelChain;
  readonly #runtime: Runtime;
  readonly #mayLie: boolean;
  #lag = 0;
  #abandoned: readonly Block[] | null = null;
  #downUntil = 0;
  #oddUntil = 0;
  #lie: (typeof LIES)[number] | Oddity | null = null;
  /** How many blocks its logs are behind its state; which of its receipts' fields is another. */
  #late = 0;
  #twist = 0;
  /** The widest range of blocks that it takes. */
  #cap = Number.POSITIVE_INFINITY;
  #logsFailUntil = 0;
  /** Stays: it is no illness. */
  plan: Plan = { blocks: Number.POSITIVE_INFINITY, results: Number.POSITIVE_INFINITY };

  constructor(chain: ModelChain, runtime: Runtime, mayLie: boolean) {
    this.#chain = chain;
    this.#runtime = runtime;
    this.#mayLie = mayLie;
  }

  /** With each look at the world: what it does next. */
  look(name: string, isFirst: boolean): void {
    const { faults, random, clock, note } = this.#runtime;
    if (clock.now >= this.#oddUntil) this.heal();
    const forAWhile = () => {
      this.#oddUntil = clock.now + random.int(5_000, 120_000);
    };
    if (faults.strikes("node_lags")) {
      this.#lag = random.int(1, 30);
      forAWhile();
      note(`${name} lags ${this.#lag} blocks`);
    }
    if (this.#mayLie && faults.strikes("node_lies")) {
      this.#lie = random.pick(LIES) ?? null;
      forAWhile();
      note(`${name} lies: ${this.#lie}`);
    }
    if (faults.strikes("node_down")) {
      this.#downUntil = clock.now + random.int(5_000, 60_000);
      note(`${name} is down`);
    }
    if (faults.strikes("range_capped")) {
      this.#cap = random.pick(CAPS) ?? 1;
      forAWhile();
      note(`${name} gives logs of ${this.#cap} blocks at most`);
    }
    if (faults.strikes("logs_fail")) {
      this.#logsFailUntil = clock.now + random.int(10_000, 120_000);
      note(`${name} gives no logs`);
    }
    for (const oddity of this.#mayLie ? ODDITIES : []) {
      // A node of another chain is a slip of whoever set it up: it is there from the start.
      if ((oddity === "other_chain" && !isFirst) || !faults.strikes(oddity)) continue;
      this.#lie = oddity;
      this.#late = random.int(1, 5);
      this.#twist = random.int(0, 1);
      forAWhile();
      if (oddity === "other_chain") this.#oddUntil = Number.POSITIVE_INFINITY;
      note(`${name} is odd: ${oddity}`);
    }
  }

  /** A reorg is about to happen: this node may stay on the branch that is given up. */
  beforeReorg(name: string): void {
    const { faults, random, clock, note } = this.#runtime;
    if (!faults.strikes("node_forks")) return;
    this.#abandoned = [...this.#chain.blocks];
    this.#oddUntil = clock.now + random.int(5_000, 120_000);
    note(`${name} stays on the abandoned branch`);
  }

  heal(): void {
    this.#lag = 0;
    this.#abandoned = null;
    this.#lie = null;
    this.#downUntil = 0;
    this.#cap = Number.POSITIVE_INFINITY;
    this.#logsFailUntil = 0;
  }

  /** Whether it shows a block and what is in it, as a node does that is well. */
  shows(block: Block): boolean {
    if (this.#lie !== null || this.#runtime.clock.now < this.#downUntil) return false;
    const { blocks, head } = this.#view();
    return block.number <= head && blocks[block.number] === block;
  }

  async respond(body: string): Promise<Answer> {
    const { faults, clock, random } = this.#runtime;
    this.#chain.advance();
    if (clock.now < this.#downUntil || faults.strikes("rpc_fails")) return failure(503, "Service Unavailable");
    if (faults.strikes("rpc_hangs")) return "hangs";
    const call = JSON.parse(body) as Call;
    if (this.#lie === "nonsense" && random.unit() < 0.5) return nonsense(call.id, call.method, random);
    if (call.method === "eth_getLogs") {
      if (clock.now < this.#logsFailUntil) return logsPage(random);
      const cap = Math.min(this.#cap, this.plan.blocks);
      if (span(call.params[0] as Filter) > cap) return rangeRefusal(call.id, cap, random);
    }
    try {
      return answer(200, { jsonrpc: "2.0", id: call.id, result: this.#result(call) });
    } catch (error) {
      const message = error instanceof Error ? error.message : String(error);
      const code = message.startsWith("execution reverted") ? 3 : -32_000;
      return answer(200, { jsonrpc: "2.0", id: call.id, error: { code, message } });
    }
  }

  #view(): View {
    const blocks = this.#abandoned ?? this.#chain.blocks;
    return { blocks, head: Math.max(0, blocks.length - 1 - this.#lag) };
  }

  #result({ method, params }: Call): unknown {
    const view = this.#view();
    switch (method) {
      case "eth_chainId":
        return hex(this.#isElsewhere ? OTHER_CHAIN_ID : CHAIN_ID);
      case "eth_blockNumber":
        return hex(view.head);
      case "eth_getBlockByNumber": {
        const block = this.#at(view, params[0]);
        return block === null ? null : blockBody(block);
      }
      case "eth_getLogs":
        return this.#within(this.#logs(view, params[0] as Filter));
      case "eth_call":
        return this.#call(view, params[0] as Sent, params[1]);
      case "eth_simulateV1":
        return this.#simulate(
          view,
          params[0] as { blockStateCalls: readonly { calls: readonly Sent[] }[] },
          params[1] ?? "latest",
        );
      case "eth_getTransactionReceipt":
        return this.#receipt(view, params[0] as Hex);
      case "eth_getTransactionCount": {
        const at = this.#at(view, params[1] ?? "latest");
        const count = at?.state.nonce ?? 0;
        return hex(params[1] === "pending" ? Math.max(count, this.#chain.head.state.nonce) : count);
      }
      case "eth_estimateGas": {
        const [{ from = "", to = "", data = "0x" }] = params as [Sent];
        const block = this.#at(view, "latest");
        const done = block === null ? null : this.#chain.play(readCall(to, data), from.toLowerCase(), block);
        if (done === null || !done.success) throw new Error("execution reverted");
        return hex(done.gas);
      }
      case "eth_getCode": {
        const [account] = params as [Hex];
        if (this.#isElsewhere) return "0x";
        const hasCode = this.#at(view, params[1] ?? "latest")?.state.code.has(account.toLowerCase());
        return hasCode ? "0xef0100c0de00000000000000000000000000000000000000" : "0x";
      }
      case "eth_getBalance":
        return hex(WEI);
      case "eth_maxPriorityFeePerGas":
        return hex(GAS_PRICE_TIP);
      case "eth_sendRawTransaction": {
        const [raw] = params as [Hex];
        if (this.#isElsewhere) throw new Error("invalid chain id for signer");
        this.#chain.offer(raw, keccak256(raw));
        return keccak256(raw);
      }
      default:
        throw new Error(`the method ${method} does not exist`);
    }
  }

  get #isElsewhere(): boolean {
    return this.#lie === "other_chain";
  }

  /** A block as this node tells it. */
  #at(view: View, tag: unknown): Block | null {
    const block = this.#find(view, tag);
    if (block === null) return null;
    if (this.#isElsewhere) {
      const { state } = this.#chain.blocks[0] ?? block;
      return { ...block, hash: elsewhere(block.hash), parentHash: elsewhere(block.parentHash), txs: [], state };
    }
    const isAhead = this.#lie === "head_ahead" && block.number === view.head;
    return isAhead ? { ...block, timestamp: block.timestamp + DAY_AHEAD } : block;
  }

  #find({ blocks, head }: View, tag: unknown): Block | null {
    if (tag === "latest" || tag === "pending") return blocks[head] ?? null;
    if (tag === "finalized") {
      if (this.#lie === "final_is_head") return blocks[head] ?? null;
      // Of an abandoned branch nothing becomes final.
      let number = Math.min(head, this.#chain.final.number);
      while (blocks[number] !== this.#chain.blocks[number]) number -= 1;
      return blocks[number] ?? null;
    }
    const number = Number(tag);
    return number > head ? null : (blocks[number] ?? null);
  }

  #logs(view: View, { address, fromBlock, toBlock, topics = [] }: Filter): unknown[] {
    if (this.#lie === "no_logs" || this.#isElsewhere) return [];
    const shown = Math.min(Number(toBlock), view.head - (this.#lie === "logs_late" ? this.#late : 0));
    const logs: unknown[] = [];
    const wanted = address?.toLowerCase();
    const isWanted = (entry: LogEntry) =>
      (wanted === undefined || entry.address === wanted) &&
      topics.every((topic, i) => topic === null || [topic].flat().includes(entry.topics[i] ?? "0x"));
    for (let number = Number(fromBlock); number <= shown; number++) {
      const block = view.blocks[number];
      if (block !== undefined && block.txs.length > 0) logs.push(...logsOf(block, isWanted));
    }
    const last = view.blocks[Math.min(view.head, Number(toBlock))];
    const isOurs = wanted === CONTRACT_ADDRESS.toLowerCase();
    if (this.#lie === "invented_sale" && last !== undefined && isOurs) logs.push(inventedSale(last));
    return this.#lie === "double_logs" ? [...logs, ...logs] : logs;
  }

  #within(logs: unknown[]): unknown[] {
    const { results } = this.plan;
    if (logs.length > results) throw new Error(`query returned more than ${results} results`);
    return logs;
  }

  #receipt(view: View, hash: Hex): object | null {
    if (this.#lie === "no_receipts" || this.#isElsewhere) return null;
    const receipt = receiptOf(this.#chain, view, hash);
    if (receipt === null) return null;
    if (this.#lie === "receipts_bare") return { ...receipt, logs: [] };
    if (this.#lie !== "receipts_differ") return receipt;
    if (this.#twist === 0) return { ...receipt, status: receipt.status === "0x1" ? "0x0" : "0x1" };
    return { ...receipt, blockNumber: hex(Math.max(1, Number(receipt.blockNumber) - 20)) };
  }

  #call(view: View, { to = ZERO, data = "0x" }: Sent, tag: unknown): Hex {
    const block = this.#at(view, tag);
    if (block === null) throw new Error("header not found");
    if (to.toLowerCase() === MULTICALL3.toLowerCase()) return this.#aggregate(block, data);
    const value = this.#inner(block, { target: to, callData: data });
    if (value === null) throw new Error("execution reverted");
    return `0x${value}`;
  }

  /** Each call upon what the one before it did. */
  #simulate(
    view: View,
    { blockStateCalls }: { blockStateCalls: readonly { calls: readonly Sent[] }[] },
    tag: unknown,
  ): unknown {
    let block: Pick<Block, "state" | "timestamp"> | null = this.#at(view, tag);
    return blockStateCalls.map(({ calls }) => ({
      calls: calls.map(({ from = "", to = "", data = "0x" }) => {
        if (block === null) throw new Error("header not found");
        const { state, success, logs, gas } = this.#chain.play(readCall(to, data), from.toLowerCase(), block);
        block = { state, timestamp: block.timestamp };
        return { status: success ? "0x1" : "0x0", gasUsed: hex(gas), returnData: "0x", logs };
      }),
    }));
  }

  #aggregate(block: Block, data: Hex): Hex {
    const results = innerCalls(data).map((call) => this.#inner(block, call));
    const tuples = results.map((value) =>
      value === null ? word(0) + word(0x40) + word(0) : word(1) + word(0x40) + word(value.length / 2) + value,
    );
    const offsets: string[] = [];
    let offset = tuples.length * 32;
    for (const tuple of tuples) {
      offsets.push(word(offset));
      offset += tuple.length / 2;
    }
    return `0x${word(0x20)}${word(tuples.length)}${offsets.join("")}${tuples.join("")}`;
  }

  /** What a view returns, in whole words; null where it reverts. */
  #inner({ number, timestamp, state }: Block, { target, callData }: Inner): string | null {
    const selector = callData.slice(0, 10);
    const isLying = (about: (typeof LIES)[number]) => this.#lie === about;
    // Where there is no contract, a call is answered with nothing.
    if (this.#isElsewhere && target.toLowerCase() !== MULTICALL3.toLowerCase()) return "";
    if (target.toLowerCase() === PRICE_LIST) return word(L1_FEE);
    if (selector === IS_SIGNED) {
      const answer = state.code.get(target.toLowerCase())?.answer;
      return answer === undefined || answer === "refuses" ? null : IS_SIGNED.slice(2).padEnd(64, "0");
    }
    if (target.toLowerCase() === USDC_ADDRESS.toLowerCase()) {
      const account = `0x${callData.slice(34, 74)}`;
      if (selector === BALANCE) return word(isLying("money") ? 0n : (state.usdc.get(account) ?? 0n));
      if (selector !== USE) return null;
      const isUsed = state.used.has(useKey(account, `0x${callData.slice(74, 138)}`));
      return word(isUsed !== isLying("uses") ? 1 : 0);
    }
    if (selector === TIER) {
      const price = state.prices[Number(`0x${callData.slice(10)}`)];
      if (price === undefined) return null;
      return `${word(price)}${word(1)}${word(0x60)}${word(4)}${Buffer.from("tier").toString("hex").padEnd(64, "0")}`;
    }
    if (selector === BLOCK_NUMBER) return word(number);
    if (selector === ETHER) return word(WEI);
    if (selector !== OWNER_OF && selector !== IS_VALID) {
      return target.toLowerCase() === MULTICALL3.toLowerCase() ? word(timestamp) : null;
    }
    const token = state.tokens.get(Number(`0x${callData.slice(10)}`));
    if (selector === OWNER_OF) {
      if (token !== undefined) return word(token.owner);
      return this.#chain.zeroForUnknown ? word(ZERO) : null;
    }
    return word(token !== undefined && isValid(token, timestamp) && !isLying("invalid_tokens") ? 1 : 0);
  }
}

const hex = (value: number | bigint): Hex => `0x${value.toString(16)}`;

const span = ({ fromBlock, toBlock }: Filter): number => Number(toBlock) - Number(fromBlock) + 1;

function innerCalls(data: Hex): readonly Inner[] {
  const known = decoded.get(data);
  if (known !== undefined) return known;
  const { args } = decodeFunctionData({ abi: multicall3Abi, data });
  const calls = (args as readonly [readonly Inner[]])[0];
  decoded.set(data, calls);
  return calls;
}

const blockBody = (block: Block) => ({
  number: hex(block.number),
  hash: block.hash,
  parentHash: block.parentHash,
  timestamp: hex(block.timestamp),
  baseFeePerGas: hex(block.baseFee),
  transactions: [],
});

function logsOf(block: Block, isWanted: (entry: LogEntry, txHash: Hex) => boolean): object[] {
  const logs: object[] = [];
  let logIndex = 0;
  for (const [index, { tx, logs: entries }] of block.txs.entries()) {
    for (const entry of entries) {
      if (isWanted(entry, tx.hash)) logs.push(logBody(block, tx.hash, index, logIndex, entry));
      logIndex += 1;
    }
  }
  return logs;
}

const logBody = (block: Block, txHash: Hex, index: number, logIndex: number, entry: LogEntry) => ({
  address: entry.address,
  topics: entry.topics,
  data: entry.data,
  blockNumber: hex(block.number),
  blockHash: block.hash,
  transactionHash: txHash,
  transactionIndex: hex(index),
  logIndex: hex(logIndex),
  removed: false,
});

/** A sale that nobody made, of the token that comes next. */
function inventedSale(block: Block): object {
  const tokenId = block.state.sales.length;
  const txHash: Hex = `0x${"ee".repeat(28)}${block.number.toString(16).padStart(8, "0")}`;
  const sale = { tokenId, txHash, buyer: `0x${"ee".repeat(20)}`, tier: 0, durationDays: 1 };
  const entry = purchaseLog({ ...sale, purchaseDate: block.timestamp, totalCost: 500_000n });
  return logBody(block, txHash, 99, 99, entry);
}

type Receipt = Record<string, unknown> & { status: Hex; blockNumber: Hex };

function receiptOf(chain: ModelChain, view: View, hash: Hex): Receipt | null {
  const tx = chain.transactions.get(hash);
  for (const block of tx?.minedIn ?? []) {
    if (view.blocks[block.number] !== block || block.number > view.head) continue;
    const index = block.txs.findIndex((one) => one.tx === tx);
    const done = block.txs[index];
    return {
      transactionHash: hash,
      transactionIndex: hex(index),
      blockHash: block.hash,
      blockNumber: hex(block.number),
      from: ZERO,
      to: CONTRACT_ADDRESS,
      status: done?.success ? "0x1" : "0x0",
      logs: logsOf(block, (_entry, txHash) => txHash === hash),
      cumulativeGasUsed: "0x1",
      gasUsed: "0x1",
      effectiveGasPrice: "0x1",
      type: "0x2",
    };
  }
  return null;
}
