// The one driver of machines, payments and refunds: it runs the steps of a row until the row has to wait.
import { hasRoom } from "../db/client.ts";
import { log, withLogScope } from "../log.ts";
import type { Context, Next } from "./context.ts";

const MAX_STEPS_PER_MESSAGE = 12;

/** What the driver has to know of the rows that it drives. */
export type Driven<Row> = {
  /** The row at a generation; null where it has moved on: the message is stale, and nothing happens. */
  load: (generation: number) => Promise<Row | null>;
  /** The row's next step. `isFirst`: the row is the one that the message was sent for. */
  step: (row: Row, isFirst: boolean) => Promise<Next<Row>>;
  /** Sends the message that goes on with the row. */
  send: (generation: number, afterSeconds: number, seen: boolean) => Promise<unknown>;
  /** The step's wide event: its name, the fields of every line that the step writes, and its own. */
  tell: (row: Row) => { event: string; shared: Record<string, unknown>; fields: Record<string, unknown> };
};

/** `seen`: what an earlier poll has seen. It holds for the row that the message was sent for, and for no later one. */
export async function runSteps<Row extends object>(
  context: Context,
  { load, step, send, tell }: Driven<Row>,
  { generation: first, seen = false }: { generation: number; seen?: boolean | undefined },
): Promise<void> {
  let generation = first;
  let row: Row | null = await load(generation);
  for (let count = 0; row !== null; count++) {
    if (count === MAX_STEPS_PER_MESSAGE || !hasRoom()) {
      await send(generation, 0, count === 0 && seen);
      return;
    }
    const next = await runStep(context, tell(row), generation, step.bind(null, row, count === 0));
    if (next.kind === "send") await send(next.generation, next.afterSeconds, next.seen === true);
    if (next.kind !== "continue") return;
    generation = next.generation;
    row = next.row ?? (await load(generation));
  }
}

/** Runs one step, with its one wide event: what only waits is for debugging. */
const runStep = <Row>(
  { now }: Context,
  { event, shared, fields }: ReturnType<Driven<Row>["tell"]>,
  generation: number,
  step: () => Promise<Next<Row>>,
): Promise<Next<Row>> =>
  withLogScope(shared, async () => {
    const began = now();
    const next = await step();
    const waits = next.kind === "wait" || (next.kind === "send" && next.generation === generation);
    const after = next.kind === "send" ? { afterSeconds: next.afterSeconds } : {};
    log(waits ? "debug" : "info", event, { ...fields, generation, next: next.kind, ...after, ms: now() - began });
    return next;
  });
