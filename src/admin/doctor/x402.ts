// `npm run doctor -- x402`: whether the facilitator takes payments on the contract's chain.
import { askSupported } from "../../edge/payments/facilitator.ts";
import { type Finding, missing, needed, note, type Part, well } from "./finding.ts";
import { reasonOf } from "./reason.ts";

export const examineX402: Part = async (settings) => {
  const { config, wrong } = settings.edge;
  if (config.X402_PAY_TO === undefined && !wrong.has("X402_PAY_TO")) {
    return [note("sales", "nothing is sold over x402: X402_PAY_TO is not set")];
  }
  const absent = ["X402_PAY_TO", "X402_NETWORK", "FACILITATOR_URL", "CDP_API_KEY_ID", "CDP_API_KEY_SECRET"].flatMap(
    (name) => missing(settings, "edge", name) ?? [],
  );
  if (absent.length > 0) return absent;
  return [well("pay to", `${config.X402_PAY_TO} on eip155:${config.CHAIN_ID}`), await lookAtFacilitator(config)];
};

async function lookAtFacilitator(config: Parameters<typeof askSupported>[0] & { CHAIN_ID: number }): Promise<Finding> {
  const what = "facilitator";
  const { host } = new URL(config.FACILITATOR_URL ?? "https://facilitator.invalid");
  const network = `eip155:${config.CHAIN_ID}`;
  try {
    const { kinds, extensions } = await askSupported(config);
    const schemes = kinds
      .filter((kind) => kind.network === network)
      .map((kind) => `${kind.scheme} v${kind.x402Version}`);
    const answer = `${host}: ${schemes.join(", ") || `nothing on ${network}`}; extensions ${extensions.join(", ") || "none"}`;
    const isTaken = kinds.some((kind) => kind.network === network && kind.scheme === "exact" && kind.x402Version === 2);
    if (isTaken) return well(what, answer);
    const others = [...new Set(kinds.map((kind) => kind.network))].slice(0, 5).join(", ");
    const todo = `Set FACILITATOR_URL to a facilitator that supports "exact" of version 2 on ${network}: this one names ${others || "no network"}.`;
    return needed(what, answer, todo);
  } catch (error) {
    const todo = `Check FACILITATOR_URL and its keys: without an answer of ${host} no payment is taken (${reasonOf(error)}).`;
    return needed(what, `${host}: ${reasonOf(error)}`, todo);
  }
}
