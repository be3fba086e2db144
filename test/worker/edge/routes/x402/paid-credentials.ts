// A payer at /x402/vm-credentials, as the tests of it play it.
import { hexToBytes } from "@noble/hashes/utils.js";
import type { PaymentRequirements } from "@x402/core/types";
import { decrypt as openByEciesjs } from "eciesjs";
import type { Hex } from "viem";
import { type HDAccount, mnemonicToAccount } from "viem/accounts";
import { paymentHeaderV2, type SignedPayment } from "../../../../world/payer.ts";
import { agent } from "../../../chain.ts";
import type { Deployment, Row } from "../../../deployment.ts";
import { quoteOf, signFor } from "./till.ts";

export const PRICE = 10_000n;
const CLIENT_MNEMONIC = "test test test test test test test test test test test junk";

export const pathOf = (tokenId: number) => `/x402/vm-credentials?tokenId=${tokenId}`;
export const quote = (world: Deployment, tokenId: number): Promise<PaymentRequirements> =>
  quoteOf(world.request(pathOf(tokenId)));

export const v2 = (
  requirement: PaymentRequirements,
  signed: SignedPayment,
  identifier?: string,
): Record<string, string> => {
  const extensions =
    identifier === undefined ? {} : { "payment-identifier": { info: { required: false, id: identifier } } };
  return { "payment-signature": paymentHeaderV2(requirement, signed, { extensions }) };
};

/** Quoted, signed and not sent yet. */
export async function prepare(world: Deployment, tokenId: number, index = 0) {
  const requirement = await quote(world, tokenId);
  const signed = await signFor(agent(index), requirement);
  return { requirement, signed, headers: v2(requirement, signed) };
}

export async function ask(world: Deployment, tokenId: number, headers: Record<string, string> = {}) {
  const answer = await world.request(pathOf(tokenId), { headers });
  const text = await answer.text();
  return { status: answer.status, headers: answer.headers, text, body: JSON.parse(text) as Row };
}

/** As time passes for a request that was cut off: whoever asks next may take it up. */
export const leaveBehind = (world: Deployment) =>
  world.sql.prepare("UPDATE payments SET wake_at = wake_at - 30000 WHERE wake_at IS NOT NULL").run();

/** With another implementation than ours, and the payer's key. */
export function unseal(index: number, sealed: string): string {
  const account: HDAccount = mnemonicToAccount(CLIENT_MNEMONIC, { addressIndex: index });
  const key = account.getHdKey().privateKey ?? new Uint8Array();
  return new TextDecoder().decode(openByEciesjs(key, hexToBytes(sealed.replace("ecc:", "").replaceAll(":", ""))));
}

export const decodeReceipt = (header: string | null): Row => JSON.parse(atob(header ?? "")) as Row;
export const isHash = (value: unknown): value is Hex => /^0x[0-9a-f]{64}$/.test(String(value));
