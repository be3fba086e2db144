// Re-encrypts stored secrets under the current data key, in batches. A batch may be interrupted or run twice: each row is
// written by compare-and-set, and finished rows are not selected again.
import type { Database } from "../db/client.ts";
import * as store from "../db/data-keys.ts";
import { SecretUnreadable } from "./ecies.ts";
import type { KeyRing } from "./key-ring.ts";

export type Progress = {
  reencrypted: number;
  /** Rows whose secret changed or was erased meanwhile; they stay as they are. */
  skipped: number;
  /** Secrets that no key of the ring opens, or that belong to other rows. */
  unreadable: number;
  /** The `after` of the next call; null at the end. */
  next: string | null;
};

/** Re-encrypts up to `limit` secrets, behind the position `after`. */
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
