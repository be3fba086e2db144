import { env } from "cloudflare:workers";
import { sql } from "drizzle-orm";
import { beforeEach, expect, test, vi } from "vitest";
import {
  BACKGROUND_LIMIT_MS,
  type Database,
  hasRoom,
  inBackground,
  MAX_STATEMENTS,
  openDatabase,
  runBatch,
  STATEMENT_LIMIT_MS,
  statementsLeft,
} from "../../../src/db/client.ts";
import { isDatabaseRefusal, isDatabaseUnavailable, isTransient } from "../../../src/errors.ts";
import { type BadDay, Weather, weatheredDatabase } from "../../world/bad-day.ts";

const binding = (env as unknown as { DB: D1Database }).DB;
const READ = sql`SELECT 1 AS one`;
const WRITE = sql`INSERT INTO ledger VALUES (1)`;
let weather: Weather;
let db: Database;

beforeEach(async () => {
  await binding.batch(["DROP TABLE IF EXISTS ledger", "CREATE TABLE ledger (x)"].map((text) => binding.prepare(text)));
  weather = new Weather();
  db = openDatabase(weatheredDatabase(binding, weather));
});

const written = async () => (await binding.prepare("SELECT count(*) AS n FROM ledger").first("n")) as number;
/** The error of some work. */
const errorOf = (work: Promise<unknown>): Promise<unknown> =>
  work.then(
    () => "no error",
    (error: unknown) => error,
  );
/** What becomes of work on a bad day, and how many round trips it made. */
async function under(day: BadDay, work: () => Promise<unknown>) {
  weather.set(day);
  const error = await errorOf(work());
  const { calls } = weather;
  weather.set(null);
  return { error, calls };
}

test("a read that fails once is made once more, alone and in a batch, and not a third time", async () => {
  for (const kind of ["fails", "loses"] as const) {
    for (const read of [() => db.all(READ), () => runBatch(db, [READ, sql`WITH a AS (SELECT 1) SELECT * FROM a`])]) {
      expect(await under({ kind, times: 1 }, read)).toEqual({ error: "no error", calls: 2 });
      const twice = await under({ kind, times: 2 }, read);
      expect(twice.calls).toBe(2);
      expect(isDatabaseUnavailable(twice.error)).toBe(true);
    }
  }
});

test("a write is made once, since it may have happened, and so is a batch with one", async () => {
  const writes = [() => db.run(WRITE), () => runBatch(db, [READ, WRITE])];
  for (const write of writes) {
    const failed = await under({ kind: "fails", times: 1 }, write);
    expect([isDatabaseUnavailable(failed.error), failed.calls]).toEqual([true, 1]);
  }
  expect(await written()).toBe(0);
  for (const write of writes) {
    const lost = await under({ kind: "loses", times: 1 }, write);
    expect([isDatabaseUnavailable(lost.error), lost.calls]).toEqual([true, 1]);
  }
  expect(await written()).toBe(2);
});

test("a statement that stalls holds nobody for longer than its limit", async () => {
  vi.useFakeTimers({ toFake: ["setTimeout", "clearTimeout", "Date"] });
  try {
    for (const [limit, run] of [
      [STATEMENT_LIMIT_MS, <T>(work: () => T): T => work()],
      [BACKGROUND_LIMIT_MS, inBackground],
    ] as const) {
      for (const work of [() => db.all(READ), () => db.run(WRITE), () => runBatch(db, [READ])]) {
        weather.set({ kind: "stalls" });
        let ended: unknown;
        run(() => errorOf(work())).then((error) => {
          ended = error;
        });
        await vi.advanceTimersByTimeAsync(limit - 1);
        expect(ended).toBeUndefined();
        await vi.advanceTimersByTimeAsync(1);
        expect(isDatabaseUnavailable(ended)).toBe(true);
      }
    }
    expect(vi.getTimerCount()).toBe(0);
  } finally {
    vi.useRealTimers();
    weather.set(null);
  }
});

test.each([
  "D1_ERROR: Network connection lost.",
  "Network connection lost.",
  "D1_ERROR: D1 DB storage operation exceeded timeout which caused object to be reset.",
  "D1_ERROR: D1 DB reset because its code was updated.",
  "D1_ERROR: Internal error while starting up D1 DB storage caused object to be reset.",
  "D1_ERROR: Internal error in D1 DB storage caused object to be reset.",
  "D1_ERROR: Cannot resolve D1 DB due to transient issue on remote node.",
  "D1_ERROR: D1 DB is overloaded. Requests queued for too long.",
  "D1_ERROR: D1 DB is overloaded. Too many requests queued.",
  "D1_ERROR: internal error; reference = 0123456789",
  "D1_ERROR: Failed to parse body as JSON, got: error code: 1031",
  // A back-up, for as long as it takes: nothing is answered meanwhile.
  "D1_ERROR: Currently processing a long-running export.",
  "D1_ERROR: Currently processing a long-running import.",
  "D1_ERROR: database is locked: SQLITE_BUSY",
  "D1_ERROR: database table is locked: SQLITE_LOCKED",
])("%s passes by itself", async (message) => {
  for (const work of [() => db.all(READ), () => db.run(WRITE), () => runBatch(db, [WRITE])]) {
    const { error } = await under({ kind: "fails", message }, work);
    expect([isDatabaseUnavailable(error), isTransient(error), isDatabaseRefusal(error)]).toEqual([true, true, false]);
  }
});

test("what D1 refuses is no failure that passes, is not made again, and keeps its own words", async () => {
  const refusals = [
    ["D1_ERROR: no such table: nowhere: SQLITE_ERROR", true],
    ["D1_ERROR: D1 DB exceeded its CPU time limit and was reset.", true],
    ["D1_ERROR: D1 DB's isolate exceeded its memory limit and was reset.", true],
    ["D1_ERROR: Exceeded maximum DB size.", true],
    ["D1_TYPE_ERROR: Type 'undefined' not supported for value 'undefined'", true],
    ["D1_ERROR: UNIQUE constraint failed: vms.incarnation: SQLITE_CONSTRAINT", false],
  ] as const;
  for (const [message, isRefusal] of refusals) {
    const { error, calls } = await under({ kind: "fails", message }, () => runBatch(db, [READ]));
    expect([isTransient(error), isDatabaseRefusal(error), calls]).toEqual([false, isRefusal, 1]);
    expect((error as Error).message).toBe(message);
  }
  expect(isDatabaseRefusal(await errorOf(db.all(sql`SELECT * FROM nowhere`)))).toBe(true);
});

test("an object's failure passes by itself where the runtime says so, or where its own database did not answer", () => {
  expect(isTransient(Object.assign(new Error("x"), { retryable: true }))).toBe(true);
  expect(isTransient(Object.assign(new Error("x"), { overloaded: true }))).toBe(true);
  expect(isTransient(new Error("DatabaseUnavailable: D1 did not answer in time."))).toBe(true);
  expect(isTransient(new Error("the vendor has an internal error"))).toBe(false);
  expect(isTransient("internal error")).toBe(false);
});

test("statements of an invocation are counted, each of a batch and each try, and stop well below a thousand (hard case 54)", async () => {
  expect(MAX_STATEMENTS).toBeLessThan(1_000);
  await inBackground(async () => {
    await db.all(READ);
    await runBatch(db, [READ, READ, READ]);
    expect(MAX_STATEMENTS - statementsLeft()).toBe(4);
    await under({ kind: "fails", times: 1 }, () => db.all(READ));
    expect(MAX_STATEMENTS - statementsLeft()).toBe(6);
    // An invocation beside it has its own count.
    await inBackground(async () => expect(statementsLeft()).toBe(MAX_STATEMENTS));
    for (let left = statementsLeft(); left > 0; left = statementsLeft()) {
      if (left === 500) expect(hasRoom()).toBe(true);
      await runBatch(
        db,
        Array.from({ length: Math.min(left, 97) }, () => READ),
      );
    }
    expect(hasRoom()).toBe(false);
    weather.set(null);
    const refused = await errorOf(db.all(READ));
    expect([isTransient(refused), weather.calls]).toEqual([true, 0]);
  });
  expect(hasRoom()).toBe(true);
  await db.all(READ);
});
