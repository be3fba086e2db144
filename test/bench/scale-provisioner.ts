// The provisioner, with a count of what its messages ask for.
import type { ProvisionerBindings } from "../../src/provisioner/config.ts";
import provisioner from "../../src/provisioner/index.ts";
import { answerTotals, countTaken, meterBindings, meterRpc } from "./totals.ts";

export { OperatorWallet, VendorGate } from "../../src/provisioner/index.ts";

meterRpc();

export default {
  fetch: () => answerTotals(),
  queue(batch, env, ctx) {
    countTaken(batch.messages.length);
    return provisioner.queue(batch, meterBindings(env), ctx);
  },
} satisfies ExportedHandler<ProvisionerBindings>;
