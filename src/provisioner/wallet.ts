// The operator wallet, as steps reach it.
import type { OperatorWallet } from "../../durable-objects/operator-wallet.ts";
import type { ProvisionerConfig } from "./config.ts";

export function walletOf({ config }: { config: ProvisionerConfig }): DurableObjectStub<OperatorWallet> {
  // The wallet's own file reads the configuration, which can't name its class for that.
  const wallets = config.OPERATOR_WALLET as DurableObjectNamespace<OperatorWallet>;
  return wallets.get(wallets.idFromName("operator"));
}
