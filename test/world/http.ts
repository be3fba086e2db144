// Requests of the local world's customers, who meet connections that break. Runs in Node and in workerd.

const TRIES = 5;
const REST_MS = 300;

/** Statuses whose answers have no body. */
const BODILESS = [101, 204, 205, 304];

/**
 * `fetch`, sent again where the connection broke before the whole answer was here, as it does where a server closes one that
 * was idle just when it is used. For what may arrive twice: reads, and orders that say which one they are, as a signed payment
 * does (the same payment is the same purchase). Rejects with the last failure.
 */
export async function fetchAgain(...[input, init]: Parameters<typeof fetch>): Promise<Response> {
  const request = new Request(input, init);
  for (let tries = 1; ; tries++) {
    try {
      const answer = await fetch(request.clone());
      const { status, statusText, headers } = answer;
      const body = await answer.arrayBuffer();
      return new Response(BODILESS.includes(status) ? null : body, { status, statusText, headers });
    } catch (error) {
      if (tries === TRIES || request.signal.aborted) throw error;
      await new Promise((resolve) => setTimeout(resolve, REST_MS));
    }
  }
}

/** What an error says, and below it what each of its causes says: "fetch failed" alone tells nobody anything. */
export const tellError = (error: unknown): string => [...new Set(linesOf(error))].join("\n  because: ");

function linesOf(error: unknown): string[] {
  if (typeof error !== "object" || error === null) return [String(error)];
  const { message, shortMessage, code, cause, errors } = error as Record<string, unknown>;
  // viem's message repeats those of its causes, its short one does not.
  const text = String(shortMessage ?? (message || code) ?? JSON.stringify(error));
  const own = typeof code === "string" && !text.includes(code) ? `${text} (${code})` : text;
  const causes = error instanceof AggregateError ? (errors as unknown[]) : cause === undefined ? [] : [cause];
  return [own, ...causes.flatMap(linesOf)];
}
