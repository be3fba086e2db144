// How many blocks one eth_getLogs may span. Nodes differ and say so only in prose; whatever they say, the range shrinks,
// and after answers it grows again.
import { BaseError } from "viem";

const GROWTH = 2;
const SAFE_RANGE = 2_000;

// Where a provider's prose names the span that it would take.
const SPANS = [
  /limited to (?:a )?([\d,]+)/i,
  /block range[^\d]*([\d,]+)/i,
  /ranges? over ([\d,]+)/i,
  /up to a ([\d,]+) block/i,
];

/** The next range after an error: what the node asked for where it says a smaller number, else half; at least 1. */
export function shrinkRange(range: number, error: unknown): number {
  const text = error instanceof BaseError ? `${error.details} ${error.shortMessage}` : String(error);
  for (const pattern of SPANS) {
    const asked = Number(pattern.exec(text)?.[1]?.replaceAll(",", ""));
    if (Number.isInteger(asked) && asked >= 1 && asked < range) return asked;
  }
  return Math.max(1, Math.floor(range / 2));
}

/** Ranges that any provider takes, for reads that can't wait to find out how many it would. */
export function* rangesOf(fromBlock: number, toBlock: number): Generator<{ fromBlock: bigint; toBlock: bigint }> {
  for (let at = fromBlock; at <= toBlock; at += SAFE_RANGE) {
    yield { fromBlock: BigInt(at), toBlock: BigInt(Math.min(toBlock, at + SAFE_RANGE - 1)) };
  }
}

export const growRange = (range: number, max: number): number => Math.min(max, range * GROWTH);
