// What calls a person, and what calls it off, as this isolate would tell the log book.
import type { LogBatch } from "../../durable-objects/log-book.ts";
import { log, sendLogs } from "../../src/log.ts";

/** The causes of pages since the last look, and those that were called over. */
export async function takePages(): Promise<{ pages: string[]; cleared: string[] }> {
  const sent: LogBatch[] = [];
  log("info", "pages_taken");
  await sendLogs({
    idFromName: () => ({}),
    get: () => ({ append: async (batch: LogBatch) => void sent.push(batch) }),
  } as never);
  const pages = sent.flatMap((batch) => Object.keys(batch.pages)).sort();
  return { pages, cleared: sent.flatMap((batch) => [...batch.cleared]).sort() };
}
