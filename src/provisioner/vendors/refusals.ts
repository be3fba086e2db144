// What a vendor's refusal asks us to do. Status first; the text tells apart only what shares a status. Neither vendor has a
// machine-readable code (test/world/vendor-words.ts has their words, and where each was seen).

import type { VendorName } from "../../model/stock.ts";
import { retryAfter, type VendorAnswer } from "./request.ts";
import { type VendorAction, VendorError } from "./vendor.ts";

const SOLD_OUT =
  /(?<!service (?:is )?(?:currently |temporarily )?)not available|no (?:longer any |more |free )?(?:instances|machines|hosts|gpus)\b.*available|sold out|out of stock|capacity|does not have the resources|enough disk space|different machine/i;
const AT_LIMIT = /maximum (?:number of|monthly)|limit (?:reached|exceeded)|exceeds? (?:.* )?limit|quota/i;
const ACCOUNT =
  /balance|billing|payment|credit|funds|past due|suspended|verif(?:y|ied|ication)|account (?:is )?(?:locked|disabled|restricted)/i;
const KEY = /key|token|permission|scope|privilege|unauthori[sz]ed|not authori[sz]ed|ip address/i;
/** Of a change of a machine that is being made, installed or ended: passes by itself. */
const BUSY = /locked|not (?:currently )?active|pending|in progress/i;

/** Of an order for a machine. `text` is what the vendor says in the field that its document has for it. */
export function refusalOfOrder(
  vendor: VendorName,
  answer: VendorAnswer,
  text: string,
  waitSeconds?: number,
): VendorError {
  return describe(vendor, actionOfOrder(vendor, answer.status, text), answer, waitSeconds);
}

function actionOfOrder(vendor: VendorName, status: number, text: string): VendorAction {
  // Another success than the documented one, or a redirect: whether a machine was made is for the list to say.
  if (status < 400 || status === 408) return "unknown";
  if (status === 429) return "wait";
  if (status === 401 || status === 402) return "page";
  if (SOLD_OUT.test(text)) return "next_candidate";
  if (status >= 500) return "unknown";
  if (status === 403) return KEY.test(text) || ACCOUNT.test(text) ? "page" : "skip_candidate";
  // By RunPod's own document every 400 means the next candidate.
  if (vendor === "runpod") return "skip_candidate";
  if (AT_LIMIT.test(text)) return "at_limit";
  return ACCOUNT.test(text) ? "page" : "skip_candidate";
}

/** Of any other call: `page` where no call of ours will do until a person acts. */
export function refusalOfCall(vendor: VendorName, answer: VendorAnswer, waitSeconds?: number): VendorError {
  const { status } = answer;
  const action = status === 429 ? "wait" : status < 400 || status === 408 || status >= 500 ? "unknown" : "page";
  return describe(vendor, action, answer, waitSeconds);
}

/** Of a change or the end of one machine: what is refused for good is refused for this machine alone (`next_candidate`). */
export function refusalOfChange(
  vendor: VendorName,
  answer: VendorAnswer,
  text: string,
  waitSeconds?: number,
): VendorError {
  const isRefused = answer.status >= 400 && ![401, 402, 403, 408, 429].includes(answer.status);
  if (isRefused && BUSY.test(text)) return describe(vendor, "wait", answer, waitSeconds);
  if (isRefused && answer.status < 500) return describe(vendor, "next_candidate", answer, waitSeconds);
  return refusalOfCall(vendor, answer, waitSeconds);
}

function describe(vendor: VendorName, action: VendorAction, answer: VendorAnswer, waitSeconds?: number): VendorError {
  const { status, detail } = answer;
  const told = waitSeconds ?? retryAfter(answer.headers);
  // No Retry-After is documented at Vultr, whose limit is by the second.
  const wait = told ?? (status === 429 ? 2 : undefined);
  return new VendorError(vendor, action, detail, {
    status,
    ...(wait === undefined ? {} : { retryAfterSeconds: wait }),
  });
}
