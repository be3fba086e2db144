// The stock clients that agents pay with, unmodified but for what they may spend. Node only.
import { ExactEvmScheme } from "@x402/evm/exact/client";
import { wrapFetchWithPayment, x402Client } from "@x402/fetch";
import type { LocalAccount } from "viem/accounts";
import { wrapFetchWithPayment as wrapFetchWithPaymentV1 } from "x402-fetch";

// Above their defaults of $1 and $0.10, which no machine of a week is under.
const MAX_DOLLARS = 10_000;

/** `@x402/fetch`: pays a quote in `PAYMENT-REQUIRED` by `PAYMENT-SIGNATURE`. */
export const payFetch = (account: LocalAccount, send: typeof fetch = fetch) =>
  wrapFetchWithPayment(
    send,
    new x402Client()
      .register("eip155:*", new ExactEvmScheme(account))
      .setSpendControls({ maxAmountPerPayment: `$${MAX_DOLLARS}` }),
  );

/** `x402-fetch`: pays a quote in a 402's body by `X-PAYMENT`. */
export const payFetchV1 = (account: LocalAccount, send: typeof fetch = fetch) =>
  wrapFetchWithPaymentV1(send, account, BigInt(MAX_DOLLARS * 1_000_000));
