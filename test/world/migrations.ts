// The migrations, taken apart as D1's server does it: local tools are kinder, and run what an operator's database refuses.
import { readdirSync, readFileSync } from "node:fs";
import { join } from "node:path";

const FOLDER = join(import.meta.dirname, "../../migrations");

/** Each file's statements, in the order in which they are applied. */
export const readMigrations = (folder = FOLDER): { name: string; queries: string[] }[] =>
  readdirSync(folder)
    .filter((name) => name.endsWith(".sql"))
    .sort()
    .map((name) => ({ name, queries: splitAsServer(readFileSync(join(folder, name), "utf8")) }));

/** Comments, quoted text and names, words, and each other character. */
const TOKENS = /--[^\n]*|\/\*[\s\S]*?\*\/|'(?:[^']|'')*'|"[^"]*"|`[^`]*`|\w+|[^\w\s]/g;

/**
 * The statements of a file. A trigger's body ends at the first END that is in no parentheses, so that a bare CASE in it cuts
 * the statement short (hard case 48).
 */
export function splitAsServer(sql: string): string[] {
  const pieces: string[] = [];
  let [start, depth, inBody] = [0, 0, false];
  const cut = (end: number) => {
    const piece = sql
      .slice(start, end)
      .replace(/^\s*--[^\n]*$/gm, "")
      .trim();
    if (piece !== "") pieces.push(piece);
    start = end + 1;
  };
  for (const { 0: token, index } of sql.matchAll(TOKENS)) {
    if (token === "(") depth++;
    else if (token === ")") depth--;
    else if (depth === 0 && /^begin$/i.test(token)) inBody = true;
    else if (depth === 0 && /^end$/i.test(token)) inBody = false;
    else if (token === ";" && !inBody) cut(index);
  }
  cut(sql.length);
  return pieces;
}
