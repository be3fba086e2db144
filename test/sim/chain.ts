// A model of Base and of our contract: blocks come every two seconds, reorgs take the newest back and bring other ones, and
// what is 64 blocks deep is final. State is a value: each block has its own.
import { type Hex, parseTransaction } from "viem";
import type { LogEntry } from "./chain-logs.ts";
import type { Clock } from "./clock.ts";
import { type Call, type Done, execute, paidTo, readCall, type State, sell } from "./contracts.ts";
import type { Random } from "./random.ts";

const BLOCK_SECONDS = 2;
const FINAL_DEPTH = 64;
const BASE_FEE = 1_000_000_000n;
/** What one transaction may use at most (EIP-7825). */
const MAX_TRANSACTION_GAS = 1n << 24n;

export type Intent =
  /** On the contract, by somebody whose money the model does not count. */
  | { kind: "purchase"; buyer: string; tier: number; durationDays: number }
  | { kind: "price"; tier: number; price: bigint }
  /** By anybody but the operator. */
  | { kind: "call"; from: string; call: Call }
  | { kind: "operator"; nonce: number; maxFee: bigint; gas: bigint; call: Call }
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
  /** Which authorization each signature signs, in words. */
  readonly signatures = new Map<Hex, string>();
  /** Told of each transaction of the operator's when a node first takes it. */
  watchSent: (hash: Hex, call: Call) => void = () => {};
  /** What each authorization has moved to the operator in any block that ever was, whatever took it back. */
  readonly paid = new Map<string, bigint>();
  /** The highest nonce that the operator has signed anything for; -1: none. */
  highestNonce = -1;
  /** Of each tier, the lowest that there ever was. */
  lowestPrices: readonly bigint[];
  /** Rises with each block in which something of the operator's was mined, and with each that a reorg takes back. */
  operatorMoves = 0;
  /** Unix milliseconds until which no block comes. */
  haltedUntil = 0;
  /** The contract answers the zero address for a token that it does not know, where others revert. */
  zeroForUnknown = false;
  /** Until when gas costs a hundred times as much. */
  dearUntil = 0;
  readonly #clock: Clock;
  readonly #random: Random;
  #hashes = 0;
  #finalNumber = 0;

  constructor(clock: Clock, random: Random, operator: string, funds: Readonly<Record<string, bigint>>) {
    this.#clock = clock;
    this.#random = random;
    this.operator = operator.toLowerCase();
    const prices = [500_000n, 900_000n, 1_600_000n, 3_000_000n, 18_000_000n, 36_000_000n, 48_000_000n, 84_000_000n];
    this.lowestPrices = prices;
    const accounts = { allowances: new Map(), used: new Map(), code: new Map(), nonce: 0 };
    const nothing = { tokens: new Map(), sales: [], ...accounts };
    const state = { ...nothing, prices, usdc: new Map(Object.entries(funds)) };
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
    const tx = this.hold(intent);
    this.send(tx);
    return tx;
  }

  /** One that its sender has not sent yet. */
  hold(intent: Intent): Tx {
    return { hash: `0x${this.#random.hex(64)}`, intent, minedIn: new Set() };
  }

  send(tx: Tx): void {
    this.transactions.set(tx.hash, tx);
    this.mempool.push(tx);
  }

  /** A signed transaction of the operator's, as any node takes it. Throws with a node's words where none would. */
  offer(raw: Hex, hash: Hex): void {
    const { nonce = 0, data = "0x", maxFeePerGas = 0n, gas = 0n, to } = parseTransaction(raw);
    this.highestNonce = Math.max(this.highestNonce, nonce);
    if (gas > MAX_TRANSACTION_GAS) throw new Error(`exceeds max transaction gas limit (cap: ${MAX_TRANSACTION_GAS})`);
    if (nonce < this.head.state.nonce) throw new Error("nonce too low");
    const same = this.mempool.find(({ intent }) => intent.kind === "operator" && intent.nonce === nonce);
    if (same?.hash === hash) throw new Error("already known");
    if (same?.intent.kind === "operator" && same.intent.maxFee * 110n > maxFeePerGas * 100n) {
      throw new Error("replacement transaction underpriced");
    }
    if (same !== undefined) this.mempool.splice(this.mempool.indexOf(same), 1);
    const known = this.transactions.get(hash);
    const intent: Intent = { kind: "operator", nonce, maxFee: maxFeePerGas, gas, call: readCall(to ?? "", data) };
    if (known === undefined) this.watchSent(hash, intent.call);
    const tx = known ?? { hash, intent, minedIn: new Set() };
    this.transactions.set(hash, tx);
    this.mempool.push(tx);
  }

  /** What a call would do on top of a block. */
  play(call: Call, from: string, { state, timestamp }: Pick<Block, "state" | "timestamp">): Done {
    return execute(call, from, `0x${"00".repeat(32)}`, state, timestamp, this.signatures, true);
  }

  /** Nodes forget what waits: nobody has it any more until it is sent again. */
  forget(): void {
    const index = this.mempool.findIndex(({ intent }) => intent.kind === "operator");
    if (index !== -1) this.mempool.splice(index, 1);
  }

  /** Takes the newest blocks back. Their transactions come again in another order, later, or never. */
  reorg(depth: number): number {
    const { length } = this.blocks;
    const taken = this.#takeBack(depth);
    if (taken === 0) return 0;
    // The new branch is the longer one.
    const end = this.#clock.now / 1_000;
    while (this.blocks.length <= length) {
      const next = this.head.timestamp + BLOCK_SECONDS;
      this.#mine(next > end ? this.head.timestamp + 1 : next);
    }
    return taken;
  }

  /** The same after an outage: the chain goes on from there at its pace, and is the shorter one for long. */
  setBack(depth: number): number {
    const taken = this.#takeBack(depth);
    if (taken === 0) return 0;
    this.#mine(Math.max(this.head.timestamp + 1, Math.floor(this.#clock.now / 1_000)));
    return taken;
  }

  #takeBack(depth: number): number {
    const taken = Math.min(depth, this.head.number - this.final.number);
    if (taken <= 0) return 0;
    const kept = this.blocks.slice(0, this.blocks.length - taken);
    const undone = this.blocks.slice(kept.length).flatMap((block) => block.txs.map(({ tx }) => tx));
    this.blocks = kept;
    this.operatorMoves += 1;
    for (const tx of this.#shuffled(undone)) {
      // A payment is never lost by itself: its signer sends it again, or nobody does.
      if (tx.intent.kind === "operator" || this.#random.unit() < 0.65) this.mempool.push(tx);
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
      else if (intent.kind === "operator" && intent.maxFee < baseFee) continue;
      else {
        this.#drop(tx);
        const done = this.#execute(tx, state, timestamp);
        state = done.state;
        txs.push({ tx, success: done.success, logs: done.logs });
      }
    }
    const block = this.#block(parent, timestamp, txs, state, baseFee);
    for (const { tx } of txs) tx.minedIn.add(block);
    this.blocks.push(block);
    if (txs.some(({ tx }) => tx.intent.kind === "operator")) this.operatorMoves += 1;
    if (state.used !== parent.state.used) this.#notePaid(state);
    if (state.prices !== parent.state.prices) {
      this.lowestPrices = this.lowestPrices.map((low, tier) => least(low, state.prices[tier] ?? low));
    }
  }

  #notePaid({ used }: State): void {
    for (const [key, use] of used) {
      const value = paidTo(this.operator, use);
      if (value > (this.paid.get(key) ?? 0n)) this.paid.set(key, value);
    }
  }

  #execute({ hash, intent }: Tx, state: State, at: number): Done {
    const run = (call: Call, from: string, before: State) => execute(call, from, hash, before, at, this.signatures);
    const same = (next: State): Done => ({ state: next, success: true, logs: [], gas: 0 });
    switch (intent.kind) {
      case "purchase":
        return sell(state, hash, intent.buyer, intent.tier, intent.durationDays, at);
      case "price":
        return same({ ...state, prices: state.prices.with(intent.tier, intent.price) });
      case "call":
        return run(intent.call, intent.from, state);
      case "operator": {
        const before = { ...state, nonce: state.nonce + 1 };
        const done = run(intent.call, this.operator, before);
        return done.gas > intent.gas ? { ...same(before), success: false } : done;
      }
      case "foreign":
        return same({ ...state, nonce: state.nonce + 1 });
    }
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

const least = (a: bigint, b: bigint): bigint => (a < b ? a : b);
