// The local chain is what the product's documents say of Base: contracts at their addresses, money that can be authorized.
import { type Hex, parseSignature } from "viem";
import { afterAll, beforeAll, expect, test } from "vitest";
import { CONTRACT_ADDRESS, MULTICALL3_ADDRESS, USDC_ADDRESS } from "../world/addresses.ts";
import { buy } from "../world/agent.ts";
import { type Chain, clawAbi, startChain, usdcAbi } from "../world/chain.ts";
import { startRpcProxy } from "../world/rpc-proxy.ts";

let chain: Chain;
beforeAll(async () => {
  chain = await startChain();
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

test("USDC takes an EIP-3009 authorization from anybody, once", async () => {
  const payer = agent(2);
  const nonce: Hex = `0x${"42".repeat(32)}`;
  const message = {
    from: payer.address,
    to: agent(3).address,
    value: 1_000_000n,
    validAfter: 0n,
    validBefore: 2n ** 40n,
    nonce,
  };
  const fields = [
    "address from",
    "address to",
    "uint256 value",
    "uint256 validAfter",
    "uint256 validBefore",
    "bytes32 nonce",
  ];
  const signature = await payer.signTypedData({
    domain: { name: "USD Coin", version: "2", chainId: 8453, verifyingContract: USDC_ADDRESS },
    types: {
      TransferWithAuthorization: fields.map((field) => {
        const [type = "", name = ""] = field.split(" ");
        return { type, name };
      }),
    },
    primaryType: "TransferWithAuthorization",
    message,
  });
  const { v, r, s } = parseSignature(signature);
  const submit = () =>
    chain.wallet(agent(4)).writeContract({
      address: USDC_ADDRESS,
      abi: usdcAbi,
      functionName: "transferWithAuthorization",
      args: [...Object.values(message), Number(v), r, s],
    });
  const before = (await usdc("balanceOf", [agent(3).address])) as bigint;
  await chain.reader.waitForTransactionReceipt({ hash: await submit() });
  expect(await usdc("balanceOf", [agent(3).address])).toBe(before + 1_000_000n);
  expect(await usdc("authorizationState", [payer.address, nonce])).toBe(true);
  await expect(submit()).rejects.toThrow("ERC3009UsedAuthorization");
});

test("the proxy in front of the node can lag, lie and fail", async () => {
  const proxy = await startRpcProxy(chain.url);
  const ask = async (method: string, params: unknown[] = []) => {
    const response = await fetch(proxy.url, {
      method: "POST",
      body: JSON.stringify({ jsonrpc: "2.0", id: 1, method, params }),
    });
    return response.ok ? ((await response.json()) as { result?: string }).result : response.status;
  };
  const head = Number(await ask("eth_blockNumber"));
  proxy.setFaults({ kind: "lag", blocks: 3 });
  expect(Number(await ask("eth_blockNumber"))).toBeLessThanOrEqual(head);
  proxy.setFaults({ kind: "rewrite", method: "eth_blockNumber", result: "0x7" });
  expect(await ask("eth_blockNumber")).toBe("0x7");
  proxy.setFaults({ kind: "down" });
  expect(await ask("eth_blockNumber")).toBe(503);
  await proxy.stop();
});
