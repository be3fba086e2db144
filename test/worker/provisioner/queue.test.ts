import { createExecutionContext, createMessageBatch, getQueueResult } from "cloudflare:test";
import { expect, test, vi } from "vitest";
import { hasRoom, inBackground } from "../../../src/db/client.ts";
import { loadVm } from "../../../src/db/vms.ts";
import { sendLogs } from "../../../src/log.ts";
import { isJob } from "../../../src/model/jobs.ts";
import { consume, consumeDead } from "../../../src/provisioner/consume.ts";
import provisioner from "../../../src/provisioner/index.ts";
import { followMachine } from "../../../src/provisioner/machines/run.ts";
import { buy } from "../../world/agent.ts";
import { agent, chain } from "../chain.ts";
import { type Deployment, deploy } from "../deployment.ts";
import { addFault, addRpcFault } from "../faults.ts";
import { billOf } from "../meter.ts";

async function bootingMachine(world: Deployment) {
  await addFault("vultr", { call: "create", kind: "never_boots" });
  const { tokenId } = await buy(chain, agent(0), 0, 1);
  await world.scan();
  await world.drain(async () => (await world.vm(tokenId))?.["step"] === "boot");
  const message = world.sent.shift();
  if (message?.body.kind !== "advance") throw new Error("no poll was queued");
  world.sent.length = 0;
  return { tokenId, job: message.body };
}
const messageOf = (body: unknown, attempts = 1) => ({ id: crypto.randomUUID(), timestamp: new Date(), attempts, body });

async function settle(world: Deployment, body: unknown, handler = consume) {
  const batch = createMessageBatch("clawcloud-jobs", [messageOf(body)]);
  const [message] = batch.messages;
  if (message === undefined) throw new Error("the batch is empty");
  await handler(world.context, message);
  const result = await getQueueResult(batch, createExecutionContext());
  return { acks: result.explicitAcks.length, retries: result.retryMessages };
}

test("a poll writes nothing, takes no lease, and is a new delayed message, not a retry (hard case 11)", async () => {
  const world = await deploy();
  const { tokenId, job } = await bootingMachine(world);
  const before = await world.vm(tokenId);
  let result: Awaited<ReturnType<typeof settle>> | undefined;
  const bill = await billOf(async () => {
    result = await settle(world, job);
  });
  expect(bill.rowsWritten).toBe(0);
  expect(await world.vm(tokenId)).toEqual(before);
  expect(result).toEqual({ acks: 1, retries: [] });
  expect(world.sent).toEqual([{ body: { ...job, seen: true }, delaySeconds: 1 }]);
});

test("a message that finds no room for its step says on what it knows of the machine (hard cases 49 and 54)", async () => {
  const world = await deploy();
  const { job } = await bootingMachine(world);
  await inBackground(async () => {
    while (hasRoom()) await loadVm(world.context.db, job.incarnation);
    await followMachine(world.context, { ...job, seen: true });
  });
  expect(world.sent).toEqual([{ body: { ...job, seen: true }, delaySeconds: 0 }]);
});

test("a message of another generation than the row's is acknowledged and dropped (hard case 11)", async () => {
  const world = await deploy();
  const { tokenId, job } = await bootingMachine(world);
  const before = await world.vm(tokenId);
  expect(await settle(world, { ...job, generation: job.generation - 1 })).toEqual({ acks: 1, retries: [] });
  expect(world.sent).toEqual([]);
  expect(await world.vm(tokenId)).toEqual(before);
});

test("the sweep sends a row whose message was lost, and what was lost is stale if it comes after all (hard case 11)", async () => {
  const world = await deploy();
  const { tokenId, job } = await bootingMachine(world);
  await world.sweep(Date.now() + 200_000);
  const resent = world.sent.flatMap(({ body }) => (body.kind === "advance" ? [body] : []));
  expect(resent).toEqual([{ ...job, generation: job.generation + 1 }]);
  expect(await world.vm(tokenId)).toMatchObject({ generation: job.generation + 1, step: "boot" });
  world.sent.length = 0;
  await followMachine(world.context, job);
  expect(world.sent).toEqual([]);
});

test("every job but a step ends with one wide event, and so does the sweep", async () => {
  const world = await deploy();
  // What is left of other tests.
  await sendLogs(world.edge.LOG_BOOK);
  const lines: Record<string, unknown>[] = [];
  for (const method of ["log", "error"] as const) {
    vi.spyOn(console, method).mockImplementation((text: string) => {
      for (const line of text.split("\n")) lines.push(JSON.parse(line) as never);
    });
  }
  try {
    await settle(world, { kind: "catalog" });
    await settle(world, { kind: "reap" });
    await settle(world, { kind: "refund", incarnation: "nobody", of: "failed" });
    await world.sql.prepare("ALTER TABLE refunds RENAME TO hidden").run();
    await settle(world, { kind: "refund", incarnation: "nobody", of: "late" });
    await world.sweep();
    await sendLogs(world.edge.LOG_BOOK);
  } finally {
    vi.restoreAllMocks();
    await world.sql.prepare("ALTER TABLE hidden RENAME TO refunds").run();
  }
  const ms = expect.any(Number);
  expect(lines.filter(({ event }) => /^(?:job|sweep)$|^job_/.test(String(event)))).toMatchObject([
    { level: "page", event: "job_failed", kind: "refund", of: "late", outcome: "failed", ms },
    { level: "info", event: "job", kind: "catalog", outcome: "done", ms },
    { level: "info", event: "job", kind: "reap", outcome: "done", ms },
    { level: "info", event: "job", kind: "refund", of: "failed", outcome: "done", ms },
    { level: "info", event: "sweep", outcome: "failed", failed: ["refunds", "catalog"], ms },
  ]);
});

test("a fault is retried by the queue, and the row is free for the next try", async () => {
  const world = await deploy();
  const { tokenId } = await buy(chain, agent(0), 0, 1);
  await world.scan();
  const before = await world.vm(tokenId);
  const [message] = world.sent;
  await addRpcFault({ kind: "down" });
  const batch = createMessageBatch("clawcloud-jobs", [messageOf(message?.body, 4)]);
  const [first] = batch.messages;
  if (first === undefined) throw new Error("the batch is empty");
  await consume(
    { ...world.context, chain: { ...world.context.chain, nodes: world.context.chain.nodes.slice(0, 1) } },
    first,
  );
  const result = await getQueueResult(batch, createExecutionContext());
  expect(result.explicitAcks).toEqual([]);
  expect(result.retryMessages).toMatchObject([{ msgId: first.id }]);
  // Free for the next try, and still watched by the sweep.
  const after = await world.vm(tokenId);
  expect(after).toMatchObject({
    lease: "",
    generation: before?.["generation"],
    step: "create",
    status: "provisioning",
  });
  expect(after?.["wake_at"]).not.toBeNull();
});

test("a dead letter only wakes its row: the sweep sends it again (hard case 11)", async () => {
  const world = await deploy();
  const { tokenId, job } = await bootingMachine(world);
  const before = await world.vm(tokenId);
  expect(await settle(world, job, consumeDead)).toEqual({ acks: 1, retries: [] });
  const after = await world.vm(tokenId);
  expect({ ...after, wake_at: 0 }).toEqual({ ...before, wake_at: 0 });
  expect(after?.["wake_at"]).toBeLessThan(before?.["wake_at"]);
  await world.sweep(Date.now() + 61_000);
  expect(world.sent.some(({ body }) => body.kind === "advance" && body.incarnation === job.incarnation)).toBe(true);
});

test.each([null, 7, "x", {}, { kind: "advance" }, { kind: "advance", incarnation: 3, generation: 1 }, { kind: "buy" }])(
  "a message that is no job (%j) is acknowledged, not retried for ever",
  async (body) => {
    expect(isJob(body)).toBe(false);
    const world = await deploy();
    expect(await settle(world, body)).toEqual({ acks: 1, retries: [] });
  },
);

test("a provisioner with a wrong environment refuses the whole batch and keeps it for later", async () => {
  const batch = createMessageBatch("clawcloud-jobs", [messageOf({ kind: "catalog" })]);
  const context = createExecutionContext();
  await provisioner.queue(batch as never, {} as never, context);
  const result = await getQueueResult(batch, context);
  expect(result.explicitAcks).toEqual([]);
  expect(result.retryBatch.retry).toBe(true);
});

test("a purchase costs the same number of written rows, however long its machine is polled", async () => {
  const world = await deploy();
  const { job } = await bootingMachine(world);
  const bill = await billOf(async () => {
    for (let poll = 0; poll < 10; poll++) await followMachine(world.context, job);
  });
  expect(bill.rowsWritten).toBe(0);
});
