// The data keys that the edge holds: what it seals under now, and the retired ones that open what is not re-encrypted yet.
import { secp256k1 } from "@noble/curves/secp256k1.js";
import { dataKeyId, isEncrypted, openSecret, type SecretContext, SecretUnreadable, sealSecret } from "./ecies.ts";

export type KeyRing = {
  /** Id of the key that seals. */
  current: string;
  /** Every id that opens. */
  ids: readonly string[];
  seal(context: SecretContext, secret: Uint8Array): Promise<{ sealed: string; keyId: string }>;
  /**
   * Opens what was stored beside a key id (null: from before there were any). Throws `SecretUnreadable`: the ring lacks
   * that key, or the value belongs to another row.
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
    open: async (context, stored, keyId) => {
      const candidates = keyId === null ? [...byId.values()] : [byId.get(keyId)].filter((key) => key !== undefined);
      if (!isEncrypted(stored)) return openSecret(DATA_PRIVATE_KEY, context, stored);
      for (const key of candidates) {
        const opened = await openSecret(key, context, stored).catch(() => null);
        if (opened !== null) return opened;
      }
      throw new SecretUnreadable(
        candidates.length === 0
          ? `it was sealed under the data key ${keyId}, which this Worker does not hold`
          : "it does not open with its data key, or belongs to another row",
      );
    },
  };
}
