// The provisioner, whose database and objects fail and stall as told; and the wallet, whose database does.
import type { ProvisionerBindings } from "../../src/provisioner/config.ts";
import provisioner, { OperatorWallet, VendorGate } from "../../src/provisioner/index.ts";
import { setWeather, underWeather } from "./bad-day.ts";

class WeatheredWallet extends OperatorWallet {
  constructor(state: DurableObjectState, env: object) {
    super(state, underWeather(env));
  }
}

export { VendorGate, WeatheredWallet as OperatorWallet };

export default {
  fetch: (request) => setWeather(request),
  queue: (batch, env, ctx) => provisioner.queue(batch, underWeather(env), ctx),
} satisfies ExportedHandler<ProvisionerBindings>;
