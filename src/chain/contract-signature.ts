// Signatures of contracts: one that is deployed (ERC-1271), or one that the signature itself says how to deploy (ERC-6492).
// Either runs code of strangers in an `eth_call`, so it runs within a cap of gas, and no factory runs that nobody knows
// (hard case 43).
import {
  type Address,
  BaseError,
  ExecutionRevertedError,
  encodeDeployData,
  erc6492SignatureValidatorAbi,
  erc6492SignatureValidatorByteCode,
  getAddress,
  type Hex,
  isErc6492Signature,
  parseErc6492Signature,
} from "viem";
import type { Chain, Node } from "./client.ts";
import { plainSignatureOf } from "./plain-signature.ts";
import { askTwo } from "./witness.ts";

/** Some ten times what a wallet needs that deploys itself and verifies a passkey without a precompile. */
const VERIFY_GAS = 3_000_000n;

/**
 * Whether a contract takes a signature for its own; two nodes have to say the same. `factories`: those through which a wallet
 * may be one that is not deployed yet.
 */
export async function isContractSignature(
  chain: Chain,
  signer: Address,
  { hash, signature, factories = [] }: { hash: Hex; signature: Hex; factories?: readonly Address[] },
): Promise<boolean> {
  const deployed = await isDeployed(chain, signer);
  const factory = factoryOf(signature);
  if (!deployed && (factory === null || !factories.includes(factory))) return false;
  // A wallet that is there answers for itself: no factory has to run.
  const inner = deployed && factory !== null ? parseErc6492Signature(signature).signature : signature;
  const data = encodeDeployData({
    abi: erc6492SignatureValidatorAbi,
    bytecode: erc6492SignatureValidatorByteCode,
    args: [signer, hash, inner],
  });
  return askTwo(chain, async ({ client }: Node) => {
    try {
      return Number((await client.call({ data, gas: VERIFY_GAS })).data ?? "0x0") === 1;
    } catch (error) {
      // A contract that reverts, or needs too much gas, says no; a node that does not answer says nothing.
      if (error instanceof BaseError && error.walk(isRefusal) !== null) return false;
      throw error;
    }
  });
}

/** Nodes have no code of their own for the gas, and several spellings. */
const isRefusal = (error: unknown): boolean =>
  error instanceof ExecutionRevertedError || (error instanceof Error && /out ?of ?gas/i.test(error.message));

/** The factory that an ERC-6492 signature names; null for any other signature. */
export function factoryOf(signature: Hex): Address | null {
  if (!isErc6492Signature(signature)) return null;
  try {
    return getAddress(parseErc6492Signature(signature).address ?? "");
  } catch {
    return null;
  }
}

/** Whether an account has code, as two nodes tell it: by one that does not see it, a wallet's owner would be turned away. */
const isDeployed = (chain: Chain, account: Address): Promise<boolean> =>
  askTwo(chain, async ({ client }) => ((await client.getCode({ address: account })) ?? "0x") !== "0x");

/**
 * Why an account did not sign, from a sentence that says it did not: a smart wallet that is not deployed can't be asked, and
 * the coin takes nothing from it.
 */
export async function whyNotSigned(chain: Chain, signer: Address, signature: Hex, sentence: string): Promise<string> {
  if (await isDeployed(chain, signer)) return sentence;
  return plainSignatureOf(signature) !== null
    ? `${sentence} A smart wallet has to be deployed first.`
    : `There is no contract at ${signer} on this chain: deploy the smart wallet first.`;
}
