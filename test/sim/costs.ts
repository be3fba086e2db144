// What an order and a refund ask of D1 and of the chain's nodes, in worlds where nothing goes wrong: of requests, queue
// messages and objects, less what the same worlds ask for where nobody orders. The cron asks the same either way. Prints one JSON line; needs `hooks.ts`.
import { install } from "./install.ts";

install();
const { StandInD1 } = await import("./d1.ts");
const { ModelNode } = await import("./nodes.ts");
const { order, PAYERS, STRANGER } = await import("./payers.ts");
const { cron: poll, database } = await import("./product.ts");
const { purchase } = await import("./events.ts");
const { taskName } = await import("./runtime.ts");
const { FLOAT } = await import("./product.ts");
const { World } = await import("./world.ts");

type Costs = { statements: number; trips: number; rpcCalls: number };
/** Means over the worlds in which it ended as it should. */
export type ScenarioCosts = Costs & { name: string; ended: number };
type Scenario = { name: string; isSoldOut: boolean; act: (world: InstanceType<typeof World>) => void; done: string };

const KEYS = ["statements", "trips", "rpcCalls"] as const;
const SEEDS = 20;
const CRON = "the cron";
const LOOK_MS = 5_000;
const CRON_MS = 75_000;
/** For catalogs and first scans; what comes after is counted. */
const WARM_UP_MS = 300_000;
/** An order that nobody can fill is given up after ten minutes, and its refund is final some minutes later. */
const COUNTED_MS = 2_400_000;

const PAID = "SELECT count(*) AS n FROM payments WHERE state = 'settled' AND step = 'idle'";
const PAID_BACK = "SELECT count(*) AS n FROM payments WHERE state IN ('refunded', 'released')";
const RUNNING = "SELECT count(*) AS n FROM vms WHERE status = 'running'";
const REFUNDED = "SELECT count(*) AS n FROM refunds WHERE state = 'paid'";
const SCENARIOS: readonly Scenario[] = [
  { name: "a purchase on chain", isSoldOut: false, act: (world) => purchase(world), done: RUNNING },
  { name: "a purchase on chain, refunded", isSoldOut: true, act: (world) => purchase(world), done: REFUNDED },
  { name: "an order over x402", isSoldOut: false, act: (world) => order(world), done: PAID },
  { name: "an order over x402, sold out", isSoldOut: true, act: (world) => order(world), done: PAID_BACK },
];

let counted: Costs = { statements: 0, trips: 0, rpcCalls: 0 };
const count = (statements: number): void => {
  if (taskName() === CRON) return;
  counted.trips += 1;
  counted.statements += statements;
};
const { batch, single } = StandInD1.prototype;
StandInD1.prototype.batch = function (statements) {
  count(statements.length);
  return batch.call(this, statements);
};
StandInD1.prototype.single = function (statement, read) {
  count(1);
  return single.call(this, statement, read) as never;
};
const { respond } = ModelNode.prototype;
ModelNode.prototype.respond = function (body) {
  if (taskName() !== CRON) counted.rpcCalls += 1;
  return respond.call(this, body);
};

const rows: ScenarioCosts[] = [];
for (const { name, isSoldOut, act, done } of SCENARIOS) {
  const sum: Costs = { statements: 0, trips: 0, rpcCalls: 0 };
  let ended = 0;
  for (let seed = 1; seed <= SEEDS; seed++) {
    const idle = await play(seed, isSoldOut, () => undefined, done);
    const played = await play(seed, isSoldOut, act, done);
    // What is larger than a limit gets no quote.
    if (!played.isDone) continue;
    ended += 1;
    for (const key of KEYS) sum[key] += played.costs[key] - idle.costs[key];
  }
  const mean = (total: number): number => Math.round((total / ended) * 10) / 10;
  const { statements, trips, rpcCalls } = sum;
  rows.push({ name, ended, statements: mean(statements), trips: mean(trips), rpcCalls: mean(rpcCalls) });
}
process.stdout.write(`${JSON.stringify(rows)}\n`);
process.exit(0);

async function play(seed: number, isSoldOut: boolean, act: Scenario["act"], done: string) {
  const world = new World(seed, new Set());
  world.faults.active = false;
  for (const node of world.nodes) node.heal();
  database.exec("SAVEPOINT costs");
  try {
    for (const to of PAYERS) {
      world.chain.submit({ kind: "call", from: STRANGER, call: { kind: "pay", to, amount: FLOAT / 10n } });
    }
    const cron = () => {
      void world.runtime.run(CRON, poll);
      world.clock.after(CRON_MS, cron);
    };
    const look = () => {
      world.chain.advance();
      world.clock.after(LOOK_MS, look);
    };
    cron();
    look();
    await world.clock.runUntil(world.clock.now + WARM_UP_MS, () => false);
    if (isSoldOut) for (const vendor of Object.values(world.vendors)) vendor.emptyUntil = Number.MAX_SAFE_INTEGER;
    counted = { statements: 0, trips: 0, rpcCalls: 0 };
    act(world);
    await world.clock.runUntil(world.clock.now + COUNTED_MS, () => false);
    return { costs: { ...counted }, isDone: world.rows<{ n: number }>(done)[0]?.n === 1 };
  } finally {
    database.exec("ROLLBACK TO costs; RELEASE costs");
  }
}
