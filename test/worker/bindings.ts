// What the runtime of a test file is bound to.
import type { D1Migration } from "cloudflare:test";
import { env } from "cloudflare:workers";
import type { IpGuard } from "../../durable-objects/ip-guard.ts";
import type { OperatorWallet } from "../../durable-objects/operator-wallet.ts";
import type { PartsInfo } from "./parts.ts";

type TestBindings = {
  DB: D1Database;
  IP_GUARD: DurableObjectNamespace<IpGuard>;
  LOG_BOOK: DurableObjectNamespace;
  VENDOR_GATE: DurableObjectNamespace;
  OPERATOR_WALLET: DurableObjectNamespace<OperatorWallet>;
  MIGRATIONS: D1Migration[];
  PARTS: PartsInfo;
};
export const bindings = env as unknown as TestBindings;
/** The chain and the vendors of this workerd. */
export const parts = bindings.PARTS;
