// Stages in SQL. A statement that moves machines without loading them names the stages that it moves them from.
import { type SQL, sql } from "drizzle-orm";
import {
  columnsOf,
  type MachineStage,
  requireMachineMove,
  type Status,
  type Step,
  stageOf,
} from "../model/machine-life.ts";

/** Words of a life table as a list in SQL. The words are constants of the code, so they need no parameters. */
export const listOf = (words: Iterable<string>): SQL =>
  sql.raw(`(${[...words].map((word) => `'${word}'`).join(", ")})`);

/** Condition: the machine is at one of these stages. */
export function isAt(stages: readonly MachineStage[]): SQL {
  const byStatus = Map.groupBy(stages.map(columnsOf), ({ status }) => status);
  const parts = [...byStatus].map(
    ([status, rows]) =>
      sql`vms.status = ${sql.raw(`'${status}'`)} AND vms.step IN ${listOf(rows.map(({ step }) => step))}`,
  );
  return sql`(${sql.join(parts, sql` OR `)})`;
}

/** Condition: the machine has one of these statuses. */
export const hasStatus = (...statuses: Status[]): SQL => sql`vms.status IN ${listOf(statuses)}`;

/**
 * A move in one statement: `set` has the new columns, `of` selects the rows. Throws `ForbiddenMove` for a move that a machine's
 * life does not have.
 */
export function moveMachines(from: readonly MachineStage[], to: MachineStage) {
  requireMachineMove(from, to);
  return { set: columnsOf(to), of: isAt(from) };
}

/** Like `moveMachines`, for a move that changes the step and keeps the status. */
export function moveSteps(from: readonly MachineStage[], step: Step) {
  for (const stage of from) requireMachineMove(stage, stageOf({ ...columnsOf(stage), step }));
  return { set: { step }, of: isAt(from) };
}
