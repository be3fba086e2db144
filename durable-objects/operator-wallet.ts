// The wallet that pays: one object, named "operator", in the provisioner, so that nonces are given out one after the
// other. An order has an id, and an id is one order for ever: asking twice pays once, whatever was lost in between.
//
//   order        stored with its nonce and its signed transaction before anything is broadcast; output gates hold the
//                network back until storage has them. Of a purchase the database knows each hash first (hard case 20)
//   sent         broadcast again in nonce order by an alarm until final history shows it; replaced at a higher fee where
//                it is stuck, each replacement stored before it leaves
//   final        two nodes call its block final. A reorg before that changes nothing: it is still being broadcast
//   nonce taken  by a transaction that is not ours, in final history, and no node has a receipt of ours: another nonce
//   nonce free   since a reorg left such a transaction out: filled with one that does nothing
//
// A purchase is two transactions, the approval of its exact cost in front of it, signed in one turn at two nonces.
// The key is in the environment of this script alone (hard case 3), and the chain's word in final history is the only
// one that closes an order (hard case 16).
import { DurableObject } from "cloudflare:workers";
import { type Hex, keccak256 } from "viem";
import { type PrivateKeyAccount, privateKeyToAccount } from "viem/accounts";
import { balanceOf } from "../src/chain/authorization.ts";
import { type Chain, connectChain } from "../src/chain/client.ts";
import { type Call, callsOf, estimateGas, estimateGasTogether, type WalletOrder } from "../src/chain/orders.ts";
import { askFirst, askTwo, isUnknown, readFinalNumber, readReceipt } from "../src/chain/witness.ts";
import { provisionerConfig } from "../src/config.ts";
import { openDatabase } from "../src/db/client.ts";
import { linkTransaction } from "../src/db/payments.ts";
import { errorFields, log, sendLogs } from "../src/log.ts";
import { type NewRow, type OrderRow, type SignedRow, WalletLedger } from "./wallet-ledger.ts";

export type Refusal = "daily_limit" | "no_funds" | "no_gas" | "gas_too_dear" | "would_fail" | "other_order";
export type Mined = { hash: Hex; status: "success" | "reverted"; blockNumber: number };
export type OrderState =
  /** Nothing was signed; the same call may work later. `other_order`: the id was given to something else before. */
  | { state: "waiting"; why: Refusal }
  /** `mined`: whichever of its transactions two nodes have a receipt of now. */
  | { state: "sent"; hash: Hex; mined: Mined | null }
  /** In final history. */
  | { state: "final" | "reverted"; hash: Hex };

type Fees = { maxFee: bigint; priorityFee: bigint; baseFee: bigint };

const ADVANCE_MS = 15_000;
const STUCK_MS = 60_000;
const HOUR_MS = 3_600_000;
const DAY_MS = 86_400_000;
const MAX_REPLACEMENTS = 10;
/** Nodes take a replacement only at 10 % more. */
const BUMP_PERCENT = 125n;
const FALLBACK_PRIORITY_FEE = 1_000_000n;
const LOW_TRANSACTIONS = 100n;
const GAS_PER_TRANSACTION = 200_000n;
const FILL_GAS = 30_000n;

export class OperatorWallet extends DurableObject<object> {
  readonly #ledger: WalletLedger;
  #turn: Promise<unknown> = Promise.resolve();

  constructor(state: DurableObjectState, env: object) {
    super(state, env);
    this.#ledger = new WalletLedger(state.storage);
  }

  /** Gives an order, or says how the order of that id stands. */
  order(order: WalletOrder): Promise<OrderState> {
    return this.#inTurn(() => this.#order(order));
  }

  /** What `order` would find before it signs anything; null: nothing is in its way. */
  async simulate(order: WalletOrder): Promise<Refusal | null> {
    const prepared = await this.#prepare(order);
    return "why" in prepared ? prepared.why : null;
  }

  override async alarm(): Promise<void> {
    const { LOG_BOOK } = provisionerConfig(this.env);
    try {
      await this.#inTurn(() => this.#advance());
    } catch (error) {
      log("error", "operator_wallet_failed", errorFields(error));
    }
    if (this.#ledger.open().length > 0) await this.ctx.storage.setAlarm(Date.now() + ADVANCE_MS);
    await sendLogs(LOG_BOOK);
  }

  async #order(order: WalletOrder): Promise<OrderState> {
    const known = this.#ledger.row(order.id);
    if (known !== undefined) {
      // One id, two orders: somebody wrote into the database, or we made a mistake.
      if (known.body !== JSON.stringify(order)) return { state: "waiting", why: "other_order" };
      if (known.state !== "sent") return { state: known.state, hash: known.hash };
      const mined = await this.#receiptOf(known);
      return { state: "sent", hash: mined?.hash ?? known.hash, mined };
    }
    const prepared = await this.#prepare(order);
    if ("why" in prepared) return { state: "waiting", why: prepared.why };
    const { rows, gas, fees } = prepared;
    const nonce = await this.#nextNonce();
    // All are signed and stored before the first one leaves: nothing may come between their nonces.
    let hash: Hex = "0x";
    for (const [i, row] of rows.entries()) hash = await this.#sign({ ...row, nonce: nonce + i }, gas[i] ?? 0n, fees);
    for (const { id } of rows) await this.#broadcast(id);
    log("info", "payment_sent", { order: order.id, kind: order.kind, txHash: hash, amount: rows.at(-1)?.amount });
    return { state: "sent", hash, mined: null };
  }

  async #prepare(order: WalletOrder): Promise<{ why: Refusal } | { rows: NewRow[]; gas: bigint[]; fees: Fees }> {
    const { chain, account, config } = this.#services();
    const rows = this.#rowsOf(order);
    const value = BigInt(rows.at(-1)?.amount ?? 0);
    const { REFUND_LIMIT_USDC_PER_DAY: refunds, PURCHASE_LIMIT_USDC_PER_DAY: purchases } = config;
    const limit = order.kind === "pay" ? refunds : purchases;
    if (value > 0n && this.#ledger.spentSince(order.kind, Date.now() - DAY_MS) + value > limit)
      return { why: "daily_limit" };
    const [available, wei, fees] = await Promise.all([
      this.#available(),
      askFirst(chain, ({ client }) => client.getBalance({ address: account.address })),
      this.#fees(),
    ]);
    await this.#warnOfFunds(available, wei, fees);
    if (available < value) return { why: "no_funds" };
    if (order.kind === "purchase" && fees.baseFee > config.MAX_BASE_FEE_GWEI) return { why: "gas_too_dear" };
    const gas = await this.#estimate(rows);
    if (gas === null) return { why: "would_fail" };
    if (wei < gas.reduce((sum, one) => sum + one, 0n) * fees.maxFee) return { why: "no_gas" };
    return { rows, gas, fees };
  }

  #rowsOf(order: WalletOrder): NewRow[] {
    const { account, config } = this.#services();
    const addresses = { contract: config.CONTRACT_ADDRESS, coin: config.USDC_ADDRESS, operator: account.address };
    const amount = order.kind === "pay" ? order.amount : order.kind === "purchase" ? order.cost : "0";
    const calls = callsOf(order, addresses);
    return calls.map(({ to, data }, i) => {
      const isLast = i === calls.length - 1;
      return {
        id: isLast ? order.id : `${order.id}/approve`,
        kind: isLast ? order.kind : "approve",
        body: JSON.stringify(order),
        to_address: to,
        data,
        amount: isLast ? amount : "0",
      };
    });
  }

  async #estimate(rows: readonly NewRow[]): Promise<bigint[] | null> {
    const { chain, account } = this.#services();
    const calls = rows.map(({ to_address: to, data }): Call => ({ to, data }));
    const [only] = calls;
    if (calls.length > 1 || only === undefined) return estimateGasTogether(chain, account.address, calls);
    const gas = await estimateGas(chain, account.address, only);
    return gas === null ? null : [gas];
  }

  /** Signs a row's transaction and stores both; nothing has left yet. */
  async #sign(row: NewRow & { nonce: number }, gas: bigint, { maxFee, priorityFee }: Fees): Promise<Hex> {
    const { account, config } = this.#services();
    const raw = await account.signTransaction({
      type: "eip1559",
      chainId: config.CHAIN_ID,
      nonce: row.nonce,
      to: row.to_address,
      data: row.data,
      gas,
      maxFeePerGas: maxFee,
      maxPriorityFeePerGas: priorityFee,
    });
    const hash = keccak256(raw);
    const now = Date.now();
    const fees = { gas: String(gas), max_fee: String(maxFee), priority_fee: String(priorityFee) };
    this.#ledger.store({ ...row, hash, created_at: now }, { hash, raw, signed_at: now, ...fees });
    await this.ctx.storage.setAlarm(now + ADVANCE_MS);
    return hash;
  }

  /** Sends a row's newest transaction to every node; that one knows it already, or is down, is no matter. */
  async #broadcast(id: string): Promise<void> {
    const [newest] = this.#ledger.signed(id);
    if (newest === undefined) return;
    if (!(await this.#link(id, newest))) return;
    const { chain } = this.#services();
    const sent = await Promise.allSettled(
      chain.nodes.map(({ client }) => client.sendRawTransaction({ serializedTransaction: newest.raw })),
    );
    const refused = sent.flatMap((one) => (one.status === "rejected" ? [errorFields(one.reason)] : []));
    if (refused.length === sent.length) log("debug", "broadcast_refused", { order: id, nodes: refused });
  }

  /** False where the database can't be told whose purchase it is: then it stays here until the alarm tries again. */
  async #link(id: string, { hash, linked }: SignedRow): Promise<boolean> {
    const row = this.#ledger.row(id);
    if (row?.kind !== "purchase" || linked === 1) return true;
    const { payment } = JSON.parse(row.body) as WalletOrder & { kind: "purchase" };
    try {
      await linkTransaction(openDatabase(this.#services().config.DB), hash, payment, Date.now());
    } catch (error) {
      log("error", "purchase_not_linked", { order: id, txHash: hash, ...errorFields(error) });
      return false;
    }
    this.#ledger.markLinked(hash);
    return true;
  }

  /** Brings every open row on, in the order of nonces. */
  async #advance(): Promise<void> {
    const open = this.#ledger.open();
    if (open.length === 0) return;
    const { chain, account } = this.#services();
    const final = await readFinalNumber(chain);
    await this.#fillGap(open[0]);
    for (const row of open) {
      const mined = await this.#receiptOf(row);
      if (mined !== null) {
        if (mined.blockNumber <= final) this.#close(row, mined);
        continue;
      }
      const taken = await askTwo(chain, ({ client }) =>
        client.getTransactionCount({ address: account.address, blockTag: "finalized" }),
      );
      if (taken <= row.nonce) await this.#keepSending(row);
      // Looked for again: a node that knew no receipt may have caught up before it told the count.
      else if (!(await this.#isUnknown(row))) {
        const level = Date.now() - row.created_at > HOUR_MS ? "page" : "warn";
        log(level, "operator_nonce_unclear", { order: row.id, nonce: row.nonce });
      } else if (row.kind === "fill") this.#ledger.end(row, "final", row.hash);
      else await this.#giveAnotherNonce(row);
    }
  }

  /** Whatever has a lower nonce than our lowest is not ours; where it never comes, none of ours does. */
  async #fillGap(lowest: OrderRow | undefined): Promise<void> {
    if (lowest === undefined || Date.now() - lowest.created_at < STUCK_MS) return;
    const count = await this.#count();
    if (count >= lowest.nonce) return;
    log("page", "operator_nonce_missing", { from: count, to: lowest.nonce - 1 });
    const fees = await this.#fees();
    for (let nonce = count; nonce < lowest.nonce; nonce++) {
      const id = `fill/${nonce}`;
      const to = this.#services().account.address;
      await this.#sign({ id, kind: "fill", body: "", to_address: to, data: "0x", amount: "0", nonce }, FILL_GAS, fees);
      await this.#broadcast(id);
    }
  }

  /** Somebody else used the key: none of this row's transactions can ever be mined. */
  async #giveAnotherNonce(row: OrderRow): Promise<void> {
    log("page", "operator_nonce_taken", { order: row.id, kind: row.kind, nonce: row.nonce });
    const [newest] = this.#ledger.signed(row.id);
    if (newest === undefined) return;
    await this.#sign({ ...row, nonce: await this.#nextNonce() }, BigInt(newest.gas), await this.#fees());
    await this.#broadcast(row.id);
  }

  async #keepSending(row: OrderRow): Promise<void> {
    const signed = this.#ledger.signed(row.id);
    const [newest] = signed;
    const isStuck = newest !== undefined && Date.now() - newest.signed_at > STUCK_MS;
    if (isStuck && signed.length <= MAX_REPLACEMENTS) {
      const market = await this.#fees();
      const bump = (fee: string) => (BigInt(fee) * BUMP_PERCENT) / 100n + 1n;
      await this.#sign(row, BigInt(newest.gas), {
        ...market,
        maxFee: max(market.maxFee, bump(newest.max_fee)),
        priorityFee: max(market.priorityFee, bump(newest.priority_fee)),
      });
      log("warn", "payment_replaced", { order: row.id, kind: row.kind, nonce: row.nonce, replacements: signed.length });
    } else if (isStuck) log("page", "payment_stuck", { order: row.id, kind: row.kind, nonce: row.nonce });
    await this.#broadcast(row.id);
  }

  #close(row: OrderRow, mined: Mined): void {
    const state = mined.status === "success" ? "final" : "reverted";
    this.#ledger.end(row, state, mined.hash);
    // Of a refund a person has to hear; of the others whoever gave the order knows what to do.
    const level = state === "reverted" && row.kind === "pay" ? "page" : "info";
    log(level, `payment_${state}`, { order: row.id, kind: row.kind, txHash: mined.hash });
  }

  /** The receipt of whichever of a row's transactions was mined. */
  async #receiptOf(row: Pick<OrderRow, "id">): Promise<Mined | null> {
    const { chain } = this.#services();
    for (const { hash } of this.#ledger.signed(row.id)) {
      const receipt = await readReceipt(chain, hash);
      if (receipt !== null) return { hash, status: receipt.status, blockNumber: receipt.blockNumber };
    }
    return null;
  }

  /** None of its transactions is mined, by the word of every node: with another nonce it would be done twice. */
  async #isUnknown(row: OrderRow): Promise<boolean> {
    const { chain } = this.#services();
    const unknown = await Promise.all(this.#ledger.signed(row.id).map(({ hash }) => isUnknown(chain, hash)));
    return unknown.every(Boolean);
  }

  async #count(): Promise<number> {
    const { chain, account } = this.#services();
    return askTwo(chain, ({ client }) => client.getTransactionCount({ address: account.address }));
  }

  async #nextNonce(): Promise<number> {
    const count = await this.#count();
    return Math.max(count, this.#ledger.lastNonce + 1);
  }

  /** What is there, less what is on its way: by one block of one node, whose balance what it has mined has left already. */
  async #available(): Promise<bigint> {
    const { chain, account, config } = this.#services();
    const { balance, count } = await askFirst(chain, async (node) => {
      const blockNumber = await node.client.getBlockNumber({ cacheTime: 0 });
      const [left, used] = await Promise.all([
        balanceOf(config.USDC_ADDRESS, account.address, blockNumber)(node),
        node.client.getTransactionCount({ address: account.address, blockNumber }),
      ]);
      return { balance: left, count: used };
    });
    return this.#ledger
      .open()
      .reduce((left, { amount, nonce }) => (nonce < count ? left : left - BigInt(amount)), balance);
  }

  /** A person has to send more before orders have to wait; said once an hour. */
  async #warnOfFunds(available: bigint, wei: bigint, { maxFee }: Fees): Promise<void> {
    const { storage } = this.ctx;
    const { config } = this.#services();
    const isLow = available < config.LOW_FUNDS_USDC || wei < LOW_TRANSACTIONS * GAS_PER_TRANSACTION * maxFee;
    if (!isLow || ((await storage.get<number>("warnedAt")) ?? 0) > Date.now() - HOUR_MS) return;
    await storage.put("warnedAt", Date.now());
    log("page", "operator_funds_low", { usdc6: String(available), wei: String(wei) });
  }

  #fees(): Promise<Fees> {
    return askFirst(this.#services().chain, async ({ client }) => {
      const { baseFeePerGas } = await client.getBlock();
      const priorityFee = await client.estimateMaxPriorityFeePerGas().catch(() => FALLBACK_PRIORITY_FEE);
      const baseFee = baseFeePerGas ?? 0n;
      return { maxFee: 2n * baseFee + priorityFee, priorityFee, baseFee };
    });
  }

  #known: { chain: Chain; account: PrivateKeyAccount } | undefined;
  #services() {
    const config = provisionerConfig(this.env);
    if (config.OPERATOR_PRIVATE_KEY === undefined) throw new Error("OPERATOR_PRIVATE_KEY is not set");
    this.#known ??= { chain: connectChain(config), account: privateKeyToAccount(config.OPERATOR_PRIVATE_KEY) };
    return { ...this.#known, config };
  }

  /** One at a time: what reads the next nonce must have stored it before the next one reads. */
  #inTurn<T>(work: () => Promise<T>): Promise<T> {
    const mine = this.#turn.then(work);
    this.#turn = mine.catch(() => undefined);
    return mine;
  }
}

const max = (a: bigint, b: bigint): bigint => (a > b ? a : b);
