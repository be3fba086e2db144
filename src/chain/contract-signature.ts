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
import { askFirst, askTwo } from "./witness.ts";

/** Whether a contract takes a signature for its own; two nodes have to say the same. `plain` asks first whether there is one. */
export async function isContractSignature(
  chain: Chain,
  signer: Address,
  { hash, signature, plain }: { hash: Hex; signature: Hex; plain: boolean },
): Promise<boolean> {
  const code = plain
    ? await askFirst(chain, async ({ client }) => (await client.getCode({ address: signer })) ?? "0x")
    : null;
  if (code === "0x") return false;
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
