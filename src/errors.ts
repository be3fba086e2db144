// `AppError` is what a client reads: a code, its HTTP status, one sentence. Background work throws `GiveUp` when a person
// has to look (not retryable); everything else that it throws is a fault, and the queue tries again. Of the faults, those
// that pass by themselves are `isTransient`.

export const STATUS_OF = {
  invalid_request: 400,
  payment_malformed: 400,
  uri_too_long: 400,
  header_too_large: 400,
  injection_refused: 400,
  signature_missing: 401,
  signature_invalid: 401,
  signature_expired: 401,
  nonce_used: 401,
  fresh_signature_required: 401,
  api_key_missing: 401,
  api_key_invalid: 401,
  body_signature_missing: 401,
  body_signature_invalid: 401,
  payment_required: 402,
  payment_invalid: 402,
  not_owner: 403,
  token_expired: 403,
  ip_banned: 403,
  payer_refused: 403,
  not_found: 404,
  token_not_found: 404,
  vm_failed: 404,
  vm_terminated: 404,
  failure_not_found: 404,
  refund_not_found: 404,
  api_key_not_found: 404,
  log_not_found: 404,
  payment_not_found: 404,
  method_not_allowed: 405,
  not_delivered: 409,
  agent_exists: 409,
  api_key_exists: 409,
  not_retryable: 409,
  nothing_to_end: 409,
  nothing_to_rotate: 409,
  not_claimable: 409,
  not_payable: 409,
  payment_used: 409,
  key_erased: 409,
  key_brought: 409,
  key_gone: 409,
  identifier_used: 409,
  nonce_ambiguous: 409,
  order_open: 409,
  order_too_large: 409,
  body_too_large: 413,
  unsupported_media_type: 415,
  rate_limited: 429,
  internal_error: 500,
  misconfigured: 500,
  key_unreadable: 500,
  chain_answered_nonsense: 502,
  facilitator_answered_nonsense: 502,
  chain_unavailable: 503,
  ownership_settling: 503,
  tiers_unavailable: 503,
  database_unavailable: 503,
  guard_unavailable: 503,
  log_unavailable: 503,
  facilitator_unavailable: 503,
  payments_off: 503,
  tier_inactive: 503,
  sold_out: 503,
  operator_short: 503,
  gas_too_dear: 503,
  orders_full: 503,
  provisioning_paused: 503,
  delivery_stalled: 503,
} as const;

type ErrorCode = keyof typeof STATUS_OF;

/** Whether the payment of a refused request has moved money. `unknown`: it may have; the same payment again says more. */
export const CHARGED = ["none", "unknown", "yes"] as const;
export type Charged = (typeof CHARGED)[number];

/** An answer that is an error: `code` decides the status, `message` is the sentence the client reads. */
export class AppError extends Error {
  override readonly name: string = "AppError";
  readonly code: ErrorCode;
  readonly details: readonly unknown[] | undefined;
  readonly retryAfterSeconds: number | undefined;
  readonly headers: Readonly<Record<string, string>>;
  /** Beside the fields that every error's body has. */
  readonly body: Readonly<Record<string, unknown>>;
  /** On a paid route, where it is known. */
  charged: Charged | undefined;

  constructor(
    code: ErrorCode,
    message: string,
    options: ErrorOptions & {
      details?: readonly unknown[];
      retryAfterSeconds?: number;
      headers?: Readonly<Record<string, string>>;
      body?: Readonly<Record<string, unknown>>;
      charged?: Charged | undefined;
    } = {},
  ) {
    super(message, options);
    this.code = code;
    this.details = options.details;
    this.retryAfterSeconds = options.retryAfterSeconds;
    this.headers = options.headers ?? {};
    this.body = options.body ?? {};
    this.charged = options.charged;
  }
}

/** Background work that no repetition can mend: the row is set aside for an operator, with this cause. */
export class GiveUp extends Error {
  override readonly name = "GiveUp";
  /** What `failed_provisionings.cause` says. */
  readonly code: string;

  constructor(code: string, message: string, options?: ErrorOptions) {
    super(message, options);
    this.code = code;
  }
}

/** D1 gave no answer, or none in time. A write may have happened all the same, or may happen yet. */
export class DatabaseUnavailable extends Error {
  override readonly name = "DatabaseUnavailable";
  readonly safeToLog = true;
}

/**
 * What D1 (developers.cloudflare.com/d1/observability/debug-d1) and the runtime say of failures that pass by themselves: an
 * export and an import as well. Not of a query that took too much memory or CPU time: it would do so again.
 */
const TRANSIENT =
  /^(?:D1_\w*ERROR: |\w+: )?(?:network connection lost|internal error|cannot resolve D1|D1 DB (?:is overloaded|reset because|storage operation exceeded)|failed to parse body as json|too many api requests|currently processing a long-running|database (?:table )?is locked|D1 did not answer)/i;

/** Whether it is worth trying again for as long as it lasts. An object's errors say so themselves, and lose their class. */
export const isTransient = (error: unknown): boolean =>
  someCause(
    error,
    (one) =>
      one instanceof DatabaseUnavailable ||
      (one as { retryable?: unknown }).retryable === true ||
      (one as { overloaded?: unknown }).overloaded === true ||
      TRANSIENT.test(one.message),
  );

/** D1 itself did not answer. */
export const isDatabaseUnavailable = (error: unknown): boolean =>
  someCause(error, (one) => one instanceof DatabaseUnavailable);

/** For work whose error leaves an object, which takes its class and its cause from it: what passes by itself says so in words. */
export async function inItsOwnWords<T>(work: Promise<T>): Promise<T> {
  try {
    return await work;
  } catch (error) {
    throw isDatabaseUnavailable(error) ? new DatabaseUnavailable("D1 did not answer an object.") : error;
  }
}

/** D1 answered that it can't: no repetition mends that. A constraint that failed is no such refusal, since rows change. */
export const isDatabaseRefusal = (error: unknown): boolean =>
  !isTransient(error) &&
  someCause(error, ({ message }) => /^D1_\w*ERROR/.test(message) && !message.includes("constraint failed"));

function someCause(error: unknown, test: (error: Error) => boolean): boolean {
  // What has a code is classified by that, whatever its cause is.
  for (let one = error; one instanceof Error && !(one instanceof AppError); one = one.cause) if (test(one)) return true;
  return false;
}

/** A variable or binding that is missing or wrong. The text names it and never shows its value. */
export class ConfigError extends AppError {
  /** `NAME: why`, one for each variable. */
  readonly problems: readonly string[];

  constructor(worker: string, problems: readonly string[]) {
    super("misconfigured", `The ${worker} Worker refuses to run: ${problems.join("; ")}.`);
    this.problems = problems;
  }
}
