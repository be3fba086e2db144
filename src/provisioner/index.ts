// The provisioner Worker: queues in, vendors out. It has no route to the world.
import { type ProvisionerBindings, provisionerConfig } from "../config.ts";
import { allClear, errorFields, log, sendLogs, setLogLevel } from "../log.ts";
import { consume, consumeDead } from "./consume.ts";
import { createContext, requireDataKey } from "./context.ts";

export { OperatorWallet } from "../../durable-objects/operator-wallet.ts";
export { VendorGate } from "../../durable-objects/vendor-gate.ts";

const DEAD_LETTER_QUEUE = "clawcloud-jobs-dead";

export default {
  async queue(batch, env, ctx) {
    try {
      const config = provisionerConfig(env);
      setLogLevel(config.LOG_LEVEL);
      const context = createContext(config);
      // A dead letter only wakes its row: that must work whatever is wrong.
      if (batch.queue !== DEAD_LETTER_QUEUE) {
        await requireDataKey(context);
        allClear("batch_refused");
      }
      const handle = batch.queue === DEAD_LETTER_QUEUE ? consumeDead : consume;
      await Promise.all(batch.messages.map((message) => handle(context, message)));
    } catch (error) {
      log("page", "batch_refused", errorFields(error));
      batch.retryAll({ delaySeconds: 30 });
    } finally {
      // A refusal is what a person has to hear of.
      if (env.LOG_BOOK !== undefined) ctx.waitUntil(sendLogs(env.LOG_BOOK));
    }
  },
} satisfies ExportedHandler<ProvisionerBindings>;
