// Why a connection failed, in a few words.
const LATE = "no answer in time";
const WORDS: Readonly<Record<string, string>> = {
  ECONNREFUSED: "nobody listens there",
  ENOTFOUND: "its name is not known",
  EAI_AGAIN: "its name can't be looked up",
  ECONNRESET: "the connection broke",
  EPIPE: "the connection broke",
  UND_ERR_SOCKET: "the connection broke",
  EHOSTUNREACH: "no network leads there",
  ENETUNREACH: "no network leads there",
  ETIMEDOUT: LATE,
  UND_ERR_CONNECT_TIMEOUT: LATE,
  UND_ERR_HEADERS_TIMEOUT: LATE,
  UND_ERR_BODY_TIMEOUT: LATE,
  EPROTO: "it does not speak TLS",
};

/** By the error and what caused it; undefined where it is no failure of a connection. */
export function networkReason(error: unknown): string | undefined {
  let isFetch = false;
  for (let one = error; one instanceof Error; one = one.cause) {
    const { code } = one as { code?: unknown };
    if (one.name === "TimeoutError") return LATE;
    if (one.message === "bad port") return "no client asks that port";
    if (typeof code === "string" && code !== "ABORT_ERR") return wordsOf(code);
    isFetch ||= one instanceof TypeError && one.message === "fetch failed";
  }
  if (error instanceof Error && error.name === "AbortError") return "it was interrupted";
  return isFetch ? "the connection failed" : undefined;
}

function wordsOf(code: string): string {
  if (/CERT|SIGNATURE|ERR_TLS/.test(code)) return `its certificate is not accepted (${code})`;
  if (code.startsWith("ERR_SSL")) return WORDS["EPROTO"] ?? code;
  if (code.startsWith("HPE_")) return "it does not speak HTTP";
  return WORDS[code] ?? code;
}
