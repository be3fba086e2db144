// What a request costs and by which index: figures that may not grow unseen.
import { fillPlaceholders } from "drizzle-orm";
import { expect, test } from "vitest";
import { openDatabase } from "../../../src/db/client.ts";
import { statementsOf } from "../../../src/db/reads.ts";
import { payments } from "../../../src/db/schema.ts";
import { paymentRow } from "../../rows.ts";
import { buy, freshHeaders } from "../../world/agent.ts";
import { agent, chain } from "../chain.ts";
import { deploy } from "../deployment.ts";
import { billOf } from "../meter.ts";

test("rows that each route reads stay within their budget", async () => {
  const world = await deploy();
  for (let count = 0; count < 4; count++) await buy(chain, agent(0), 0, 1);
  const { tokenId } = await buy(chain, agent(1), 0, 1);
  await world.scan();
  await world.sweep();
  await world.drain();
  await chain.mine(1);
  const rows = async (path: string, headers: Record<string, string> = {}) =>
    (await billOf(async () => expect((await world.request(path, { headers })).status).toBe(200))).rowsRead;

  expect(await rows("/health")).toBeLessThanOrEqual(3);
  // The catalog's row, and the cursor's for what is said of delivery.
  expect(await rows("/tiers")).toBeLessThanOrEqual(1 + 1);
  expect(await rows("/tiers")).toBe(0);
  expect(await rows(`/status/${tokenId}`)).toBeLessThanOrEqual(1 + 1);
  // The rows, the counter, and the index entry at which a range that is not full ends.
  expect(await rows(`/vms/${agent(0).address}`)).toBeLessThanOrEqual(4 + 1 + 1);
  expect(await rows(`/vms/${agent(0).address}?limit=4`)).toBeLessThanOrEqual(4 + 1);
  expect(
    await rows(`/credentials/${tokenId}`, await freshHeaders("https://api.example", agent(1), tokenId)),
  ).toBeLessThanOrEqual(7);
  // The owner's own note, and that there is nobody else's.
  expect(
    await rows(`/credentials/${tokenId}`, await freshHeaders("https://api.example", agent(1), tokenId)),
  ).toBeLessThanOrEqual(4 + 2);
});

test("every query of a request path is answered by an index", async () => {
  const world = await deploy();
  const values: Record<string, unknown> = {
    tokenId: 1,
    incarnation: "x",
    count: 1,
    owner: "0x",
    before: 5,
    limit: 10,
    address: "0x",
    nonce: "n",
  };
  const { insertNonce, ...reads } = statementsOf(openDatabase(world.sql));
  expect(insertNonce.getQuery().sql).toMatch(/^insert/);
  for (const read of Object.values(reads)) {
    const { sql, params } = read.getQuery();
    const plan = await world.rows(`EXPLAIN QUERY PLAN ${sql}`, ...fillPlaceholders(params, values));
    const steps = plan.map((row) => String(row["detail"]));
    expect(steps.length, sql).toBeGreaterThan(0);
    for (const step of steps.filter((one) => !one.startsWith("CORRELATED SCALAR SUBQUERY"))) {
      expect(step, sql).toMatch(/^SEARCH .* USING |^SCAN vms USING COVERING INDEX vms_pending/);
    }
  }
});

test("a payment is found by any of its transactions without a walk through all payments", async () => {
  const world = await deploy();
  const ids = Array.from({ length: 200 }, (_, i) => String(i));
  await world.insert(payments, ...ids.map((id) => paymentRow({ id, settleTx: `0x${id.padStart(64, "0")}` })));
  const bill = await billOf(async () => {
    const unknown = await world.request(`/x402/purchases?tx=0x${"f".repeat(64)}`);
    expect(unknown.status).toBe(404);
  });
  expect(bill.rowsRead).toBeLessThanOrEqual(4);
});

test("the sweep's queries walk no table", async () => {
  const world = await deploy();
  for (const query of [
    "SELECT incarnation FROM vms WHERE wake_at <= 5 ORDER BY wake_at LIMIT 5",
    "SELECT token_id FROM vms WHERE check_at <= 5 AND check_at IS NOT NULL AND current = 1 AND (status = 'running' OR (status = 'provisioning' AND running_at IS NOT NULL)) ORDER BY check_at LIMIT 5",
    "SELECT reason, count(*) FROM payments WHERE state = 'held' GROUP BY reason",
    "SELECT label FROM attempts WHERE label IN ('a', 'b') AND provider = 'vultr'",
    "SELECT instance_id FROM vms WHERE provider = 'vultr' AND instance_id IN ('a', 'b') AND instance_id IS NOT NULL",
    "SELECT incarnation FROM vms WHERE provider = 'vultr' AND instance_id > 'a' AND instance_id IS NOT NULL AND status = 'running' ORDER BY instance_id LIMIT 5",
    "SELECT token_id FROM refunds WHERE state = 'held' AND (token_id, rowid) < (5, 5) ORDER BY token_id DESC, rowid DESC LIMIT 5",
    "SELECT incarnation FROM purchases WHERE orphaned = 1 AND block_number < 5",
    "SELECT token_id FROM transfers WHERE block_number > 5",
    "SELECT incarnation FROM vms WHERE ssh_private_key IS NOT NULL AND delivered_at IS NOT NULL AND delivered_at <= 5",
    "SELECT incarnation FROM vms WHERE ssh_private_key IS NOT NULL AND sealed_at IS NOT NULL AND sealed_at <= 5 AND delivered_at IS NULL",
    "SELECT address FROM nonces WHERE expires_at < 5",
  ]) {
    for (const row of await world.rows(`EXPLAIN QUERY PLAN ${query}`)) {
      if (row["detail"] !== "USE TEMP B-TREE FOR GROUP BY") expect(row["detail"], query).toMatch(/^SEARCH/);
    }
  }
});

test("counters and owners' counts follow every change of the rows they count", async () => {
  const world = await deploy();
  await buy(chain, agent(0), 0, 1);
  await buy(chain, agent(0), 0, 1);
  await world.scan();
  const counter = async (name: string) =>
    (await world.rows("SELECT value FROM counters WHERE name = ?", name))[0]?.["value"];
  expect([await counter("pending"), await counter("published")]).toEqual([2, 0]);
  await world.drain();
  expect([await counter("pending"), await counter("published")]).toEqual([0, 2]);
  await world.sql.prepare("UPDATE vms SET current = 0 WHERE token_id = (SELECT MIN(token_id) FROM vms)").run();
  expect([await counter("pending"), await counter("published")]).toEqual([0, 1]);
  expect(await world.rows("SELECT count FROM owner_counts")).toEqual([{ count: 1 }]);
});
