// A model of Base and of our contract: blocks come every two seconds, reorgs take the newest back and bring other ones, and
// what is 64 blocks deep is final. State is a value: each block has its own.
import { type Hex, parseTransaction } from "viem";
import { USDC_ADDRESS } from "../world/addresses.ts";
import { type LogEntry, purchaseLog, renewalLog, terminationLog, transferLog } from "./chain-logs.ts";
import type { Clock } from "./clock.ts";
import type { Random } from "./random.ts";

export const BLOCK_SECONDS = 2;
export const FINAL_DEPTH = 64;
export const ZERO = "0x0000000000000000000000000000000000000000";
const DAY = 86_400;
const BASE_FEE = 1_000_000_000n;
const SELECTOR_TRANSFER = "0xa9059cbb";

export type Token = { owner: string; tier: number; expiresAt: number; terminated: boolean };
export type Sale = {
  tokenId: number;
  txHash: Hex;
  buyer: string;
  tier: number;
  durationDays: number;
  purchaseDate: number;
  totalCost: bigint;
};
type State = {
  tokens: ReadonlyMap<number, Token>;
  sales: readonly Sale[];
  prices: readonly bigint[];
  usdc: ReadonlyMap<string, bigint>;
  /** Next nonce of the operator's account. */
  nonce: number;
};
export type Intent =
  | { kind: "purchase"; buyer: string; tier: number; durationDays: number }
  | { kind: "transfer"; tokenId: number; from: string; to: string }
  | { kind: "renew"; tokenId: number; days: number }
  | { kind: "give_up"; tokenId: number; from: string }
  | { kind: "price"; tier: number; price: bigint }
  | { kind: "payment"; nonce: number; to: string; amount: bigint; maxFee: bigint }
  | { kind: "foreign"; nonce: number };
export type Tx = { hash: Hex; intent: Intent; minedIn: Set<Block> };
export type Executed = { tx: Tx; success: boolean; logs: LogEntry[] };
export type Block = {
  number: number;
  hash: Hex;
  parentHash: Hex;
  timestamp: number;
  baseFee: bigint;
  txs: readonly Executed[];
  state: State;
};

export class ModelChain {
  blocks: Block[];
  readonly operator: string;
  readonly mempool: Tx[] = [];
  /** Every one that was ever sent. */
  readonly transactions = new Map<Hex, Tx>();
  /** Told of each payment when a node first takes it. */
  watchPayment: (to: string, amount: bigint) => void = () => {};
  /** Unix milliseconds until which no block comes. */
  haltedUntil = 0;
  /** Until when gas costs a hundred times as much. */
  dearUntil = 0;
  readonly #clock: Clock;
  readonly #random: Random;
  #hashes = 0;
  #finalNumber = 0;

  constructor(clock: Clock, random: Random, operator: string, float: bigint) {
    this.#clock = clock;
    this.#random = random;
    this.operator = operator.toLowerCase();
    const prices = [500_000n, 900_000n, 1_600_000n, 3_000_000n, 18_000_000n, 36_000_000n, 48_000_000n, 84_000_000n];
    const state = { tokens: new Map(), sales: [], prices, usdc: new Map([[this.operator, float]]), nonce: 0 };
    const timestamp = Math.floor(clock.now / 1_000) - FINAL_DEPTH * 2 * BLOCK_SECONDS;
    this.blocks = [this.#block(null, timestamp, [], state)];
    this.advance();
  }

  get head(): Block {
    const block = this.blocks.at(-1);
    if (block === undefined) throw new Error("the chain is empty");
    return block;
  }

  /** Never falls back: nothing final is ever taken back. */
  get final(): Block {
    this.#finalNumber = Math.max(this.#finalNumber, this.head.number - FINAL_DEPTH);
    return this.blocks[this.#finalNumber] ?? this.head;
  }

  /** Brings the blocks that are due by now. */
  advance(): void {
    const { now } = this.#clock;
    if (now < this.haltedUntil) return;
    while ((this.head.timestamp + BLOCK_SECONDS) * 1_000 <= now) this.#mine(this.head.timestamp + BLOCK_SECONDS);
  }

  /** Some blocks, far apart: time that nobody wants to wait for. */
  leap(): void {
    const from = this.head.timestamp;
    const step = Math.floor((Math.floor(this.#clock.now / 1_000) - from) / (FINAL_DEPTH + 2));
    if (step > BLOCK_SECONDS) for (let i = 0; i < FINAL_DEPTH + 1; i++) this.#mine(this.head.timestamp + step);
    this.advance();
  }

  submit(intent: Intent): Tx {
    const tx: Tx = { hash: `0x${this.#random.hex(64)}`, intent, minedIn: new Set() };
    this.transactions.set(tx.hash, tx);
    this.mempool.push(tx);
    return tx;
  }

  /** A signed transaction of the operator's, as any node takes it. Throws with a node's words where none would. */
  offer(raw: Hex, hash: Hex): void {
    const { nonce = 0, data = "0x", maxFeePerGas = 0n, to } = parseTransaction(raw);
    if (to?.toLowerCase() !== USDC_ADDRESS.toLowerCase() || !data.startsWith(SELECTOR_TRANSFER)) throw new Error("no");
    if (nonce < this.head.state.nonce) throw new Error("nonce too low");
    const same = this.mempool.find(({ intent }) => intent.kind === "payment" && intent.nonce === nonce);
    if (same?.hash === hash) throw new Error("already known");
    if (same?.intent.kind === "payment" && same.intent.maxFee * 110n > maxFeePerGas * 100n) {
      throw new Error("replacement transaction underpriced");
    }
    if (same !== undefined) this.mempool.splice(this.mempool.indexOf(same), 1);
    const recipient = `0x${data.slice(34, 74)}`;
    const amount = BigInt(`0x${data.slice(74, 138)}`);
    const intent: Intent = { kind: "payment", nonce, to: recipient, amount, maxFee: maxFeePerGas };
    const known = this.transactions.get(hash);
    if (known === undefined) this.watchPayment(recipient, amount);
    const tx = known ?? { hash, intent, minedIn: new Set() };
    this.transactions.set(hash, tx);
    this.mempool.push(tx);
  }

  /** Nodes forget what waits: nobody has it any more until it is sent again. */
  forget(): void {
    const index = this.mempool.findIndex(({ intent }) => intent.kind === "payment");
    if (index !== -1) this.mempool.splice(index, 1);
  }

  /** Takes the newest blocks back. Their transactions come again in another order, later, or never. */
  reorg(depth: number): number {
    const taken = Math.min(depth, this.head.number - this.final.number);
    if (taken <= 0) return 0;
    const kept = this.blocks.slice(0, this.blocks.length - taken);
    const undone = this.blocks.slice(kept.length).flatMap((block) => block.txs.map(({ tx }) => tx));
    const { length } = this.blocks;
    this.blocks = kept;
    for (const tx of this.#shuffled(undone)) {
      // A payment is never lost by itself: its signer sends it again, or nobody does.
      if (tx.intent.kind === "payment" || this.#random.unit() < 0.65) this.mempool.push(tx);
    }
    // The new branch is the longer one.
    const end = this.#clock.now / 1_000;
    while (this.blocks.length <= length) {
      const next = this.head.timestamp + BLOCK_SECONDS;
      this.#mine(next > end ? this.head.timestamp + 1 : next);
    }
    return taken;
  }

  #mine(timestamp: number): void {
    const parent = this.head;
    const baseFee = timestamp * 1_000 < this.dearUntil ? BASE_FEE * 100n : BASE_FEE;
    if (this.mempool.length === 0) {
      this.blocks.push(this.#block(parent, timestamp, [], parent.state, baseFee));
      return;
    }
    let { state } = parent;
    const txs: Executed[] = [];
    for (const tx of [...this.mempool]) {
      const { intent } = tx;
      const nonce = "nonce" in intent ? intent.nonce : null;
      if (nonce !== null && nonce < state.nonce) this.#drop(tx);
      else if (nonce !== null && nonce > state.nonce) continue;
      else if (intent.kind === "payment" && intent.maxFee < baseFee) continue;
      else {
        this.#drop(tx);
        const done = execute(tx, state, timestamp, this.operator);
        state = done.state;
        txs.push({ tx, success: done.success, logs: done.logs });
      }
    }
    const block = this.#block(parent, timestamp, txs, state, baseFee);
    for (const { tx } of txs) tx.minedIn.add(block);
    this.blocks.push(block);
  }

  #drop(tx: Tx): void {
    this.mempool.splice(this.mempool.indexOf(tx), 1);
  }

  #block(parent: Block | null, timestamp: number, txs: readonly Executed[], state: State, baseFee = BASE_FEE): Block {
    this.#hashes += 1;
    const hash: Hex = `0xb10c${this.#hashes.toString(16).padStart(60, "0")}`;
    const parentHash = parent?.hash ?? (`0x${"00".repeat(32)}` as Hex);
    return { number: parent === null ? 0 : parent.number + 1, hash, parentHash, timestamp, baseFee, txs, state };
  }

  #shuffled<T>(list: readonly T[]): T[] {
    return list
      .map((item) => ({ item, key: this.#random.unit() }))
      .sort((a, b) => a.key - b.key)
      .map(({ item }) => item);
  }
}

export const isValid = (token: Token, at: number): boolean => !token.terminated && at < token.expiresAt;

type Done = { state: State; success: boolean; logs: LogEntry[] };

/** What the contract would do, as test/world/contracts has it. */
function execute({ hash, intent }: Tx, state: State, at: number, operator: string): Done {
  const failed = { state, success: false, logs: [] };
  const withToken = (tokenId: number, change: Partial<Token>): ReadonlyMap<number, Token> => {
    const token = state.tokens.get(tokenId);
    return token === undefined ? state.tokens : new Map(state.tokens).set(tokenId, { ...token, ...change });
  };
  switch (intent.kind) {
    case "purchase": {
      const { buyer, tier, durationDays } = intent;
      const tokenId = state.sales.length;
      const totalCost = (state.prices[tier] ?? 0n) * BigInt(durationDays);
      const sale = { tokenId, txHash: hash, buyer, tier, durationDays, purchaseDate: at, totalCost };
      const token = { owner: buyer, tier, expiresAt: at + durationDays * DAY, terminated: false };
      const tokens = new Map(state.tokens).set(tokenId, token);
      const logs = [transferLog(tokenId, ZERO, buyer), purchaseLog(sale)];
      return { state: { ...state, tokens, sales: [...state.sales, sale] }, success: true, logs };
    }
    case "transfer": {
      const { tokenId, from, to } = intent;
      if (state.tokens.get(tokenId)?.owner !== from) return failed;
      const tokens = withToken(tokenId, { owner: to });
      return { state: { ...state, tokens }, success: true, logs: [transferLog(tokenId, from, to)] };
    }
    case "renew": {
      const token = state.tokens.get(intent.tokenId);
      if (token === undefined || !isValid(token, at)) return failed;
      const expiresAt = token.expiresAt + intent.days * DAY;
      const tokens = withToken(intent.tokenId, { expiresAt });
      return { state: { ...state, tokens }, success: true, logs: [renewalLog(intent.tokenId, intent.days, expiresAt)] };
    }
    case "give_up": {
      if (state.tokens.get(intent.tokenId)?.owner !== intent.from) return failed;
      const tokens = withToken(intent.tokenId, { terminated: true });
      return { state: { ...state, tokens }, success: true, logs: [terminationLog(intent.tokenId)] };
    }
    case "price":
      return { state: { ...state, prices: state.prices.with(intent.tier, intent.price) }, success: true, logs: [] };
    case "foreign":
      return { state: { ...state, nonce: state.nonce + 1 }, success: true, logs: [] };
    case "payment": {
      const { to, amount } = intent;
      const has = state.usdc.get(operator) ?? 0n;
      const after = { ...state, nonce: state.nonce + 1 };
      if (has < amount) return { state: after, success: false, logs: [] };
      const usdc = new Map(state.usdc).set(operator, has - amount);
      usdc.set(to, (usdc.get(to) ?? 0n) + amount);
      return { state: { ...after, usdc }, success: true, logs: [] };
    }
  }
}
