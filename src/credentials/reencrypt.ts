// Brings stored secrets under the data key that is in force, a batch at a time. Any batch may be cut off or run twice:
// rows are compared before they are set, and what is done is no longer found.
import type { Database } from "../db/client.ts";
import * as store from "../db/data-keys.ts";
import { SecretUnreadable } from "./ecies.ts";
import type { KeyRing } from "./key-ring.ts";

export type Progress = {
  reencrypted: number;
  /** Changed or erased meanwhile: left as they are. */
  skipped: number;
  /** No key of the ring opens them, or they belong to other rows. */
  unreadable: number;
  /** Give it to the next call; null at the end. */
  next: string | null;
};

/** Works through at most `limit` values, from the one behind `after` on. */
export async function reencrypt(
  db: Database,
  ring: KeyRing,
  { after, limit }: { after: string | undefined; limit: number },
): Promise<Progress> {
  const progress: Progress = { reencrypted: 0, skipped: 0, unreadable: 0, next: null };
  const [atGroup, atRow] = parsePosition(after);
  const groups = (await store.countSealed(db))
    .filter(({ keyId }) => keyId !== ring.current)
    .map((group) => ({ ...group, name: `${group.table}.${group.keyId ?? ""}` }))
    .filter(({ name }) => name >= atGroup)
    .sort((a, b) => (a.name < b.name ? -1 : 1));
  let left = limit;
  for (const group of groups) {
    const rows = await store.listSealed(db, group, group.name === atGroup ? atRow : 0, left);
    for (const row of rows) {
      progress[await reseal(db, ring, group, row)] += 1;
      progress.next = `${group.name}.${row.rowid}`;
    }
    left -= rows.length;
    if (left === 0) return progress;
  }
  return { ...progress, next: null };
}

async function reseal(
  db: Database,
  ring: KeyRing,
  { table, keyId }: Pick<store.SealedCount, "table" | "keyId">,
  row: store.SealedRow,
): Promise<"reencrypted" | "skipped" | "unreadable"> {
  const context = { kind: table === "wallets" ? "wallet" : "ssh", subject: row.subject, attempt: row.attempt } as const;
  try {
    const { secret } = await ring.open(context, row.sealed, keyId);
    const { sealed, keyId: current } = await ring.seal(context, secret);
    return (await store.replaceSealed(db, table, row, sealed, current)) ? "reencrypted" : "skipped";
  } catch (error) {
    if (!(error instanceof SecretUnreadable)) throw error;
    return "unreadable";
  }
}

function parsePosition(after: string | undefined): [group: string, row: number] {
  const [, group = "", row = "0"] = /^(\w+\.\w*)\.(\d+)$/.exec(after ?? "") ?? [];
  return [group, Number(row)];
}
