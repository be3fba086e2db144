// Bugs as somebody in a hurry would write them, each one a decision of this product taken away: `npm run test:long`
// finds them all, and `npm run sim -- --plant <bug>` takes any.
import type { Kind } from "./faults.ts";

type Edit = { file: string; from: string; to: string };

export const PLANTS = {
  /** Hard case 9: an order whose answer was lost is sent once more. */
  retry_a_create_blindly: [
    {
      file: "src/provisioner/vendors/request.ts",
      from: "export async function callVendor(",
      to: `export async function callVendor(...args: Parameters<typeof callOnce>): Promise<VendorAnswer> {
  try {
    const first = await callOnce(...args);
    return args[1] === "POST" && first.status >= 500 ? await callOnce(...args) : first;
  } catch {
    return callOnce(...args);
  }
}
async function callOnce(`,
    },
  ],
  /** The cursor moves on before what it has passed is stored, and nothing looks for what is missing. */
  ack_before_commit: [
    {
      file: "src/edge/scan.ts",
      from: "const queued = await store.applyEvents(db, config, events, head.timestamp, now, { fence, move });",
      to: `const nothing = { purchases: [], transfers: [], renewals: [], terminations: [] };
  await store.applyEvents(db, config, nothing, head.timestamp, now, { fence, move });
  const queued = await store.applyEvents(db, config, events, head.timestamp, now);`,
    },
    { file: "src/edge/scan.ts", from: "const OVERLAP_BLOCKS = 10;", to: "const OVERLAP_BLOCKS = 0;" },
    { file: "src/edge/gaps.ts", from: "if (view.owner === null) continue;", to: "continue;" },
    { file: "src/db/scan.ts", from: "if (lowest === undefined) return [];", to: "return [];" },
  ],
  /** Hard case 5: the cursor's block is not looked at again. */
  ignore_a_reorg: [
    {
      file: "src/edge/scan.ts",
      from: "if (standing.hash !== cursor.blockHash) return findAncestor(chain, cursor);\n    requireLater",
      to: "requireLater",
    },
    {
      file: "src/edge/scan.ts",
      from: "if (standing.hash !== cursor.blockHash) return findAncestor(chain, cursor);\n  if",
      to: "if",
    },
  ],
  /** Hard case 9: an order without an answer counts as refused. */
  skip_the_lookup: [
    {
      file: "src/provisioner/machines/find.ts",
      from: "const machine = await findMachine(context, attempt, answer.snapshot.machines);\n  if (machine !== null) {\n    log(",
      to: "const machine = null as Machine | null;\n  if (machine !== null) {\n    log(",
    },
  ],
  /** A list that could not be read is taken for an empty one. */
  swallow_a_failed_list: [
    {
      file: "durable-objects/vendor-gate.ts",
      from: 'return this.#refusal("vendor_list_failed", "error", error, now);',
      to: "return { ok: true, snapshot: { machines: [], readAt: now } };",
    },
  ],
  /** Hard case 20: whose purchase it is gets written once it has left. */
  link_after_the_broadcast: [
    {
      file: "durable-objects/operator-wallet.ts",
      from: "if (!(await this.#link(id, newest))) return false;\n    const { chain }",
      to: "const { chain }",
    },
    {
      file: "durable-objects/operator-wallet.ts",
      from: "const refused = sent.flatMap(",
      to: "await this.#link(id, newest);\n    const refused = sent.flatMap(",
    },
  ],
  /** Hard case 2: a payment is given up for good while anybody may still submit it. */
  release_at_once: [
    {
      file: "src/provisioner/payments/release.ts",
      from: 'if (use.state === "unused" && use.blockTimestamp < row.validBefore) {',
      to: 'if (use.state === "unused" && row.validBefore === 0) {',
    },
  ],
  /** Hard case 9: an order without an answer is given up before it can have shown itself. */
  wait_for_no_order: [
    {
      file: "src/provisioner/machines/find.ts",
      from: "readAt > attempt.createSentAt + config.VENDOR_TIMEOUT_MS + config.LISTING_LAG_MS;",
      to: "readAt > attempt.createSentAt || config === undefined;",
    },
  ],
  /** Hard case 10: any SSH server that answers at the address will do. */
  believe_any_banner: [
    {
      file: "src/provisioner/machines/boot.ts",
      from: "if (banner?.includes(attempt.mark)) {",
      to: "if (banner !== null) {",
    },
  ],
  /** Hard case 9: what turns up after its attempt was given up is left to the bill. */
  leave_ghosts: [{ file: "src/provisioner/machines/reap.ts", from: "ghosts.push(machine);", to: "continue;" }],
  /** Hard case 16: at the depth at which machines start, money leaves as well. */
  pay_before_final: [
    {
      file: "src/provisioner/refunds/payee.ts",
      from: "const view = await readFinalToken(chain, vm.tokenId);",
      to: "const view = await readAgreedToken(chain, vm.tokenId);",
    },
    // So does the wallet.
    {
      file: "durable-objects/wallet-evidence.ts",
      from: "const { owner, blockNumber } = await readFinalToken(",
      to: "const { owner, blockNumber } = await readAgreedToken(",
    },
  ],
  /** Hard case 17: the buyer is paid back, whoever owns the token by now. */
  pay_whoever_bought: [
    {
      file: "src/provisioner/refunds/payee.ts",
      from: "return view.owner === purchase.buyer ? {",
      to: "return view.owner !== null ? {",
    },
    {
      file: "durable-objects/wallet-evidence.ts",
      from: "if (owner === null || !isAddressEqual(owner, to)) return",
      to: "if (owner === null) return",
    },
  ],
  /** Hard case 16: an order whose answer was lost is paid as if it were new. */
  pay_without_a_name: [
    {
      file: "durable-objects/wallet-ledger.ts",
      from: '"SELECT * FROM wallet_orders WHERE id = ?", id)',
      to: "\"SELECT * FROM wallet_orders WHERE id = ? AND state = 'final'\", id)",
    },
    {
      file: "durable-objects/wallet-ledger.ts",
      from: "ON CONFLICT (id) DO UPDATE SET nonce = excluded.nonce",
      to: "ON CONFLICT (id) DO UPDATE SET nonce = excluded.nonce, state = 'sent'",
    },
  ],
  /** Hard case 4: a row is enough to rent a machine. */
  believe_the_row: [
    {
      file: "src/provisioner/machines/verify.ts",
      from: 'if (purchase === null) return "missing";',
      to: 'if (purchase === null) return "stands";',
    },
  ],
  /** Hard case 5: another purchase of a token id goes on with the machine of the one before. */
  keep_the_old_incarnation: [
    {
      file: "src/db/scan.ts",
      from: "retirement.set.step}, generation",
      to: "'idle'}, generation",
    },
  ],
  /** The first sale that is heard of is taken for the first that there was. */
  begin_where_the_logs_begin: [
    {
      file: "src/db/scan.ts",
      from: "below === undefined ? Math.max(0, purchase.tokenId - MAX_GAPS_PER_PASS)",
      to: "below === undefined ? purchase.tokenId",
    },
    {
      file: "src/edge/gaps.ts",
      from: "newest === null ? [0, 1] : [newest.tokenId + 1]",
      to: "newest === null ? [] : [newest.tokenId + 1]",
    },
  ],
  /** What the logs say of owners is never held against the contract. */
  compare_no_owners: [
    {
      file: "src/edge/sweep.ts",
      from: "compare: () => compareOwners(context),",
      to: "compare: async () => compareOwners,",
    },
  ],
  /** A sale that a node invented keeps the token id of the true one. */
  keep_what_was_invented: [
    {
      file: "src/provisioner/machines/create.ts",
      from: 'return goOn(await store.moveVm(db, vm, { step: "retire", wakeAt: began + STALL_MS }));\n  }\n  if (await isTooLate',
      to: "return waitForTurn(context, vm, RECEIPT_WAIT_SECONDS);\n  }\n  if (await isTooLate",
    },
  ],
  /** A payment is taken as soon as its machine is ordered. */
  take_before_the_machine_answers: [
    {
      file: "src/provisioner/payments/provision.ts",
      from: "if (isServing(vm)) {",
      to: 'if (isServing(vm) || vm.status === "provisioning") {',
    },
    {
      file: "src/provisioner/payments/capture.ts",
      from: "if (vm === null || !isServing(vm)) return giveUp",
      to: "if (vm === null || isServing === undefined) return giveUp",
    },
  ],
  /** Hard case 16: a charge that a reorg may still undo is paid back. */
  pay_back_before_final: [
    {
      file: "src/provisioner/refunds/payee.ts",
      from: 'const use = await useOf(context, payment, "finalized");',
      to: "const use = await useOf(context, payment);",
    },
    {
      file: "durable-objects/wallet-evidence.ts",
      from: 'return isPayers ? paidFor(services, payment, "finalized")',
      to: 'return isPayers ? paidFor(services, payment, "latest")',
    },
  ],
  /** An order waits for the link of its token, whatever became of the token's machine meanwhile. */
  wait_for_the_link: [
    {
      file: "src/provisioner/payments/buy.ts",
      from: 'if (vm !== null && vm.status !== "provisioning") return follow',
      to: "if (vm !== null && vm.status === null) return follow",
    },
  ],
  /** Hard case 27: any transfer to us in the receipt has paid, and a transfer may pay many. */
  pay_by_any_transfer: [
    {
      file: "src/chain/authorization.ts",
      from: "const [use, next] = at === -1 ? [] : coins.slice(at, at + 2);",
      to: "const [use] = at === -1 ? [] : coins.slice(at, at + 1);\n  const next = use && coins.find((entry) => entry.topics[2] === (pad(to).toLowerCase() as Hex));",
    },
    {
      file: "src/db/payments.ts",
      from: ".values({ txHash, logIndex, payment: id })",
      to: ".values({ txHash, logIndex: parseInt(id.slice(0, 8), 16), payment: id })",
    },
    {
      file: "src/db/payments.ts",
      from: "AND log_index = ",
      to: "AND -1 <> ",
    },
  ],
  /** Hard case 28: what is used, and has no log yet, is taken for cancelled. */
  call_it_cancelled: [
    {
      file: "src/chain/authorization.ts",
      from: 'before?.used === true ? { state: "cancelled", ...block } : { state: "unclear" };',
      to: 'before === undefined ? { state: "unclear" } : { state: "cancelled", ...block };',
    },
  ],
  /** Hard case 29: receipts are agreed on by their block alone. */
  agree_on_a_part: [
    {
      file: "src/chain/witness.ts",
      from: "const text = textOf(answer);",
      to: "const { receipt } = (answer ?? {}) as { receipt?: Receipt | null };\n          const text = receipt ? receipt.blockHash : textOf(answer);",
    },
  ],
  /** Hard case 33: a token that lasts as long, or longer, will do; and the wallet hands it over. */
  serve_any_held_token: [
    { file: "src/db/orders.ts", from: "AND expires_at BETWEEN ", to: "AND expires_at >= " },
    {
      file: "durable-objects/wallet-evidence.ts",
      from: 'return (await hadPrice(chain, purchase.tier, paid, isWorth)) ? arrived : "not_owed";',
      to: 'return isWorth(1n) || hadPrice !== undefined ? arrived : "not_owed";',
    },
  ],
  /** Hard case 34: the wallet believes whoever gives an order. */
  believe_every_order: [
    {
      file: "durable-objects/operator-wallet.ts",
      from: "const evidence = await readEvidence({ chain, config, operator: account.address }, order);",
      to: "const evidence = (readEvidence === undefined ? 'unproven' : { account: order.id, most: 2n ** 100n }) as Evidence | NoEvidence;",
    },
  ],
  /** Hard case 34: what has left for a payment is forgotten. */
  keep_no_accounts: [
    {
      file: "durable-objects/wallet-limits.ts",
      from: 'if (ledger.paidFor(account) + amount > most) return "served";',
      to: "if (most < 0n || account === undefined) return null;",
    },
    {
      file: "durable-objects/operator-wallet.ts",
      from: 'return typeof undone === "string" ? { why: undone } : {',
      to: 'return typeof undone === "string" ? { rows, gas, fees, funds, evidence, nextCount, undone: new Set() } : {',
    },
    {
      file: "durable-objects/wallet-limits.ts",
      from: 'return hasLeft("transfer") || ledger.paidFor(account) > 0n ? "served" : null;',
      to: "return null;",
    },
    {
      file: "durable-objects/wallet-limits.ts",
      from: 'if (isRefundOfPayment(order) && hasLeft("transfer")) return "served";',
      to: 'if (isRefundOfPayment === undefined) return "served";',
    },
  ],
  /** Hard case 34: a purchase has as many names as there are spellings of its numbers, and is paid back under each. */
  believe_any_spelling: [
    {
      file: "src/model/purchase-key.ts",
      from: "if (incarnationKey(of) !== key) throw",
      to: "if (match === null) throw",
    },
  ],
  /** Hard case 34: the row says for which payment a token was sold. */
  pay_back_anybodys: [
    {
      file: "durable-objects/wallet-limits.ts",
      from: 'if (sold !== undefined && !ledger.wasHandedOver(sold, { account, payer: payment?.from ?? "" })) return "not_owed";',
      to: 'if (sold === -1 && payment === undefined) return "not_owed";',
    },
  ],
  /** Hard case 34: a refund goes to whom the row names, whoever owns the token. */
  pay_whoever_is_named: [
    {
      file: "durable-objects/wallet-evidence.ts",
      from: 'if (owner === null || !isAddressEqual(owner, to)) return "not_owed";',
      to: 'if (owner === null && to !== owner) return "not_owed";',
    },
  ],
  /** Hard case 34: a refund is as much as the row says, whatever was paid. */
  pay_what_is_named: [
    {
      file: "durable-objects/wallet-evidence.ts",
      from: "most: purchase.totalCost };",
      to: "most: purchase.totalCost < 0n ? 0n : NO_LIMIT };",
    },
  ],
  /** Hard case 35: gas is whatever a payer's contract takes, and what no node takes is sent for ever. */
  pay_any_gas: [
    {
      file: "src/chain/orders.ts",
      from: "(call === undefined ? 0n : GAS_CAPS[call.kind]);",
      to: "(call === undefined ? 0n : 2n ** 40n);",
    },
    { file: "durable-objects/operator-wallet.ts", from: "if (!isRefused ||", to: "if (isRefused || !isRefused ||" },
  ],
  /** Hard case 45: the wallet signs while payouts are paused. */
  sign_while_paused: [
    {
      file: "durable-objects/operator-wallet.ts",
      from: 'if (await isPaused(openDatabase(config.DB), "payouts")) return { why: "paused" };',
      to: 'if (isPaused === undefined || openDatabase === undefined) return { why: "paused" };',
    },
    {
      file: "src/provisioner/refunds/pay.ts",
      from: 'if (await isPaused(context.db, "payouts")) return WAIT;',
      to: "if (isPaused === undefined) return WAIT;",
    },
  ],
  /** Hard case 46: whoever asks while D1 does not answer is told that it is our fault, and not to come again. */
  call_it_internal: [
    {
      file: "src/edge/app.ts",
      from: "if (isDatabaseUnavailable(error)) {",
      to: "if (isDatabaseUnavailable(error) && error instanceof AppError) {",
    },
  ],
  /** Hard case 30: no request is smaller than the overlap and a block. */
  never_ask_for_less_than_the_overlap: [
    {
      file: "src/chain/logs.ts",
      from: "const blocks = Math.min(to - from + 1, rangeOf(node, kind));",
      to: "const blocks = Math.min(to - from + 1, Math.max(11, rangeOf(node, kind)));",
    },
    {
      file: "src/chain/logs.ts",
      from: "throw new LogsRefused(end, blocks, named !== null,",
      to: "throw new LogsRefused(end, blocks > 11 ? blocks : 1, named !== null,",
    },
  ],
  /** Hard case 31: what is refused is asked for once more, transfers and all. */
  wait_out_the_storm: [
    {
      file: "src/chain/events.ts",
      from: "if (isAtItsEnd(node.spans.transfers, Date.now())) {",
      to: "if (isAtItsEnd(node.spans.transfers, Number.POSITIVE_INFINITY)) {",
    },
    {
      file: "src/chain/events.ts",
      from: "if (!(error instanceof LogsRefused) || error.byRange) throw error;",
      to: "if (!(error instanceof LogsRefused) || error.blocks >= 1) throw error;",
    },
  ],
  /** Hard case 32: a chain that is below the cursor lags, whatever is on it. */
  wait_until_it_has_outgrown_us: [
    {
      file: "src/edge/scan.ts",
      from: "seen = heads.length === witnessesOf(chain) ?",
      to: "seen = heads.length < 0 && witnessesOf(chain) > 0 ?",
    },
  ],
  /** Hard case 39: where many machines are due none ends. */
  end_none_of_many: [
    {
      file: "src/edge/sweep.ts",
      from: "if (due.length === 0) return [];",
      to: "if (due.length === 0 || due.length > limit) return [];",
    },
  ],
  /** Hard case 39: whoever ends its own machine gets another one, as often as it likes. */
  replace_without_end: [
    {
      file: "src/provisioner/machines/give-up.ts",
      from: "const MAX_REPLACEMENTS = 3;",
      to: "const MAX_REPLACEMENTS = 3_000;",
    },
  ],
  /** Whoever bought while provisioning paused waits until it goes on. */
  wait_out_the_pause: [
    {
      file: "src/provisioner/machines/create.ts",
      from: '(await isPaused(db, "provisioning")) && !(await isTooLate(context, vm));',
      to: 'await isPaused(db, "provisioning");',
    },
  ],
  /** Hard case 52: what leaves starts its clock, and waits for a connection with it running. */
  send_at_once: [
    {
      file: "src/outbound.ts",
      from: "if (this.#free === 0) return",
      to: "if (this.#free === Number.NEGATIVE_INFINITY) return",
    },
  ],
} as const satisfies Record<string, readonly Edit[]>;

export type PlantName = keyof typeof PLANTS;
/** In the order above. */
export const PLANT_NAMES = Object.keys(PLANTS) as PlantName[];

/** What has to happen for each of these to be noticed: a search for it plays worlds that have it. */
export const OFTEN: Readonly<Partial<Record<PlantName, readonly Kind[]>>> = {
  skip_the_lookup: ["vendor_hangs_after"],
  swallow_a_failed_list: ["lists_fail"],
  wait_for_no_order: ["vendor_acts_late", "vendor_hangs_after", "list_stale"],
  believe_any_banner: ["stranger_answers"],
  leave_ghosts: ["vendor_acts_too_late", "vendor_hangs_after"],
  pay_before_final: ["market_empty", "reorg", "token_sold"],
  pay_whoever_bought: ["market_empty", "token_sold"],
  keep_the_old_incarnation: ["reorg"],
  begin_where_the_logs_begin: ["node_lies"],
  keep_what_was_invented: ["node_lies"],
  pay_back_before_final: ["reorg", "stranger_submits"],
  wait_for_the_link: ["operator_ends", "machine_vanishes"],
  pay_by_any_transfer: ["payer_batches", "stranger_batches"],
  call_it_cancelled: ["logs_late", "stranger_submits", "payer_submits"],
  agree_on_a_part: ["receipts_differ"],
  serve_any_held_token: ["order_is_long"],
  believe_every_order: ["database_written"],
  keep_no_accounts: ["database_written"],
  believe_any_spelling: ["database_written"],
  pay_back_anybodys: ["database_written"],
  pay_whoever_is_named: ["database_written"],
  pay_what_is_named: ["database_written"],
  pay_any_gas: ["payer_delegates"],
  sign_while_paused: ["operator_pauses"],
  call_it_internal: ["d1_down"],
  never_ask_for_less_than_the_overlap: ["nodes_capped"],
  wait_out_the_storm: ["dense_storm"],
  wait_until_it_has_outgrown_us: ["chain_set_back"],
  end_none_of_many: ["crowd_buys"],
  replace_without_end: ["tenant_deletes"],
  wait_out_the_pause: ["long_pause"],
};

/** A seed that finds each. What a seed plays changes with the simulator: a search from seed 1 then finds another. */
export const FOUND_AT: Readonly<Record<PlantName, number>> = {
  retry_a_create_blindly: 38,
  ack_before_commit: 55,
  ignore_a_reorg: 14,
  skip_the_lookup: 1,
  swallow_a_failed_list: 70,
  link_after_the_broadcast: 31,
  release_at_once: 4,
  wait_for_no_order: 260,
  believe_any_banner: 4,
  leave_ghosts: 33,
  pay_before_final: 46,
  pay_whoever_bought: 4,
  pay_without_a_name: 31,
  believe_the_row: 18,
  keep_the_old_incarnation: 33,
  begin_where_the_logs_begin: 77,
  compare_no_owners: 124,
  keep_what_was_invented: 34,
  take_before_the_machine_answers: 36,
  pay_back_before_final: 39,
  wait_for_the_link: 20,
  pay_by_any_transfer: 1,
  call_it_cancelled: 16,
  agree_on_a_part: 381,
  serve_any_held_token: 1,
  believe_every_order: 33,
  keep_no_accounts: 36,
  believe_any_spelling: 13,
  pay_back_anybodys: 49,
  pay_whoever_is_named: 76,
  pay_what_is_named: 36,
  pay_any_gas: 18,
  sign_while_paused: 231,
  call_it_internal: 1,
  never_ask_for_less_than_the_overlap: 31,
  wait_out_the_storm: 31,
  wait_until_it_has_outgrown_us: 134,
  end_none_of_many: 1,
  replace_without_end: 201,
  wait_out_the_pause: 33,
  send_at_once: 1,
};
