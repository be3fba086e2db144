// Signatures of contracts: deployed ones (ERC-1271), and those whose signature carries their deployment (ERC-6492). Both run a
// stranger's code in an `eth_call`, so the call has a gas cap, and only listed factories run (hard case 43).
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

/** About ten times the gas of a wallet that deploys itself and verifies a passkey without a precompile. */
const VERIFY_GAS = 3_000_000n;

/**
 * Whether a contract accepts a signature as its own; two nodes have to agree. A wallet that is not deployed yet is accepted
 * only if its factory is one of `factories`.
 */
export async function isContractSignature(
  chain: Chain,
  signer: Address,
  { hash, signature, factories = [] }: { hash: Hex; signature: Hex; factories?: readonly Address[] },
): Promise<boolean> {
  const deployed = await isDeployed(chain, signer);
  const factory = factoryOf(signature);
  if (!deployed && (factory === null || !factories.includes(factory))) return false;
  // A deployed wallet verifies its own signature: no factory has to run.
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
      // A revert or too much gas is the contract's refusal. Any other error is the node's, and decides nothing.
      if (error instanceof BaseError && error.walk(isRefusal) !== null) return false;
      throw error;
    }
  });
}

/** Nodes report "out of gas" in text alone, with several spellings. */
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

/** Whether an account has code, by two nodes: a single node that lags would turn away the owner of a new wallet. */
const isDeployed = (chain: Chain, account: Address): Promise<boolean> =>
  askTwo(chain, async ({ client }) => ((await client.getCode({ address: account })) ?? "0x") !== "0x");

/**
 * An error sentence for a signature that was refused: `sentence`, with the advice to deploy where the account has no code. A
 * smart wallet that is not deployed can't verify its signature, and the coin accepts no authorization from it.
 */
export async function whyNotSigned(chain: Chain, signer: Address, signature: Hex, sentence: string): Promise<string> {
  if (await isDeployed(chain, signer)) return sentence;
  return plainSignatureOf(signature) !== null
    ? `${sentence} A smart wallet has to be deployed first.`
    : `There is no contract at ${signer} on this chain: deploy the smart wallet first.`;
}
