// The local chain is what the product's documents say of Base: contracts at their addresses, money that can be authorized.
import { type Abi, type Address, type Hex, numberToHex, parseEventLogs, toFunctionSelector } from "viem";
import type { LocalAccount } from "viem/accounts";
import { afterAll, beforeAll, expect, test } from "vitest";
import { CONTRACT_ADDRESS, MULTICALL3_ADDRESS, USDC_ADDRESS } from "../world/addresses.ts";
import { buy, transfer } from "../world/agent.ts";
import { artifacts, type Chain, clawAbi, MAX_TRANSACTION_GAS, startChain, usdcAbi } from "../world/chain.ts";
import { authorize, cancel, delegate, submit, submitTogether, undelegate } from "../world/payer.ts";
import { startRpcProxy } from "../world/rpc-proxy.ts";

let chain: Chain;
beforeAll(async () => {
  chain = await startChain({ blockTimeSeconds: 0 });
});
afterAll(async () => {
  await chain?.stop();
});

const agent = (index: number) => {
  const account = chain.agents[index];
  if (account === undefined) throw new Error(`there is no agent ${index}`);
  return account;
};
const usdc = (functionName: string, args: unknown[] = []) =>
  chain.reader.readContract({ address: USDC_ADDRESS, abi: usdcAbi, functionName, args });
const claw = (functionName: string, args: unknown[] = []) =>
  chain.reader.readContract({ address: CONTRACT_ADDRESS, abi: clawAbi, functionName, args });

test("the chain id is Base's and all three contracts are where Base has them", async () => {
  expect(await chain.reader.getChainId()).toBe(8453);
  for (const address of [CONTRACT_ADDRESS, USDC_ADDRESS, MULTICALL3_ADDRESS] as const) {
    expect((await chain.reader.getCode({ address }))?.length).toBeGreaterThan(100);
  }
  expect(await claw("TIER_COUNT")).toBe(8);
  for (let tier = 0; tier < 8; tier++)
    expect(await claw("getTierConfig", [tier])).toEqual([expect.any(BigInt), true, expect.any(String)]);
  await expect(claw("getTierConfig", [8])).rejects.toThrow("UnknownTier");
});

test("a purchase moves exactly the price, mints the token to the buyer and makes it valid", async () => {
  const before = (await usdc("balanceOf", [agent(0).address])) as bigint;
  const { tokenId, cost } = await buy(chain, agent(0), 3, 2);
  expect(cost).toBe(6_000_000n);
  expect(await usdc("balanceOf", [agent(0).address])).toBe(before - cost);
  expect(await claw("ownerOf", [BigInt(tokenId)])).toBe(agent(0).address);
  expect(await claw("isTokenValid", [BigInt(tokenId)])).toBe(true);
  expect(await claw("isTokenValid", [BigInt(tokenId + 1)])).toBe(false);
});

test("nobody gets a token without paying, for no days, or by an option that is off", async () => {
  const call = (functionName: string, args: unknown[]) =>
    chain.reader.simulateContract({ account: agent(1), address: CONTRACT_ADDRESS, abi: clawAbi, functionName, args });
  // USDC's own error, ERC20InsufficientAllowance, which our contract's ABI does not list.
  await expect(call("purchaseVM", [0, 1])).rejects.toThrow("0xfb8f41b2");
  await expect(call("purchaseVM", [0, 0])).rejects.toThrow("NoDuration");
  await expect(call("purchaseVM", [9, 1])).rejects.toThrow("UnknownTier");
  await expect(call("renewVM", [0n, 1])).rejects.toThrow("OptionDisabled");
  await expect(call("terminateVM", [0n])).rejects.toThrow("OptionDisabled");
});

const usdcFor = (amount: string) => ({
  scheme: "exact",
  network: "eip155:8453" as const,
  asset: USDC_ADDRESS,
  amount,
  payTo: agent(3).address,
  maxTimeoutSeconds: 600,
  extra: { name: "USD Coin", version: "2" },
});
const send = async (account: LocalAccount, address: Address, abi: Abi, functionName: string, args: unknown[]) => {
  const hash = await chain.wallet(account).writeContract({ address, abi, functionName, args });
  return chain.reader.waitForTransactionReceipt({ hash });
};

test("USDC takes an EIP-3009 authorization from anybody, once", async () => {
  const signed = await authorize(agent(2), usdcFor("1000000"));
  const before = (await usdc("balanceOf", [agent(3).address])) as bigint;
  await submit(chain, agent(4), signed, USDC_ADDRESS);
  expect(await usdc("balanceOf", [agent(3).address])).toBe(before + 1_000_000n);
  expect(await usdc("authorizationState", [agent(2).address, signed.authorization.nonce])).toBe(true);
  await expect(submit(chain, agent(4), signed, USDC_ADDRESS)).rejects.toThrow("authorization is used or canceled");
});

test("USDC takes a smart wallet's authorization in parts and in one, and no stranger's", async () => {
  const { abi, bytecode } = artifacts.SmartWalletFactory;
  const hash = await chain.wallet(agent(4)).deployContract({ abi: abi as Abi, bytecode: bytecode as Hex });
  const { contractAddress } = await chain.reader.waitForTransactionReceipt({ hash });
  if (contractAddress == null) throw new Error("the factory was not deployed");
  await send(agent(4), contractAddress, abi as Abi, "deploy", [agent(2).address]);
  const factory = { address: contractAddress, abi: abi as Abi };
  const from = (await chain.reader.readContract({
    ...factory,
    functionName: "addressOf",
    args: [agent(2).address],
  })) as Address;
  await send(chain.deployer, USDC_ADDRESS, usdcAbi, "mint", [from, 5_000_000n]);

  await submit(chain, agent(4), await authorize(agent(2), usdcFor("2000000"), { from }), USDC_ADDRESS);
  const { authorization, signature } = await authorize(agent(2), usdcFor("3000000"), { from });
  const { logs } = await send(agent(4), USDC_ADDRESS, usdcAbi, "transferWithAuthorization", [
    ...Object.values(authorization),
    signature,
  ]);
  expect(parseEventLogs({ abi: usdcAbi, logs }).map((log) => log.eventName)).toEqual(["AuthorizationUsed", "Transfer"]);
  expect(await usdc("balanceOf", [from])).toBe(0n);

  const stranger = await authorize(agent(1), usdcFor("1"), { from });
  await expect(submit(chain, agent(4), stranger, USDC_ADDRESS)).rejects.toThrow("invalid signature");
});

test("a canceled authorization moves nothing, though its nonce reads as used", async () => {
  const signed = await authorize(agent(2), usdcFor("1000000"));
  const before = await usdc("balanceOf", [agent(2).address]);
  await cancel(chain, agent(2), signed, USDC_ADDRESS);
  expect(await usdc("authorizationState", [agent(2).address, signed.authorization.nonce])).toBe(true);
  await expect(submit(chain, agent(4), signed, USDC_ADDRESS)).rejects.toThrow("authorization is used or canceled");
  expect(await usdc("balanceOf", [agent(2).address])).toBe(before);
});

const eventsOf = (logs: Parameters<typeof parseEventLogs>[0]["logs"]) =>
  parseEventLogs({ abi: usdcAbi, logs }).map((log) => log.eventName);

test("a use logs AuthorizationUsed and then its transfer, several in one transaction in turn, a cancellation nothing else", async () => {
  const [paid, own] = await Promise.all([
    authorize(agent(2), usdcFor("7")),
    authorize(agent(2), { ...usdcFor("0"), payTo: agent(2).address }),
  ]);
  const { logs } = await submitTogether(chain, agent(4), [paid, own], USDC_ADDRESS);
  expect(eventsOf(logs)).toEqual(["AuthorizationUsed", "Transfer", "AuthorizationUsed", "Transfer"]);
  const hash = await cancel(chain, agent(2), await authorize(agent(2), usdcFor("1")), USDC_ADDRESS);
  expect(eventsOf((await chain.reader.getTransactionReceipt({ hash })).logs)).toEqual(["AuthorizationCanceled"]);
});

test("a nonce belongs to no message: whatever its authorizer signs with it uses it up", async () => {
  const shown = await authorize(agent(2), usdcFor("1000000"));
  const { nonce } = shown.authorization;
  const other = await authorize(agent(2), { ...usdcFor("0"), payTo: agent(2).address }, { nonce });
  await submit(chain, agent(4), other, USDC_ADDRESS);
  await expect(submit(chain, agent(4), shown, USDC_ADDRESS)).rejects.toThrow("authorization is used or canceled");
});

async function deployed(name: "FickleWallet" | "GasBurner", args: unknown[]): Promise<Address> {
  const abi = artifacts[name].abi as Abi;
  const hash = await chain.wallet(agent(4)).deployContract({ abi, bytecode: artifacts[name].bytecode as Hex, args });
  return (await chain.reader.waitForTransactionReceipt({ hash })).contractAddress ?? "0x";
}

test("an account that delegates to code pays by the code's word, and by its key again once it is a plain one", async () => {
  const code = await deployed("FickleWallet", [agent(2).address]);
  const pay = async () => submit(chain, agent(4), await authorize(agent(2), usdcFor("1")), USDC_ADDRESS);
  await delegate(chain, agent(2), code);
  await pay();
  const abi = artifacts.FickleWallet.abi as Abi;
  await send(agent(2), agent(2).address, abi, "setRefuses", [true]);
  await expect(pay()).rejects.toThrow("invalid signature");
  await undelegate(chain, agent(2));
  await pay();
});

test("no transaction has more than 2^24 gas, whatever an estimate says of it (EIP-7825)", async () => {
  const from = await deployed("GasBurner", [agent(2).address, 18_000_000n]);
  await send(chain.deployer, USDC_ADDRESS, usdcAbi, "mint", [from, 5n]);
  const { authorization, signature } = await authorize(agent(2), usdcFor("5"), { from });
  const call = { address: USDC_ADDRESS as Address, abi: usdcAbi, functionName: "transferWithAuthorization" };
  const args = [...Object.values(authorization), signature];
  const gas = await chain.reader.estimateContractGas({ ...call, args, account: agent(4) });
  expect(gas).toBeGreaterThan(MAX_TRANSACTION_GAS);
  await expect(chain.wallet(agent(4)).writeContract({ ...call, args, gas })).rejects.toThrow("gas too high");
});

test("USDC moves neither to nor from an account that its owner has blocked", async () => {
  const block = (isBlocked: boolean) =>
    send(chain.deployer, USDC_ADDRESS, usdcAbi, "setBlocked", [agent(3).address, isBlocked]);
  const to = await authorize(agent(2), usdcFor("1000000"));
  const from = await authorize(agent(3), { ...usdcFor("1000000"), payTo: agent(2).address });
  await block(true);
  for (const signed of [to, from])
    await expect(submit(chain, agent(4), signed, USDC_ADDRESS)).rejects.toThrow("account is blacklisted");
  await block(false);
  for (const signed of [to, from]) await submit(chain, agent(4), signed, USDC_ADDRESS);
});

test("tokens don't move while their transfers are paused, but are sold", async () => {
  const pause = (paused: boolean) => send(chain.deployer, CONTRACT_ADDRESS, clawAbi, "setTransfersPaused", [paused]);
  await pause(true);
  const { tokenId } = await buy(chain, agent(0), 0, 1);
  await expect(transfer(chain, agent(0), agent(1).address, tokenId)).rejects.toThrow();
  expect(await claw("ownerOf", [BigInt(tokenId)])).toBe(agent(0).address);
  await pause(false);
  await transfer(chain, agent(0), agent(1).address, tokenId);
  expect(await claw("ownerOf", [BigInt(tokenId)])).toBe(agent(1).address);
});

test("the proxy in front of the node can lag, lie and fail", async () => {
  const proxy = await startRpcProxy(chain.url);
  const ask = async (method: string, params: unknown[] = []) => {
    const response = await fetch(proxy.url, {
      method: "POST",
      body: JSON.stringify({ jsonrpc: "2.0", id: 1, method, params }),
    });
    return response.ok ? ((await response.json()) as { result?: unknown }).result : response.status;
  };
  const head = Number(await ask("eth_blockNumber"));
  proxy.setFaults({ kind: "lag", blocks: 3 });
  expect(Number(await ask("eth_blockNumber"))).toBeLessThanOrEqual(head);
  proxy.setFaults({ kind: "rewrite", method: "eth_blockNumber", result: "0x7" });
  expect(await ask("eth_blockNumber")).toBe("0x7");
  proxy.setFaults({ kind: "down" });
  expect(await ask("eth_blockNumber")).toBe(503);
  const hash = await chain.wallet(agent(0)).sendTransaction({ to: agent(1).address, value: 1n });
  proxy.setFaults({ kind: "logs_behind", blocks: 1 });
  expect(await ask("eth_getTransactionReceipt", [hash])).toBeNull();
  expect(Number(await ask("eth_blockNumber"))).toBe(head + 1);
  proxy.setFaults({ kind: "patch", method: "eth_getTransactionReceipt", fields: { status: "0x0" } });
  expect(await ask("eth_getTransactionReceipt", [hash])).toMatchObject({ status: "0x0", transactionHash: hash });
  proxy.setFaults({ kind: "finalized_is_latest" });
  expect(await ask("eth_getBlockByNumber", ["finalized", false])).toMatchObject({ number: numberToHex(head + 1) });
  const CLOCK = { to: MULTICALL3_ADDRESS, data: toFunctionSelector("getCurrentBlockTimestamp()") };
  proxy.setFaults();
  const time = Number(await ask("eth_call", [CLOCK, "latest"]));
  proxy.setFaults({ kind: "ahead", seconds: 86_400 });
  expect(Number(await ask("eth_call", [CLOCK, "latest"])) - time).toBeGreaterThanOrEqual(86_400);
  await proxy.stop();
});
