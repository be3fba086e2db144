// The data keys that the edge holds: what it seals under now, and the retired ones that open what is not re-encrypted yet.
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
  /** Id of the key that seals. */
  current: string;
  /** Every id that opens. */
  ids: readonly string[];
  seal(context: SecretContext, secret: Uint8Array): Promise<{ sealed: string; keyId: string }>;
  /**
   * Opens what was stored beside a key id (null: from before there were any). Throws `SecretUnreadable` where no key of the
   * ring opens it, `SecretOfAnotherRow` where it belongs elsewhere (hard case 6); both are in the security stream then, and
   * the second pages.
   */
  open(context: SecretContext, stored: string, keyId: string | null): Promise<{ secret: Uint8Array; legacy: boolean }>;
};

type Keys = { DATA_PRIVATE_KEY: Uint8Array; RETIRED_DATA_KEYS: readonly Uint8Array[] };
const rings = new WeakMap<Keys, KeyRing>();

/** The ring of a configuration, made once. */
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

/** The one place that opens what is stored, so that what does not belong there is told of wherever it turns up. */
async function openWith(
  byId: ReadonlyMap<string, Uint8Array>,
  current: Uint8Array,
  { context, stored, keyId }: Stored,
): Promise<{ secret: Uint8Array; legacy: boolean }> {
  if (!isEncrypted(stored)) return openSecret(current, context, stored);
  const named = keyId === null ? undefined : byId.get(keyId);
  // The named key first. The others open nothing that names a key, and show whether it was copied from another row.
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
