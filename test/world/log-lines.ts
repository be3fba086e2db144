// The Workers' log lines as a person reads them: time, level, event, and what else the line says.
import { color } from "./narrator.ts";

const COLORS: Record<string, "red" | "yellow" | "magenta" | "cyan"> = {
  page: "red",
  error: "red",
  warn: "yellow",
  security: "magenta",
};

/** What the Workers do every few seconds, whether anything happens or not. */
const isRoutine = ({ level, event, kind, outcome, failed }: Record<string, unknown>): boolean =>
  level === "debug" ||
  (event === "sweep" && Array.isArray(failed) && failed.length === 0) ||
  (event === "job" && outcome === "done" && (kind === "reap" || kind === "catalog"));

/** Undefined for what is routine. Text that is no log line stays as it is. */
export function readable(line: string): string | undefined {
  let fields: Record<string, unknown>;
  try {
    fields = JSON.parse(line) as Record<string, unknown>;
  } catch {
    return line;
  }
  const { time, level, event, ...rest } = fields;
  if (typeof time !== "string" || typeof level !== "string") return line;
  if (isRoutine(fields)) return undefined;
  const told = Object.entries(rest).map(([name, value]) => `${color("dim", `${name}=`)}${brief(value)}`);
  const head = `${color("dim", time.slice(11, 19))} ${color(COLORS[level] ?? "cyan", `${level.padEnd(8)} ${event}`)}`;
  return [head, ...told].join(" ");
}

const brief = (value: unknown): string =>
  typeof value === "string" && !/\s/.test(value) ? value : JSON.stringify(value);
