// The last lines of a pod's log. RunPod sends them as a stream of events that never ends by itself: what came within a
// moment is all of it.
import { inTurn } from "../../outbound.ts";
import { redactText } from "../../redact.ts";
import { quote, USER_AGENT, type VendorAccess } from "./request.ts";

const LINES = 20;
const READ_MS = 3_000;
const MAX_CHARS = 32_000;

/** Without secrets; none where the log can't be read, since nothing depends on it. `id` as it stands in a path. */
export async function readPodLog(access: VendorAccess, id: string): Promise<string[]> {
  const text = await inTurn(() => readStream(access, id));
  return linesOf(text).map((line) => redactText(quote(line, access.apiKey)));
}

async function readStream({ baseUrl, apiKey }: VendorAccess, id: string): Promise<string> {
  const limit = new AbortController();
  const timer = setTimeout(() => limit.abort(), READ_MS);
  let text = "";
  try {
    const headers = { authorization: `Bearer ${apiKey}`, accept: "text/event-stream", "user-agent": USER_AGENT };
    const url = `${baseUrl}/v2/pods/${id}/logs?tail=${LINES}`;
    const response = await fetch(url, { headers, redirect: "manual", signal: limit.signal });
    const reader = response.ok ? response.body?.getReader() : undefined;
    const decoder = new TextDecoder();
    while (reader !== undefined && text.length < MAX_CHARS) {
      const { done, value } = await reader.read();
      if (done) break;
      text += decoder.decode(value, { stream: true });
    }
  } catch {
    // The time is over, or the stream broke: what came before counts.
  } finally {
    clearTimeout(timer);
    limit.abort();
  }
  return text;
}

function linesOf(stream: string): string[] {
  return stream
    .split("\n")
    .flatMap((row) => {
      if (!row.startsWith("data:")) return [];
      try {
        const { source, line } = JSON.parse(row.slice("data:".length)) as { source?: unknown; line?: unknown };
        return typeof line === "string" ? [`${source}: ${line.trim()}`] : [];
      } catch {
        return [];
      }
    })
    .slice(-LINES);
}
