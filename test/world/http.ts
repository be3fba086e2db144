// Requests of the local world's customers, who meet connections that break. Runs in Node and in workerd.

const TRIES = 5;
const REST_MS = 300;
/** The rest before an answer is asked for again doubles up to the longest: 104 seconds in all. */
const ASK_TRIES = 10;
const FIRST_REST_MS = 500;
const LONGEST_REST_MS = 24_000;
const wait = (ms: number) => new Promise<void>((resolve) => setTimeout(resolve, ms));

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
      return await whole(await fetch(request.clone()));
    } catch (error) {
      if (tries === TRIES || request.signal.aborted) throw error;
      await wait(REST_MS);
    }
  }
}

/**
 * The answer to what `ask` sends, which sends it again, signed anew, where that is a 503 or the connection breaks: on a busy
 * machine a node or a guard misses its time, and the nonce of the signature may be spent by then.
 */
export async function askAgain(ask: () => Promise<Response>): Promise<Response> {
  for (let tries = 1; ; tries++) {
    try {
      const answer = await whole(await ask());
      if (answer.status !== 503 || tries === ASK_TRIES) return answer;
    } catch (error) {
      if (tries === ASK_TRIES) throw error;
    }
    await wait(Math.min(LONGEST_REST_MS, FIRST_REST_MS * 2 ** (tries - 1)));
  }
}

async function whole(answer: Response): Promise<Response> {
  const { status, statusText, headers } = answer;
  const body = await answer.arrayBuffer();
  return new Response(BODILESS.includes(status) ? null : body, { status, statusText, headers });
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
