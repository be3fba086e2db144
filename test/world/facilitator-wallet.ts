// How the local facilitator reaches the chain: the packages' schemes over viem, one honest, and one that only promises.
import { InMemoryPendingSettlementStore, x402Facilitator } from "@x402/core/facilitator";
import type { Network } from "@x402/core/types";
import { toFacilitatorEvmSigner } from "@x402/evm";
import { ExactEvmScheme } from "@x402/evm/exact/facilitator";
import { ExactEvmSchemeV1 } from "@x402/evm/exact/v1/facilitator";
import {
  concat,
  createPublicClient,
  encodeFunctionData,
  type Hex,
  http,
  keccak256,
  parseEther,
  type VerifyTypedDataParameters,
} from "viem";
import { generatePrivateKey, type LocalAccount, privateKeyToAccount } from "viem/accounts";
import type { Chain } from "./chain.ts";

type EvmSigner = Parameters<typeof toFacilitatorEvmSigner>[0];
type Transaction = { to: Hex; data: Hex };

const CONFIRMATION_TIMEOUT_MS = 30_000;

/** `honest` settles; `slow(ms)` answers that a settlement is pending and sends its transaction `ms` later. */
export function makeSettlers(chain: Chain) {
  const network: Network = `eip155:${chain.chainId}`;
  const transport = http(chain.url, { retryCount: 0 });
  const reader = createPublicClient({ chain: chain.chain, transport, pollingInterval: 20, cacheTime: 0 });
  // What is pending for one of them, the other finds.
  const pendingSettlementStore = new InMemoryPendingSettlementStore();

  const signerOf = (
    account: LocalAccount,
    sendTransaction: (transaction: Transaction) => Promise<Hex>,
    waitForTransactionReceipt: EvmSigner["waitForTransactionReceipt"],
  ) =>
    toFacilitatorEvmSigner(
      {
        address: account.address,
        getCode: (args) => reader.getCode(args),
        readContract: (args) => reader.readContract({ ...args, args: args.args ?? [] }),
        verifyTypedData: (args) => reader.verifyTypedData(args as VerifyTypedDataParameters),
        writeContract: ({ address, abi, functionName, args, dataSuffix }) =>
          sendTransaction({
            to: address,
            data: concat([encodeFunctionData({ abi, functionName, args }), dataSuffix ?? "0x"]),
          }),
        sendTransaction,
        waitForTransactionReceipt,
      },
      { confirmationTimeoutMs: CONFIRMATION_TIMEOUT_MS },
    );

  const wallet = chain.wallet(chain.facilitator);
  const sign = async (account: LocalAccount, transaction: Transaction) => {
    const request = await wallet.prepareTransactionRequest({ ...transaction, account });
    return wallet.signTransaction({ ...request, account });
  };
  // One after the other, each with the nonce that the node tells: viem's nonceManager remembers what it gave out, and would
  // leave a gap for good after a reorg or a snapshot that takes our transactions back.
  let last: Promise<unknown> = Promise.resolve();
  const send = (transaction: Transaction): Promise<Hex> => {
    const sent = last.then(() => wallet.sendTransaction(transaction));
    last = sent.catch(() => undefined);
    return sent;
  };

  const signer = signerOf(chain.facilitator, send, (args) => reader.waitForTransactionReceipt(args));
  const honest = new x402Facilitator()
    .register(network, new ExactEvmScheme(signer, { pendingSettlementStore }))
    .registerV1("base" as Network, new ExactEvmSchemeV1(signer));

  const slow = (ms: number) => {
    // An account for this one transaction: it holds up nobody else's nonces.
    const account = privateKeyToAccount(generatePrivateKey());
    const promise = async (transaction: Transaction) => {
      await chain.node.setBalance({ address: account.address, value: parseEther("1") });
      const serializedTransaction = await sign(account, transaction);
      setTimeout(() => wallet.sendRawTransaction({ serializedTransaction }).catch(() => undefined), ms).unref();
      return keccak256(serializedTransaction);
    };
    const impatient = signerOf(account, promise, () => Promise.reject(new Error("no receipt yet")));
    return new x402Facilitator().register(network, new ExactEvmScheme(impatient, { pendingSettlementStore }));
  };

  return { honest, slow };
}
