import type { ChainConfig } from "../config.ts";
import type { Coin } from "./authorization.ts";

/** USDC's EIP-712 name differs between Base Sepolia and Base; the version of Circle's domain is 2 on both. */
const NAMES: Readonly<Record<number, string>> = { 84532: "USDC" };

/** The coin's EIP-712 domain, from the configuration. */
export const coinOf = ({
  USDC_ADDRESS,
  USDC_NAME,
  CHAIN_ID,
}: Pick<ChainConfig, "USDC_ADDRESS" | "USDC_NAME" | "CHAIN_ID">): Coin => ({
  address: USDC_ADDRESS,
  name: USDC_NAME ?? NAMES[CHAIN_ID] ?? "USD Coin",
  version: "2",
  chainId: CHAIN_ID,
});
