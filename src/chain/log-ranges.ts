// How many blocks one eth_getLogs may span. Nodes differ, by plan and by how much they have to show, and say so only in
// prose: a range shrinks when it is refused, and grows by steps towards the least that was refused (hard case 30).
import { BaseError } from "viem";

/** What a node has shown of its ranges, in blocks. A node that never refused one has none. */
export type Span = {
  /** The most that it has answered since. */
  given: number;
  /** The least that it has refused. */
  refused: number;
  /** When it last did: unix milliseconds. */
  refusedAt: number;
};

/** What is asked for: each kind learns its own range of a node, since a node that refuses much refuses dense logs first. */
export type LogKind = "sales" | "transfers" | "uses" | "coin";
export type Spans = Partial<Record<LogKind, Span>>;
/** By the names of the nodes. */
export type SpansByNode = Record<string, Spans>;

/** So long a refusal counts: plans change, storms pass. */
const REFUSAL_HOLDS_MS = 60_000;
const STEP_SHARE = 4;

const holds = ({ refusedAt }: Span, now: number): boolean => now - refusedAt < REFUSAL_HOLDS_MS;

/** How many blocks to ask for next; `max` at most, and 1 at least. */
export function nextRange(span: Span | undefined, max: number, now: number): number {
  if (span === undefined) return max;
  const { given, refused } = span;
  const upTo = (most: number, blocks: number) => Math.max(1, Math.min(most, blocks));
  if (!holds(span, now)) return given === 0 ? max : upTo(max, given + Math.ceil(given / STEP_SHARE));
  if (given === 0) return upTo(max, Math.floor(refused / 2));
  const ceiling = Math.min(max, refused - 1);
  return upTo(ceiling, given + Math.ceil((ceiling - given) / STEP_SHARE));
}

/** What is known of a node after it answered that many blocks; undefined where nothing limits it any more. */
export function afterAnswer(span: Span | undefined, blocks: number, max: number): Span | undefined {
  if (span === undefined || blocks >= max) return undefined;
  return { ...span, given: Math.max(span.given, blocks), refusedAt: blocks < span.refused ? span.refusedAt : 0 };
}

/** What is known of a node after it refused that many blocks; `named`: what it said that it would take. */
export function afterRefusal(span: Span | undefined, blocks: number, named: number | null, now: number): Span {
  if (named !== null) return { given: named, refused: named + 1, refusedAt: now };
  const given = span === undefined || span.given >= blocks ? 0 : span.given;
  return { given, refused: blocks, refusedAt: now };
}

/** Whether a node lately refused some blocks, and has given none since: it may hang. */
export const hasGivenNothing = (span: Span | undefined, now: number): boolean =>
  span !== undefined && span.given === 0 && holds(span, now);

/** Whether a node lately refused a single block: less can't be asked. */
export const isAtItsEnd = (span: Span | undefined, now: number): boolean =>
  span !== undefined && span.refused <= 1 && holds(span, now);

/** A whole number of blocks, "2,000" or "2K": not a part of another number, and no size, count or time of something else. */
const BLOCKS = String.raw`\b(\d[\d,]*(?:\.\d+)?)(\s?k)?\b(?![.,]?\d)(?!\s*(?:[kmg]i?b|bytes|logs|events|results|entries|items|records|requests|queries|calls|ms|seconds|minutes|hours|days)\b)`;
// Where a provider's prose names the span that it would take; what it says of something else stands in another sentence.
const SPANS = [
  `up to an? ${BLOCKS} block`,
  `limited to (?:an? )?${BLOCKS}`,
  `ranges? over ${BLOCKS}`,
  String.raw`block range[^\d.;\n]*${BLOCKS}`,
].map((pattern) => new RegExp(pattern, "i"));

/** The range that an error names as the most that the node takes; null where it names none below the one asked for. */
export function namedRange(error: unknown, blocks: number): number | null {
  const text = error instanceof BaseError ? `${error.details} ${error.shortMessage}` : String(error);
  for (const pattern of SPANS) {
    const [, digits, thousands] = pattern.exec(text) ?? [];
    const named = Number(digits?.replaceAll(",", "")) * (thousands === undefined ? 1 : 1_000);
    if (Number.isInteger(named) && named >= 1 && named < blocks) return named;
  }
  return null;
}
