// The edge, with a count of what its crons ask for.
import type { EdgeBindings } from "../../src/edge/config.ts";
import edge from "../../src/edge/index.ts";
import { answerTotals, meterBindings, meterRpc } from "./totals.ts";

export { IpGuard, LogBook } from "../../src/edge/index.ts";

meterRpc();

export default {
  fetch: () => answerTotals(),
  scheduled: (event, env, ctx) => edge.scheduled(event, meterBindings(env), ctx),
} satisfies ExportedHandler<EdgeBindings>;
