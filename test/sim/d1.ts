// D1's interface over node:sqlite. A test holds it to the real one (test/e2e/d1-stand-in.test.ts).
import { DatabaseSync, type SQLInputValue, type StatementSync } from "node:sqlite";
import { readMigrations } from "../world/migrations.ts";

type Row = Record<string, unknown>;
type Cross = <T>(what: string, statements: number, effect: () => T) => Promise<T>;
type Prepared = { statement: StatementSync; hasRows: boolean };
type Result = { success: true; results: Row[]; meta: { changes: number; last_row_id: number } };

const MAX_PARAMETERS = 100;

/** An empty database in memory, migrated. */
export function createDatabase(): DatabaseSync {
  const database = new DatabaseSync(":memory:");
  for (const { queries } of readMigrations()) for (const query of queries) database.exec(query);
  return database;
}

export class StandInD1 {
  readonly #database: DatabaseSync;
  readonly #cross: Cross;
  readonly #objects = new Map<string, Prepared>();
  readonly #arrays = new Map<string, Prepared>();
  readonly #changes: StatementSync;

  constructor(database: DatabaseSync, cross: Cross = async (_what, _statements, effect) => effect()) {
    this.#database = database;
    this.#changes = database.prepare("SELECT changes() AS changes");
    this.#cross = cross;
  }

  prepare(sql: string): StandInStatement {
    return new StandInStatement(this, sql, []);
  }

  /** All or nothing. */
  batch(statements: readonly StandInStatement[]): Promise<Result[]> {
    return this.#cross("a D1 batch", statements.length, () => {
      this.#database.exec("SAVEPOINT batch");
      try {
        const results = statements.map((statement) => this.execute(statement));
        this.#database.exec("RELEASE batch");
        return results;
      } catch (error) {
        this.#database.exec("ROLLBACK TO batch; RELEASE batch");
        throw error;
      }
    });
  }

  single<T>(statement: StandInStatement, read: (statement: StandInStatement) => T): Promise<T> {
    return this.#cross("a D1 statement", 1, () => read(statement));
  }

  execute({ sql, values }: StandInStatement): Result {
    try {
      const { text, rest } = settled(sql, values);
      const { statement, hasRows } = this.#prepare(text, false);
      if (hasRows) {
        const results = statement.all(...rest) as Row[];
        const { changes } = this.#changes.get() as { changes: number };
        return { success: true, results: results.map((row) => ({ ...row })), meta: { changes, last_row_id: 0 } };
      }
      const { changes, lastInsertRowid } = statement.run(...rest);
      const meta = { changes: Number(changes), last_row_id: Number(lastInsertRowid) };
      return { success: true, results: [], meta };
    } catch (error) {
      throw asD1(error);
    }
  }

  rows({ sql, values }: StandInStatement): unknown[][] {
    try {
      const { text, rest } = settled(sql, values);
      return this.#prepare(text, true).statement.all(...rest) as unknown as unknown[][];
    } catch (error) {
      throw asD1(error);
    }
  }

  #prepare(sql: string, asArrays: boolean): Prepared {
    const all = asArrays ? this.#arrays : this.#objects;
    const known = all.get(sql);
    if (known !== undefined) return known;
    const statement = this.#database.prepare(sql);
    statement.setReturnArrays(asArrays);
    const prepared = { statement, hasRows: statement.columns().length > 0 };
    all.set(sql, prepared);
    return prepared;
  }
}

export class StandInStatement {
  readonly sql: string;
  readonly values: SQLInputValue[];
  readonly #d1: StandInD1;

  constructor(d1: StandInD1, sql: string, values: SQLInputValue[]) {
    this.#d1 = d1;
    this.sql = sql;
    this.values = values;
  }

  bind(...values: unknown[]): StandInStatement {
    if (values.length > MAX_PARAMETERS) throw new Error("D1_ERROR: too many SQL variables: SQLITE_ERROR");
    return new StandInStatement(this.#d1, this.sql, values.map(toBindable));
  }

  run = (): Promise<Result> => this.#d1.single(this, (one) => this.#d1.execute(one));
  all = this.run;
  raw = (): Promise<unknown[][]> => this.#d1.single(this, (one) => this.#d1.rows(one));

  async first<T>(column?: string): Promise<T | null> {
    const row = (await this.run()).results[0];
    if (row === undefined) return null;
    return (column === undefined ? row : row[column]) as T;
  }
}

/** Words that the product uses, like a state. */
const WORD = /^[a-z_]{1,20}$/;
const isPlain = (value: SQLInputValue, before: string): boolean =>
  typeof value === "string"
    ? WORD.test(value)
    : value === 1 || value === 0 || (Number.isInteger(value) && /\blimit $/i.test(before));

/** The text around each parameter; null where they are numbered, or where a question mark may be something else. */
const pieces = new Map<string, readonly string[] | null>();
function piecesOf(sql: string): readonly string[] | null {
  const known = pieces.get(sql);
  if (known !== undefined) return known;
  const split = /\?\d|'[^']*\?[^']*'/.test(sql) ? null : sql.split("?");
  pieces.set(sql, split);
  return split;
}

/**
 * A statement with its words, ones, zeros and limits in its text. Where one of these is a parameter, SQLite plans the
 * statement anew each time that it is bound, since its plan depends on the value: that takes longer than running it.
 */
function settled(sql: string, values: readonly SQLInputValue[]): { text: string; rest: readonly SQLInputValue[] } {
  const around = values.length === 0 ? null : piecesOf(sql);
  if (around === null || around.length !== values.length + 1) return { text: sql, rest: values };
  const rest: SQLInputValue[] = [];
  let text = "";
  for (const [i, value] of values.entries()) {
    const before = around[i] ?? "";
    text += before;
    if (isPlain(value, before)) text += typeof value === "string" ? `'${value}'` : value;
    else {
      text += "?";
      rest.push(value);
    }
  }
  text += around.at(-1);
  return { text, rest };
}

function toBindable(value: unknown): SQLInputValue {
  if (value === null || typeof value === "string" || typeof value === "number") return value;
  if (typeof value === "boolean") return value ? 1 : 0;
  throw new Error(`D1_TYPE_ERROR: Type '${typeof value}' not supported for value '${String(value)}'`);
}

/** Extended result codes (sqlite.org/rescode.html) that our statements meet. */
const EXTENDED: Readonly<Record<number, string>> = {
  1299: "SQLITE_CONSTRAINT_NOTNULL",
  1555: "SQLITE_CONSTRAINT_PRIMARYKEY",
  2067: "SQLITE_CONSTRAINT_UNIQUE",
};

/** In the words of D1. */
function asD1(error: unknown): Error {
  const { message, errcode = 0 } = error as Error & { errcode?: number };
  const extended = EXTENDED[errcode];
  const code = extended === undefined ? "SQLITE_ERROR" : `SQLITE_CONSTRAINT (extended: ${extended})`;
  return new Error(`D1_ERROR: ${message}: ${code}`, { cause: new Error(`${message}: ${code}`) });
}
