// Figures and how they are printed.
import { tellError } from "../world/http.ts";

/** The value below which a share of the values lies (nearest rank). */
export function percentile(values: readonly number[], share: number): number {
  const sorted = [...values].sort((a, b) => a - b);
  return sorted[Math.max(0, Math.ceil(sorted.length * share) - 1)] ?? Number.NaN;
}

export const median = (values: readonly number[]): number => percentile(values, 0.5);

/** Rows under a header, columns aligned; the first column to the left, figures to the right. */
export function table(header: readonly string[], rows: readonly (readonly (string | number)[])[]): string {
  const cells = [header, ...rows].map((row) => row.map(String));
  const widths = header.map((_, column) => Math.max(...cells.map((row) => (row[column] ?? "").length)));
  return cells
    .map((row) =>
      row
        .map((cell, column) => (column === 0 ? cell.padEnd(widths[0] ?? 0) : cell.padStart(widths[column] ?? 0)))
        .join("  ")
        .trimEnd(),
    )
    .join("\n");
}

type Row = readonly (string | number)[];
/** A row whose figures come from so many answers, some of which were wrong. */
export type Answered = { row: Row; wrong: number; answers: number };

/** A larger share of wrong answers fails the part. */
const WRONG_SHARE = 0.01;

/**
 * Prints a table with a row for each item, and a star at those with wrong answers. An item that fails takes no other's row
 * with it: what there is is printed, and then the failures are thrown together.
 */
export async function printRows<T>(
  header: readonly string[],
  items: readonly T[],
  rowOf: (item: T) => Promise<Row | Answered>,
): Promise<void> {
  const rows: Row[] = [];
  const failures: unknown[] = [];
  const wrongs: Error[] = [];
  const notes: string[] = [];
  for (const item of items) {
    try {
      const made = await rowOf(item);
      if (!("row" in made)) {
        rows.push(made);
        continue;
      }
      const { wrong, answers } = made;
      const [name = "", ...figures] = made.row;
      rows.push([wrong === 0 ? name : `${name} *`, ...figures]);
      const told = missing(wrong, answers, "answers were wrong or did not come").map((line) => `${name}: ${line}`);
      notes.push(...told.map((line) => `* ${line}`));
      if (wrong / answers > WRONG_SHARE) wrongs.push(new Error(told.join()));
    } catch (error) {
      failures.push(error);
    }
  }
  if (rows.length > 0) console.log([table(header, rows), ...notes].join("\n"));
  const summary = [
    ...missing(failures.length, items.length, "rows could not be made"),
    ...missing(wrongs.length, items.length, `rows have more than ${WRONG_SHARE * 100} % wrong answers`),
  ];
  throwAny([...failures, ...wrongs], summary.join(", "));
}

/** The results of so many rounds; one that fails is told of and left out. Throws where none succeeds. */
export async function inRounds<T>(rounds: number, round: (index: number) => Promise<T>): Promise<T[]> {
  const results: T[] = [];
  const failures: unknown[] = [];
  for (let index = 0; index < rounds; index++) {
    try {
      results.push(await round(index));
    } catch (error) {
      failures.push(error);
      console.error(`round ${index + 1} of ${rounds} failed and is left out:`, error);
    }
  }
  if (results.length === 0) throwAny(failures, `all ${rounds} rounds failed`);
  return results;
}

function throwAny(failures: readonly unknown[], message: string): void {
  if (failures.length > 0) throw new AggregateError(failures, message);
}

/** "2 of 50 without a token": what a part could not look at. Nothing where there is nothing to tell. */
export const missing = (count: number, of: number, what: string): string[] =>
  count === 0 ? [] : [`${count} of ${of} ${what}`];

/** Prints an error unless the one before said the same: what is tried again may fail many times. */
export function tellOnChange(what: string): (error: unknown) => void {
  let last = "";
  return (error) => {
    const text = tellError(error);
    if (text !== last) console.error(what, error);
    last = text;
  };
}
