// One run: a world drawn from a seed, in which purchases are made while things go wrong; then everything heals, and what
// must hold is checked.
import type { Hex } from "viem";
import { incarnationKey } from "../../src/model/purchase-key.ts";
import {
  checkPace,
  checkSeen,
  deleteAgain,
  isCrowdServed,
  openShop,
  TRIALS,
  type Trial,
  tryInCalm,
} from "./bad-days.ts";
import { type Block, ModelChain } from "./chain.ts";
import { Clock } from "./clock.ts";
import { dialWith } from "./cloudflare-sockets.ts";
import { COINS_RULE, checkOutflow, checkPaidRows } from "./coins.ts";
import { isValid, type Sale } from "./contracts.ts";
import { EVENTS, purchase, resumeAll } from "./events.ts";
import { ModelFacilitator } from "./facilitator.ts";
import { Faults, type Kind } from "./faults.ts";
import { toResponse } from "./http.ts";
import { enter } from "./install.ts";
import { checkAll, checkCreated, checkDeleting, noteBegun } from "./invariants.ts";
import { restartKeys } from "./keys.ts";
import { checkMoves } from "./moves.ts";
import { ModelNode } from "./nodes.ts";
import {
  type Account,
  checkPayers,
  fetchCredentials,
  order,
  PAYERS,
  pursesOf,
  type Signed,
  STRANGER,
} from "./payers.ts";
import {
  bind,
  CONTRACT,
  cron,
  DEPLOYMENT_ID,
  database,
  FACILITATOR_HOST,
  FLOAT,
  OPERATOR,
  prepared,
  RPC_HOSTS,
} from "./product.ts";
import { createRandom, type Random } from "./random.ts";
import { MAX_STALL_MS, never, Runtime } from "./runtime.ts";
import { restartSeals } from "./seals.ts";
import { checkSent } from "./till.ts";
import { ModelRunpod, ModelVultr } from "./vendor-models.ts";
import type { Machine, ModelVendor, VendorName } from "./vendors.ts";

/** Until the close of a socket comes that nobody has accepted. */
const CLOSE_MS = 21_000;
const START = Date.UTC(2026, 0, 1);
const LOOK_MS = 5_000;
const CRON_MS = { trouble: 30_000, quiet: 120_000 };
const TROUBLE_MS = { least: 60_000, most: 270_000 };
const QUIET_STEP_MS = 120_000;
const DAY_MS = 86_400_000;
/** What is not settled this long after everything healed never will be. */
const PATIENCE_MS = { usual: 4 * 3_600_000, written: 3_600_000 };
/** Refunds that wait for room in a day's limits get so many days: none that a run owes needs more. */
const DAYS_TO_PAY = 4;
/** The sweep and its jobs once more, when all else is quiet. */
const LAST_SWEEPS_MS = 240_000;
const PLATFORM_SEED = 0x0d15ea5e;
const SHOP_SEED = 0x9e01;
const VENDORS_SEED = 0x7e2d03;
const AGENTS = 3;
const MOST_ORDERS = 4;

/** What must hold and did not. */
export type Violation = { rule: string; text: string };
export type RunResult = {
  violation: Violation | null;
  history: readonly string[];
  faults: Faults;
  /** Whether somebody wrote the database. */
  written: boolean;
};

export class World {
  readonly clock = new Clock(START);
  readonly random: Random;
  readonly faults: Faults;
  readonly runtime: Runtime;
  readonly chain: ModelChain;
  readonly nodes: readonly ModelNode[];
  readonly vendors: Record<VendorName, ModelVendor> & { runpod: ModelRunpod };
  readonly bound: ReturnType<typeof bind>;
  readonly facilitator: ModelFacilitator;
  /** Who buys on the contract; the payers do as well. */
  readonly agents = [...Array.from({ length: AGENTS }, (_, i) => `0x${String(i + 1).repeat(40)}`), ...PAYERS];
  /** Every authorization that was signed, in that order. */
  readonly signed: Signed[] = [];
  /** Payers that have done anything by which a capture may fail. */
  readonly wrongdoers = new Set<string>();
  /** Payments for which their payers are barred. */
  readonly barred = new Set<string>();
  /** What payers will name in their next orders, by payer: used up before. */
  readonly nonces = new Map<string, Hex[]>();
  lastOrder: { account: Account; body: string } | null = null;
  /** What the operator has ever sent. */
  readonly sentCalls = new Set<string>();
  /** Authorizations that the operator has sent to be taken. */
  readonly taken = new Set<string>();
  readonly history: string[] = [];
  /** Incarnations whose machine an operator had ended, or whose owner gave it up. */
  readonly endedByOrder = new Set<string>();
  /** Who claimed refunds, by incarnation. */
  readonly claims = new Map<string, Set<string>>();
  /** Refunds that were decided, by kind and incarnation: the final block of that moment. */
  readonly begun = new Map<string, number>();
  /** The database was set back to an earlier state: what it forgot may cost a second machine. */
  restored = false;
  /** Somebody has written rows that aim at our money: from here on coins alone are counted. */
  written = false;
  /** Tenants that end their own machines again and again: how often, by incarnation. */
  readonly deletions = new Map<string, number>();
  /** Since when which rows have been late (see `checkPace`): unix milliseconds. */
  readonly lateSince = new Map<string, number>();
  healedAt = 0;
  /** Until when an operator's long pause of provisioning lasts, whatever heals: unix milliseconds. */
  pausedUntil = 0;
  /** Many tokens end in the same minute: the world goes on until then. */
  crowded = false;
  snapshot: ReadonlyMap<string, readonly Record<string, unknown>[]> | null = null;
  #violation: Violation | null = null;
  #purchasesLeft: number;
  #ordersLeft: number;
  #moves = 0;
  #ahead = 0;
  /** Each is noted once. */
  readonly #pages = new Set<string>();

  constructor(seed: number, without: ReadonlySet<number>) {
    const random = createRandom(seed);
    this.random = random.fork();
    const own = {
      platform: createRandom(seed ^ PLATFORM_SEED),
      shop: createRandom(seed ^ SHOP_SEED),
      vendors: createRandom(seed ^ VENDORS_SEED),
    };
    this.faults = new Faults(random.fork(), own, without, () => this.clock.now - START);
    this.runtime = new Runtime(this.clock, this.faults, random.fork(), {
      note: (text) => this.note(text),
      violate: (rule, text) => this.violate(rule, text),
    });
    enter({
      clock: this.clock,
      random: random.fork(),
      fetch: (url, init) => {
        const end = this.runtime.openConnection(url);
        return this.#fetch(url, init).finally(end);
      },
      log: (lines) => this.#log(lines),
    });
    restartKeys();
    restartSeals();
    const funds = { [OPERATOR]: FLOAT, [STRANGER]: FLOAT, ...pursesOf(this) };
    this.chain = new ModelChain(this.clock, random.fork(), OPERATOR, funds);
    this.facilitator = new ModelFacilitator(this.chain, this.runtime);
    const liar = this.random.pick([0, 0, 1, 2]);
    this.nodes = RPC_HOSTS.map((_, i) => new ModelNode(this.chain, this.runtime, i === liar));
    const watcher = {
      created: (machine: Machine) => checkCreated(this, machine),
      deleting: (machine: Machine) => checkDeleting(this, machine),
    };
    this.vendors = { vultr: new ModelVultr(this.runtime, watcher), runpod: new ModelRunpod(this.runtime, watcher) };
    this.chain.watchSent = (hash, call) => checkSent(this, hash, call);
    dialWith((host, port) => this.#dial(host, port));
    this.bound = bind(this.runtime);
    this.#ordersLeft = Math.max(0, this.random.int(-1, 3));
    this.#purchasesLeft = this.random.int(this.#ordersLeft === 0 ? 1 : 0, this.#ordersLeft > 1 ? 1 : 3);
    openShop(this);
  }

  note(text: string): void {
    this.history.push(`${((this.clock.now - START) / 1_000).toFixed(1).padStart(9)} s  ${text}`);
  }

  /** Something must hold and does not: the run ends here. The first one counts. */
  violate(rule: string, text: string): void {
    if (this.written && rule !== COINS_RULE) return;
    if (this.#violation === null) this.note(`VIOLATION of "${rule}": ${text}${this.written ? " (written)" : ""}`);
    this.#violation ??= { rule, text };
  }

  async run(): Promise<Violation | null> {
    database.exec("SAVEPOINT run");
    try {
      this.#cron();
      this.#look();
      await this.#trouble();
      if (this.#violation === null && (this.random.unit() < 0.15 || this.crowded)) await this.#leapToTheEnd();
      return this.#violation;
    } finally {
      database.exec("ROLLBACK TO run; RELEASE run");
    }
  }

  /** What somebody will do whatever comes between; the world does not end before. */
  later(ms: number, act: () => void): void {
    this.#ahead += 1;
    this.clock.after(ms, () => {
      this.#ahead -= 1;
      act();
    });
  }

  /** Those who want more than there would have been; never many. */
  orderMore(orders: number): void {
    this.#ordersLeft = Math.min(MOST_ORDERS, this.#ordersLeft + orders);
  }

  /** Sales that stand in the chain as it is. */
  get sales(): readonly Sale[] {
    return this.chain.head.state.sales;
  }

  /** The block in which a sale stands, or null. */
  blockOf({ txHash }: Pick<Sale, "txHash">): Block | null {
    for (const block of this.chain.transactions.get(txHash)?.minedIn ?? []) {
      if (this.chain.blocks[block.number] === block) return block;
    }
    return null;
  }

  isValidNow(tokenId: number): boolean {
    const { state, timestamp } = this.chain.head;
    const token = state.tokens.get(tokenId);
    return token !== undefined && isValid(token, timestamp);
  }

  incarnationOf = ({ tokenId, txHash }: Pick<Sale, "tokenId" | "txHash">): string =>
    incarnationKey({ deploymentId: DEPLOYMENT_ID, contract: CONTRACT as `0x${string}`, tokenId, txHash, ordinal: 0 });

  /** Machines of ours that run at a vendor now. */
  get machines(): Machine[] {
    const prefix = `clawcloud-${DEPLOYMENT_ID}-`;
    return Object.values(this.vendors).flatMap((vendor) =>
      vendor.living.filter(({ orderedAs }) => orderedAs.startsWith(prefix)),
    );
  }

  rows<T>(sql: string, ...values: (string | number)[]): T[] {
    return prepared(sql).all(...values) as T[];
  }

  reorg(depth: number): void {
    for (const [i, node] of this.nodes.entries()) node.beforeReorg(`node ${i}`);
    const taken = this.chain.reorg(depth);
    this.note(`a reorg takes ${taken} blocks back`);
  }

  setBack(depth: number): void {
    for (const [i, node] of this.nodes.entries()) node.beforeReorg(`node ${i}`);
    const taken = this.chain.setBack(depth);
    this.note(`the chain is set back by ${taken} blocks`);
  }

  async #trouble(): Promise<void> {
    this.faults.active = true;
    await this.#until(this.clock.now + this.random.int(TROUBLE_MS.least, TROUBLE_MS.most));
    const trial = this.faults.strikes("calm_trial") ? this.random.pick(TRIALS) : undefined;
    this.#heal();
    if (trial !== undefined) await this.#tryInCalm(trial);
    await this.#settle();
    for (let days = 0; days < DAYS_TO_PAY && this.#violation === null && this.#waitsForTomorrow(); days++) {
      this.clock.skip(this.clock.now + DAY_MS);
      this.chain.leap();
      this.note("a day passes");
      await this.#settle();
    }
    if (this.#violation !== null) return;
    this.note("everything has settled");
    checkMoves(this);
    checkAll(this);
  }

  async #settle(): Promise<void> {
    const end = this.clock.now + (this.written ? PATIENCE_MS.written : PATIENCE_MS.usual);
    for (let quietSince: number | null = null; this.clock.now < end; ) {
      await this.#until(this.clock.now + QUIET_STEP_MS);
      if (this.#violation !== null) return;
      quietSince = this.#isQuiet() ? (quietSince ?? this.clock.now) : null;
      if (quietSince !== null && this.clock.now >= quietSince + LAST_SWEEPS_MS) break;
    }
  }

  /** What a refund waits for after hours in which all was well, and the wallet went on, is room in today's limits. */
  #waitsForTomorrow(): boolean {
    const { highestNonce, head } = this.chain;
    if (this.written || head.state.nonce <= highestNonce) return false;
    const [row] = this.rows<{ open: number }>("SELECT count(*) AS open FROM refunds WHERE state = 'paying'");
    return row !== undefined && row.open > 0;
  }

  async #tryInCalm(trial: Trial): Promise<void> {
    await tryInCalm(this, trial, {
      pass: (ms) => this.#until(this.clock.now + ms),
      scan: () => void this.runtime.run("the cron", cron),
    });
  }

  /** The paid time ends, and things go wrong once more. */
  async #leapToTheEnd(): Promise<void> {
    const ends = [...this.chain.head.state.tokens.values()].map(({ expiresAt }) => expiresAt * 1_000);
    const soon = Math.min(...ends, Number.MAX_SAFE_INTEGER);
    if (soon === Number.MAX_SAFE_INTEGER || soon < this.clock.now) return;
    this.clock.skip(soon - this.random.int(0, 300_000));
    this.chain.leap();
    this.note("the paid time nears its end");
    await this.#trouble();
  }

  async #until(at: number): Promise<void> {
    await this.clock.runUntil(at, () => this.#violation !== null);
  }

  #heal(): void {
    this.faults.active = false;
    this.healedAt = this.clock.now;
    for (const node of this.nodes) node.heal();
    for (const vendor of Object.values(this.vendors)) vendor.heal();
    this.chain.haltedUntil = 0;
    this.chain.dearUntil = 0;
    const resume = () => void this.runtime.run("an operator", () => resumeAll(this));
    resume();
    // A pause that was stalled lands after all, and whoever ordered it sees it then.
    this.later(MAX_STALL_MS, resume);
    this.note("everything heals");
  }

  #isQuiet(): boolean {
    const [row] = this.rows<{ open: number }>(`SELECT
      (SELECT count(*) FROM vms WHERE wake_at IS NOT NULL OR status IN ('provisioning', 'expired'))
      + (SELECT count(*) FROM payments WHERE step <> 'idle')
      + (SELECT count(*) FROM refunds WHERE state IN ('due', 'paying')) + (SELECT count(*) FROM gaps)
      + (SELECT count(*) FROM purchases JOIN vms USING (incarnation) WHERE orphaned = 1 AND current = 1 AND status = 'running') AS open`);
    const known = new Set(
      this.rows<{ incarnation: string }>("SELECT incarnation FROM vms").map((one) => one.incarnation),
    );
    const { highestNonce, head } = this.chain;
    return (
      this.#ahead === 0 &&
      row?.open === 0 &&
      this.deletions.size === 0 &&
      isCrowdServed(this) &&
      head.state.nonce > highestNonce &&
      this.sales.every((sale) => known.has(this.incarnationOf(sale)))
    );
  }

  #cron(): void {
    void this.runtime.run("the cron", cron);
    this.clock.after(this.faults.active ? CRON_MS.trouble : CRON_MS.quiet, () => this.#cron());
  }

  /** Every five seconds: sales, and whatever else of the world's doings strikes. */
  #look(): void {
    this.clock.after(LOOK_MS, () => this.#look());
    this.chain.advance();
    noteBegun(this);
    checkMoves(this);
    checkPaidRows(this);
    checkPayers(this);
    deleteAgain(this);
    if (!this.faults.active) {
      checkPace(this);
      checkSeen(this);
    }
    if (this.chain.operatorMoves !== this.#moves) checkOutflow(this);
    this.#moves = this.chain.operatorMoves;
    if (!this.faults.active) return;
    if (this.#purchasesLeft > 0 && this.random.unit() < 0.2) {
      this.#purchasesLeft -= 1;
      purchase(this);
    }
    if (this.#ordersLeft > 0 && this.random.unit() < 0.2) {
      this.#ordersLeft -= 1;
      order(this);
    }
    if (this.random.unit() < 0.03) fetchCredentials(this);
    for (const [i, node] of this.nodes.entries()) node.look(`node ${i}`, this.clock.now === START);
    for (const [kind, event] of Object.entries(EVENTS)) if (this.faults.strikes(kind as Kind)) event(this);
  }

  /** What would wake a person is part of the history. */
  #log(lines: string): void {
    for (const line of lines.split("\n")) {
      const { level, event, time: _time, ...fields } = JSON.parse(line) as Record<string, unknown>;
      if (level !== "page") continue;
      const page = `PAGE ${event} ${JSON.stringify(fields)}`;
      if (!this.#pages.has(page)) this.note(page);
      this.#pages.add(page);
    }
  }

  #dial(host: string, port: number) {
    const vendor = host.startsWith("vultr") ? this.vendors.vultr : this.vendors.runpod;
    const isSilent = vendor.isSilentAt(host, port);
    const end = this.runtime.openConnection("a socket");
    const banner = this.runtime.cross("a banner", () => (isSilent ? never<null>() : vendor.banner(host, port)));
    const close = async () => {
      if (isSilent || (await banner) === null) await this.clock.sleep(CLOSE_MS);
      end();
    };
    return { banner, close };
  }

  async #fetch(url: string, init: RequestInit): Promise<unknown> {
    const { host, pathname, search } = new URL(url);
    const body = typeof init.body === "string" ? init.body : null;
    const answer = await this.runtime.cross(`${init.method ?? "GET"} ${host}${pathname}`, () => {
      const node = this.nodes[(RPC_HOSTS as readonly string[]).indexOf(host)];
      if (node !== undefined) return node.respond(body ?? "");
      if (host === FACILITATOR_HOST) return this.facilitator.respond(pathname, body ?? "");
      const vendor = host === "vultr.sim" ? this.vendors.vultr : this.vendors.runpod;
      const request = {
        method: init.method ?? "GET",
        path: pathname + search,
        body: body === null ? null : JSON.parse(body),
      };
      return vendor.respond(request);
    });
    if (answer !== "hangs") return toResponse(answer);
    const { signal } = init;
    if (signal == null) return never();
    signal.throwIfAborted();
    await new Promise((resolve) => signal.addEventListener("abort", resolve));
    throw signal.reason;
  }
}

/** Runs a seed, without the strikes of these numbers. */
export async function runSeed(seed: number, without: ReadonlySet<number> = new Set()): Promise<RunResult> {
  const world = new World(seed, without);
  const violation = await world.run();
  return { violation, history: world.history, faults: world.faults, written: world.written };
}
