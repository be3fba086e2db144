// The edge's data keys: the current one, which encrypts, and the retired ones, which open secrets that are not re-encrypted
// yet.
import { secp256k1 } from "@noble/curves/secp256k1.js";
import { errorFields, log } from "../log.ts";
import {
  dataKeyId,
  isEncrypted,
  openSecret,
  type SecretContext,
  SecretOfAnotherRow,
  SecretUnreadable,
  sealSecret,
} from "./ecies.ts";

export type KeyRing = {
  /** The id of the key that encrypts. */
  current: string;
  /** The ids of all keys that can decrypt. */
  ids: readonly string[];
  seal(context: SecretContext, secret: Uint8Array): Promise<{ sealed: string; keyId: string }>;
  /**
   * Opens a stored secret by the key id of its row (null in rows from before key ids). Throws `SecretUnreadable` when no key of
   * the ring opens it, and `SecretOfAnotherRow` when it belongs to another row (hard case 6). Both are logged as security
   * events; the second also pages.
   */
  open(context: SecretContext, stored: string, keyId: string | null): Promise<{ secret: Uint8Array; legacy: boolean }>;
};

type Keys = { DATA_PRIVATE_KEY: Uint8Array; RETIRED_DATA_KEYS: readonly Uint8Array[] };
const rings = new WeakMap<Keys, KeyRing>();

/** The key ring of a configuration; it is made once. */
export function keyRing(keys: Keys): KeyRing {
  const known = rings.get(keys) ?? makeRing(keys);
  rings.set(keys, known);
  return known;
}

function makeRing({ DATA_PRIVATE_KEY, RETIRED_DATA_KEYS }: Keys): KeyRing {
  const publicKey = secp256k1.getPublicKey(DATA_PRIVATE_KEY);
  const current = dataKeyId(publicKey);
  const byId = new Map(
    [...RETIRED_DATA_KEYS, DATA_PRIVATE_KEY].map((key) => [dataKeyId(secp256k1.getPublicKey(key)), key]),
  );
  return {
    current,
    ids: [...byId.keys()],
    seal: async (context, secret) => ({ sealed: await sealSecret(publicKey, context, secret), keyId: current }),
    open: (context, stored, keyId) => openWith(byId, DATA_PRIVATE_KEY, { context, stored, keyId }),
  };
}

type Stored = { context: SecretContext; stored: string; keyId: string | null };

/** The only place that opens stored secrets, so that a secret of another row is reported wherever it is found. */
async function openWith(
  byId: ReadonlyMap<string, Uint8Array>,
  current: Uint8Array,
  { context, stored, keyId }: Stored,
): Promise<{ secret: Uint8Array; legacy: boolean }> {
  if (!isEncrypted(stored)) return openSecret(current, context, stored);
  const named = keyId === null ? undefined : byId.get(keyId);
  // The named key comes first. A secret that opens under another key is refused: that key is only tried to find out whether the
  // secret was copied from another row.
  for (const key of new Set([...(named === undefined ? [] : [named]), ...byId.values()])) {
    try {
      const opened = await openSecret(key, context, stored);
      if (keyId === null || key === named) return opened;
    } catch (error) {
      if (!(error instanceof SecretOfAnotherRow)) continue;
      log("security", "secret_of_another_row", rowOf(context));
      log("page", "secret_of_another_row", rowOf(context));
      throw error;
    }
  }
  const error = new SecretUnreadable(
    keyId !== null && named === undefined
      ? `it was sealed under the data key ${keyId}, which this Worker does not hold`
      : "it does not open with its data key",
  );
  log("security", "secret_unreadable", { ...rowOf(context), ...errorFields(error) });
  throw error;
}

const rowOf = ({ kind, subject, attempt }: SecretContext) =>
  kind === "wallet" ? { kind, agentId: subject } : { kind, incarnation: subject, attempt };
