// The edge, whose database and objects fail and stall as told.
import type { EdgeBindings } from "../../src/edge/config.ts";
import edge, { IpGuard, LogBook } from "../../src/edge/index.ts";
import { setWeather, underWeather, WEATHER_PATH } from "./bad-day.ts";

class WeatheredIpGuard extends IpGuard {
  constructor(ctx: DurableObjectState, env: Pick<EdgeBindings, "DB" | "LOG_BOOK" | "IP_GUARD">) {
    super(ctx, underWeather(env));
  }
}

export { LogBook, WeatheredIpGuard as IpGuard };

export default {
  async fetch(request, env, ctx) {
    if (new URL(request.url).pathname === WEATHER_PATH) return setWeather(request);
    return edge.fetch(request, underWeather(env), ctx);
  },
  scheduled: (event, env, ctx) => edge.scheduled(event, underWeather(env), ctx),
} satisfies ExportedHandler<EdgeBindings>;
