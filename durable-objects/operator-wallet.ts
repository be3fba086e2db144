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
//   refused      by every node, again and again: replaced at its nonce by one that does nothing, and the order ends as
//                reverted, since whatever has a higher nonce waits behind it (hard case 35)
//
// No row is believed: before an order is signed the chain is asked what came in for it, and never does more leave for a
// payment or a purchase than that (hard case 34). Nodes are asked outside of the turns in which nonces are given out.
//
// A purchase is two transactions, the approval of its exact cost in front of it, signed in one turn at two nonces.
// The key is in the environment of this script alone (hard case 3), and the chain's word in final history is the only
// one that closes an order (hard case 16).
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
import { askTwo, isUnknown, readFinalNumber, readReceipt } from "../src/chain/witness.ts";
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
  /** Nothing was signed; the same call may work later. `other_order`: the id was given to something else before. */
  | { state: "waiting"; why: Refusal }
  /** `mined`: whichever of its transactions two nodes have a receipt of now. */
  | { state: "sent"; hash: Hex; mined: Mined | null }
  /** In final history. */
  | { state: "final"; hash: Hex }
  /** The same; `reverts`: how often it has by now. */
  | { state: "reverted"; hash: Hex; reverts: number };

/** What was found out about an order before its turn. */
type Prepared = {
  rows: NewRow[];
  gas: bigint[];
  fees: Fees;
  funds: Funds;
  evidence: Evidence;
  nextCount: number;
  /** Earlier orders for the same that have done nothing. */
  undone: ReadonlySet<string>;
};

const ADVANCE_MS = 15_000;
/** Rows whose receipts are asked for together: behind more, orders that come meanwhile would wait for a connection. */
const RECEIPTS_AT_ONCE = 4;
const STUCK_MS = 60_000;
const HOUR_MS = 3_600_000;
const MAX_REPLACEMENTS = 10;
/** Nodes take a replacement only at 10 % more. */
const BUMP_PERCENT = 125n;
const FILL_GAS = 30_000n;
/** A transaction that every node has refused at so many fees is refused for another reason. */
const MAX_REFUSED_FEES = 3;
export class OperatorWallet extends DurableObject<object> {
  readonly #ledger: WalletLedger;
  readonly #connections = new Connections();
  #turn: Promise<unknown> = Promise.resolve();

  constructor(state: DurableObjectState, env: object) {
    super(state, env);
    this.#ledger = new WalletLedger(state.storage);
  }

  /** Gives an order, or says how the order of that id stands. */
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

  /** Whether an order would fail on chain; null where nothing is known to be in its way. Nothing is asked about what it is for. */
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
    // One id, two orders: somebody wrote into the database, or we made a mistake.
    if (known.body !== identityOf(order)) return { state: "waiting", why: "other_order" };
    if (known.state === "reverted")
      return { state: "reverted", hash: known.hash, reverts: this.#ledger.reverts(known.id) };
    if (known.state === "final") return { state: "final", hash: known.hash };
    const mined = await this.#receiptOf(known);
    return { state: "sent", hash: mined?.hash ?? known.hash, mined };
  }

  /** What takes calls of nodes, so that nobody else's order waits for a node that hangs. */
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
   * "served" where a payment's token is bought, or with its payer: it gets no second one, and is not paid back whole.
   * "unproven" while that is open. Else the earlier orders for it that have done nothing as the chain stands now.
   */
  async #undone(account: string, order: WalletOrder): Promise<ReadonlySet<string> | "served" | "unproven"> {
    const isRefund = isRefundOfPayment(order);
    const undone = new Set<string>();
    if (order.kind === "capture" || (order.kind === "pay" && !isRefund)) return undone;
    for (const row of this.#ledger.ordersFor(account, order.kind === "purchase" ? "purchase" : "transfer")) {
      if (row.id === order.id) continue;
      const mined = row.state === "sent" ? await this.#receiptOf(row) : null;
      // A purchase counts until it has reverted. A transfer that is on its way moves a token, unless a reorg has left none.
      const isDone = order.kind === "purchase" ? mined?.status !== "reverted" : mined?.status === "success";
      if (row.state === "final" || isDone) return "served";
      if (mined === null || isRefund) return "unproven";
      undone.add(row.id);
    }
    return undone;
  }

  /** What the ledger says, and then the signature, with nothing in between. */
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
    // All are signed and stored before the first one leaves: nothing may come between their nonces.
    const nonce = Math.max(nextCount, this.#ledger.lastNonce + 1);
    if (known !== undefined) this.#ledger.release(known);
    let hash: Hex = "0x";
    for (const [i, row] of rows.entries()) hash = await this.#sign({ ...row, nonce: nonce + i }, gas[i] ?? 0n, fees);
    return { hash, amount };
  }

  /** What is there, less what is on its way. */
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

  /** Signs a row's transaction and stores both; nothing has left yet. */
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
   * Sends a row's newest transaction to every node; that one knows it already, or is down, is no matter. True where each
   * of them has answered that it won't take it.
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

  /** False where the database can't be told whose purchase it is: then it stays here until the alarm tries again. */
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

  /** Brings every open row on, in the order of nonces. */
  async #advance(): Promise<void> {
    const open = this.#ledger.open();
    if (open.length === 0) return;
    const { chain, account } = this.#services();
    const final = await readFinalNumber(chain);
    await this.#fillGap(open[0]);
    let taken: number | undefined;
    for await (const [row, mined] of this.#receiptsOf(open)) {
      if (mined !== null) {
        if (mined.blockNumber <= final) this.#close(row, mined);
        continue;
      }
      taken ??= await askTwo(chain, ({ client }) =>
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
      const row = { id, kind: "fill", body: "", to_address: to, data: "0x", amount: "0", account: "", nonce } as const;
      await this.#sign(row, FILL_GAS, fees);
      await this.#broadcast(id);
    }
  }

  /** Somebody else used the key: none of this row's transactions can ever be mined. */
  async #giveAnotherNonce(row: OrderRow): Promise<void> {
    log("page", "operator_nonce_taken", { order: row.id, kind: row.kind, nonce: row.nonce });
    const [newest] = this.#ledger.signed(row.id);
    // Nothing that was signed can leave any more: what would is new (hard case 45).
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
    // The next one that could be mined, and nobody has it: everything behind it waits.
    if ((await this.#count()) !== row.nonce || !(await this.#isUnknown(row))) return;
    log("page", "transaction_refused_by_all", { order: row.id, kind: row.kind, nonce: row.nonce });
    await this.#replace(row, newest, true);
    await this.#broadcast(row.id);
  }

  /** Another transaction at a row's nonce, at a fee that nodes take in place of the one before. */
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
    // Of a refund a person has to hear; of the others whoever gave the order knows what to do.
    const level = state === "reverted" && row.kind === "pay" ? "page" : "info";
    log(level, `payment_${state}`, { order: row.id, kind: row.kind, txHash: mined.hash });
    // What still is so is told again with the next look, seconds from now.
    for (const event of ["payment_stuck", "operator_nonce_unclear", "operator_nonce_missing"]) allClear(event);
  }

  /** Rows with their receipts, some asked for together; one that can't be read fails in its turn. */
  async *#receiptsOf(rows: readonly OrderRow[]): AsyncGenerator<[OrderRow, Mined | null]> {
    for (let i = 0; i < rows.length; i += RECEIPTS_AT_ONCE) {
      const looks = rows.slice(i, i + RECEIPTS_AT_ONCE).map((row) => [row, this.#receiptOf(row)] as const);
      await Promise.allSettled(looks.map(([, look]) => look));
      for (const [row, look] of looks) yield [row, await look];
    }
  }

  /** The receipt of whichever of a row's transactions was mined. */
  async #receiptOf(row: Pick<OrderRow, "id">): Promise<Mined | null> {
    const { chain } = this.#services();
    for (const { hash, void: isVoid } of this.#ledger.signed(row.id)) {
      const receipt = await readReceipt(chain, hash);
      if (receipt === null) continue;
      return { hash, status: isVoid === 1 ? "reverted" : receipt.status, blockNumber: receipt.blockNumber };
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

  /** A person has to send more before orders have to wait. */
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

  /** One at a time: what reads the next nonce must have stored it before the next one reads. */
  #inTurn<T>(work: () => Promise<T>): Promise<T> {
    const mine = this.#turn.then(work);
    this.#turn = mine.catch(() => undefined);
    return mine;
  }
}

/** A refund of which nothing has left may be another one by now: to whom its token belongs, for instance. */
const isTriedAgain = (known: OrderRow, order: WalletOrder): boolean =>
  order.kind === "pay" && order.again === true && known.state === "reverted";

const max = (a: bigint, b: bigint): bigint => (a > b ? a : b);
