// The only reader of logs: the scan, the search for an authorization's use, the coin's transfers and reconciliation all use it,
// and share the spans that it learns about a node (hard case 30).
import {
  type Address,
  BaseError,
  formatLog,
  type Hex,
  HttpRequestError,
  type Log,
  numberToHex,
  ResponseBodyTooLargeError,
  type RpcLog,
  RpcRequestError,
  TimeoutError,
} from "viem";
import { AppError } from "../errors.ts";
import { errorFields, log } from "../log.ts";
import type { Chain, Node } from "./client.ts";
import {
  afterAnswer,
  afterRefusal,
  type LogKind,
  namedRange,
  nextRange,
  type Span,
  type SpansByNode,
} from "./log-ranges.ts";

export type LogFilter = { address: Address; topics: readonly (Hex | readonly Hex[] | null)[] };
/** The logs of one request, up to and including block `to`. */
export type Piece = { logs: Log[]; to: number };

/** A node refused the logs of a range. A smaller range is worth a try, down to one block. */
export class LogsRefused extends Error {
  override readonly name = "LogsRefused";
  readonly to: number;
  readonly blocks: number;
  /** Whether the node named the range as the reason, so that the number of logs is not the reason. */
  readonly byRange: boolean;

  constructor(to: number, blocks: number, byRange: boolean, options: ErrorOptions) {
    super(`eth_getLogs of ${blocks} blocks was refused`, options);
    this.to = to;
    this.blocks = blocks;
    this.byRange = byRange;
  }
}

/** The number of blocks that a request of a kind spans at a node. */
export const rangeOf = ({ spans, maxRange }: Node, kind: LogKind): number =>
  nextRange(spans[kind], maxRange, Date.now());

/**
 * One request for logs from block `from` on, over as many blocks as the node is known to give, up to block `to`. Throws
 * `LogsRefused` when the node refuses the range, and `AppError` `chain_answered_nonsense` when the answer is not a list of
 * logs.
 */
export async function readPiece(
  node: Node,
  kind: LogKind,
  { address, topics }: LogFilter,
  from: number,
  to: number,
): Promise<Piece> {
  const blocks = Math.min(to - from + 1, rangeOf(node, kind));
  const end = from + blocks - 1;
  const filter = { address, topics: [...topics], fromBlock: numberToHex(from), toBlock: numberToHex(end) };
  let answer: unknown;
  try {
    answer = await node.client.request({ method: "eth_getLogs", params: [filter as never] });
  } catch (error) {
    if (isNonsense(error)) throw nonsense(node, error);
    if (!isRefusal(error)) throw error;
    const named = namedRange(error, blocks);
    node.spans[kind] = afterRefusal(node.spans[kind], blocks, named, Date.now());
    log("info", "logs_refused", { node: node.name, kind, blocks, next: rangeOf(node, kind), ...errorFields(error) });
    throw new LogsRefused(end, blocks, named !== null, { cause: error });
  }
  if (!Array.isArray(answer) || !answer.every(isLog)) throw nonsense(node);
  const span = afterAnswer(node.spans[kind], blocks, node.maxRange);
  if (span === undefined) delete node.spans[kind];
  else node.spans[kind] = span;
  return { logs: answer.map((entry) => formatLog(entry)), to: end };
}

/** Like `readPiece`, over smaller ranges until the node answers. Throws `LogsRefused` when the node refuses a single block. */
export async function readSome(...[node, kind, filter, from, to]: Parameters<typeof readPiece>): Promise<Piece> {
  for (;;) {
    try {
      return await readPiece(node, kind, filter, from, to);
    } catch (error) {
      if (!(error instanceof LogsRefused) || error.blocks === 1) throw error;
    }
  }
}

/** The logs of blocks `from` to `to`, one array per request. Throws like `readSome`. */
export async function* readLogs(
  ...[node, kind, filter, from, to]: Parameters<typeof readPiece>
): AsyncGenerator<Log[]> {
  for (let at = from; at <= to; ) {
    const piece = await readSome(node, kind, filter, at, to);
    yield piece.logs;
    at = piece.to + 1;
  }
}

export const spansOf = ({ nodes }: Chain): SpansByNode =>
  Object.fromEntries(
    nodes.filter(({ spans }) => Object.keys(spans).length > 0).map(({ name, spans }) => [name, spans]),
  );

/** Takes over the newer spans that another isolate has stored. */
export function recallSpans({ nodes }: Chain, stored: SpansByNode): void {
  for (const { name, spans } of nodes) {
    for (const [kind, span] of Object.entries(stored[name] ?? {}) as [LogKind, Span][]) {
      if (span.refusedAt > (spans[kind]?.refusedAt ?? 0)) spans[kind] = span;
    }
  }
}

const RATE = /rate limit|too many requests|per second/i;

/**
 * Whether a smaller range may help: after a JSON-RPC error, a time-out, an HTTP error page, or an answer beyond the client's
 * size limit. It does not help when the connection fails or the node limits our rate.
 */
function isRefusal(error: unknown): boolean {
  if (!(error instanceof BaseError)) return false;
  if (error.walk((e) => e instanceof TimeoutError || e instanceof ResponseBodyTooLargeError) !== null) return true;
  const page = error.walk((e) => e instanceof HttpRequestError) as HttpRequestError | null;
  if (page !== null) return page.status !== undefined && page.status !== 429;
  const told = error.walk((e) => e instanceof RpcRequestError) as RpcRequestError | null;
  return told !== null && told.status !== 429 && !RATE.test(told.details);
}

/** An answer that is neither a result nor an error: viem fails on it with a `SyntaxError` or a `TypeError`. */
const isNonsense = (error: unknown): boolean =>
  error instanceof BaseError &&
  (error.walk((e) => e instanceof SyntaxError) !== null ||
    (error.walk((e) => e instanceof TypeError) !== null && error.walk((e) => e instanceof HttpRequestError) === null));

const nonsense = ({ name }: Node, cause?: unknown): AppError =>
  new AppError("chain_answered_nonsense", `The RPC node ${name} did not answer eth_getLogs with a list of logs.`, {
    cause,
  });

const NUMBER = /^0x[0-9a-f]+$/i;
const HASH = /^0x[0-9a-f]{64}$/i;
const isText = (value: unknown, pattern: RegExp): boolean => typeof value === "string" && pattern.test(value);

function isLog(entry: unknown): entry is RpcLog {
  if (typeof entry !== "object" || entry === null) return false;
  const { address, topics, data, blockNumber, blockHash, logIndex, transactionHash } = entry as Record<string, unknown>;
  return (
    Array.isArray(topics) &&
    topics.every((topic) => isText(topic, HASH)) &&
    [address, data].every((value) => isText(value, /^0x/)) &&
    [blockNumber, logIndex].every((value) => isText(value, NUMBER)) &&
    [blockHash, transactionHash].every((value) => isText(value, HASH))
  );
}
