// Wallet signatures. The fixed form is EIP-191 over `ClawCloud Access Request: {tokenId}`. The fresh form
// signs the same first line and then EIP-4361's fields, so that it names site, chain, contract and moment, and works once.
// A plain account's signature is recovered here; what a contract says of one (ERC-1271, ERC-6492) is the chain's answer.
import { type Address, type Hex, hashMessage, isHex, recoverAddress } from "viem";
import { COMPACT_SIGNATURE_CHARS, isOtherTwin, plainSignatureOf } from "../../chain/plain-signature.ts";
import { AppError } from "../../errors.ts";
import type { EdgeConfig } from "../config.ts";
import { requireShort } from "./headers.ts";

const FRESH_SECONDS = 300;
const CLOCK_SKEW_SECONDS = 60;
const MAX_MESSAGE_BYTES = 2_048;
const MAX_MESSAGE_HEADER = 4_096;
/** A counterfactual wallet's signature has some thousand characters. */
const MAX_AUTHORIZATION = 16_384;
const MAX_SIGNATURE_HEX = 2 + 8_000 * 2;
const NONCE = /^[A-Za-z0-9_-]{8,64}$/;
/** RFC 3339, as EIP-4361 has it. */
const TIME = /^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d{1,9})?(Z|[+-]\d\d:\d\d)$/i;
/** All but the last two have to be there. What a signer did not mean to be obeyed must not be there (hard case 42). */
const FIELDS: ReadonlySet<string> = new Set([
  "Domain",
  "URI",
  "Chain ID",
  "Contract",
  "Nonce",
  "Issued At",
  "Expiration Time",
  "Not Before",
]);

/** What a signature is for; all but the first take the fresh form alone, and have their own path behind the token id. */
export const ACTIONS = ["credentials", "ack", "rotate", "refund"] as const;
export type Action = (typeof ACTIONS)[number];

/**
 * What was signed. `signer` is null where only a contract can tell; `problem` is why it is no plain account's signature,
 * although it is as long as one. `fresh` carries the nonce that the caller has to use up,
 * once it knows that the signer may act.
 */
export type Signed = {
  signer: Address | null;
  problem: AppError | null;
  hash: Hex;
  signature: Hex;
  fresh: { nonce: string; expiresAt: number } | null;
};

type SignatureInput = {
  authorization: string | undefined;
  accessMessage: string | undefined;
  /** The host that was asked, as the request's URL names it. */
  host: string;
  tokenId: number;
  action: Action;
  config: Pick<EdgeConfig, "CHAIN_ID" | "CONTRACT_ADDRESS" | "PUBLIC_URLS" | "REQUIRE_FRESH_SIGNATURES">;
  /** Unix milliseconds. */
  now: number;
};

/** The line that both forms begin with. */
const accessRequest = (tokenId: number): string => `ClawCloud Access Request: ${tokenId}`;

/** The path that a fresh message's URI names: it says what the signature is for (hard case 25). */
const actionPath = (tokenId: number, action: Action): string =>
  action === "credentials" ? `/credentials/${tokenId}` : `/credentials/${tokenId}/${action}`;

/** Reads a signature of either form. Throws 401 `AppError` with a sentence that says what is wrong. */
export async function readSignature(input: SignatureInput): Promise<Signed> {
  const signature = readBearer(input.authorization);
  const message = input.accessMessage === undefined ? null : decodeMessage(input.accessMessage);
  if (message === null && input.config.REQUIRE_FRESH_SIGNATURES) {
    throw new AppError(
      "fresh_signature_required",
      "This service takes the fresh form of signature alone (X-Access-Message).",
    );
  }
  const fresh = message === null ? null : checkFresh(message, input);
  const hash = hashMessage(message ?? accessRequest(input.tokenId));
  const short = plainSignatureOf(signature);
  const plain = short === null ? { signer: null, problem: null } : await recover(hash, short);
  return { ...plain, hash, signature, fresh };
}

function readBearer(header: string | undefined): Hex {
  requireShort("Authorization", header, MAX_AUTHORIZATION);
  if (header === undefined || header.trim() === "") {
    throw new AppError("signature_missing", "Send the wallet signature as `Authorization: Bearer 0x…`.");
  }
  const token = /^Bearer\s+(\S+)$/i.exec(header.trim())?.[1];
  const isSignature =
    token !== undefined &&
    isHex(token, { strict: true }) &&
    token.length % 2 === 0 &&
    token.length >= COMPACT_SIGNATURE_CHARS &&
    token.length <= MAX_SIGNATURE_HEX;
  if (!isSignature) {
    throw new AppError(
      "signature_invalid",
      "The bearer token must be a signature in hex: 65 bytes (EIP-191) of a plain account, or 64 (EIP-2098); more of a smart wallet.",
    );
  }
  return token;
}

async function recover(hash: Hex, signature: Hex): Promise<Pick<Signed, "signer" | "problem">> {
  if (isOtherTwin(signature)) {
    const sentence = "The signature is not canonical (s is above half the order): sign again.";
    return { signer: null, problem: new AppError("signature_invalid", sentence) };
  }
  try {
    return { signer: await recoverAddress({ hash, signature }), problem: null };
  } catch (cause) {
    const sentence = "No signer can be recovered from the signature.";
    return { signer: null, problem: new AppError("signature_invalid", sentence, { cause }) };
  }
}

function decodeMessage(header: string): string {
  requireShort("X-Access-Message", header, MAX_MESSAGE_HEADER);
  try {
    const bytes = Buffer.from(header, "base64");
    if (!/^[A-Za-z0-9+/_-]+={0,2}$/.test(header) || bytes.length === 0 || bytes.length > MAX_MESSAGE_BYTES)
      throw new Error();
    return new TextDecoder("utf-8", { fatal: true, ignoreBOM: false }).decode(bytes);
  } catch {
    throw new AppError("signature_invalid", "X-Access-Message must be the signed message in base64.");
  }
}

function checkFresh(message: string, input: SignatureInput): NonNullable<Signed["fresh"]> {
  const { tokenId, action, config, now } = input;
  const [first = "", ...rest] = message.split("\n").map((line) => line.trim());
  const refuse = (sentence: string) => new AppError("signature_invalid", sentence);
  if (first !== accessRequest(tokenId)) throw refuse(`The signed message must begin with "${accessRequest(tokenId)}".`);
  const fields = new Map<string, string>();
  for (const line of rest.filter((one) => one !== "")) {
    const [, name, value] = /^([A-Za-z ]+): (.+)$/.exec(line) ?? [];
    if (name === undefined || value === undefined || fields.has(name))
      throw refuse("The signed message has a line that is no field, or a field twice.");
    if (!FIELDS.has(name)) throw refuse(`The signed message may have no fields but ${[...FIELDS].join(", ")}.`);
    fields.set(name, value);
  }
  const field = (name: string): string => {
    const value = fields.get(name);
    if (value === undefined) throw refuse(`The signed message lacks "${name}".`);
    return value;
  };
  const origins = originsOf(input).filter((url) => hostOf(field("Domain"), url) === url.host);
  const [origin] = origins;
  if (origin === undefined) {
    throw refuse("The signed message's Domain must be the host that is asked, and one of this service.");
  }
  if (!origins.some((url) => isUri(field("URI"), url, actionPath(tokenId, action)))) {
    throw refuse(`The signed message's URI must be ${baseOf(origin)}${actionPath(tokenId, action)}.`);
  }
  if (field("Chain ID") !== String(config.CHAIN_ID))
    throw refuse(`The signed message's Chain ID must be ${config.CHAIN_ID}.`);
  if (field("Contract").toLowerCase() !== config.CONTRACT_ADDRESS.toLowerCase()) {
    throw refuse(`The signed message's Contract must be ${config.CONTRACT_ADDRESS}.`);
  }
  if (!NONCE.test(field("Nonce"))) throw refuse("The signed message's Nonce must be 8 to 64 letters, digits, - or _.");
  const timeOf = (name: string): number => {
    const time = TIME.test(field(name)) ? Date.parse(field(name)) : Number.NaN;
    if (Number.isNaN(time)) {
      throw refuse(`The signed message's ${name} must be an ISO 8601 time with its zone, like 2026-02-03T12:00:00Z.`);
    }
    return time;
  };
  const issuedAt = timeOf("Issued At");
  if (fields.has("Not Before") && now < timeOf("Not Before")) {
    throw refuse("The signed message is not good before its Not Before: send it then, or sign a new one.");
  }
  if (fields.has("Expiration Time") && now >= timeOf("Expiration Time")) {
    throw new AppError("signature_expired", "The signed message's Expiration Time is over: sign a new one.");
  }
  const age = (now - issuedAt) / 1_000;
  if (age > FRESH_SECONDS || age < -CLOCK_SKEW_SECONDS) {
    throw new AppError("signature_expired", `A fresh signature is good for ${FRESH_SECONDS} seconds: sign a new one.`);
  }
  // Kept past its time by the skew that we allow, so that it can't come back once its row is gone.
  return { nonce: field("Nonce"), expiresAt: issuedAt + (FRESH_SECONDS + CLOCK_SKEW_SECONDS) * 1_000 };
}

/** Those of our base URLs whose host was asked. */
const originsOf = ({ host, config }: SignatureInput): URL[] =>
  config.PUBLIC_URLS.map((url) => new URL(url)).filter((url) => hostOf(host, url) === url.host);

const baseOf = ({ origin, pathname }: URL): string => `${origin}${pathname.replace(/\/$/, "")}`;

/** A host as the scheme of `origin` has it: in lower case, without the default port. Null where it is more than a host. */
function hostOf(authority: string, { protocol }: URL): string | null {
  if (!/^[^\s/?#@\\]+$/.test(authority)) return null;
  try {
    return new URL(`${protocol}//${authority}`).host;
  } catch {
    return null;
  }
}

function isUri(value: string, origin: URL, path: string): boolean {
  try {
    const uri = new URL(value);
    return (
      `${uri.origin}${uri.pathname}` === `${baseOf(origin)}${path}` &&
      `${uri.search}${uri.hash}${uri.username}${uri.password}` === ""
    );
  } catch {
    return false;
  }
}
