// Whether history costs: `/status` and `/vms` over a database with 100,000 purchases behind it against one without, the
// same Worker twice in one workerd, in turns.
import type { BareWorkers } from "../world/bare-workers.ts";
import { EDGE_APART, OBJECTS_APART, openShop, TOKENS } from "../world/shop.ts";
import { median, printRows } from "./figures.ts";
import { address, answered, load, type Side } from "./routes.ts";

const AMOUNT = 640;
const FIRST_OLD_TOKEN = 1_000_000;
const TOKENS_PER_OWNER = TOKENS;
const ROWS_PER_STATEMENT = 10_000;
const TABLES = ["purchases", "vms", "attempts", "transfers", "cursors", "catalogs"];

/** Prints requests per second and p50 of both, and their ratio, median over the rounds. */
export async function benchHistory(history: number, rounds: number): Promise<void> {
  const full = { ...EDGE_APART, name: "full", database: "clawcloud-full" };
  const shop = await openShop([EDGE_APART, OBJECTS_APART, full]);
  const { workers, owner, tokenId } = shop;
  try {
    const database = await workers.miniflare.getD1Database("DB", "full");
    await copyRows(workers.database, database);
    await addHistory(database, history);
    const oldToken = FIRST_OLD_TOKEN + Math.floor(history / 2);
    const oldOwner = ownerOf(Math.floor(history / 2 / TOKENS_PER_OWNER));
    // The same rows on both sides; then rows that only the long history has, against those of the short one.
    const routes: [string, string, string][] = [
      ["/status/:tokenId", `/status/${tokenId}`, `/status/${tokenId}`],
      ["/status/:tokenId, amid history", `/status/${oldToken}`, `/status/${tokenId}`],
      [`/vms/:address (${TOKENS} rows)`, `/vms/${owner.address}`, `/vms/${owner.address}`],
      [`/vms/:address (${TOKENS} rows), amid history`, `/vms/${oldOwner}`, `/vms/${owner.address}`],
    ];
    const header = ["route", "req/s", "empty", "p50 ms", "empty", "times slower", "min-max"];
    await printRows(header, routes, async ([name, fullPath, emptyPath]) => {
      await shop.scan();
      const sides: Record<"full" | "edge", Side[]> = { full: [], edge: [] };
      const paths = { full: fullPath, edge: emptyPath };
      for (let round = -1; round < rounds; round++) {
        for (const side of round % 2 === 0 ? (["full", "edge"] as const) : (["edge", "full"] as const)) {
          const result = await load(workers.url(side), AMOUNT, (client) => ({
            path: paths[side],
            headers: address(client),
          }));
          if (round >= 0) sides[side].push(result);
        }
      }
      // Time per request, as the promise has it: above 1 history is slower.
      const ratios = sides.full.map((side, round) => (sides.edge[round]?.perSecond ?? Number.NaN) / side.perSecond);
      const figure = (side: "full" | "edge", field: keyof Side) => median(sides[side].map((one) => one[field]));
      return answered(
        [...sides.full, ...sides.edge],
        [
          name,
          Math.round(figure("full", "perSecond")),
          Math.round(figure("edge", "perSecond")),
          figure("full", "p50").toFixed(1),
          figure("edge", "p50").toFixed(1),
          median(ratios).toFixed(2),
          `${Math.min(...ratios).toFixed(2)}-${Math.max(...ratios).toFixed(2)}`,
        ],
      );
    });
  } finally {
    await shop.close();
  }
}

type Database = BareWorkers["database"];

/** What the shop has sold, into the other database. */
async function copyRows(from: Database, to: Database): Promise<void> {
  for (const name of TABLES) {
    const { results } = await from.prepare(`SELECT * FROM ${name}`).all<Record<string, unknown>>();
    for (const row of results) {
      const columns = Object.keys(row);
      const marks = columns.map((_, i) => `?${i + 1}`).join(", ");
      const insert = `INSERT INTO ${name} (${columns.join(", ")}) VALUES (${marks})`;
      await to
        .prepare(insert)
        .bind(...Object.values(row))
        .run();
    }
  }
}

const ownerOf = (index: number): string => `0x${(index + 1).toString(16).padStart(40, "0")}`;

/** Purchases whose time is served, and their machines and attempts, as a few years leave them. */
async function addHistory(database: Database, count: number): Promise<void> {
  const key = "'old/0x' || printf('%040x', 7) || '/' || (?1 + n) || '/0x' || printf('%064x', n) || '/0'";
  const owner = `'0x' || printf('%040x', n / ${TOKENS_PER_OWNER} + 1)`;
  const numbers = "WITH RECURSIVE numbers (n) AS (SELECT ?2 UNION ALL SELECT n + 1 FROM numbers WHERE n + 1 < ?3)";
  const hash = "'0x' || printf('%064x', n)";
  const statements = [
    `INSERT INTO purchases (incarnation, token_id, tx_hash, ordinal, block_number, block_hash, log_index, buyer, tier, duration_days, purchase_date, total_cost, seen_at)
      ${numbers} SELECT ${key}, ?1 + n, ${hash}, 0, 0, ${hash}, n, ${owner}, 0, 1, 1700000000 + n, '500000', 1700000000000 + n FROM numbers`,
    `INSERT INTO vms (incarnation, token_id, owner, tier, vm_type, tx_hash, block_number, status, step, deadline, created_at, expires_at, attempt, provider, region, plan, ssh_host, ssh_port, running_at)
      ${numbers} SELECT ${key}, ?1 + n, ${owner}, 0, 'vm', ${hash}, 0, 'terminated', 'idle', 1700003600 + n, 1700000000 + n, 1700086400 + n, 1, 'vultr', 'ewr', 'vc2-1c-1gb', '203.0.113.9', 22, 1700000000000 + n FROM numbers`,
    `INSERT INTO attempts (incarnation, number, provider, region, plan, label, mark, public_key, key_id, host_public_key, create_sent_at, instance_id, started_at, ended_at, outcome, gone_at)
      ${numbers} SELECT ${key}, 1, 'vultr', 'ewr', 'vc2-1c-1gb', 'clawcloud-old-' || n, 'mark', 'ssh-ed25519 AAAA', 'key', 'ssh-ed25519 AAAA', 1700000000000 + n, 'old-' || n, 1700000000000 + n, 1700000000000 + n, 'running', 1700086400000 + n FROM numbers`,
  ];
  for (let from = 0; from < count; from += ROWS_PER_STATEMENT) {
    const values = [FIRST_OLD_TOKEN, from, Math.min(count, from + ROWS_PER_STATEMENT)];
    await database.batch(statements.map((statement) => database.prepare(statement).bind(...values)));
  }
}
