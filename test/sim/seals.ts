// Seals that anybody can open but that still say what they belong to. Stands in for src/credentials/ecies.ts, whose
// WebCrypto works on other threads and would finish in another order each time.
import { AppError } from "../../src/errors.ts";

const PREFIX = "ecc:";
type SecretContext = { kind: string; subject: string; attempt: number };

/** Changes with each run: the product remembers ids of data keys for a minute, and each run begins at the same minute. */
let keyId = "data-key-0";
let runs = 0;
export const restartSeals = (): void => {
  runs += 1;
  keyId = `data-key-${runs}`;
};

const text = new TextDecoder();
const plaintextOf = (stored: string): string => Buffer.from(stored.slice(PREFIX.length), "hex").toString();

export const encrypt = async (_publicKey: Uint8Array, plaintext: Uint8Array): Promise<string> =>
  PREFIX + Buffer.from(plaintext).toString("hex");
export const decrypt = async (_privateKey: Uint8Array, value: string): Promise<Uint8Array> =>
  new Uint8Array(Buffer.from(value.slice(PREFIX.length), "hex"));
export const isEncrypted = (stored: string): boolean => stored.startsWith(PREFIX);
export const dataKeyId = (): string => keyId;

export const sealSecret = async (_publicKey: Uint8Array, context: SecretContext, secret: Uint8Array): Promise<string> =>
  PREFIX + Buffer.from(`${JSON.stringify(context)}\n${text.decode(secret)}`).toString("hex");

export async function openSecret(
  _privateKey: Uint8Array,
  context: SecretContext,
  stored: string,
): Promise<{ secret: Uint8Array; legacy: boolean }> {
  const secret = opened(context, stored);
  if (secret === null) throw new SecretOfAnotherRow();
  return { secret: new TextEncoder().encode(secret), legacy: false };
}

/** The secret where it belongs to that row, else null. */
export function opened(context: SecretContext, stored: string): string | null {
  const [header, secret = ""] = plaintextOf(stored).split("\n");
  return header === JSON.stringify(context) ? secret : null;
}

export class SecretUnreadable extends AppError {
  constructor(reason: string, options?: ErrorOptions) {
    super("internal_error", `A stored secret can't be used: ${reason}.`, options);
  }
}

export class SecretOfAnotherRow extends SecretUnreadable {
  constructor() {
    super("it was sealed for another row");
  }
}
