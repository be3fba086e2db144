// The number of blocks that one eth_getLogs may span. A node's limit depends on its plan and on the number of logs, and the
// node states it only in prose: a range shrinks when it is refused, and grows by steps towards the smallest refused range
// (hard case 30).
import { BaseError } from "viem";

/** A node's known limits, in blocks. A node that never refused a range has no span. */
export type Span = {
  /** The largest range that the node has answered since, or named as its limit; 0 when there is none. */
  given: number;
  /** The smallest range that the node has refused. */
  refused: number;
  /** The time of the last refusal, in unix milliseconds. */
  refusedAt: number;
};

/** Kinds of logs. Each kind has a span of its own at a node, since a node refuses ranges with many logs first. */
export type LogKind = "sales" | "transfers" | "uses" | "coin";
export type Spans = Partial<Record<LogKind, Span>>;
/** Spans by node name. */
export type SpansByNode = Record<string, Spans>;

/** The time for which a refusal counts: plans change, and storms of logs pass. */
const REFUSAL_HOLDS_MS = 60_000;
const STEP_SHARE = 4;

const holds = ({ refusedAt }: Span, now: number): boolean => now - refusedAt < REFUSAL_HOLDS_MS;

/** The number of blocks to request next: from 1 to `max`. */
export function nextRange(span: Span | undefined, max: number, now: number): number {
  if (span === undefined) return max;
  const { given, refused } = span;
  const upTo = (most: number, blocks: number) => Math.max(1, Math.min(most, blocks));
  if (!holds(span, now)) return given === 0 ? max : upTo(max, given + Math.ceil(given / STEP_SHARE));
  if (given === 0) return upTo(max, Math.floor(refused / 2));
  const ceiling = Math.min(max, refused - 1);
  return upTo(ceiling, given + Math.ceil((ceiling - given) / STEP_SHARE));
}

/** A node's span after it answered a range of `blocks`; undefined when the node has no known limit any more. */
export function afterAnswer(span: Span | undefined, blocks: number, max: number): Span | undefined {
  if (span === undefined || blocks >= max) return undefined;
  return { ...span, given: Math.max(span.given, blocks), refusedAt: blocks < span.refused ? span.refusedAt : 0 };
}

/** A node's span after it refused a range of `blocks`. `named`: the limit that the node's error names, or null. */
export function afterRefusal(span: Span | undefined, blocks: number, named: number | null, now: number): Span {
  if (named !== null) return { given: named, refused: named + 1, refusedAt: now };
  const given = span === undefined || span.given >= blocks ? 0 : span.given;
  return { given, refused: blocks, refusedAt: now };
}

/** Whether a node refused a range lately and has answered none since: it may hang. */
export const hasGivenNothing = (span: Span | undefined, now: number): boolean =>
  span !== undefined && span.given === 0 && holds(span, now);

/** Whether a node refused a single block lately: no smaller range exists. */
export const isAtItsEnd = (span: Span | undefined, now: number): boolean =>
  span !== undefined && span.refused <= 1 && holds(span, now);

/** Matches a number of blocks, "2,000" or "2K": not a part of a longer number, and not a size, a count or a time. */
const BLOCKS = String.raw`\b(\d[\d,]*(?:\.\d+)?)(\s?k)?\b(?![.,]?\d)(?!\s*(?:[kmg]i?b|bytes|logs|events|results|entries|items|records|requests|queries|calls|ms|seconds|minutes|hours|days)\b)`;
// The phrases in which providers name the range that they accept. A number in another sentence is not a range.
const SPANS = [
  `up to an? ${BLOCKS} block`,
  `limited to (?:an? )?${BLOCKS}`,
  `ranges? over ${BLOCKS}`,
  String.raw`block range[^\d.;\n]*${BLOCKS}`,
].map((pattern) => new RegExp(pattern, "i"));

/** The largest range that a node accepts, by its error text; null when the text names no range below `blocks`. */
export function namedRange(error: unknown, blocks: number): number | null {
  const text = error instanceof BaseError ? `${error.details} ${error.shortMessage}` : String(error);
  for (const pattern of SPANS) {
    const [, digits, thousands] = pattern.exec(text) ?? [];
    const named = Number(digits?.replaceAll(",", "")) * (thousands === undefined ? 1 : 1_000);
    if (Number.isInteger(named) && named >= 1 && named < blocks) return named;
  }
  return null;
}
