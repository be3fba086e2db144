// The operators' API as the command line reaches it, and how its answers are shown: tables to a person, JSON to a pipe.
import { networkReason } from "./network.ts";
import { EDGE_SECRETS, readJson } from "./secrets.ts";

export type Connection = { url: string; key: string };
type Row = Record<string, unknown>;
export type Query = Record<string, string | undefined>;

/** `--url` and the key of the environment. With `first`, the deployment's own secret from its file. */
export function connect({ url, first = false }: { url: string; first?: boolean }): Connection {
  const key = first ? firstKey() : process.env["CLAWCLOUD_ADMIN_KEY"];
  if (key === undefined || key === "") {
    throw new Error('Set CLAWCLOUD_ADMIN_KEY to an operator\'s key; "keys create <name> --first" makes the first one.');
  }
  if (!URL.canParse(url) || !/^https?:$/.test(new URL(url).protocol)) {
    throw new Error(
      `Set CLAWCLOUD_URL, or --url, to the API's address, like https://api.example.com: "${url}" is none.`,
    );
  }
  return { url: url.replace(/\/+$/, ""), key };
}

/** One request to the API. Throws with what to do where no answer comes. */
export async function ask(url: string, path: string, init: RequestInit = {}): Promise<Response> {
  try {
    return await fetch(`${url}${path}`, init);
  } catch (error) {
    const why = networkReason(error) ?? "the request failed";
    throw new Error(`Check CLAWCLOUD_URL, or --url: no answer from ${new URL(url).origin} (${why}).`);
  }
}

function firstKey(): string | undefined {
  if (process.env["ADMIN_API_KEY"] !== undefined) return process.env["ADMIN_API_KEY"];
  return (readJson(EDGE_SECRETS) as Record<string, string>)["ADMIN_API_KEY"];
}

/** One call. Throws with the service's own sentence where it refuses. */
export async function call({ url, key }: Connection, method: string, path: string, body?: object): Promise<Response> {
  const answer = await ask(url, path, {
    method,
    headers: { "x-api-key": key, ...(body === undefined ? {} : { "content-type": "application/json" }) },
    ...(body === undefined ? {} : { body: JSON.stringify(body) }),
  });
  const expires = answer.headers.get("x-api-key-expires");
  if (expires !== null) console.error(`Your key expires at ${expires}: make a new one with "keys create".`);
  if (answer.ok) return answer;
  const { error, code } = (await answer.json().catch(() => ({}))) as { error?: string; code?: string };
  throw new Error(error === undefined ? `${method} ${path}: HTTP ${answer.status}` : `${error} (${code})`);
}

export const callJson = async (connection: Connection, method: string, path: string, body?: object): Promise<Row> =>
  (await (await call(connection, method, path, body)).json()) as Row;

/** Twenty calls a minute are let through. */
export const PAUSE_MS = 3_100;

/** A list, page by page to its end, or to as many rows as were asked for. */
export async function callList(connection: Connection, path: string, field: string, query: Query = {}): Promise<Row[]> {
  const rows: Row[] = [];
  let cursor: string | undefined;
  do {
    const entries = Object.entries({ ...query, cursor }).filter(
      (entry): entry is [string, string] => entry[1] !== undefined,
    );
    const search = new URLSearchParams(entries);
    const page = await callJson(connection, "GET", `${path}${search.size === 0 ? "" : `?${search}`}`);
    rows.push(...(page[field] as Row[]));
    cursor = page["nextCursor"] as string | undefined;
    if (cursor !== undefined) await new Promise((resolve) => setTimeout(resolve, PAUSE_MS));
  } while (cursor !== undefined && query["limit"] === undefined);
  return rows;
}

/** Rows as a table on a terminal, else as JSON. */
export function showRows(rows: readonly Row[]): void {
  if (!process.stdout.isTTY) console.log(JSON.stringify(rows, null, 2));
  else if (rows.length === 0) console.log("none");
  else console.table(rows.map(flat));
}

export function showOne(row: Row): void {
  if (!process.stdout.isTTY) console.log(JSON.stringify(row, null, 2));
  else for (const [name, value] of Object.entries(flat(row))) console.log(`${name.padEnd(14)} ${value}`);
}

/** Nested values in one cell, absent ones empty. */
const flat = (row: Row): Record<string, string | number | boolean> =>
  Object.fromEntries(
    Object.entries(row).map(([name, value]) => {
      if (value === null || value === undefined) return [name, ""];
      return [name, typeof value === "object" ? JSON.stringify(value) : (value as string | number | boolean)];
    }),
  );
