// The operator wallet's object from within, as tests change it.
import { runInDurableObject } from "cloudflare:test";
import type { OperatorWallet } from "../../durable-objects/operator-wallet.ts";

type Wallet = DurableObjectStub<OperatorWallet>;

/** Other settings for the object than the test run's, until the runtime evicts it. */
export const configureWallet = (wallet: Wallet, settings: Record<string, unknown>) =>
  runInDurableObject(wallet, (instance: OperatorWallet) => {
    const { env } = instance as unknown as { env: Record<string, unknown> };
    Object.assign(instance, { env: { ...env, ...settings } });
  });

/** Gives it nodes that can all be told to refuse. */
export function reachOnlyProxies(wallet: Wallet, [first = "", , third = ""]: readonly string[]) {
  return configureWallet(wallet, { RPC_URLS: [first, `${third}/a`, `${third}/b`].join(",") });
}

/** Changes its own tables. */
export const changeWallet = (wallet: Wallet, ...statements: readonly string[]) =>
  runInDurableObject(wallet, (_: OperatorWallet, { storage }) => {
    for (const statement of statements) storage.sql.exec(statement);
  });

/** As if everything that it has signed had been signed a minute earlier. */
export const signedAMinuteEarlier = (wallet: Wallet) =>
  changeWallet(
    wallet,
    "UPDATE signed SET signed_at = signed_at - 60000",
    "UPDATE wallet_orders SET created_at = created_at - 60000",
  );
