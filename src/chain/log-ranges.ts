// How many blocks one eth_getLogs may span. Nodes differ and say so only in prose; whatever they say, the range shrinks,
// and after answers it grows again.
import { BaseError } from "viem";

const GROWTH = 2;

// What providers write when a range or an answer is too large; a number in the text is the span they would take.
const TOO_LARGE = [
  /limited to (?:a )?([\d,]+)/i,
  /block range (?:is )?(?:too (?:large|wide)|exceeds|extends beyond)[^\d]*([\d,]+)?/i,
  /maximum (?:allowed )?(?:block )?range[^\d]*([\d,]+)/i,
  /up to a ([\d,]+) block range/i,
  /query returned more than/i,
  /response size (?:should not|exceed)/i,
  /(?:too many|exceeds) (?:logs|results)/i,
  /query timeout|request timed out/i,
];

/** The next range after an error: what the node asked for where it says a smaller number, else half; at least 1. */
export function shrinkRange(range: number, error: unknown): number {
  const text = error instanceof BaseError ? `${error.details} ${error.shortMessage}` : String(error);
  for (const pattern of TOO_LARGE) {
    const asked = Number(pattern.exec(text)?.[1]?.replaceAll(",", ""));
    if (Number.isInteger(asked) && asked >= 1 && asked < range) return asked;
  }
  return Math.max(1, Math.floor(range / 2));
}

export const growRange = (range: number, max: number): number => Math.min(max, range * GROWTH);

/** Whether a smaller range could help: the node answered, and what it said is about size. */
export const rangeIsTooLarge = (error: unknown): boolean => {
  const text = error instanceof BaseError ? `${error.details} ${error.shortMessage}` : String(error);
  return TOO_LARGE.some((pattern) => pattern.test(text));
};
