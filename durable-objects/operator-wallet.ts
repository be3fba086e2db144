// The operator wallet: one object, named "operator", in the provisioner, so that it assigns nonces one after the other. An
// order's id names one order for ever: an order that is sent twice pays once, regardless of lost answers.
//
//   order        its nonce and signed transaction are stored before the broadcast; output gates hold the network back until
//                storage has them. A purchase's hash is linked to its payment in the database first (hard case 20)
//   sent         an alarm broadcasts it again, in nonce order, until it is in final history. A stuck transaction is replaced at
//                a higher fee; each replacement is stored before its broadcast
//   final        two nodes call its block final. A reorg before that is harmless, since the broadcasts go on
//   nonce taken  a foreign transaction has the nonce in final history, and no node has a receipt of ours: the order gets
//                another nonce
//   nonce free   a reorg has removed a foreign transaction: a transaction that does nothing fills its nonce
//   refused      every node refuses it repeatedly: a transaction that does nothing replaces it at its nonce, and the order ends
//                as reverted, since all higher nonces wait behind it (hard case 35)
//
// The wallet does not trust the database: before it signs an order, it reads from the chain how much came in for the order's
// payment or purchase, and never sends more than that (hard case 34). It calls no node while it assigns nonces.
//
// A purchase is two transactions, signed in one turn at two consecutive nonces: the approval of its exact cost, and the
// purchase. Only this script's environment has the key (hard case 3), and only final history closes an order (hard case 16).
import { DurableObject } from "cloudflare:workers";
import { type Hex, keccak256 } from "viem";
import { type PrivateKeyAccount, privateKeyToAccount } from "viem/accounts";
import {
  type Fees,
  type Funds,
  GAS_PER_TRANSACTION,
  LOW_TRANSACTIONS,
  readFees,
  readFunds,
  refusesContent,
} from "../src/chain/account.ts";
import { type Chain, connectChain } from "../src/chain/client.ts";
import { estimateGas, identityOf, isRefundOfPayment, readL1Fee, type WalletOrder } from "../src/chain/orders.ts";
import { askTwo, isUnknown, readFinalNumber, readFinalReceipt, readReceipt } from "../src/chain/witness.ts";
import { openDatabase } from "../src/db/client.ts";
import { isPaused } from "../src/db/pauses.ts";
import { linkTransaction } from "../src/db/payments.ts";
import { inItsOwnWords } from "../src/errors.ts";
import { allClear, errorFields, levelOfFault, log, sendLogs } from "../src/log.ts";
import { Connections } from "../src/outbound.ts";
import { provisionerConfig } from "../src/provisioner/config.ts";
import { type Evidence, readEvidence } from "./wallet-evidence.ts";
import { type NewRow, type OrderRow, rowsOf, type SignedRow, WalletLedger } from "./wallet-ledger.ts";
import { limitOf, type Refusal } from "./wallet-limits.ts";

export type Mined = { hash: Hex; status: "success" | "reverted"; blockNumber: number };
export type OrderState =
  /** Nothing was signed; the same call may succeed later. `other_order`: the id already names another order. */
  | { state: "waiting"; why: Refusal }
  /** `mined`: the receipt of one of the order's transactions that two nodes have now; null without one. */
  | { state: "sent"; hash: Hex; mined: Mined | null }
  /** The transaction succeeded, in final history. */
  | { state: "final"; hash: Hex }
  /** The transaction reverted, in final history. `reverts`: the number of times that this order has reverted. */
  | { state: "reverted"; hash: Hex; reverts: number };

/** The results of the calls to nodes that an order needs before its turn. */
type Prepared = {
  rows: NewRow[];
  gas: bigint[];
  fees: Fees;
  funds: Funds;
  evidence: Evidence;
  nextCount: number;
  /** Ids of earlier orders for the same payment or purchase that had no effect. */
  undone: ReadonlySet<string>;
};

const ADVANCE_MS = 15_000;
/** Rows whose receipts are read at once. With more, new orders would wait for a connection. */
const RECEIPTS_AT_ONCE = 4;
const STUCK_MS = 60_000;
const HOUR_MS = 3_600_000;
const MAX_REPLACEMENTS = 10;
/** Fees of a replacement, in percent of the replaced transaction's. Nodes require 110 %. */
const BUMP_PERCENT = 125n;
const FILL_GAS = 30_000n;
/** A transaction that every node refuses at this many fees is refused for another reason than its fee. */
const MAX_REFUSED_FEES = 3;
export class OperatorWallet extends DurableObject<object> {
  readonly #ledger: WalletLedger;
  readonly #connections = new Connections();
  #turn: Promise<unknown> = Promise.resolve();

  constructor(state: DurableObjectState, env: object) {
    super(state, env);
    this.#ledger = new WalletLedger(state.storage);
  }

  /** Places an order, or returns the state of the order with that id. */
  order(order: WalletOrder): Promise<OrderState> {
    return this.#connections.run(() => this.#order(order));
  }

  async #order(order: WalletOrder): Promise<OrderState> {
    const known = this.#ledger.row(order.id);
    if (known !== undefined && !isTriedAgain(known, order)) return this.#stateOf(known, order);
    const prepared = await inItsOwnWords(this.#prepare(order));
    if ("why" in prepared) return { state: "waiting", why: prepared.why };
    const signed = await this.#inTurn(() => this.#signAll(order, prepared));
    if ("why" in signed) return { state: "waiting", why: signed.why };
    if ("known" in signed) return this.#stateOf(signed.known, order);
    for (const { id } of prepared.rows) await this.#broadcast(id);
    const { hash } = signed;
    log("info", "payment_sent", { order: order.id, kind: order.kind, txHash: hash, amount: signed.amount });
    return { state: "sent", hash, mined: null };
  }

  /** Simulates an order: `would_fail`, or null when the simulation succeeds. Does not check whether the order is owed. */
  async simulate(order: WalletOrder): Promise<Refusal | null> {
    const gas = await this.#connections.run(() => this.#estimate(this.#rowsOf(order, "")));
    return gas === null ? "would_fail" : null;
  }

  override async alarm(): Promise<void> {
    const { LOG_BOOK } = provisionerConfig(this.env);
    try {
      await this.#connections.run(() => this.#advance());
    } catch (error) {
      log("error", "operator_wallet_failed", errorFields(error));
    }
    if (this.#ledger.open().length > 0) await this.ctx.storage.setAlarm(Date.now() + ADVANCE_MS);
    await sendLogs(LOG_BOOK);
  }

  async #stateOf(known: OrderRow, order: WalletOrder): Promise<OrderState> {
    // One id with two orders: somebody has written into the database, or the code is wrong.
    if (known.body !== identityOf(order)) return { state: "waiting", why: "other_order" };
    if (known.state === "reverted")
      return { state: "reverted", hash: known.hash, reverts: this.#ledger.reverts(known.id) };
    if (known.state === "final") return { state: "final", hash: known.hash };
    const mined = await this.#receiptOf(known);
    return { state: "sent", hash: mined?.hash ?? known.hash, mined };
  }

  /** Makes all calls to nodes before the order's turn, so that a node that hangs delays no other order. */
  async #prepare(order: WalletOrder): Promise<{ why: Refusal } | Prepared> {
    const { chain, account, config } = this.#services();
    if (await isPaused(openDatabase(config.DB), "payouts")) return { why: "paused" };
    const evidence = await readEvidence({ chain, config, operator: account.address }, order);
    if (evidence === "not_owed") log("page", "order_not_owed", { order: order.id, kind: order.kind });
    if (typeof evidence === "string") return { why: evidence };
    const rows = this.#rowsOf(order, evidence.account);
    const [gas, l1Fee, funds, fees, nextCount] = await Promise.all([
      this.#estimate(rows),
      readL1Fee(chain, rows),
      readFunds(chain, config.USDC_ADDRESS, account.address),
      this.#fees(),
      this.#count(),
    ]);
    const available = this.#available(funds);
    this.#warnOfFunds(available, funds.wei, fees);
    if (available < BigInt(rows.at(-1)?.amount ?? 0)) return { why: "no_funds" };
    if (gas === null) return { why: "would_fail" };
    if (order.kind === "purchase" && fees.baseFee > config.MAX_BASE_FEE_GWEI) return { why: "gas_too_dear" };
    if (funds.wei < gas.reduce((sum, one) => sum + one, 0n) * fees.maxFee + l1Fee) return { why: "no_gas" };
    const undone = await this.#undone(evidence.account, order);
    return typeof undone === "string" ? { why: undone } : { rows, gas, fees, funds, evidence, nextCount, undone };
  }

  /**
   * `served` when the payment's token is bought or transferred already: the payment gets no second token and no full refund.
   * `unproven` while the chain does not show that yet. Otherwise the ids of the payment's earlier orders without effect on the
   * chain.
   */
  async #undone(account: string, order: WalletOrder): Promise<ReadonlySet<string> | "served" | "unproven"> {
    const isRefund = isRefundOfPayment(order);
    const undone = new Set<string>();
    if (order.kind === "capture" || (order.kind === "pay" && !isRefund)) return undone;
    for (const row of this.#ledger.ordersFor(account, order.kind === "purchase" ? "purchase" : "transfer")) {
      if (row.id === order.id) continue;
      const mined = row.state === "sent" ? await this.#receiptOf(row) : null;
      // A purchase counts until it has reverted. A transfer counts once it has succeeded: a reorg may remove a pending one's
      // token.
      const isDone = order.kind === "purchase" ? mined?.status !== "reverted" : mined?.status === "success";
      if (row.state === "final" || isDone) return "served";
      if (mined === null || isRefund) return "unproven";
      undone.add(row.id);
    }
    return undone;
  }

  /** Checks the ledger and signs, in one turn, so that no other order comes in between. */
  async #signAll(
    order: WalletOrder,
    { rows, gas, fees, funds, evidence, nextCount, undone }: Prepared,
  ): Promise<{ why: Refusal } | { known: OrderRow } | { hash: Hex; amount: string }> {
    const known = this.#ledger.row(order.id);
    if (known !== undefined && !isTriedAgain(known, order)) return { known };
    const amount = rows.at(-1)?.amount ?? "0";
    const why = limitOf(this.#ledger, this.#services().config, order, { amount: BigInt(amount), evidence, undone });
    if (why !== null) return { why };
    if (this.#available(funds) < BigInt(amount)) return { why: "no_funds" };
    // All transactions are signed and stored before the first broadcast: their nonces have to be consecutive.
    const nonce = Math.max(nextCount, this.#ledger.lastNonce + 1);
    if (known !== undefined) this.#ledger.release(known);
    let hash: Hex = "0x";
    for (const [i, row] of rows.entries()) hash = await this.#sign({ ...row, nonce: nonce + i }, gas[i] ?? 0n, fees);
    return { hash, amount };
  }

  /** The wallet's USDC balance minus the amounts of open orders that the balance's block does not include. */
  #available({ balance, count }: Funds): bigint {
    const open = this.#ledger.open().filter(({ nonce }) => nonce >= count);
    return open.reduce((left, { amount }) => left - BigInt(amount), balance);
  }

  #rowsOf(order: WalletOrder, payer: string): NewRow[] {
    const { account, config } = this.#services();
    const addresses = { contract: config.CONTRACT_ADDRESS, coin: config.USDC_ADDRESS, operator: account.address };
    return rowsOf(order, payer, addresses);
  }

  #estimate(rows: readonly NewRow[]): Promise<bigint[] | null> {
    const { chain, account } = this.#services();
    const calls = rows.map(({ to_address: to, data, kind }) => ({
      to,
      data,
      kind: kind === "fill" ? "approve" : kind,
    }));
    return estimateGas(chain, account.address, calls);
  }

  /** Signs a row's transaction and stores row and transaction, without a broadcast. Returns the transaction's hash. */
  async #sign(
    row: NewRow & { nonce: number },
    gas: bigint,
    { maxFee, priorityFee }: Fees,
    isVoid = false,
  ): Promise<Hex> {
    const { account, config } = this.#services();
    const raw = await account.signTransaction({
      type: "eip1559",
      chainId: config.CHAIN_ID,
      nonce: row.nonce,
      to: isVoid ? account.address : row.to_address,
      data: isVoid ? "0x" : row.data,
      gas,
      maxFeePerGas: maxFee,
      maxPriorityFeePerGas: priorityFee,
    });
    const hash = keccak256(raw);
    const now = Date.now();
    const fees = { gas: String(gas), max_fee: String(maxFee), priority_fee: String(priorityFee) };
    const signed = { hash, raw, signed_at: now, void: isVoid ? 1 : 0, ...fees };
    this.#ledger.store({ ...row, hash, created_at: now }, signed);
    await this.ctx.storage.setAlarm(now + ADVANCE_MS);
    return hash;
  }

  /**
   * Sends a row's newest transaction to every node. A node that has the transaction already, or is down, is no failure. True
   * when every node refuses the transaction's content.
   */
  async #broadcast(id: string): Promise<boolean> {
    const [newest] = this.#ledger.signed(id);
    if (newest === undefined) return false;
    if (!(await this.#link(id, newest))) return false;
    const { chain } = this.#services();
    const sent = await Promise.allSettled(
      chain.nodes.map(({ client }) => client.sendRawTransaction({ serializedTransaction: newest.raw })),
    );
    const refused = sent.flatMap((one) => (one.status === "rejected" ? [errorFields(one.reason)] : []));
    if (refused.length === sent.length) log("debug", "broadcast_refused", { order: id, nodes: refused });
    return sent.every((one) => one.status === "rejected" && refusesContent(one.reason));
  }

  /**
   * Links a purchase's hash to its payment in the database. False when that fails: the transaction waits for the next alarm.
   */
  async #link(id: string, { hash, linked, void: isVoid }: SignedRow): Promise<boolean> {
    const row = this.#ledger.row(id);
    if (row?.kind !== "purchase" || linked === 1 || isVoid === 1) return true;
    const { payment } = JSON.parse(row.body) as WalletOrder & { kind: "purchase" };
    try {
      await linkTransaction(openDatabase(this.#services().config.DB), hash, payment, Date.now());
    } catch (error) {
      log(levelOfFault(error), "purchase_not_linked", { order: id, txHash: hash, ...errorFields(error) });
      return false;
    }
    this.#ledger.markLinked(hash);
    return true;
  }

  /** Advances every open row, in nonce order. */
  async #advance(): Promise<void> {
    const open = this.#ledger.open();
    if (open.length === 0) return;
    const { chain, account } = this.#services();
    const final = await readFinalNumber(chain);
    await this.#fillGap(open[0]);
    let taken: number | undefined;
    for await (const [row, mined] of this.#receiptsOf(open)) {
      if (mined !== null) {
        const last = mined.blockNumber <= final ? await this.#receiptOf(row, readFinalReceipt) : null;
        if (last !== null) this.#close(row, last);
        continue;
      }
      taken ??= await askTwo(chain, ({ client }) =>
        client.getTransactionCount({ address: account.address, blockTag: "finalized" }),
      );
      if (taken <= row.nonce) await this.#keepSending(row);
      // The receipts are read again: a node without one may have caught up before it answered with the count.
      else if (!(await this.#isUnknown(row))) {
        const level = Date.now() - row.created_at > HOUR_MS ? "page" : "warn";
        log(level, "operator_nonce_unclear", { order: row.id, nonce: row.nonce });
      } else if (row.kind === "fill") this.#ledger.end(row, "final", row.hash);
      else await this.#giveAnotherNonce(row);
    }
  }

  /**
   * Fills missing nonces below the lowest open one. They belong to foreign transactions; while they are missing, no transaction
   * of ours can be mined.
   */
  async #fillGap(lowest: OrderRow | undefined): Promise<void> {
    if (lowest === undefined || Date.now() - lowest.created_at < STUCK_MS) return;
    const count = await this.#count();
    if (count >= lowest.nonce) return;
    log("page", "operator_nonce_missing", { from: count, to: lowest.nonce - 1 });
    const fees = await this.#fees();
    for (let nonce = count; nonce < lowest.nonce; nonce++) {
      const id = `fill/${nonce}`;
      const to = this.#services().account.address;
      const row = { id, kind: "fill", body: "", to_address: to, data: "0x", amount: "0", account: "", nonce } as const;
      await this.#sign(row, FILL_GAS, fees);
      await this.#broadcast(id);
    }
  }

  /**
   * Signs a row at a new nonce. Somebody else has used the key at the old one, so none of the row's transactions can be mined.
   */
  async #giveAnotherNonce(row: OrderRow): Promise<void> {
    log("page", "operator_nonce_taken", { order: row.id, kind: row.kind, nonce: row.nonce });
    const [newest] = this.#ledger.signed(row.id);
    // The signed transactions can't be mined any more: another one would be a new payout, which a pause forbids (hard case 45).
    const isHalted = await isPaused(openDatabase(this.#services().config.DB), "payouts");
    if (newest === undefined || isHalted) return;
    const [fees, count] = await Promise.all([this.#fees(), this.#count()]);
    await this.#inTurn(() => {
      const nonce = Math.max(count, this.#ledger.lastNonce + 1);
      return this.#sign({ ...row, nonce }, BigInt(newest.gas), fees, newest.void === 1);
    });
    await this.#broadcast(row.id);
  }

  async #keepSending(row: OrderRow): Promise<void> {
    const signed = this.#ledger.signed(row.id);
    const [newest] = signed;
    const isStuck = newest !== undefined && Date.now() - newest.signed_at > STUCK_MS;
    if (isStuck && signed.length <= MAX_REPLACEMENTS) {
      await this.#replace(row, newest, newest.void === 1);
      log("warn", "payment_replaced", { order: row.id, kind: row.kind, nonce: row.nonce, replacements: signed.length });
    } else if (isStuck) log("page", "payment_stuck", { order: row.id, kind: row.kind, nonce: row.nonce });
    const isRefused = await this.#broadcast(row.id);
    if (!isRefused || newest?.void !== 0 || signed.length < MAX_REFUSED_FEES) return;
    // The row has the wallet's next nonce, and no node shows it as mined: all higher nonces wait behind it.
    if ((await this.#count()) !== row.nonce || !(await this.#isUnknown(row))) return;
    log("page", "transaction_refused_by_all", { order: row.id, kind: row.kind, nonce: row.nonce });
    await this.#replace(row, newest, true);
    await this.#broadcast(row.id);
  }

  /** Signs another transaction at a row's nonce, with fees high enough to replace the one before. */
  async #replace(row: OrderRow, newest: SignedRow, isVoid: boolean): Promise<void> {
    const market = await this.#fees();
    const bump = (fee: string) => (BigInt(fee) * BUMP_PERCENT) / 100n + 1n;
    const fees = {
      ...market,
      maxFee: max(market.maxFee, bump(newest.max_fee)),
      priorityFee: max(market.priorityFee, bump(newest.priority_fee)),
    };
    await this.#sign(row, isVoid ? FILL_GAS : BigInt(newest.gas), fees, isVoid);
  }

  #close(row: OrderRow, mined: Mined): void {
    const state = mined.status === "success" ? "final" : "reverted";
    this.#ledger.end(row, state, mined.hash);
    // A reverted refund pages. The caller of any other order handles its revert.
    const level = state === "reverted" && row.kind === "pay" ? "page" : "info";
    log(level, `payment_${state}`, { order: row.id, kind: row.kind, txHash: mined.hash });
    // A condition that still holds is logged again by the next alarm, seconds from now.
    for (const event of ["payment_stuck", "operator_nonce_unclear", "operator_nonce_missing"]) allClear(event);
  }

  /** Rows with their receipts, read `RECEIPTS_AT_ONCE` at a time. A receipt that can't be read throws at its row. */
  async *#receiptsOf(rows: readonly OrderRow[]): AsyncGenerator<[OrderRow, Mined | null]> {
    for (let i = 0; i < rows.length; i += RECEIPTS_AT_ONCE) {
      const looks = rows.slice(i, i + RECEIPTS_AT_ONCE).map((row) => [row, this.#receiptOf(row)] as const);
      await Promise.allSettled(looks.map(([, look]) => look));
      for (const [row, look] of looks) yield [row, await look];
    }
  }

  /** The receipt of the row's transaction that was mined, by two nodes; null when none was. */
  async #receiptOf(row: Pick<OrderRow, "id">, read = readReceipt): Promise<Mined | null> {
    const { chain } = this.#services();
    for (const { hash, void: isVoid } of this.#ledger.signed(row.id)) {
      const receipt = await read(chain, hash);
      if (receipt === null) continue;
      return { hash, status: isVoid === 1 ? "reverted" : receipt.status, blockNumber: receipt.blockNumber };
    }
    return null;
  }

  /** Whether no node has a receipt of any of the row's transactions. A mined order would be done twice at another nonce. */
  async #isUnknown(row: OrderRow): Promise<boolean> {
    const { chain } = this.#services();
    const unknown = await Promise.all(this.#ledger.signed(row.id).map(({ hash }) => isUnknown(chain, hash)));
    return unknown.every(Boolean);
  }

  async #count(): Promise<number> {
    const { chain, account } = this.#services();
    return askTwo(chain, ({ client }) => client.getTransactionCount({ address: account.address }));
  }

  /** Pages while funds are low, before orders have to wait for them. */
  #warnOfFunds(available: bigint, wei: bigint, { maxFee }: Fees): void {
    const { config } = this.#services();
    const isLow = available < config.LOW_FUNDS_USDC || wei < LOW_TRANSACTIONS * GAS_PER_TRANSACTION * maxFee;
    if (isLow) log("page", "operator_funds_low", { usdc6: String(available), wei: String(wei) });
    else allClear("operator_funds_low");
  }

  #fees = (): Promise<Fees> => readFees(this.#services().chain);

  #known: { chain: Chain; account: PrivateKeyAccount } | undefined;
  #services() {
    const config = provisionerConfig(this.env);
    if (config.OPERATOR_PRIVATE_KEY === undefined) throw new Error("OPERATOR_PRIVATE_KEY is not set");
    this.#known ??= { chain: connectChain(config), account: privateKeyToAccount(config.OPERATOR_PRIVATE_KEY) };
    return { ...this.#known, config };
  }

  /** Runs work one at a time: an order that reads the next nonce has to store it before another order reads. */
  #inTurn<T>(work: () => Promise<T>): Promise<T> {
    const mine = this.#turn.then(work);
    this.#turn = mine.catch(() => undefined);
    return mine;
  }
}

/** Whether a reverted refund is signed anew. The new order may differ, in its recipient for instance: nothing has been paid. */
const isTriedAgain = (known: OrderRow, order: WalletOrder): boolean =>
  order.kind === "pay" && order.again === true && known.state === "reverted";

const max = (a: bigint, b: bigint): bigint => (a > b ? a : b);
