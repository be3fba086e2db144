// The simulator's D1 (node:sqlite) held to the real one: the same calls on both, the same answers.
import { convertV4MiniflareOptions, Miniflare } from "miniflare";
import { afterAll, beforeAll, expect, test } from "vitest";
import { openDatabase } from "../../src/db/client.ts";
import { vms } from "../../src/db/schema.ts";
import { isFenced, loadVm, takeLease } from "../../src/db/vms.ts";
import { insertion, machineRow } from "../rows.ts";
import { createDatabase, StandInD1 } from "../sim/d1.ts";
import { readMigrations } from "../world/migrations.ts";

type Case = (database: D1Database) => Promise<unknown>;

const insert = (database: D1Database, tokenId: number) => {
  const { sql, json } = insertion(vms, [machineRow({ tokenId, incarnation: `vm-${tokenId}` })]);
  return database.prepare(sql).bind(json);
};

/** What a failure looks like to code that reads its message. */
const failed = async (work: Promise<unknown>): Promise<unknown> =>
  work.then(
    () => "did not fail",
    (error: Error) => [error.message, (error.cause as Error | undefined)?.message],
  );

const CASES: Record<string, Case> = {
  "rows come as objects, in the order asked for": async (database) => {
    await insert(database, 1).run();
    await insert(database, 2).run();
    return (await database.prepare("SELECT token_id, owner FROM vms ORDER BY token_id DESC").all()).results;
  },
  "raw rows keep columns of one name apart": async (database) => {
    await insert(database, 1).run();
    return database.prepare("SELECT a.token_id, b.token_id, a.owner FROM vms a JOIN vms b USING (incarnation)").raw();
  },
  "first: a row, a column, or null": async (database) => {
    await insert(database, 1).run();
    const statement = database.prepare("SELECT token_id, owner FROM vms WHERE token_id = ?");
    return [await statement.bind(1).first(), await statement.bind(1).first("owner"), await statement.bind(7).first()];
  },
  "changes count the rows that a statement changed": async (database) => {
    const counts: number[] = [];
    const count = async (sql: string) => counts.push((await database.prepare(sql).run()).meta.changes);
    await insert(database, 1).run();
    await insert(database, 2).run();
    await count("UPDATE vms SET attempt = 1");
    await count("UPDATE vms SET attempt = 2 WHERE token_id = 7");
    await count("DELETE FROM vms WHERE token_id = 1");
    await count("INSERT INTO nonces (address, nonce, expires_at) VALUES ('a', 'n', 1)");
    await count("INSERT INTO nonces (address, nonce, expires_at) VALUES ('a', 'n', 1) ON CONFLICT DO NOTHING");
    return counts;
  },
  "returning gives the changed rows": async (database) => {
    await insert(database, 1).run();
    const statement = database.prepare(
      "UPDATE vms SET generation = generation + ? WHERE token_id = ? RETURNING incarnation, generation",
    );
    return [(await statement.bind(2, 1).all()).results, (await statement.bind(2, 9).run()).results];
  },
  "triggers keep the counters": async (database) => {
    await insert(database, 1).run();
    await insert(database, 2).run();
    await database.prepare("UPDATE vms SET status = 'running' WHERE token_id = 1").run();
    const counters = await database.prepare("SELECT * FROM counters ORDER BY name").all();
    const owners = await database.prepare("SELECT * FROM owner_counts").all();
    return [counters.results, owners.results];
  },
  "a batch is all or nothing": async (database) => {
    const why = await failed(database.batch([insert(database, 1), insert(database, 2), insert(database, 1)]));
    return [why, (await database.prepare("SELECT count(*) AS rows FROM vms").first("rows")) as number];
  },
  "a batch gives each statement's rows and changes": async (database) => {
    const results = await database.batch([
      insert(database, 1),
      database.prepare("UPDATE vms SET attempt = 5 WHERE token_id = 1"),
      database.prepare("SELECT attempt FROM vms"),
    ]);
    return [results[1]?.meta.changes, results[2]?.results];
  },
  "constraints name table and column": async (database) => {
    await insert(database, 1).run();
    const lease = database.prepare("UPDATE vms SET lease = NULL");
    return [await failed(lease.run()), await failed(insert(database, 1).run())];
  },
  "types of bound values": async (database) => {
    const statement = database.prepare(
      "SELECT typeof(?1) AS whole, typeof(?2) AS fraction, typeof(?3) AS text, typeof(?4) AS none, typeof(?5) AS truth, ?5 AS value",
    );
    return statement.bind(5, 0.5, "a", null, true).first();
  },
  "whole numbers up to 2^53 come back as they went in": async (database) =>
    database.prepare("SELECT ? AS large, 1700000000000 AS time, -3 AS below").bind(Number.MAX_SAFE_INTEGER).first(),
  "undefined and bigint are refused": async (database) => [
    (await failed((async () => database.prepare("SELECT ?").bind(undefined).run())())) !== "did not fail",
    (await failed((async () => database.prepare("SELECT ?").bind(1n).run())())) !== "did not fail",
  ],
  "one parameter of JSON is many rows": async (database) => {
    const rows = JSON.stringify([
      { id: 1, name: "a" },
      { id: 2, name: null },
    ]);
    return (
      await database
        .prepare("SELECT value->>'id' AS id, typeof(value->>'id') AS type, value->>'name' AS name FROM json_each(?)")
        .bind(rows)
        .all()
    ).results;
  },
  "a statement may be run again, with other values": async (database) => {
    const statement = database.prepare("SELECT ? + 1 AS next");
    return [await statement.bind(1).first("next"), await statement.bind(2).first("next")];
  },
  "more than a hundred parameters are refused": async (database) => {
    const places = Array.from({ length: 101 }, () => "?").join(", ");
    const values = Array.from({ length: 101 }, (_, i) => i);
    return (
      (await failed(
        (async () =>
          database
            .prepare(`SELECT ${places}`)
            .bind(...values)
            .run())(),
      )) !== "did not fail"
    );
  },
  "the product's own fences and leases": async (database) => {
    const db = openDatabase(database);
    await insert(database, 1).run();
    const vm = await loadVm(db, "vm-1");
    if (vm === null) return "no row";
    const leases = [await takeLease(db, vm, "mine", 100, 50), await takeLease(db, vm, "yours", 100, 50)];
    const fence = database.prepare("UPDATE vms SET lease = CASE WHEN lease = 'yours' THEN lease END");
    const error = await fence.run().then(
      () => null,
      (cause: unknown) => cause,
    );
    return [leases, isFenced(error), vm];
  },
};

const migrations = readMigrations();
let real: Miniflare;
beforeAll(async () => {
  const options = convertV4MiniflareOptions({
    modules: true,
    script: "export default { fetch: () => new Response() };",
    d1Databases: Object.fromEntries(Object.keys(CASES).map((_, i) => [`DB${i}`, `db-${i}`])),
  });
  real = new Miniflare(options);
  await real.ready;
});
afterAll(() => real.dispose());

test.each(Object.keys(CASES).map((name, i) => [name, i] as const))("%s", async (name, i) => {
  const database = await real.getD1Database(`DB${i}`);
  await database.batch(migrations.flatMap(({ queries }) => queries).map((query) => database.prepare(query)));
  const run = CASES[name];
  const standIn = new StandInD1(createDatabase()) as unknown as D1Database;
  expect(await run?.(standIn)).toEqual(await run?.(database as unknown as D1Database));
});
