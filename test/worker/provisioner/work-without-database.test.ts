// Background work while D1 fails, loses answers and stalls: what passes by itself uses up no message, and what does not is
// heard of (hard case 46); an invocation ends before it has used up what D1 takes from one (hard case 54).
import { createExecutionContext, createMessageBatch, getQueueResult, runInDurableObject } from "cloudflare:test";
import { afterEach, beforeEach, expect, test, vi } from "vitest";
import type { OperatorWallet } from "../../../durable-objects/operator-wallet.ts";
import {
  BACKGROUND_LIMIT_MS,
  inBackground,
  MAX_STATEMENTS,
  openDatabase,
  statementsLeft,
} from "../../../src/db/client.ts";
import { pollChain } from "../../../src/edge/cron.ts";
import { isTransient } from "../../../src/errors.ts";
import { sendLogs } from "../../../src/log.ts";
import type { Job } from "../../../src/model/jobs.ts";
import provisioner from "../../../src/provisioner/index.ts";
import { reap as reapTurn } from "../../../src/provisioner/machines/reap.ts";
import { buy } from "../../world/agent.ts";
import { Weather, weatheredDatabase } from "../../world/bad-day.ts";
import { agent, chain } from "../chain.ts";
import { type Deployment, deploy } from "../deployment.ts";
import { meterDatabase } from "../meter.ts";
import { configureWallet } from "../wallet-object.ts";

let world: Deployment;
beforeEach(async () => {
  world = await deploy();
});
afterEach(() => {
  vi.useRealTimers();
  vi.restoreAllMocks();
});

const messageOf = (body: unknown) => ({ id: crypto.randomUUID(), timestamp: new Date(), attempts: 1, body });

/** What the queue handler makes of a batch. */
async function take(bodies: readonly unknown[], queue = "clawcloud-jobs") {
  const batch = createMessageBatch(queue, bodies.map(messageOf));
  const context = createExecutionContext();
  await provisioner.queue(batch as never, world.provisionerVariables as never, context);
  const { explicitAcks, retryMessages, retryBatch } = await getQueueResult(batch, context);
  return { acks: explicitAcks.length, retries: retryMessages.length, retriesAll: retryBatch.retry };
}

/** The events that some work logs, without those of debugging. */
async function eventsOf(work: () => Promise<unknown>): Promise<string[]> {
  await sendLogs(world.edge.LOG_BOOK);
  const lines: { level: string; event: string }[] = [];
  for (const method of ["log", "warn", "error"] as const) {
    vi.spyOn(console, method).mockImplementation((text: string) => {
      for (const line of text.split("\n")) lines.push(JSON.parse(line) as never);
    });
  }
  await work();
  await sendLogs(world.edge.LOG_BOOK);
  return lines.map(({ level, event }) => `${level} ${event}`);
}

async function firstJob(): Promise<{ tokenId: number; job: Job }> {
  const { tokenId } = await buy(chain, agent(0), 0, 1);
  await world.scan();
  const job = world.sent.shift()?.body;
  if (job === undefined) throw new Error("no job was queued");
  return { tokenId, job };
}

test("a message that meets a database that does not answer is sent anew, later, and keeps its tries", async () => {
  const { tokenId, job } = await firstJob();
  // The first statement of the batch, of the message, and some within its step.
  for (const after of [0, 1, 2, 3, 5]) {
    for (const kind of ["fails", "loses"] as const) {
      await world.sql.prepare("UPDATE vms SET lease = '', lease_until = 0").run();
      world.sent.length = 0;
      world.weather.set({ kind, after });
      const events = await eventsOf(async () => {
        expect(await take([job])).toEqual({ acks: 1, retries: 0, retriesAll: false });
      });
      world.weather.set(null);
      expect(world.sent, `${kind} after ${after}`).toEqual([{ body: job, delaySeconds: expect.any(Number) }]);
      expect(world.sent[0]?.delaySeconds).toBeGreaterThanOrEqual(10);
      expect(events.filter((event) => event.startsWith("page"))).toEqual([]);
    }
  }
  await world.sql.prepare("UPDATE vms SET lease = '', lease_until = 0").run();
  // An attempt may have been begun: what became of it shows once the vendor has had its time.
  world.passTime(60);
  await world.drain();
  expect(await world.vm(tokenId)).toMatchObject({ status: "running" });
});

test("a stall is given up in time, and its message sent anew", async () => {
  const { job } = await firstJob();
  vi.useFakeTimers({ toFake: ["setTimeout", "clearTimeout", "Date"], shouldAdvanceTime: true });
  world.weather.set({ kind: "stalls" });
  const taken = take([job]);
  await vi.advanceTimersByTimeAsync(2 * BACKGROUND_LIMIT_MS);
  expect(await taken).toEqual({ acks: 1, retries: 0, retriesAll: false });
  world.weather.set(null);
  expect(world.sent.map(({ body }) => body)).toEqual([job]);
});

test("where the queue takes no message either, the one that failed comes back", async () => {
  const { job } = await firstJob();
  const { JOBS } = world.provisionerVariables;
  vi.spyOn(JOBS, "send").mockRejectedValue(new Error("the queue is overloaded"));
  world.weather.set({ kind: "fails" });
  const taken = await take([job]);
  world.weather.set(null);
  expect(taken).toEqual({ acks: 0, retries: 1, retriesAll: false });
});

test("a dead letter comes back while its row can't be woken, and nobody is paged for the database", async () => {
  const { job } = await firstJob();
  world.weather.set({ kind: "fails" });
  const events = await eventsOf(async () => {
    expect(await take([job], "clawcloud-jobs-dead")).toEqual({ acks: 0, retries: 1, retriesAll: false });
  });
  world.weather.set(null);
  expect(events).toEqual(["warn dead_job_put_off"]);
});

test("what D1 refuses pages a person, from the queue, the sweep and the scan", async () => {
  const { job } = await firstJob();
  const fault = { kind: "fails", message: "D1_ERROR: Exceeded maximum DB size." } as const;
  world.weather.set({ ...fault, after: 1 });
  const refused = await eventsOf(async () => {
    expect(await take([job])).toEqual({ acks: 0, retries: 1, retriesAll: false });
  });
  expect(refused).toContain("page job_failed");
  world.weather.set(fault);
  expect(await eventsOf(() => pollChain({ ...world.edge, SCAN_RUN_SECONDS: 1 }))).toContain("page scan_pass_failed");
  world.weather.set(null);
});

test("the cron outlives a database that does not answer, at its first statement and at its last", async () => {
  const { tokenId } = await buy(chain, agent(1), 0, 1);
  const edge = { ...world.edge, SCAN_RUN_SECONDS: 1, SCAN_INTERVAL_MS: 100 };
  world.weather.set({ kind: "fails" });
  const events = await eventsOf(() => pollChain(edge));
  world.weather.set(null);
  expect(new Set(events)).toEqual(
    new Set(["error data_keys_not_published", "error scan_pass_failed", "warn scan_lease_kept"]),
  );
  await pollChain(edge);
  expect(await world.vm(tokenId)).toMatchObject({ status: "provisioning" });
  expect(world.sent.map(({ body }) => body.kind)).toContain("advance");
});

test("the scan's rows and cursor are there, and its machine is made, where the answer to their batch is lost", async () => {
  const { tokenId } = await buy(chain, agent(1), 0, 1);
  const edge = { ...world.edge, SCAN_RUN_SECONDS: 1, SCAN_INTERVAL_MS: 100, SWEEP_INTERVAL_SECONDS: 3_600 };
  await world.sql.prepare("UPDATE cursors SET swept_at = ?").bind(Date.now()).run();
  for (let after = 3; world.sent.length === 0 && after < 12; after++) {
    world.weather.set({ kind: "loses", after, times: 1 });
    await pollChain(edge);
  }
  world.weather.set(null);
  await world.sweep(Date.now() + 120_000);
  await world.drain();
  expect(await world.vm(tokenId)).toMatchObject({ status: "running" });
  expect(await world.rows("SELECT count(*) AS n FROM vms")).toEqual([{ n: 1 }]);
});

test("the operator wallet lets nothing out while it can't ask whether payouts are paused, and says that this passes", async () => {
  const weather = new Weather();
  await configureWallet(world.wallet, { DB: weatheredDatabase(world.sql, weather) });
  weather.set({ kind: "fails" });
  const order = { kind: "pay", id: "refund/test", to: agent(0).address, amount: "1", owed: { purchase: "nobody's" } };
  const error = await runInDurableObject(world.wallet, (wallet: OperatorWallet) =>
    wallet.order(order as never).then(
      () => null,
      (reason: Error) => reason,
    ),
  );
  // On its way out it loses its class and its cause.
  expect(isTransient(new Error(error?.message))).toBe(true);
  expect(await runInDurableObject(world.wallet, (_wallet, { storage }) => storage.getAlarm())).toBeNull();
});

/** Counts D1's statements as it would. */
async function countStatements(work: () => Promise<unknown>): Promise<number> {
  let statements = 0;
  const stop = meterDatabase(world.sql, (trip) => {
    statements += trip.statements;
  });
  try {
    await work();
    return statements;
  } finally {
    stop();
  }
}

test("a cron that catches up ends well below a thousand statements, with what it has read stored (hard case 54)", async () => {
  await chain.mine(200);
  const edge = { ...world.edge, SCAN_RUN_SECONDS: 10, SCAN_MAX_RANGE: 1, SWEEP_INTERVAL_SECONDS: 1 };
  await world.sql.prepare("UPDATE cursors SET range = 1").run();
  const scanned = async () => (await world.rows("SELECT block_number FROM cursors"))[0]?.["block_number"] as number;
  const before = await scanned();
  // As if each pass had found as much as passes do that find many sales of many kinds.
  const { $client } = openDatabase(world.edge.DB);
  const findMuch = () => void $client.batch(Array.from({ length: 100 }, () => $client.prepare("SELECT 1")));
  const statements = await countStatements(() => pollChain(edge, findMuch));
  expect(statements).toBeGreaterThan(MAX_STATEMENTS / 3);
  expect(statements).toBeLessThanOrEqual(MAX_STATEMENTS);
  expect(await scanned()).toBeGreaterThan(before);
  expect(await world.rows("SELECT lease FROM cursors")).toEqual([{ lease: "" }]);
});

test("a consumer whose statements are used up leaves the rest to new messages (hard case 54)", async () => {
  const { job } = await firstJob();
  const reap = { kind: "reap", vendor: "vultr", after: "x" } as const;
  await world.sql
    .prepare("UPDATE vms SET status = 'running', provider = 'vultr', instance_id = 'y', step = 'idle', running_at = 1")
    .run();
  await inBackground(async () => {
    const { db } = world.context;
    while (statementsLeft() > 150)
      await db.$client.batch(Array.from({ length: 50 }, () => db.$client.prepare("SELECT 1")));
    world.sent.length = 0;
    await world.run(job);
    expect(world.sent).toEqual([{ body: job, delaySeconds: 0 }]);
    await reapTurn(world.context, reap);
    expect(world.sent.at(-1)?.body).toEqual(reap);
  });
});
