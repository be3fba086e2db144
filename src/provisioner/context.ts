import type { Address, Hex } from "viem";
import { privateKeyToAddress } from "viem/accounts";
import type { VendorGate } from "../../durable-objects/vendor-gate.ts";
import { type Chain, connectChain } from "../chain/client.ts";
import { dataKeyId } from "../credentials/ecies.ts";
import { type Database, openDatabase } from "../db/client.ts";
import { publishedKeys } from "../db/data-keys.ts";
import { ConfigError } from "../errors.ts";
import type { VendorName } from "../model/stock.ts";
import type { ProvisionerConfig } from "./config.ts";
import { createRunpod } from "./vendors/runpod.ts";
import { type Vendor, VendorError } from "./vendors/vendor.ts";
import { createVultr } from "./vendors/vultr.ts";

/** What every step works with. */
export type Context = {
  config: ProvisionerConfig;
  db: Database;
  chain: Chain;
  vendors: Record<VendorName, Vendor>;
  gate: (vendor: VendorName) => DurableObjectStub<VendorGate>;
  /** Unix milliseconds. */
  now: () => number;
};

/** How a step ended. `generation`: the row's, from here on. */
export type Next<Row = never> =
  /** The next step can run at once: on this row, or on the one that is loaded anew. */
  | { kind: "continue"; generation: number; row?: Row }
  /** A message goes on after a while. `seen`: the vendor has shown the machine that boots. */
  | { kind: "send"; generation: number; afterSeconds: number; seen?: true }
  /** The sweep goes on, by the time that the row has. */
  | { kind: "wait" }
  /** Nothing is left to do, or somebody else moved the row. */
  | { kind: "done" };

export const DONE = { kind: "done" } as const;
export const WAIT = { kind: "wait" } as const;

/** The row moved under a new generation and its next step can run; null means that somebody else moved it. */
export const goOn = (generation: number | null): Next =>
  generation === null ? DONE : { kind: "continue", generation };

export const sendAfter = (generation: number | null, afterSeconds: number): Next =>
  generation === null ? DONE : { kind: "send", generation, afterSeconds: Math.ceil(afterSeconds) };

export function createContext(config: ProvisionerConfig, now: () => number = Date.now): Context {
  // The gates' own file reads the configuration, which can't name their class for that.
  const gates = config.VENDOR_GATE as DurableObjectNamespace<VendorGate>;
  return {
    config,
    db: openDatabase(config.DB),
    chain: connectChain(config),
    vendors: { vultr: createVultr(config), runpod: createRunpod(config) },
    gate: (vendor) => gates.get(gates.idFromName(vendor)),
    now,
  };
}

const KEY_CHECK_MS = 60_000;
const checkedKeys = new Map<string, number>();

/**
 * Refuses to work under a data key that the edge can't open: what is sealed under it would be lost (hard case 8). The edge
 * says with each cron which keys it holds; a yes is good for a minute.
 */
export async function requireDataKey({ config, db, now }: Context): Promise<void> {
  const id = dataKeyId(config.DATA_PUBLIC_KEY);
  if ((checkedKeys.get(id) ?? 0) > now() - KEY_CHECK_MS) return;
  if (!(await publishedKeys(db)).includes(id)) {
    throw new ConfigError("provisioner", [
      `DATA_PUBLIC_KEY: the edge does not hold the private half of data key ${id}`,
    ]);
  }
  checkedKeys.set(id, now());
}

/**
 * A permit for so many calls; throws `VendorError` `wait` when the vendor's rate is used up or its circuit is open.
 * Resolves with what tells the gate how the call ended.
 */
export async function permit(context: Context, vendor: VendorName, calls = 1) {
  const gate = context.gate(vendor);
  const { waitSeconds, watched } = await gate.take(context.now(), calls);
  if (waitSeconds > 0) {
    const why = "the shared rate is used up, or the vendor does not answer";
    throw new VendorError(vendor, "wait", why, { retryAfterSeconds: waitSeconds });
  }
  return async (error?: unknown): Promise<void> => {
    if (error !== undefined && !(error instanceof VendorError)) return;
    if (error?.status === 429) await gate.close(context.now(), error.retryAfterSeconds);
    const isFault = error?.action === "unknown";
    if (isFault || watched) await gate.report(context.now(), isFault);
  };
}

/** One call to a vendor, or some that belong together, with a permit. */
export async function ask<T>(
  context: Context,
  vendor: VendorName,
  call: (vendor: Vendor) => Promise<T>,
  calls = 1,
): Promise<T> {
  const settle = await permit(context, vendor, calls);
  try {
    const answer = await call(context.vendors[vendor]);
    await settle();
    return answer;
  } catch (error) {
    await settle(error);
    throw error;
  }
}

/** The operator wallet's address; null where there is no wallet. */
export const operatorOf = ({ config }: Pick<Context, "config">): Address | null =>
  config.OPERATOR_PRIVATE_KEY === undefined ? null : addressOf(config.OPERATOR_PRIVATE_KEY);

/** The same as rows have it; empty where there is no wallet. */
export const addressInRows = (context: Pick<Context, "config">): string => operatorOf(context)?.toLowerCase() ?? "";

/** Whether a machine's token is ours: bought for a payment that has not been taken yet, or held. */
export const isOurs = (context: Pick<Context, "config">, vm: { owner: string }): boolean =>
  vm.owner === operatorOf(context)?.toLowerCase();

/** Ours, or without an owner while a reorg leaves none. */
export const isNobodys = (context: Pick<Context, "config">, vm: { owner: string }): boolean =>
  isOurs(context, vm) || vm.owner === "";

const addresses = new Map<Hex, Address>();
function addressOf(key: Hex): Address {
  const address = addresses.get(key) ?? privateKeyToAddress(key);
  addresses.set(key, address);
  return address;
}
