// What the smoke test tells a person: before the purchase what it costs, after it what became of machine and money.
import { formatEther } from "viem";
import { formatUsdc } from "../../chain/contract.ts";
import { hideSecrets } from "../doctor/finding.ts";
import { type Prepared, secretsOf } from "./prepare.ts";
import type { Outcome } from "./run.ts";

export const NOTHING_BOUGHT = 1;
const NOT_WELL = 2;

export function describe({ offer, buyer, admin }: Prepared): string {
  const { tier, name, cost, gasWei } = offer;
  const from = `from the wallet ${buyer.account.address} on chain ${buyer.config.CHAIN_ID}`;
  return `One day of tier ${tier} (${name}) at ${admin.url}: ${formatUsdc(cost)} USDC, and at most ${short(gasWei)} ether of gas, ${from}. The machine is ended at once; its price stays with the contract.`;
}

const short = (wei: bigint): string => Number(formatEther(wei)).toPrecision(2);

const isBought = ({ state }: Outcome["paid"]): boolean => state === "sent" || state === "mined";

/** 0: all went well. 1: nothing was bought. 2: something was, and not all went well. */
export function exitCodeOf({ paid, failure, isGone }: Outcome): number {
  if (failure === null && isGone) return 0;
  return isBought(paid) ? NOT_WELL : NOTHING_BOUGHT;
}

export function tell(outcome: Outcome, { buyer, admin, settings, offer }: Prepared): string[] {
  const { paid, tokenId, isGone, lastStatus } = outcome;
  const gas = `${short(paid.feesWei)} ether of gas`;
  if (outcome.failure === null) {
    const vendor = outcome.vendorCost ?? "what the vendor takes, which could not be read";
    return ["", `All went well. It cost ${formatUsdc(paid.cost)} USDC, ${gas} and ${vendor}.`];
  }
  const failed = ["", `Failed: ${hideSecrets(outcome.failure, secretsOf(settings))}.`];
  if (!isBought(paid)) {
    const left =
      paid.approval === null
        ? ""
        : `; the contract may still take ${formatUsdc(offer.cost)} USDC by the approval ${paid.approval}`;
    return [...failed, `Nothing was bought. It cost ${gas}${left}.`];
  }
  if (tokenId === null) {
    return [
      ...failed,
      `Paid: perhaps ${formatUsdc(offer.cost)} USDC. The purchase ${paid.purchase} was sent and not seen to be mined.`,
      `Look it up: once it is mined its token is ${buyer.account.address}'s, "npm run admin -- vms list" names it, and "npm run admin -- vms terminate <tokenId> --reason smoke" ends its machine.`,
    ];
  }
  const refund = lastStatus?.refund;
  const owed = refund === undefined ? "" : `, its refund of ${refund.amount} USDC is ${refund.state}`;
  return [
    ...failed,
    `Paid: ${formatUsdc(paid.cost)} USDC and ${gas}, by ${paid.purchase} for token ${tokenId}.`,
    `State: ${lastStatus?.status ?? "not known"}${owed}; ${admin.url}/status/${tokenId} goes on telling it.`,
    moneyBack(lastStatus?.status, tokenId),
    isGone
      ? "Its machine is gone, by the vendor's own list."
      : `Its machine may still run: "npm run admin -- vms terminate ${tokenId} --reason smoke" ends it; else end what bears ${tokenId} in its name in the vendor's console.`,
  ];
}

function moneyBack(status: string | undefined, tokenId: number): string {
  if (status === "failed") {
    return `The price goes back to the wallet by itself: "npm run admin -- refunds list" says when, and "npm run admin -- refunds pay ${tokenId} --reason smoke" pays one that is recorded or held.`;
  }
  return "The price is the contract's, and an ended machine is not refunded: the contract's owner may withdraw it.";
}
