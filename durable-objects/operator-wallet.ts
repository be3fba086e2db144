// The wallet that pays: one object, named "operator", in the provisioner, so that nonces are given out one after the
// other. A payment has an id, and an id is one payment for ever: asking twice pays once, whatever was lost in between.
//
//   order        stored with its nonce and its signed transaction before anything is broadcast; output gates hold the
//                network back until storage has them
//   sent         broadcast again in nonce order by an alarm until final history shows it; replaced at a higher fee where
//                it is stuck, each replacement stored before it leaves
//   final        two nodes call its block final. A reorg before that changes nothing: it is still being broadcast
//   nonce taken  by a transaction that is not ours, in final history: the order gets another nonce
//
// The key is in the environment of this script alone (hard case 3), and the chain's word in final history is the only
// one that closes an order (hard case 16).
import { DurableObject } from "cloudflare:workers";
import { type Address, BaseError, ExecutionRevertedError, encodeFunctionData, type Hex, keccak256 } from "viem";
import { type PrivateKeyAccount, privateKeyToAccount } from "viem/accounts";
import { askFirst, askTwo, type Chain, connectChain, readFinalNumber, readReceipt } from "../src/chain/client.ts";
import { coinAbi } from "../src/chain/contract.ts";
import { provisionerConfig } from "../src/config.ts";
import { errorFields, log, sendLogs } from "../src/log.ts";

/** USDC to somebody. `amount`: 10^-6 USDC, decimal. */
export type Payment = { id: string; to: Address; amount: string };
export type PaymentState =
  /** Nothing was signed; the same call may work later. */
  | { state: "waiting"; why: "daily_limit" | "no_funds" | "no_gas" | "would_fail" | "other_payment" }
  | { state: "sent" | "final" | "reverted"; hash: Hex };

type OrderRow = {
  id: string;
  recipient: Address;
  amount: string;
  nonce: number;
  state: "sent" | "final" | "reverted";
  hash: Hex;
  created_at: number;
};
type SignedRow = { hash: Hex; raw: Hex; max_fee: string; priority_fee: string; signed_at: number };
type Fees = { maxFee: bigint; priorityFee: bigint };

const ADVANCE_MS = 15_000;
const STUCK_MS = 60_000;
const DAY_MS = 86_400_000;
const MAX_REPLACEMENTS = 10;
/** Nodes take a replacement only at 10 % more. */
const BUMP_PERCENT = 125n;
const GAS_MARGIN_PERCENT = 130n;
const FALLBACK_PRIORITY_FEE = 1_000_000n;

export class OperatorWallet extends DurableObject<object> {
  #turn: Promise<unknown> = Promise.resolve();

  constructor(state: DurableObjectState, env: object) {
    super(state, env);
    const { sql } = state.storage;
    sql.exec(`CREATE TABLE IF NOT EXISTS orders (id TEXT PRIMARY KEY, recipient TEXT NOT NULL, amount TEXT NOT NULL,
      nonce INTEGER NOT NULL, state TEXT NOT NULL, hash TEXT NOT NULL, created_at INTEGER NOT NULL)`);
    sql.exec("CREATE INDEX IF NOT EXISTS orders_open ON orders (nonce) WHERE state = 'sent'");
    sql.exec("CREATE INDEX IF NOT EXISTS orders_recent ON orders (created_at)");
    sql.exec(`CREATE TABLE IF NOT EXISTS transactions (hash TEXT PRIMARY KEY, id TEXT NOT NULL, nonce INTEGER NOT NULL,
      raw TEXT NOT NULL, max_fee TEXT NOT NULL, priority_fee TEXT NOT NULL, signed_at INTEGER NOT NULL)`);
    sql.exec("CREATE INDEX IF NOT EXISTS transactions_by_order ON transactions (id)");
  }

  /** Pays, or says how the payment of that id stands. */
  pay(payment: Payment): Promise<PaymentState> {
    return this.#inTurn(() => this.#pay(payment));
  }

  override async alarm(): Promise<void> {
    const { LOG_BOOK } = provisionerConfig(this.env);
    try {
      await this.#inTurn(() => this.#advance());
    } catch (error) {
      log("error", "operator_wallet_failed", errorFields(error));
    }
    if (this.#open().length > 0) await this.ctx.storage.setAlarm(Date.now() + ADVANCE_MS);
    await sendLogs(LOG_BOOK);
  }

  async #pay({ id, to, amount }: Payment): Promise<PaymentState> {
    const known = this.ctx.storage.sql.exec<OrderRow>("SELECT * FROM orders WHERE id = ?", id).toArray()[0];
    if (known !== undefined) {
      // One id, two sums or recipients: somebody wrote into the database, or we made a mistake.
      if (known.recipient !== to || known.amount !== amount) return { state: "waiting", why: "other_payment" };
      return { state: known.state, hash: known.hash };
    }
    const { chain, account, config } = this.#services();
    const value = BigInt(amount);
    if (this.#spentToday() + value > config.REFUND_LIMIT_USDC_PER_DAY) return { state: "waiting", why: "daily_limit" };
    if ((await this.#available()) < value) return { state: "waiting", why: "no_funds" };
    const call = { to: config.USDC_ADDRESS, data: transferData(to, value) };
    const [gas, fees] = await Promise.all([this.#estimateGas(call), this.#fees()]);
    if (gas === null) return { state: "waiting", why: "would_fail" };
    const wei = await askFirst(chain, ({ client }) => client.getBalance({ address: account.address }));
    if (wei < gas * fees.maxFee) return { state: "waiting", why: "no_gas" };
    const order = { id, recipient: to, amount, nonce: await this.#nextNonce() };
    const hash = await this.#sign(order, gas, fees);
    await this.#broadcast(id);
    log("info", "payment_sent", { id, hash, amount });
    return { state: "sent", hash };
  }

  /** Signs an order's transaction and stores both; nothing has left yet. */
  async #sign(
    { id, recipient, amount, nonce }: Pick<OrderRow, "id" | "recipient" | "amount" | "nonce">,
    gas: bigint,
    { maxFee, priorityFee }: Fees,
  ): Promise<Hex> {
    const { account, config } = this.#services();
    const raw = await account.signTransaction({
      type: "eip1559",
      chainId: config.CHAIN_ID,
      nonce,
      to: config.USDC_ADDRESS,
      data: transferData(recipient, BigInt(amount)),
      gas,
      maxFeePerGas: maxFee,
      maxPriorityFeePerGas: priorityFee,
    });
    const hash = keccak256(raw);
    const now = Date.now();
    const { storage } = this.ctx;
    storage.transactionSync(() => {
      storage.sql.exec(
        `INSERT INTO orders VALUES (?, ?, ?, ?, 'sent', ?, ?)
          ON CONFLICT (id) DO UPDATE SET nonce = excluded.nonce, hash = excluded.hash`,
        id,
        recipient,
        amount,
        nonce,
        hash,
        now,
      );
      storage.sql.exec(
        "INSERT INTO transactions VALUES (?, ?, ?, ?, ?, ?, ?) ON CONFLICT (hash) DO NOTHING",
        hash,
        id,
        nonce,
        raw,
        String(maxFee),
        String(priorityFee),
        now,
      );
    });
    await storage.setAlarm(now + ADVANCE_MS);
    return hash;
  }

  /** Sends an order's newest transaction to every node; that one knows it already, or is down, is no matter. */
  async #broadcast(id: string): Promise<void> {
    const [newest] = this.#signed(id);
    if (newest === undefined) return;
    const { chain } = this.#services();
    const sent = await Promise.allSettled(
      chain.nodes.map(({ client }) => client.sendRawTransaction({ serializedTransaction: newest.raw })),
    );
    const refused = sent.flatMap((one) => (one.status === "rejected" ? [errorFields(one.reason)] : []));
    if (refused.length === sent.length) log("debug", "broadcast_refused", { id, hash: newest.hash, nodes: refused });
  }

  /** Brings every open order on, in the order of nonces. */
  async #advance(): Promise<void> {
    const open = this.#open();
    if (open.length === 0) return;
    const { chain, account } = this.#services();
    const final = await readFinalNumber(chain);
    for (const order of open) {
      const mined = await this.#receiptOf(order);
      if (mined !== null) {
        if (mined.blockNumber <= final) this.#close(order, mined);
        continue;
      }
      const taken = await askTwo(
        chain,
        async ({ client }) => ({
          count: await client.getTransactionCount({ address: account.address, blockTag: "finalized" }),
        }),
        ({ count }) => String(count),
      );
      // Looked for again: a node that knew no receipt may have caught up before it told the count.
      const isTaken = taken.count > order.nonce && (await this.#receiptOf(order)) === null;
      if (isTaken) await this.#giveAnotherNonce(order);
      else if (taken.count <= order.nonce) await this.#keepSending(order);
    }
  }

  /** Somebody else used the key: none of this order's transactions can ever be mined. */
  async #giveAnotherNonce(order: OrderRow): Promise<void> {
    log("page", "operator_nonce_taken", { id: order.id, nonce: order.nonce });
    const gas = await this.#estimateGas(this.#callOf(order));
    if (gas === null) return;
    await this.#sign({ ...order, nonce: await this.#nextNonce() }, gas, await this.#fees());
    await this.#broadcast(order.id);
  }

  async #keepSending(order: OrderRow): Promise<void> {
    const signed = this.#signed(order.id);
    const [newest] = signed;
    const isStuck = newest !== undefined && Date.now() - newest.signed_at > STUCK_MS;
    if (isStuck && signed.length <= MAX_REPLACEMENTS) {
      const market = await this.#fees();
      const bump = (fee: string) => (BigInt(fee) * BUMP_PERCENT) / 100n + 1n;
      const gas = await this.#estimateGas(this.#callOf(order));
      if (gas !== null) {
        await this.#sign(order, gas, {
          maxFee: max(market.maxFee, bump(newest.max_fee)),
          priorityFee: max(market.priorityFee, bump(newest.priority_fee)),
        });
        log("warn", "payment_replaced", { id: order.id, nonce: order.nonce, replacements: signed.length });
      }
    } else if (isStuck) log("page", "payment_stuck", { id: order.id, nonce: order.nonce });
    await this.#broadcast(order.id);
  }

  #close(order: OrderRow, mined: { status: string; hash: Hex }): void {
    const state = mined.status === "success" ? "final" : "reverted";
    this.ctx.storage.transactionSync(() => {
      this.ctx.storage.sql.exec("UPDATE orders SET state = ?, hash = ? WHERE id = ?", state, mined.hash, order.id);
      this.ctx.storage.sql.exec("DELETE FROM transactions WHERE id = ?", order.id);
    });
    log(state === "final" ? "info" : "page", `payment_${state}`, { id: order.id, hash: mined.hash });
  }

  /** The receipt of whichever of an order's transactions was mined. */
  async #receiptOf(order: OrderRow) {
    const { chain } = this.#services();
    for (const { hash } of this.#signed(order.id)) {
      const receipt = await readReceipt(chain, hash);
      if (receipt !== null) return { hash, status: receipt.status, blockNumber: Number(receipt.blockNumber) };
    }
    return null;
  }

  async #nextNonce(): Promise<number> {
    const { chain, account } = this.#services();
    const { count } = await askTwo(
      chain,
      async ({ client }) => ({ count: await client.getTransactionCount({ address: account.address }) }),
      (answer) => String(answer.count),
    );
    const last = this.ctx.storage.sql.exec<{ nonce: number | null }>("SELECT MAX(nonce) AS nonce FROM orders").one();
    return Math.max(count, (last.nonce ?? -1) + 1);
  }

  /** What is there, less what is on its way. */
  async #available(): Promise<bigint> {
    const { chain, account, config } = this.#services();
    const read = { address: config.USDC_ADDRESS, abi: coinAbi, functionName: "balanceOf" } as const;
    const balance = await askFirst(chain, ({ client }) => client.readContract({ ...read, args: [account.address] }));
    return this.#open().reduce((left, { amount }) => left - BigInt(amount), balance);
  }

  /** Null where the call would revert. */
  async #estimateGas(call: { to: Address; data: Hex }): Promise<bigint | null> {
    const { chain, account } = this.#services();
    return askFirst(chain, async ({ client }) => {
      try {
        return ((await client.estimateGas({ account: account.address, ...call })) * GAS_MARGIN_PERCENT) / 100n;
      } catch (error) {
        if (error instanceof BaseError && error.walk((e) => e instanceof ExecutionRevertedError) !== null) return null;
        throw error;
      }
    });
  }

  #fees(): Promise<Fees> {
    return askFirst(this.#services().chain, async ({ client }) => {
      const { baseFeePerGas } = await client.getBlock();
      const priorityFee = await client.estimateMaxPriorityFeePerGas().catch(() => FALLBACK_PRIORITY_FEE);
      return { maxFee: 2n * (baseFeePerGas ?? 0n) + priorityFee, priorityFee };
    });
  }

  #open = (): OrderRow[] =>
    this.ctx.storage.sql.exec<OrderRow>("SELECT * FROM orders WHERE state = 'sent' ORDER BY nonce").toArray();

  /** An order's transactions, newest first. */
  #signed = (id: string): SignedRow[] =>
    this.ctx.storage.sql
      .exec<SignedRow>("SELECT * FROM transactions WHERE id = ? ORDER BY signed_at DESC, rowid DESC", id)
      .toArray();

  #spentToday = (): bigint =>
    this.ctx.storage.sql
      .exec<{ amount: string }>("SELECT amount FROM orders WHERE created_at > ?", Date.now() - DAY_MS)
      .toArray()
      .reduce((sum, { amount }) => sum + BigInt(amount), 0n);

  #callOf = ({ recipient, amount }: OrderRow) => ({
    to: this.#services().config.USDC_ADDRESS,
    data: transferData(recipient, BigInt(amount)),
  });

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

const transferData = (to: Address, amount: bigint): Hex =>
  encodeFunctionData({ abi: coinAbi, functionName: "transfer", args: [to, amount] });

const max = (a: bigint, b: bigint): bigint => (a > b ? a : b);
