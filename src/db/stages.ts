// Stages in SQL. A statement that moves machines which nobody has loaded names the stages that it moves them from.
import { type SQL, sql } from "drizzle-orm";
import {
  columnsOf,
  type MachineStage,
  requireMachineMove,
  type Status,
  type Step,
  stageOf,
} from "../model/machine-life.ts";

/** Words of a table of lives as a list in SQL. */
export const listOf = (words: Iterable<string>): SQL =>
  sql.raw(`(${[...words].map((word) => `'${word}'`).join(", ")})`);

/** Machines at one of these stages. */
export function isAt(stages: readonly MachineStage[]): SQL {
  const byStatus = Map.groupBy(stages.map(columnsOf), ({ status }) => status);
  const parts = [...byStatus].map(
    ([status, rows]) =>
      sql`vms.status = ${sql.raw(`'${status}'`)} AND vms.step IN ${listOf(rows.map(({ step }) => step))}`,
  );
  return sql`(${sql.join(parts, sql` OR `)})`;
}

/** Machines of one of these statuses. */
export const hasStatus = (...statuses: Status[]): SQL => sql`vms.status IN ${listOf(statuses)}`;

/** A move of one statement: what it sets, and of which rows. Throws `ForbiddenMove` where a machine's life has no such move. */
export function moveMachines(from: readonly MachineStage[], to: MachineStage) {
  requireMachineMove(from, to);
  return { set: columnsOf(to), of: isAt(from) };
}

/** The same for a move that changes the step and keeps the status. */
export function moveSteps(from: readonly MachineStage[], step: Step) {
  for (const stage of from) requireMachineMove(stage, stageOf({ ...columnsOf(stage), step }));
  return { set: { step }, of: isAt(from) };
}
