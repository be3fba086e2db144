// The tables. Times in `_at` are unix milliseconds of our clock unless the comment says chain time (unix seconds).
// uint256 amounts are TEXT: SQLite's integers end at 2^63 and D1 rounds above 2^53.

import { type SQL, sql } from "drizzle-orm";
import { index, integer, primaryKey, sqliteTable, text, uniqueIndex } from "drizzle-orm/sqlite-core";
import type { SpansByNode } from "../chain/log-ranges.ts";
import { STATUSES, STEPS } from "../model/machine-life.ts";
import { PAYMENT_STATES, PAYMENT_STEPS, type PaymentState, statesThat } from "../model/payment-life.ts";
import { REFUND_KINDS, REFUND_STATES } from "../model/refund-life.ts";
import type { StockByVendor } from "../model/stock.ts";

/** What the chain said, one row per incarnation of a token: deployment, contract, token id, transaction, ordinal. */
export const purchases = sqliteTable(
  "purchases",
  {
    incarnation: text().primaryKey(),
    tokenId: integer("token_id").notNull(),
    txHash: text("tx_hash").notNull(),
    /** Position among the purchase events of its transaction; the log index changes across a reorg, this does not. */
    ordinal: integer().notNull(),
    blockNumber: integer("block_number").notNull(),
    blockHash: text("block_hash").notNull(),
    logIndex: integer("log_index").notNull(),
    buyer: text().notNull(),
    tier: integer().notNull(),
    durationDays: integer("duration_days").notNull(),
    /** Chain time. */
    purchaseDate: integer("purchase_date").notNull(),
    /** 10^-6 USDC. */
    totalCost: text("total_cost").notNull(),
    /** True while a reorg has taken the block away and no new block has brought the transaction back. */
    orphaned: integer({ mode: "boolean" }).notNull().default(false),
    seenAt: integer("seen_at").notNull(),
  },
  (table) => [
    index("purchases_by_token").on(table.tokenId),
    index("purchases_by_block").on(table.blockNumber),
    index("purchases_orphaned").on(table.blockNumber).where(sql`orphaned = 1`),
  ],
);

/** The machine behind an incarnation. Its public keys are in its attempt's row: with a sealed RSA key this one has 6 KiB. */
export const vms = sqliteTable(
  "vms",
  {
    incarnation: text().primaryKey(),
    tokenId: integer("token_id").notNull(),
    /** True for the one incarnation that holds the token in the chain as we know it. */
    current: integer({ mode: "boolean" }).notNull().default(true),
    /** Lower-case address by the latest Transfer; the zero address once burned, empty while a reorg leaves none. */
    owner: text().notNull(),
    tier: integer().notNull(),
    vmType: text("vm_type", { enum: ["vm", "gpu"] }).notNull(),
    txHash: text("tx_hash").notNull(),
    blockNumber: integer("block_number").notNull(),
    status: text({ enum: STATUSES }).notNull(),
    step: text({ enum: STEPS }).notNull(),
    /** Rises with every change of state; a queue message with another one is stale. */
    generation: integer().notNull().default(1),
    /** Empty when free. NOT NULL on purpose: a fenced write sets it to NULL, and so fails, when it is not the writer's. */
    lease: text().notNull().default(""),
    leaseUntil: integer("lease_until").notNull().default(0),
    /** When the sweep sends the row again; NULL when nothing is left to do. */
    wakeAt: integer("wake_at"),
    /** Chain time by which it must run. */
    deadline: integer().notNull(),
    /** Seconds of it that pauses have added. */
    putOff: integer("put_off").notNull().default(0),
    /** Chain time. */
    createdAt: integer("created_at").notNull(),
    /** Chain time. */
    expiresAt: integer("expires_at").notNull(),
    /** Chain time at which the sweep looks whether the machine has to end; NULL once it has. */
    checkAt: integer("check_at"),
    /** Chain time at which the sweep called it expired: final history has to get there before it proves anything. */
    expiredAt: integer("expired_at"),
    attempt: integer().notNull().default(0),
    provider: text({ enum: ["vultr", "runpod"] }),
    region: text(),
    plan: text(),
    instanceId: text("instance_id"),
    sshHost: text("ssh_host"),
    sshPort: integer("ssh_port"),
    /** Sealed private key (`ecc:`), NULL once erased. */
    sshPrivateKey: text("ssh_private_key"),
    keyId: text("key_id"),
    runningAt: integer("running_at"),
    /** How much of the paid time had gone when it first ran, where that was too long; NULL where it came in time. */
    lateSeconds: integer("late_seconds"),
    deliveredAt: integer("delivered_at"),
    /** The owner who got the key. */
    deliveredTo: text("delivered_to"),
    /** An owner before the one who got it last was given the key as well. */
    knownToFormer: integer("known_to_former", { mode: "boolean" }).notNull().default(false),
    acknowledgedAt: integer("acknowledged_at"),
    /** When the key was first sold sealed; that is not its delivery (hard case 1), and our copy goes after the same grace. */
    sealedAt: integer("sealed_at"),
    /** The address that has used the fresh form of signature here, and from then on gets keys only by it. */
    freshOwner: text("fresh_owner"),
    /** Why it failed: a code that `failed_provisionings` explains. */
    failure: text(),
    /** TCP ports that are open beside SSH and how the world reaches them, as JSON (see model/ports.ts); NULL where SSH is all. */
    ports: text(),
    /** What an order over x402 asks of it, as JSON (see model/terms.ts); NULL for a purchase on the contract. */
    terms: text(),
  },
  (table) => [
    uniqueIndex("vms_current_token").on(table.tokenId).where(sql`current = 1`),
    uniqueIndex("vms_instance").on(table.provider, table.instanceId).where(sql`instance_id IS NOT NULL`),
    index("vms_by_owner").on(table.owner, table.tokenId).where(sql`current = 1`),
    index("vms_to_wake").on(table.wakeAt).where(sql`wake_at IS NOT NULL`),
    index("vms_to_check").on(table.checkAt).where(sql`check_at IS NOT NULL`),
    // A machine that is reinstalled or replaced belongs to an old purchase: those that never ran are apart from it.
    index("vms_pending").on(table.runningAt, table.createdAt).where(sql`current = 1 AND status = 'provisioning'`),
    index("vms_delivered").on(table.deliveredAt).where(sql`ssh_private_key IS NOT NULL AND delivered_at IS NOT NULL`),
    index("vms_sealed").on(table.sealedAt).where(sql`ssh_private_key IS NOT NULL AND sealed_at IS NOT NULL`),
    // For operators. Those that wait for a machine have vms_pending, which this one must not take from /health.
    index("vms_by_status").on(table.status, table.tokenId).where(sql`current = 1 AND status <> 'provisioning'`),
    index("vms_by_key").on(table.keyId).where(sql`ssh_private_key IS NOT NULL`),
  ],
);

export type Vm = typeof vms.$inferSelect;

/** Each try to get a machine, with the keys it carries. */
export const attempts = sqliteTable(
  "attempts",
  {
    incarnation: text().notNull(),
    number: integer().notNull(),
    provider: text({ enum: ["vultr", "runpod"] }).notNull(),
    region: text().notNull(),
    plan: text().notNull(),
    /** The machine's name at the vendor. */
    label: text().notNull(),
    /** Random; the machine shows it in its SSH banner once it is ready. */
    mark: text().notNull(),
    publicKey: text("public_key").notNull(),
    /** Lower-case address of the buyer whose own key it is; NULL where the pair was made here. */
    broughtBy: text("brought_by"),
    privateKey: text("private_key"),
    keyId: text("key_id").notNull(),
    hostPublicKey: text("host_public_key").notNull(),
    /** Written before the request leaves: from here on a machine may exist. */
    createSentAt: integer("create_sent_at").notNull(),
    instanceId: text("instance_id"),
    bootDeadlineAt: integer("boot_deadline_at"),
    startedAt: integer("started_at").notNull(),
    endedAt: integer("ended_at"),
    outcome: text(),
    /** For operators: the vendor's status and words, secrets removed. */
    detail: text(),
    /** When the vendor no longer knew the machine, or a rotation made it a later attempt's. */
    goneAt: integer("gone_at"),
    /** When its machine's end failed first. */
    deleteFailedAt: integer("delete_failed_at"),
  },
  (table) => [
    primaryKey({ columns: [table.incarnation, table.number] }),
    index("attempts_by_label").on(table.label),
    index("attempts_not_ended").on(table.deleteFailedAt).where(sql`delete_failed_at IS NOT NULL AND gone_at IS NULL`),
    index("attempts_by_key").on(table.keyId).where(sql`private_key IS NOT NULL`),
  ],
);

/** Who was given the private key of an attempt (hard case 41). Addresses in lower case. */
export const keyHolders = sqliteTable(
  "key_holders",
  {
    incarnation: text().notNull(),
    attempt: integer().notNull(),
    address: text().notNull(),
    /** When it was given in clear. */
    clearAt: integer("clear_at"),
    /** When it was given encrypted to that account's public key. */
    sealedAt: integer("sealed_at"),
    /** What was given then, to be given again; NULL once its owner has acknowledged it or the machine is gone. */
    sealed: text(),
  },
  (table) => [primaryKey({ columns: [table.incarnation, table.attempt, table.address] })],
);

/** Every purchase that ended without a machine, and why; an operator works from here. */
export const failedProvisionings = sqliteTable(
  "failed_provisionings",
  {
    id: integer().primaryKey({ autoIncrement: true }),
    incarnation: text().notNull(),
    tokenId: integer("token_id").notNull(),
    tier: integer().notNull(),
    cause: text().notNull(),
    detail: text().notNull(),
    attempts: integer().notNull(),
    createdAt: integer("created_at").notNull(),
    resolvedAt: integer("resolved_at"),
  },
  (table) => [index("failed_provisionings_open").on(table.createdAt).where(sql`resolved_at IS NULL`)],
);

/** The ledger of money out: what is owed for a purchase that failed, a machine that came late, a payment that bought nothing. */
export const refunds = sqliteTable(
  "refunds",
  {
    /** What it is for: a purchase's incarnation, or a payment's id. */
    subject: text("incarnation").notNull(),
    kind: text({ enum: REFUND_KINDS }).notNull(),
    /** -1 for none. */
    tokenId: integer("token_id").notNull(),
    state: text({ enum: REFUND_STATES }).notNull(),
    /** Why it waits or is held: a code. */
    reason: text(),
    /** Seconds of the paid time that are owed; NULL for all of it. */
    owedSeconds: integer("owed_seconds"),
    /** 10^-6 USDC: by our row until it is paid, then by the chain. */
    amount: text().notNull(),
    recipient: text(),
    /** The owner who claimed it, or whom an operator chose; NULL while only the buyer may get it. */
    payTo: text("pay_to"),
    txHash: text("tx_hash"),
    /** When the sweep sends it again; NULL when nothing is left to do. */
    wakeAt: integer("wake_at"),
    createdAt: integer("created_at").notNull(),
    settledAt: integer("settled_at"),
  },
  (table) => [
    primaryKey({ columns: [table.subject, table.kind] }),
    index("refunds_to_wake").on(table.wakeAt).where(sql`wake_at IS NOT NULL`),
    index("refunds_by_token").on(table.tokenId),
    index("refunds_by_state").on(table.state, table.tokenId),
  ],
);

// Parts of the table, each in an index of its own: what is asked of them costs the same however many old rows there are.
/** Payments in these states, in the words of the indexes. */
export const stateIn = (states: readonly PaymentState[]): string =>
  states.length === 1 ? `state = '${states[0]}'` : `state IN (${states.map((state) => `'${state}'`).join(", ")})`;
/** A request or an order is at it, and nothing was taken yet. */
export const OPEN = stateIn(statesThat("open"));
/** What was asked for may still be delivered, or has been. */
export const WANTED = stateIn(statesThat("wanted"));
/** Nothing was taken and nothing bought. */
export const NOBODYS = `(${stateIn(["claimed", "releasing"])} AND bought_at IS NULL)`;
/** Orders that are delivered before they are paid, until they are paid or let go by final history. */
export const UNPAID = `kind = 'compute' AND capture_first = 0 AND (${OPEN} OR (${stateIn(["releasing"])} AND bought_at IS NOT NULL))`;
/** Orders that were paid for. */
export const PAID = `kind = 'compute' AND ${stateIn(["settled"])}`;
/** Orders whose token we have still to pay for. */
export const UNBOUGHT = `kind = 'compute' AND bought_at IS NULL AND ${WANTED}`;
/** Final history is past it: it never moved anything, and never will. A refused capture is remembered (hard case 36). */
export const FORGETTABLE = `${stateIn(["released"])} AND bought_at IS NULL AND cost IS NULL AND settle_tx IS NULL AND incarnation IS NULL AND held = 0 AND reason IS NOT 'capture_refused'`;

/** The rows of a part, by its index. */
export const partOf = (index: string, is: string): SQL =>
  sql`payments INDEXED BY ${sql.raw(index)} WHERE ${sql.raw(is)}`;

/**
 * EIP-3009 authorizations that were shown to us, one row each: (chain, payer, nonce) is one payment, for ever where it has
 * moved anything.
 */
export const payments = sqliteTable(
  "payments",
  {
    /** 32 hex digits, from chain, payer and nonce. */
    id: text().primaryKey(),
    kind: text({ enum: ["credentials", "compute"] }).notNull(),
    chainId: integer("chain_id").notNull(),
    /** Lower case. */
    payer: text().notNull(),
    nonce: text().notNull(),
    /** Of the payment-identifier extension. */
    identifier: text(),
    /** What the payment is for: SHA-256 of route and body. The authorization itself is bound to neither. */
    request: text().notNull(),
    /** 10^-6 USDC. */
    amount: text().notNull(),
    payTo: text("pay_to").notNull(),
    /** Chain time. */
    validAfter: integer("valid_after").notNull(),
    /** Chain time. */
    validBefore: integer("valid_before").notNull(),
    signature: text().notNull(),
    state: text({ enum: PAYMENT_STATES }).notNull(),
    step: text({ enum: PAYMENT_STEPS }).notNull(),
    /** Why it was given up, waits or is held: a code. */
    reason: text(),
    /** Rises with every move; whoever read an older one changes nothing. */
    generation: integer().notNull().default(1),
    /** The block below which the authorization can't have been used for us. */
    fromBlock: integer("from_block").notNull(),
    /** The token that credentials were asked for, or that was bought. */
    tokenId: integer("token_id"),
    tier: integer(),
    durationDays: integer("duration_days"),
    /** The payer's own, one `type base64` line. */
    sshPublicKey: text("ssh_public_key"),
    region: text(),
    /** TCP ports that the order asks for beside SSH, as JSON (see model/ports.ts); NULL where SSH is all. */
    ports: text(),
    /** The payment is taken before anything is bought for it, and paid back where no machine can be had. */
    captureFirst: integer("capture_first", { mode: "boolean" }).notNull().default(false),
    /** Where the price was read. */
    quotedBlock: integer("quoted_block"),
    /** The purchase that was made for it. */
    incarnation: text(),
    /** What the token costs us, 10^-6 USDC, once its purchase was ordered. */
    cost: text(),
    /** Purchases that were ordered for it and reverted. */
    reverts: integer().notNull().default(0),
    /** Since when the capture would fail, or the token can't be handed over: unix milliseconds. */
    failingSince: integer("failing_since"),
    /** What we paid for the token and have not got back yet counts while this is set: unix milliseconds of the order. */
    boughtAt: integer("bought_at"),
    /** The token was bought, and is still ours with nobody to give it to. */
    held: integer({ mode: "boolean" }).notNull().default(false),
    purchaseTx: text("purchase_tx"),
    settleTx: text("settle_tx"),
    transferTx: text("transfer_tx"),
    refundTx: text("refund_tx"),
    /** When an answer left that the payment was for. */
    servedAt: integer("served_at"),
    /** When the sweep sends it again; NULL when nothing is left to do. */
    wakeAt: integer("wake_at"),
    createdAt: integer("created_at").notNull(),
    settledAt: integer("settled_at"),
    endedAt: integer("ended_at"),
  },
  (table) => [
    uniqueIndex("payments_claim").on(table.chainId, table.payer, table.nonce),
    uniqueIndex("payments_identifier").on(table.payer, table.identifier).where(sql`identifier IS NOT NULL`),
    // What nobody has vouched for and nothing was bought for is apart: strangers make as many such rows as they like.
    index("payments_to_wake")
      .on(table.wakeAt)
      .where(sql`wake_at IS NOT NULL AND NOT ${sql.raw(NOBODYS)}`),
    index("payments_nobodys_to_wake")
      .on(table.wakeAt)
      .where(sql`wake_at IS NOT NULL AND ${sql.raw(NOBODYS)}`),
    index("payments_to_forget").on(table.endedAt).where(sql.raw(FORGETTABLE)),
    index("payments_open").on(table.payer).where(sql.raw(OPEN)),
    index("payments_paid").on(table.payer).where(sql.raw(PAID)),
    index("payments_by_order").on(table.payer, table.createdAt).where(sql`kind = 'compute'`),
    index("payments_unpaid").on(table.boughtAt, table.amount).where(sql.raw(UNPAID)),
    index("payments_unbought").on(table.amount).where(sql.raw(UNBOUGHT)),
    index("payments_bought").on(table.boughtAt, table.cost).where(sql`bought_at IS NOT NULL`),
    index("payments_refused").on(table.payer).where(sql`reason = 'capture_refused'`),
    index("payments_by_purchase").on(table.incarnation).where(sql`incarnation IS NOT NULL`),
    index("payments_by_settlement").on(table.settleTx).where(sql`settle_tx IS NOT NULL`),
    index("payments_by_transfer").on(table.transferTx).where(sql`transfer_tx IS NOT NULL`),
    index("payments_by_refund").on(table.refundTx).where(sql`refund_tx IS NOT NULL`),
    index("payments_by_nonce").on(table.nonce),
    index("payments_held").on(table.tier).where(sql`held = 1`),
    index("payments_by_state").on(table.state, table.createdAt),
  ],
);

/** The transfer of the coin that paid for a payment. A transfer pays for one payment, for ever (hard case 27). */
export const settlements = sqliteTable(
  "settlements",
  {
    txHash: text("tx_hash").notNull(),
    /** Of the transfer, in its block: another one after a reorg. */
    logIndex: integer("log_index").notNull(),
    payment: text().notNull(),
  },
  (table) => [
    primaryKey({ columns: [table.txHash, table.logIndex] }),
    uniqueIndex("settlements_by_payment").on(table.payment),
  ],
);

/** Every transaction of ours that buys a token, and the payment that it buys it for: written before it is broadcast. */
export const paymentLinks = sqliteTable(
  "payment_links",
  {
    txHash: text("tx_hash").primaryKey(),
    payment: text().notNull(),
    createdAt: integer("created_at").notNull(),
  },
  (table) => [index("payment_links_by_payment").on(table.payment)],
);

/** Prices that were quoted, and when last: what a payment may still be made by. */
export const quotes = sqliteTable(
  "quotes",
  {
    tier: integer().notNull(),
    /** 10^-6 USDC per day. */
    pricePerDay: text("price_per_day").notNull(),
    /** A block at which the contract said so. */
    blockNumber: integer("block_number").notNull(),
    quotedAt: integer("quoted_at").notNull(),
  },
  (table) => [primaryKey({ columns: [table.tier, table.pricePerDay] })],
);

/** ERC-721 transfers by block, so that a reorg can take them back. */
export const transfers = sqliteTable(
  "transfers",
  {
    blockNumber: integer("block_number").notNull(),
    logIndex: integer("log_index").notNull(),
    blockHash: text("block_hash").notNull(),
    tokenId: integer("token_id").notNull(),
    sender: text().notNull(),
    recipient: text().notNull(),
  },
  (table) => [
    primaryKey({ columns: [table.blockNumber, table.logIndex] }),
    index("transfers_by_token").on(table.tokenId, table.blockNumber, table.logIndex),
  ],
);

/** Renewals by block, for the same reason; a machine's end is its purchase's or its latest renewal's. */
export const renewals = sqliteTable(
  "renewals",
  {
    blockNumber: integer("block_number").notNull(),
    logIndex: integer("log_index").notNull(),
    tokenId: integer("token_id").notNull(),
    /** Chain time. */
    newExpiry: integer("new_expiry").notNull(),
  },
  (table) => [
    primaryKey({ columns: [table.blockNumber, table.logIndex] }),
    index("renewals_by_token").on(table.tokenId, table.newExpiry),
  ],
);

/** Tokens whose owner on chain was not the one we know: a transfer on its way, or one that we missed or were told wrong. */
export const disputes = sqliteTable("disputes", {
  tokenId: integer("token_id").primaryKey(),
  since: integer().notNull(),
});

/** Where the scan stands. One row. */
export const cursors = sqliteTable("cursors", {
  id: integer().primaryKey(),
  blockNumber: integer("block_number").notNull(),
  blockHash: text("block_hash").notNull(),
  /** Chain time of that block: expiry and deadlines go by it (hard case 26). */
  blockTimestamp: integer("block_timestamp").notNull(),
  /** [number, hash] of earlier cursors, ever sparser with age: where a reorg looks for the common ancestor. */
  checkpoints: text({ mode: "json" }).$type<[number, string][]>().notNull(),
  /** Read by the edge before this one alone, which runs until the deployment behind its migration, or after a rollback. */
  range: integer()
    .notNull()
    .$default(() => 500),
  /** How many blocks each node gives the logs of, by node and kind of logs. */
  spans: text({ mode: "json" }).$type<SpansByNode>().notNull().default({}),
  /** NOT NULL on purpose, as in vms. */
  lease: text().notNull().default(""),
  leaseUntil: integer("lease_until").notNull().default(0),
  scannedAt: integer("scanned_at").notNull(),
  sweptAt: integer("swept_at").notNull().default(0),
  /** The last token whose owner the sweep held against the chain. */
  comparedTo: integer("compared_to").notNull().default(-1),
  catalogAskedAt: integer("catalog_asked_at").notNull().default(0),
  /** When old transfers were deleted. */
  prunedAt: integer("pruned_at").notNull().default(0),
});

/** Token ids that the chain must have given out and no log has shown. */
export const gaps = sqliteTable(
  "gaps",
  {
    tokenId: integer("token_id").primaryKey(),
    fromBlock: integer("from_block").notNull(),
    toBlock: integer("to_block").notNull(),
    /** To which block its range was read again, without its sale; -1: it is read from its beginning. */
    readTo: integer("read_to").notNull().default(-1),
    tries: integer().notNull().default(0),
    nextTryAt: integer("next_try_at").notNull(),
  },
  (table) => [index("gaps_due").on(table.nextTryAt)],
);

/** Prices from the contract and stock from the vendors, as last read. One row. */
export const catalogs = sqliteTable("catalogs", {
  id: integer().primaryKey(),
  tiers: text({ mode: "json" }).$type<{ tier: number; pricePerDayUsdc6: string; active: boolean; name: string }[]>(),
  tiersAt: integer("tiers_at"),
  stock: text({ mode: "json" }).$type<StockByVendor>(),
});

/** Signed nonces that were used. A row is the use: the insert fails for the second. */
export const nonces = sqliteTable(
  "nonces",
  {
    address: text().notNull(),
    nonce: text().notNull(),
    expiresAt: integer("expires_at").notNull(),
  },
  (table) => [primaryKey({ columns: [table.address, table.nonce] }), index("nonces_expired").on(table.expiresAt)],
);

/** Wallets made for agents, keys sealed. */
export const agentWallets = sqliteTable(
  "agent_wallets",
  {
    agentId: text("agent_id").primaryKey(),
    address: text().notNull(),
    privateKey: text("private_key").notNull(),
    keyId: text("key_id"),
    /** The caller's key that the answer was sealed to (33 bytes, hex), so that the same caller gets the same answer again. */
    recipientPublicKey: text("recipient_public_key"),
    /** That answer. */
    sealedPrivateKey: text("sealed_private_key"),
    createdAt: integer("created_at").notNull(),
  },
  (table) => [index("agent_wallets_by_key").on(table.keyId)],
);

/** Bans in force, mirrored by the guards for the operators' list. `client` is the guard's name. */
export const bans = sqliteTable(
  "bans",
  {
    client: text().primaryKey(),
    until: integer().notNull(),
    since: integer().notNull(),
    reason: text().notNull(),
    /** `auto`, or the id of an operator's key. */
    by: text().notNull(),
  },
  (table) => [index("bans_by_end").on(table.until)],
);

/** Operators' keys. The key itself is shown once and stored nowhere. */
export const adminKeys = sqliteTable(
  "admin_keys",
  {
    id: text().primaryKey(),
    name: text().notNull(),
    /** SHA-256 of the key, hex: 256 random bits need no salt. */
    hash: text().notNull(),
    createdAt: integer("created_at").notNull(),
    expiresAt: integer("expires_at").notNull(),
    lastUsedAt: integer("last_used_at"),
    revokedAt: integer("revoked_at"),
  },
  (table) => [uniqueIndex("admin_keys_by_hash").on(table.hash)],
);

/** What operators have stopped by hand. A row means stopped. */
export const pauses = sqliteTable("pauses", {
  what: text({ enum: ["provisioning", "payouts"] }).primaryKey(),
  since: integer().notNull(),
  reason: text().notNull(),
  /** Id of the operator's key. */
  by: text().notNull(),
});

/** Ids of the data keys that the edge can open, as it last said; the provisioner seals under no other (hard case 8). */
export const dataKeys = sqliteTable("data_keys", {
  id: text().primaryKey(),
  /** What the edge itself seals under now. */
  current: integer({ mode: "boolean" }).notNull(),
  publishedAt: integer("published_at").notNull(),
});

/** Kept by triggers on vms, in the same transaction as the change they count. */
export const counters = sqliteTable("counters", {
  name: text({ enum: ["pending", "published"] }).primaryKey(),
  value: integer().notNull(),
});

/** Tokens per owner, kept by triggers on vms. */
export const ownerCounts = sqliteTable("owner_counts", {
  owner: text().primaryKey(),
  count: integer().notNull(),
});
