// The provisioner Worker: queues in, vendors out. It has no route to the world.

import { inBackground } from "../db/client.ts";
import { isTransient } from "../errors.ts";
import { allClear, errorFields, log, sendLogs, setLogLevel } from "../log.ts";
import { Connections } from "../outbound.ts";
import { type ProvisionerBindings, provisionerConfig } from "./config.ts";
import { consume, consumeDead, putOff } from "./consume.ts";
import { type Context, createContext, requireDataKey } from "./context.ts";

export { OperatorWallet } from "../../durable-objects/operator-wallet.ts";
export { VendorGate } from "../../durable-objects/vendor-gate.ts";

const DEAD_LETTER_QUEUE = "clawcloud-jobs-dead";

export default {
  async queue(batch, env, ctx) {
    try {
      const config = provisionerConfig(env);
      setLogLevel(config.LOG_LEVEL);
      await new Connections().run(() => inBackground(() => takeBatch(createContext(config), batch)));
    } catch (error) {
      log("page", "batch_refused", errorFields(error));
      batch.retryAll({ delaySeconds: 30 });
    } finally {
      // A refusal is what a person has to hear of.
      if (env.LOG_BOOK !== undefined) ctx.waitUntil(sendLogs(env.LOG_BOOK));
    }
  },
} satisfies ExportedHandler<ProvisionerBindings>;

async function takeBatch(context: Context, { queue, messages }: MessageBatch<unknown>): Promise<void> {
  // A dead letter only wakes its row: that must work whatever is wrong.
  if (queue === DEAD_LETTER_QUEUE) {
    await Promise.all(messages.map((message) => consumeDead(context, message)));
    return;
  }
  try {
    await requireDataKey(context);
    allClear("batch_refused");
  } catch (error) {
    if (!isTransient(error)) throw error;
    log("warn", "batch_put_off", errorFields(error));
    await Promise.all(messages.map((message) => putOff(context, message)));
    return;
  }
  await Promise.all(messages.map((message) => consume(context, message)));
}
