// The migrations as D1's server takes them, which no local tool does (hard case 48).
import { DatabaseSync } from "node:sqlite";
import { expect, test } from "vitest";
import { readMigrations, splitAsServer } from "../world/migrations.ts";

const schemaOf = (database: DatabaseSync) =>
  database.prepare("SELECT type, name, sql FROM sqlite_master ORDER BY name").all();

test("a second try of a file that was applied in part ends as the first one would have", () => {
  for (const [i, { name, queries }] of readMigrations().entries()) {
    // One statement is applied whole, and noted with it, or not at all.
    const most = queries.length === 1 ? 0 : queries.length;
    for (let applied = 0; applied <= most; applied++) {
      const [once, again] = [new DatabaseSync(":memory:"), new DatabaseSync(":memory:")];
      for (const database of [once, again])
        for (const earlier of readMigrations().slice(0, i)) for (const query of earlier.queries) database.exec(query);
      for (const query of queries) once.exec(query);
      for (const query of [...queries.slice(0, applied), ...queries]) {
        expect(() => again.exec(query), `${name}: ${query}`).not.toThrow();
      }
      expect(schemaOf(again)).toEqual(schemaOf(once));
    }
  }
});

test("the END of a bare CASE in a trigger ends the trigger: the migration of the counters was half applied", () => {
  const trigger = (value: string) =>
    `CREATE TRIGGER t AFTER INSERT ON a BEGIN UPDATE a SET b = ${value}; UPDATE a SET b = 2; END;`;
  const database = new DatabaseSync(":memory:");
  database.exec("CREATE TABLE a (b)");
  const [bare = "", ...rest] = splitAsServer(trigger("CASE b WHEN 1 THEN 2 END"));
  expect(rest).toHaveLength(2);
  expect(() => database.exec(bare)).toThrow("incomplete input");
  const [whole = "", ...none] = splitAsServer(trigger("(CASE b WHEN 1 THEN 2 END)"));
  expect(none).toEqual([]);
  database.exec(whole);
});

test("comments, quoted text and parentheses hold what they hold", () => {
  const sql =
    "-- a; b\nINSERT INTO t VALUES ('x;''y', \"z;\"); /* c; */ SELECT (1);\n--> statement-breakpoint\nSELECT `d;`";
  expect(splitAsServer(sql)).toEqual(["INSERT INTO t VALUES ('x;''y', \"z;\")", "/* c; */ SELECT (1)", "SELECT `d;`"]);
});
