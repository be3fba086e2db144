// When the owner of a token whose machine is being made may ask for its credentials again.

/** What a client may still ask of a route within its window. */
export type Budget = { remaining: number; windowSeconds: number };

const FIRST_WAIT_SECONDS = 10;
const FIRST_WAITS_UNTIL_SECONDS = 120;
const LATER_WAIT_SECONDS = 240;

/**
 * Seconds until the next poll: every ten seconds while most machines come up, then seldom, and seldom from the first on
 * where what is left of the client's requests would not last for a window otherwise (hard case 22). So a poller that does
 * as it is told is never refused, even where nobody knows how old the purchase is (`ageSeconds` null).
 */
export function pollAgainAfter(ageSeconds: number | null, budget: Budget | undefined): number {
  const isYoung = ageSeconds === null || ageSeconds < FIRST_WAITS_UNTIL_SECONDS;
  const lasts = budget === undefined || budget.remaining * LATER_WAIT_SECONDS >= budget.windowSeconds;
  return isYoung && lasts ? FIRST_WAIT_SECONDS : LATER_WAIT_SECONDS;
}
