// What nodes answer when they are not well, in the words that providers have for it.
import type { Hex } from "viem";
import { type Answer, answer, failure } from "./http.ts";
import type { Random } from "./random.ts";

/** Lies of a node that is otherwise well; each is a kind of its own, and strikes for a while. */
export const ODDITIES = [
  "logs_late",
  "receipts_bare",
  "receipts_differ",
  "head_ahead",
  "other_chain",
  "nonsense",
] as const;
export type Oddity = (typeof ODDITIES)[number];

export const DAY_AHEAD = 86_400;
export const CHAIN_ID = 8_453;
export const OTHER_CHAIN_ID = 84_532;

/** Blocks that one eth_getLogs may span by some plan. */
export const CAPS = [1, 2, 5, 10, 50, 100, 500, 1_000, 2_000];

/** What a node gives in one eth_getLogs by its plan, however well it is. */
export type Plan = { blocks: number; results: number };
/** Logs that one answer may hold: below a storm, above the sales of a block. */
export const RESULTS = [50, 200, 1_000];

const REFUSALS: readonly ((cap: number) => string)[] = [
  (cap) => `eth_getLogs is limited to a ${cap} range`,
  (cap) => `query exceeds max block range ${cap}`,
  (cap) =>
    `Under the Free tier plan, you can make eth_getLogs requests with up to a ${cap} block range. Based on your parameters, this block range should work: [0x1, 0x2]`,
  (cap) =>
    `Log response size exceeded. You can make eth_getLogs requests with up to a ${cap} block range and no limit on the response size, or you can request any block range with a cap of 10K logs in the response.`,
  (cap) => `block range is too large, max is ${cap % 1_000 === 0 ? `${cap / 1_000}k` : cap} blocks`,
  () => "You can request any block range with a cap of 10K logs in the response.",
  () => "block range is too wide",
  () => "query returned more than 10000 results",
];

/** A request for more blocks than the plan has: by JSON-RPC's own error, or by HTTP's. */
export function rangeRefusal(id: unknown, cap: number, random: Random): Answer {
  const message = (random.pick(REFUSALS) ?? String)(cap);
  const body = { jsonrpc: "2.0", id, error: { code: -32_600, message } };
  return answer(random.pick([200, 200, 400, 413]) ?? 200, body);
}

/** What stands before a node's logs answers in its place; the head is had all the same. */
export const logsPage = (random: Random): Answer =>
  random.unit() < 0.2
    ? "hangs"
    : failure(random.pick([400, 403, 413, 500, 502, 504]) ?? 502, "<html><body>Bad Gateway</body></html>");

/** A whole answer, and nothing in it. */
export function nonsense(id: unknown, method: string, random: Random): Answer {
  const result = (value: unknown) => answer(200, { jsonrpc: "2.0", id, result: value });
  const answers: readonly (() => Answer)[] = [
    () => result(null),
    () => answer(200, { message: "no Route matched with those values" }),
    () => answer(200, []),
    () => answer(200, null),
    () => result(method === "eth_getLogs" ? [null] : {}),
    () => failure(502, "<html><head><title>502 Bad Gateway</title></head><body>cloudflare</body></html>"),
  ];
  return (random.pick(answers) ?? (() => result(null)))();
}

/** The hash of the block of that height on a chain that is not ours. */
export const elsewhere = (hash: Hex): Hex => `0x07e4${hash.slice(6)}`;
