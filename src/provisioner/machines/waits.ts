// How long rows of machines wait, and for how long one consumer holds them.

/** More than all timeouts of one turn together. */
export const LEASE_MS = 300_000;

/** After a move without a word from its message, the sweep sends the row again. */
export const STALL_MS = 180_000;

export const PAGED_WAIT_SECONDS = 60;

/** How soon an operator's resume is noticed. */
export const PAUSED_WAIT_SECONDS = 15;

/** A vendor may close its door for a day; a row looks in every minute, so that its deadline is kept. */
export const MAX_WAIT_SECONDS = 60;

export const LOOK_AGE_MS = 2_000;
