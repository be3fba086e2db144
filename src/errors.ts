// An `AppError` becomes the client's error response: a code with its HTTP status, and one sentence. Background work throws
// `GiveUp` when no retry can help and an operator has to decide; every other error is a fault, and the queue retries the
// message. A fault that passes by itself is `isTransient`.

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

/** Whether the payment of a refused request has moved money. `unknown`: perhaps; the same payment, sent again, shows it. */
export const CHARGED = ["none", "unknown", "yes"] as const;
export type Charged = (typeof CHARGED)[number];

/** An error response: `code` decides the HTTP status (see `STATUS_OF`), `message` is the sentence that the client reads. */
export class AppError extends Error {
  override readonly name: string = "AppError";
  readonly code: ErrorCode;
  readonly details: readonly unknown[] | undefined;
  readonly retryAfterSeconds: number | undefined;
  readonly headers: Readonly<Record<string, string>>;
  /** Fields of the response body beside those of every error. */
  readonly body: Readonly<Record<string, unknown>>;
  /** On a paid route: whether the payment was charged, if known. */
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

/** Background work that no retry can complete: the row is set aside for an operator, with this cause. */
export class GiveUp extends Error {
  override readonly name = "GiveUp";
  /** The value of `failed_provisionings.cause`. */
  readonly code: string;

  constructor(code: string, message: string, options?: ErrorOptions) {
    super(message, options);
    this.code = code;
  }
}

/** D1 did not answer, or not in time. A write may have happened nevertheless, or may happen later. */
export class DatabaseUnavailable extends Error {
  override readonly name = "DatabaseUnavailable";
  readonly safeToLog = true;
}

/**
 * Messages of D1 (developers.cloudflare.com/d1/observability/debug-d1) and the runtime for failures that pass by themselves,
 * including an export or import that runs. The failure of a query that took too much memory or CPU time is not transient.
 */
const TRANSIENT =
  /^(?:D1_\w*ERROR: |\w+: )?(?:network connection lost|internal error|cannot resolve D1|D1 DB (?:is overloaded|reset because|storage operation exceeded)|failed to parse body as json|too many api requests|currently processing a long-running|database (?:table )?is locked|D1 did not answer)/i;

/**
 * Whether a failure passes by itself, so that retries make sense for as long as it lasts. The errors of a Durable Object call
 * carry flags for that, since they lose their class.
 */
export const isTransient = (error: unknown): boolean =>
  someCause(
    error,
    (one) =>
      one instanceof DatabaseUnavailable ||
      (one as { retryable?: unknown }).retryable === true ||
      (one as { overloaded?: unknown }).overloaded === true ||
      TRANSIENT.test(one.message),
  );

/** Whether the cause of an error is that D1 did not answer. */
export const isDatabaseUnavailable = (error: unknown): boolean =>
  someCause(error, (one) => one instanceof DatabaseUnavailable);

/**
 * Runs work of a Durable Object whose error goes to the object's caller. The error loses its class and cause on the way, so a
 * `DatabaseUnavailable` gets a message that `isTransient` recognizes.
 */
export async function inItsOwnWords<T>(work: Promise<T>): Promise<T> {
  try {
    return await work;
  } catch (error) {
    throw isDatabaseUnavailable(error) ? new DatabaseUnavailable("D1 did not answer an object.") : error;
  }
}

/** Whether D1 refused a statement, which no retry changes. A failed constraint does not count, since rows change. */
export const isDatabaseRefusal = (error: unknown): boolean =>
  !isTransient(error) &&
  someCause(error, ({ message }) => /^D1_\w*ERROR/.test(message) && !message.includes("constraint failed"));

function someCause(error: unknown, test: (error: Error) => boolean): boolean {
  // An `AppError` is classified by its code, regardless of its cause.
  for (let one = error; one instanceof Error && !(one instanceof AppError); one = one.cause) if (test(one)) return true;
  return false;
}

/** An environment with missing or wrong variables or bindings. The message names them and never shows a value. */
export class ConfigError extends AppError {
  /** One `NAME: problem` for each variable. */
  readonly problems: readonly string[];

  constructor(worker: string, problems: readonly string[]) {
    super("misconfigured", `The ${worker} Worker refuses to run: ${problems.join("; ")}.`);
    this.problems = problems;
  }
}
