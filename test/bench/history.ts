// Whether history costs: `/status` and `/vms` over a database with 100,000 purchases behind it against one without, the
// same Worker twice in one workerd, in turns.
import { attempts, purchases, vms } from "../../src/db/schema.ts";
import { attemptRow, insertRows, machineRow, purchaseRow, rawInsertion } from "../rows.ts";
import type { BareWorkers } from "../world/bare-workers.ts";
import { EDGE_APART, OBJECTS_APART, openShop, TOKENS } from "../world/shop.ts";
import { median, printRows } from "./figures.ts";
import { address, answered, load, type Side } from "./routes.ts";

const AMOUNT = 640;
const FIRST_OLD_TOKEN = 1_000_000;
const TOKENS_PER_OWNER = TOKENS;
const ROWS_AT_ONCE = 10_000;
const BEGIN_SECONDS = 1_700_000_000;
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
    if (results.length === 0) continue;
    const { sql, json } = rawInsertion(name, results);
    await to.prepare(sql).bind(json).run();
  }
}

const ownerOf = (index: number): string => `0x${(index + 1).toString(16).padStart(40, "0")}`;

/** Purchases whose time is served, and their machines and attempts, as a few years leave them. */
async function addHistory(database: Database, count: number): Promise<void> {
  for (let from = 0; from < count; from += ROWS_AT_ONCE) {
    const some = Array.from({ length: Math.min(ROWS_AT_ONCE, count - from) }, (_, i) => oldTokenOf(from + i));
    await insertRows(database, purchases, some.map(purchaseOf));
    await insertRows(database, vms, some.map(machineOf));
    await insertRows(database, attempts, some.map(attemptOf));
  }
}

const PLACE = { provider: "vultr", region: "ewr", plan: "vc2-1c-1gb" } as const;
type OldToken = ReturnType<typeof oldTokenOf>;

function oldTokenOf(n: number) {
  const tokenId = FIRST_OLD_TOKEN + n;
  const txHash = `0x${n.toString(16).padStart(64, "0")}`;
  const incarnation = `old/0x${"7".padStart(40, "0")}/${tokenId}/${txHash}/0`;
  return {
    n,
    tokenId,
    txHash,
    incarnation,
    owner: ownerOf(Math.floor(n / TOKENS_PER_OWNER)),
    bought: BEGIN_SECONDS + n,
  };
}
const purchaseOf = ({ n, tokenId, txHash, incarnation, owner, bought }: OldToken) =>
  purchaseRow({ incarnation, tokenId, txHash, logIndex: n, buyer: owner, purchaseDate: bought });
const machineOf = ({ tokenId, txHash, incarnation, owner, bought }: OldToken) =>
  machineRow({
    ...PLACE,
    incarnation,
    tokenId,
    txHash,
    owner,
    createdAt: bought,
    status: "terminated",
    step: "idle",
    attempt: 1,
    sshHost: "203.0.113.9",
    sshPort: 22,
    runningAt: bought * 1_000,
  });
const attemptOf = ({ n, incarnation, bought }: OldToken) =>
  attemptRow({
    ...PLACE,
    incarnation,
    label: `clawcloud-old-${n}`,
    instanceId: `old-${n}`,
    goneAt: (bought + 86_400) * 1_000,
  });
