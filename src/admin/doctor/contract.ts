// The contract as two nodes or more show it: what it can do, what it sells, since when it is there. And the coin.
import {
  type AbiEvent,
  type Address,
  decodeFunctionResult,
  encodeFunctionData,
  getAddress,
  type Hex,
  parseAbi,
  slice,
  toEventSelector,
  toFunctionSelector,
} from "viem";
import { type InnerResult, type Node, readAtOneBlock } from "../../chain/client.ts";
import { coinOf } from "../../chain/coin.ts";
import { contractAbi, eventAbi, formatUsdc } from "../../chain/contract.ts";
import type { EdgeConfig } from "../../edge/config.ts";
import { TIER_COUNT } from "../../model/tiers.ts";
import { type Finding, needed, note, well } from "./finding.ts";
import type { Asked, Looked } from "./nodes.ts";
import { reasonOf } from "./reason.ts";

export type Tier = { tier: number; pricePerDay: bigint; active: boolean };

const coinViewAbi = parseAbi(["function name() view returns (string)", "function decimals() view returns (uint8)"]);
/** Of proxies: keccak256("eip1967.proxy.implementation") - 1. */
const IMPLEMENTATION_SLOT = "0x360894a13ba1a3210667c828492db98dca3e2076cc3735a920a3ca505d382bbc";
/** Nobody has published what the contract calls them. */
const RENEWALS = ["renewVM(uint256,uint16)", "renew(uint256,uint16)", "extendVM(uint256,uint16)"];
const TERMINATIONS = ["terminateVM(uint256)", "terminate(uint256)"];

type View = { tiers: (Tier | null)[]; coinName: string | null; decimals: number | null };

/** One reading of prices and of the coin, in which most of these nodes agree at a block that is final for all of them. */
export async function lookAtContract(
  { config, chain }: Asked,
  nodes: readonly Looked[],
): Promise<{ findings: Finding[]; tiers: Tier[] }> {
  const numbers = nodes.flatMap(({ final }) => (final === null ? [] : [final.number]));
  const block = Math.min(...numbers);
  const calls = [
    ...Array.from({ length: TIER_COUNT }, (_, tier) => ({
      target: chain.contract,
      callData: encodeFunctionData({ abi: contractAbi, functionName: "getTierConfig", args: [tier] }),
    })),
    ...(["name", "decimals"] as const).map((functionName) => ({
      target: config.USDC_ADDRESS,
      callData: encodeFunctionData({ abi: coinViewAbi, functionName }),
    })),
  ];
  const views: { label: string; text: string; view: View }[] = [];
  let reason = "";
  for (const { node, label } of nodes) {
    try {
      const { results } = await readAtOneBlock(node, calls, block);
      const view = toView(results);
      views.push({ label, view, text: JSON.stringify(view, (_, one) => (typeof one === "bigint" ? `${one}` : one)) });
    } catch (error) {
      reason = reasonOf(error);
    }
  }
  const [most] = [...Map.groupBy(views, ({ text }) => text).values()].sort((a, b) => b.length - a.length);
  const [first] = most ?? [];
  if (most === undefined || first === undefined) {
    const todo = `Check CONTRACT_ADDRESS and CHAIN_ID: no node reads the contract ${config.CONTRACT_ADDRESS} (${reason}).`;
    return { findings: [needed("contract", `not read: ${reason}`, todo)], tiers: [] };
  }
  const findings: Finding[] = views
    .filter((one) => !most.includes(one))
    .map(({ label }) =>
      needed(
        `${label} contract`,
        "differs from the others",
        `Replace ${label} in RPC_URLS: it answers other prices than the others at block ${block}.`,
      ),
    );
  const tiers = first.view.tiers.flatMap((tier) => (tier === null ? [] : [tier]));
  findings.push(tellTiers(config, tiers), tellCoin(config, first.view));
  return { findings, tiers };
}

function toView(results: readonly InnerResult[]): View {
  const [name, decimals] = results.slice(TIER_COUNT);
  return {
    tiers: results.slice(0, TIER_COUNT).map((result, tier) =>
      attempt(result, (data) => {
        const [pricePerDay, active] = decodeFunctionResult({ abi: contractAbi, functionName: "getTierConfig", data });
        return { tier, pricePerDay, active };
      }),
    ),
    coinName: attempt(name, (data) => decodeFunctionResult({ abi: coinViewAbi, functionName: "name", data })),
    decimals: attempt(decimals, (data) => decodeFunctionResult({ abi: coinViewAbi, functionName: "decimals", data })),
  };
}

function attempt<T>(result: InnerResult | undefined, decode: (data: Hex) => T): T | null {
  if (result?.success !== true) return null;
  try {
    return decode(result.returnData);
  } catch {
    return null;
  }
}

function tellTiers(config: EdgeConfig, tiers: readonly Tier[]): Finding {
  const sold = tiers.filter(({ active }) => active);
  const answer = tiers
    .map(({ tier, pricePerDay, active }) => `${tier}: ${active ? formatUsdc(pricePerDay) : "not sold"}`)
    .join(", ");
  if (sold.length > 0) return well("tiers, USDC a day", answer);
  const todo = `Check CONTRACT_ADDRESS: ${config.CONTRACT_ADDRESS} ${tiers.length === 0 ? "answers no getTierConfig" : "sells no tier"}.`;
  return needed("tiers, USDC a day", answer === "" ? "none" : answer, todo);
}

function tellCoin(config: EdgeConfig, { coinName, decimals }: View): Finding {
  const { name, address } = coinOf(config);
  const answer = `${address} calls itself ${coinName ?? "nothing"}, with ${decimals ?? "unknown"} decimals`;
  if (decimals !== 6) {
    const todo = `Check USDC_ADDRESS: ${address} is no coin of six decimals on chain ${config.CHAIN_ID}.`;
    return needed("coin", answer, todo);
  }
  if (coinName === name) return well("coin", answer);
  const todo = `Set USDC_NAME in both wrangler.toml files to the coin's name, ${coinName}: payers sign under it, and "${name}" makes every signature wrong.`;
  return needed("coin", answer, todo);
}

/** By the selectors in its code: of a proxy, in that of what it stands for. */
export async function lookAtFunctions({ config, chain }: Asked, nodes: readonly Looked[]): Promise<Finding> {
  let reason = "no node to ask";
  for (const { node } of nodes) {
    try {
      return tellFunctions(config, await readCode(node, chain.contract));
    } catch (error) {
      reason = reasonOf(error);
    }
  }
  return note("contract's functions", `not read: ${reason}`);
}

function tellFunctions(config: EdgeConfig, code: string | null): Finding {
  const what = "contract's functions";
  if (code === null) {
    const todo = `Check CONTRACT_ADDRESS and CHAIN_ID: there is no contract at ${config.CONTRACT_ADDRESS} on chain ${config.CHAIN_ID}.`;
    return needed(what, "no code", todo);
  }
  const lacking = contractAbi.filter((item) => !has(code, toFunctionSelector(item))).map(({ name }) => name);
  const named = (all: readonly string[]) => all.find((signature) => has(code, toFunctionSelector(signature))) ?? "no";
  const logged = eventAbi.filter((event) => event.name !== "Transfer" && hasEvent(code, event)).map(({ name }) => name);
  const all = lacking.length === 0 ? "all that the product calls" : `without ${lacking.join(", ")}`;
  const events = logged.join(", ") || "neither VMRenewed nor VMTerminated";
  const answer = `${all}; renew: ${named(RENEWALS)}; terminate: ${named(TERMINATIONS)}; events ${events}`;
  if (lacking.length > 0) {
    const todo = `Check CONTRACT_ADDRESS: its code lacks ${lacking.join(", ")}, which the product calls.`;
    return needed(what, answer, todo);
  }
  if (hasEvent(code, config.PURCHASE_EVENT)) return well(what, answer);
  const todo =
    "Set PURCHASE_EVENT in both wrangler.toml files to the contract's own signature: its code has no event of the one configured, so that no purchase would be seen.";
  return needed(what, `${answer}; no ${config.PURCHASE_EVENT.name}`, todo);
}

const hasEvent = (code: string, event: AbiEvent): boolean => code.includes(toEventSelector(event).slice(2));

/** PUSH4 and the selector; the compiler writes one with leading zeros shorter. */
const has = (code: string, selector: Hex): boolean => code.includes(`63${selector.slice(2)}`);

async function readCode({ client }: Node, address: Address): Promise<string | null> {
  const own = await client.getCode({ address });
  if (own === undefined || own === "0x") return null;
  const slot = await client.getStorageAt({ address, slot: IMPLEMENTATION_SLOT });
  const implementation = slot === undefined || BigInt(slot) === 0n ? null : getAddress(slice(slot, 12));
  const behind = implementation === null ? undefined : await client.getCode({ address: implementation });
  return `${own}${behind?.slice(2) ?? ""}`.toLowerCase();
}

/** The first block with the contract's code, by halving: needs a node with state of that time. */
export async function lookAtDeployment(
  { config, chain }: Asked,
  nodes: readonly Looked[],
  isUnset: boolean,
): Promise<Finding> {
  const what = "contract's first block";
  let reason = "no node to ask";
  for (const { node, head } of nodes) {
    if (head === null) continue;
    try {
      const first = await firstBlockWithCode(node, chain.contract, head.number);
      return tellDeployment(what, config.START_BLOCK, first, isUnset);
    } catch (error) {
      reason = reasonOf(error);
    }
  }
  if (!isUnset) return note(what, `not found (${reason}); START_BLOCK is ${config.START_BLOCK}`);
  const todo = `Set START_BLOCK in wrangler.toml to the block of the contract's deployment, as a block explorer names it.`;
  return needed(what, `not found: ${reason}`, todo);
}

function tellDeployment(what: string, start: number, first: number, isUnset: boolean): Finding {
  const answer = isUnset ? `${first}; START_BLOCK is not set` : `${first}; START_BLOCK is ${start}`;
  if (isUnset) return needed(what, answer, `Set START_BLOCK = "${first}" in wrangler.toml.`);
  if (start <= first) return well(what, answer);
  const todo = `Set START_BLOCK = "${first}" in wrangler.toml: what was bought before block ${start} would never be seen.`;
  return needed(what, answer, todo);
}

async function firstBlockWithCode({ client }: Node, address: Address, head: number): Promise<number> {
  const isThere = async (block: number) => {
    const code = await client.getCode({ address, blockNumber: BigInt(block) });
    return code !== undefined && code !== "0x";
  };
  let without = -1;
  let withCode = head;
  while (withCode - without > 1) {
    const middle = Math.floor((without + withCode) / 2);
    if (await isThere(middle)) withCode = middle;
    else without = middle;
  }
  return withCode;
}
