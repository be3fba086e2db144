// Signatures of contracts: one that is deployed (ERC-1271), or one that the signature itself says how to deploy (ERC-6492).
import {
  type Address,
  BaseError,
  ExecutionRevertedError,
  encodeDeployData,
  erc6492SignatureValidatorAbi,
  erc6492SignatureValidatorByteCode,
  type Hex,
} from "viem";
import type { Chain, Node } from "./client.ts";
import { PLAIN_SIGNATURE_CHARS } from "./plain-signature.ts";
import { askFirst, askTwo } from "./witness.ts";

/** Whether a contract takes a signature for its own; two nodes have to say the same. `plain` asks first whether there is one. */
export async function isContractSignature(
  chain: Chain,
  signer: Address,
  { hash, signature, plain }: { hash: Hex; signature: Hex; plain: boolean },
): Promise<boolean> {
  if (plain && !(await isDeployed(chain, signer))) return false;
  const data = encodeDeployData({
    abi: erc6492SignatureValidatorAbi,
    bytecode: erc6492SignatureValidatorByteCode,
    args: [signer, hash, signature],
  });
  return askTwo(chain, async ({ client }: Node) => {
    try {
      return Number((await client.call({ data })).data ?? "0x0") === 1;
    } catch (error) {
      // A contract that reverts says no; a node that does not answer says nothing.
      if (error instanceof BaseError && error.walk((e) => e instanceof ExecutionRevertedError) !== null) return false;
      throw error;
    }
  });
}

/** Whether an account has code, as the first node that answers has it. */
const isDeployed = async (chain: Chain, account: Address): Promise<boolean> =>
  (await askFirst(chain, async ({ client }) => (await client.getCode({ address: account })) ?? "0x")) !== "0x";

/**
 * Why an account did not sign, from a sentence that says it did not: a smart wallet that is not deployed can't be asked, and
 * the coin takes nothing from it.
 */
export async function whyNotSigned(chain: Chain, signer: Address, signature: Hex, sentence: string): Promise<string> {
  if (await isDeployed(chain, signer)) return sentence;
  return signature.length === PLAIN_SIGNATURE_CHARS
    ? `${sentence} A smart wallet has to be deployed first.`
    : `There is no contract at ${signer} on this chain: deploy the smart wallet first.`;
}
