// What our contract and the coin do with a call, as test/world/contracts has them: a state and a call give another state.
import { decodeFunctionData, type Hex, parseAbi } from "viem";
import { coinAbi, contractAbi } from "../../src/chain/contract.ts";
import { CONTRACT_ADDRESS, USDC_ADDRESS } from "../world/addresses.ts";
import {
  cancelledLog,
  coinLog,
  type LogEntry,
  purchaseLog,
  renewalLog,
  terminationLog,
  transferLog,
  usedLog,
} from "./chain-logs.ts";

export const ZERO = "0x0000000000000000000000000000000000000000";
const CONTRACT = CONTRACT_ADDRESS.toLowerCase();
const COIN = USDC_ADDRESS.toLowerCase();
const DAY = 86_400;

export type Token = { owner: string; tier: number; expiresAt: number; terminated: boolean };
export type Sale = {
  tokenId: number;
  txHash: Hex;
  buyer: string;
  tier: number;
  durationDays: number;
  purchaseDate: number;
  totalCost: bigint;
};
export type State = {
  tokens: ReadonlyMap<number, Token>;
  sales: readonly Sale[];
  prices: readonly bigint[];
  usdc: ReadonlyMap<string, bigint>;
  /** What the contract may take, by owner. */
  allowances: ReadonlyMap<string, bigint>;
  /** Authorizations that are used up, by payer and nonce. */
  used: ReadonlyMap<string, Use>;
  /** Accounts that have code: they say themselves which signatures are theirs. */
  code: ReadonlyMap<string, Code>;
  /** Next nonce of the operator's account. */
  nonce: number;
};
/** What a nonce was used for: nothing binds it to one message, so that its holder chooses when it is used. */
export type Use = "cancelled" | { to: string; value: bigint };
/** Of a smart wallet, or of a plain account that is delegated to one (EIP-7702). */
export type Code = {
  /** `fickle`: takes a signature wherever it is only tried out. */
  answer: "accepts" | "refuses" | "fickle";
  /** What it burns before it answers. */
  gas: number;
};
export type SignedAuthorization = {
  from: string;
  to: string;
  value: bigint;
  validAfter: number;
  validBefore: number;
  nonce: Hex;
  signature: Hex;
};
export type Call =
  | { kind: "pay"; to: string; amount: bigint }
  | { kind: "approve"; spender: string; amount: bigint }
  | { kind: "take"; authorization: SignedAuthorization }
  | { kind: "cancel"; nonce: Hex }
  | { kind: "buy"; tier: number; durationDays: number }
  | { kind: "hand_over"; tokenId: number; from: string; to: string }
  | { kind: "renew"; tokenId: number; days: number }
  | { kind: "give_up"; tokenId: number }
  /** By Multicall3: whatever fails is left out, and all logs are of one transaction. */
  | { kind: "batch"; calls: { from: string; call: Call }[] }
  | { kind: "delegate"; code: Code | null }
  | { kind: "nothing" }
  | { kind: "unknown" };
export type Done = { state: State; success: boolean; logs: LogEntry[]; gas: number };
/** Who signed which authorization: recovery, without its cost. */
export type Signatures = ReadonlyMap<Hex, string>;

export const isValid = (token: Token, at: number): boolean => !token.terminated && at < token.expiresAt;

export const useKey = (payer: string, nonce: string): string => `${payer}/${nonce}`.toLowerCase();

export const wordsOf = ({ from, to, value, validAfter, validBefore, nonce }: SignedAuthorization): string =>
  `${from}/${to}/${value}/${validAfter}/${validBefore}/${nonce}`.toLowerCase();

/** What an authorization has moved to an account under its own nonce. */
export function paidTo(to: string, use: Use | undefined): bigint {
  return use === undefined || use === "cancelled" || use.to !== to ? 0n : use.value;
}

/** What a call uses where nobody burns any; an approval, more where none is in place. */
const GAS = 60_000;
const APPROVAL_GAS = { fresh: 46_375, changed: 29_275 };

export const costOf = ({ prices }: State, tier: number, durationDays: number): bigint =>
  (prices[tier] ?? 0n) * BigInt(durationDays);

const abi = [...coinAbi, ...contractAbi.filter(({ name }) => name === "purchaseVM")];
const handOverAbi = parseAbi(["function transferFrom(address from, address to, uint256 tokenId)"]);
const decoded = new Map<string, Call>();

/** Calldata, read; what is none of what our wallet sends is unknown, and fails. */
export function readCall(to: string, data: Hex): Call {
  const key = `${to.toLowerCase()}/${data}`;
  const known = decoded.get(key) ?? decode(to.toLowerCase(), data);
  decoded.set(key, known);
  return known;
}

function decode(to: string, data: Hex): Call {
  if (data === "0x") return { kind: "nothing" };
  try {
    if (to === CONTRACT && data.startsWith("0x23b872dd")) {
      const { args } = decodeFunctionData({ abi: handOverAbi, data });
      return { kind: "hand_over", from: args[0].toLowerCase(), to: args[1].toLowerCase(), tokenId: Number(args[2]) };
    }
    const { functionName, args = [] } = decodeFunctionData({ abi, data });
    if (to === CONTRACT && functionName === "purchaseVM") {
      return { kind: "buy", tier: Number(args[0]), durationDays: Number(args[1]) };
    }
    if (to !== COIN) return { kind: "unknown" };
    const recipient = String(args[0]).toLowerCase();
    if (functionName === "transfer") return { kind: "pay", to: recipient, amount: args[1] as bigint };
    if (functionName === "approve") return { kind: "approve", spender: recipient, amount: args[1] as bigint };
    if (functionName !== "transferWithAuthorization") return { kind: "unknown" };
    const [, , value, validAfter, validBefore, nonce, ...signed] = args as readonly unknown[];
    const authorization = {
      from: recipient,
      to: String(args[1]).toLowerCase(),
      value: BigInt(value as bigint),
      validAfter: Number(validAfter),
      validBefore: Number(validBefore),
      nonce: nonce as Hex,
      signature: signatureOf(signed),
    };
    return { kind: "take", authorization };
  } catch {
    return { kind: "unknown" };
  }
}

/** Either overload's: v, r and s, or all in one. */
const signatureOf = (parts: readonly unknown[]): Hex =>
  parts.length === 1
    ? (parts[0] as Hex)
    : `0x${String(parts[1]).slice(2)}${String(parts[2]).slice(2)}${Number(parts[0]).toString(16)}`;

const holds = ({ usdc }: State, who: string): bigint => usdc.get(who) ?? 0n;

function moved(state: State, from: string, to: string, amount: bigint): State {
  const usdc = new Map(state.usdc).set(from, holds(state, from) - amount);
  return { ...state, usdc: usdc.set(to, (usdc.get(to) ?? 0n) + amount) };
}

/** A sale for which `buyer` has paid, or for which the model asks no money. */
export function sell(state: State, txHash: Hex, buyer: string, tier: number, durationDays: number, at: number): Done {
  const tokenId = state.sales.length;
  const sale = { tokenId, txHash, buyer, tier, durationDays, purchaseDate: at };
  const priced = { ...sale, totalCost: costOf(state, tier, durationDays) };
  const token = { owner: buyer, tier, expiresAt: at + durationDays * DAY, terminated: false };
  const tokens = new Map(state.tokens).set(tokenId, token);
  const logs = [transferLog(tokenId, ZERO, buyer), purchaseLog(priced)];
  return { state: { ...state, tokens, sales: [...state.sales, priced] }, success: true, logs, gas: GAS };
}

/** One call by `sender`, mined at that time; `dry`: it is only tried out. */
export function execute(
  call: Call,
  sender: string,
  txHash: Hex,
  state: State,
  at: number,
  signatures: Signatures,
  dry = false,
): Done {
  const failed = { state, success: false, logs: [], gas: GAS };
  const done = (next: State, logs: LogEntry[] = [], gas = GAS): Done => ({ state: next, success: true, logs, gas });
  const withToken = (tokenId: number, change: Partial<Token>): State => {
    const token = state.tokens.get(tokenId);
    if (token === undefined) return state;
    return { ...state, tokens: new Map(state.tokens).set(tokenId, { ...token, ...change }) };
  };
  switch (call.kind) {
    case "pay": {
      const { to, amount } = call;
      if (holds(state, sender) < amount) return failed;
      return done(moved(state, sender, to, amount), [coinLog(sender, to, amount)]);
    }
    case "approve": {
      if (call.spender !== CONTRACT) return failed;
      const isFresh = (state.allowances.get(sender) ?? 0n) === 0n;
      const allowances = new Map(state.allowances).set(sender, call.amount);
      return done({ ...state, allowances }, [], isFresh ? APPROVAL_GAS.fresh : APPROVAL_GAS.changed);
    }
    case "take": {
      const { authorization } = call;
      const { from, to, value, validAfter, validBefore, nonce, signature } = authorization;
      const isSigned = signatures.get(signature) === wordsOf(authorization);
      const code = state.code.get(from);
      const isTaken = code === undefined || code.answer === "accepts" || (code.answer === "fickle" && dry);
      const gas = GAS + (code?.gas ?? 0);
      const isDue = at > validAfter && at < validBefore;
      const key = useKey(from, nonce);
      if (!isSigned || !isTaken || !isDue || state.used.has(key) || holds(state, from) < value) {
        return { ...failed, gas };
      }
      const used = new Map(state.used).set(key, { to, value });
      const logs = [usedLog(from, nonce), coinLog(from, to, value)];
      return done({ ...moved(state, from, to, value), used }, logs, gas);
    }
    case "cancel": {
      const key = useKey(sender, call.nonce);
      if (state.used.has(key)) return failed;
      const used = new Map<string, Use>(state.used).set(key, "cancelled");
      return done({ ...state, used }, [cancelledLog(sender, call.nonce)]);
    }
    case "buy": {
      const cost = costOf(state, call.tier, call.durationDays);
      const allowed = state.allowances.get(sender) ?? 0n;
      if (cost <= 0n || allowed < cost || holds(state, sender) < cost) return failed;
      const allowances = new Map(state.allowances).set(sender, allowed - cost);
      const paid = { ...moved(state, sender, CONTRACT, cost), allowances };
      const sold = sell(paid, txHash, sender, call.tier, call.durationDays, at);
      return { ...sold, logs: [coinLog(sender, CONTRACT, cost), ...sold.logs] };
    }
    case "hand_over": {
      const { tokenId, from, to } = call;
      if (from !== sender || state.tokens.get(tokenId)?.owner !== from) return failed;
      return done(withToken(tokenId, { owner: to }), [transferLog(tokenId, from, to)]);
    }
    case "renew": {
      const token = state.tokens.get(call.tokenId);
      if (token === undefined || !isValid(token, at)) return failed;
      const expiresAt = token.expiresAt + call.days * DAY;
      return done(withToken(call.tokenId, { expiresAt }), [renewalLog(call.tokenId, call.days, expiresAt)]);
    }
    case "give_up": {
      if (state.tokens.get(call.tokenId)?.owner !== sender) return failed;
      return done(withToken(call.tokenId, { terminated: true }), [terminationLog(call.tokenId)]);
    }
    case "batch": {
      let all = done(state, [], 0);
      for (const { from, call: inner } of call.calls) {
        const one = execute(inner, from, txHash, all.state, at, signatures, dry);
        const { logs, gas } = all;
        all = done(one.success ? one.state : all.state, one.success ? [...logs, ...one.logs] : logs, gas + one.gas);
      }
      return all;
    }
    case "delegate": {
      const code = new Map(state.code);
      if (call.code === null) code.delete(sender);
      else code.set(sender, call.code);
      return done({ ...state, code });
    }
    case "nothing":
      return done(state);
    case "unknown":
      return failed;
  }
}
