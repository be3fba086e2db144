// A real EVM for the local world: anvil with our contracts at the addresses they have on Base.
import { type ChildProcess, spawn } from "node:child_process";
import { readFileSync } from "node:fs";
import { createRequire } from "node:module";
import { fileURLToPath } from "node:url";
import {
  type Abi,
  type Address,
  createPublicClient,
  createTestClient,
  createWalletClient,
  defineChain,
  encodeDeployData,
  type Hex,
  http,
  parseEther,
  publicActions,
  type Transport,
  type Chain as ViemChain,
  walletActions,
} from "viem";
import type { LocalAccount } from "viem/accounts";
import { developmentAccount } from "./accounts.ts";
import { CONTRACT_ADDRESS, MULTICALL3_ADDRESS, USDC_ADDRESS } from "./addresses.ts";
import type { Artifacts } from "./contracts/compile.ts";
import { freePort } from "./ports.ts";

const CHAIN_ID = 8453;
/** Of one transaction, by EIP-7825. */
export const MAX_TRANSACTION_GAS = 16_777_216n;
/** How many blocks back the chain's state can be read. */
const STATES = 500;
/** How often a chain that is kept is written, beside its end. */
const STATE_SECONDS = "60";
const AGENT_COUNT = 5;
/** A chain that is kept is written at its end. */
const STOP_MS = 10_000;
const AGENT_BALANCE_USDC6 = 10_000_000_000n;

export const artifacts = JSON.parse(
  readFileSync(fileURLToPath(new URL("contracts/artifacts.json", import.meta.url).href), "utf8"),
) as Artifacts;
export const clawAbi = artifacts.ClawCloudVMs.abi as Abi;
export const usdcAbi = artifacts.UsdCoin.abi as Abi;

export type ChainOptions = {
  blockTimeSeconds?: number;
  /** How many blocks make an epoch: two epochs below the head history is final. */
  epochBlocks?: number;
  port?: number;
  /** A file that keeps the chain: a start goes on where the one before it ended. */
  stateFile?: string;
};
export type Chain = Awaited<ReturnType<typeof startChain>>;

/** Finds anvil's binary: the platform package from npm, or the one on the PATH. */
function anvilBinary(): string {
  try {
    return createRequire(import.meta.url).resolve(`@foundry-rs/anvil-${process.platform}-${archOfPackage()}/bin/anvil`);
  } catch {
    return "anvil";
  }
}

const archOfPackage = () => (process.arch === "x64" ? "amd64" : process.arch);

/** Starts anvil on a free port and puts the contracts in place. Block time 0 mines one block per transaction. */
export async function startChain(options: ChainOptions = {}) {
  const port = options.port ?? (await freePort());
  const blockTime = options.blockTimeSeconds ?? 1;
  const epoch = String(options.epochBlocks ?? 1);
  const args = ["--port", String(port), "--chain-id", String(CHAIN_ID), "--slots-in-an-epoch", epoch, "--silent"];
  // Without it anvil writes each older state to a folder in the home directory, and leaves it there when it is killed.
  args.push("--prune-history", String(STATES));
  // No node takes a transaction above 2^24 gas, as on Base (EIP-7825).
  args.push("--enable-tx-gas-limit");
  if (options.stateFile !== undefined) args.push("--state", options.stateFile, "--state-interval", STATE_SECONDS);
  if (blockTime > 0) args.push("--block-time", String(blockTime));
  const anvil = spawn(anvilBinary(), args, { stdio: ["ignore", "ignore", "inherit"] });
  // However this process ends (wrangler ends it at once on a signal), the chain ends with it.
  const killOnExit = () => anvil.kill("SIGKILL");
  process.once("exit", killOnExit);
  anvil.once("exit", () => process.off("exit", killOnExit));
  const failed = new Promise<never>((_, reject) => {
    anvil.once("error", (cause) =>
      reject(
        new Error("anvil did not start: install Foundry's anvil, or use linux-x64 where npm brings it", { cause }),
      ),
    );
    anvil.once("exit", (code) => reject(new Error(`anvil ended with code ${code}`)));
  });
  failed.catch(() => undefined);
  const url = `http://127.0.0.1:${port}`;
  const chain = defineChain({
    id: CHAIN_ID,
    name: "Base (local)",
    nativeCurrency: { name: "Ether", symbol: "ETH", decimals: 18 },
    rpcUrls: { default: { http: [url] } },
  });
  // On a busy machine a few hundred blocks take anvil more than the ten seconds that a client waits by default.
  const transport = http(url, { retryCount: 0, timeout: 60_000 });
  const deployer = developmentAccount(9);
  const agents = Array.from({ length: AGENT_COUNT }, (_, index) => developmentAccount(index));
  const operator = developmentAccount(8);
  const facilitator = developmentAccount(7);
  const node = connect(chain, transport);

  await Promise.race([failed, answers(() => node.getChainId())]);
  if ((await node.getCode({ address: CONTRACT_ADDRESS })) === undefined) await found();

  async function found(): Promise<void> {
    await place(node, MULTICALL3_ADDRESS, artifacts.Multicall3.bytecode as Hex);
    const usdcArgs = [deployer.address];
    await place(node, USDC_ADDRESS, deployData(usdcAbi, artifacts.UsdCoin.bytecode, usdcArgs));
    const clawArgs = [deployer.address, USDC_ADDRESS];
    await place(node, CONTRACT_ADDRESS, deployData(clawAbi, artifacts.ClawCloudVMs.bytecode, clawArgs));
    // The accounts' ETH comes with anvil; their USDC is minted here.
    for (const agent of [...agents, operator]) {
      await node.writeContract({
        account: deployer,
        address: USDC_ADDRESS,
        abi: usdcAbi,
        functionName: "mint",
        args: [agent.address, AGENT_BALANCE_USDC6],
        gas: 200_000n,
      });
    }
    await node.mine({ blocks: 1 });
  }

  return {
    url,
    chain,
    chainId: CHAIN_ID,
    node,
    agents,
    deployer,
    /** The wallet that pays refunds. */
    operator,
    /** The wallet that brings others' signed payments to the chain. */
    facilitator,
    /** A wallet client for one of the agents. */
    wallet: (account: LocalAccount) =>
      createWalletClient({ account, chain, transport, pollingInterval: 100, cacheTime: 0 }),
    reader: createPublicClient({ chain, transport, pollingInterval: 100, cacheTime: 0 }),
    stop: () => stopProcess(anvil),
  };
}

const connect = (chain: ViemChain, transport: Transport) =>
  createTestClient({ mode: "anvil", chain, transport, pollingInterval: 100, cacheTime: 0 })
    .extend(publicActions)
    .extend(walletActions);

const deployData = (abi: Abi, bytecode: string, args: unknown[]): Hex =>
  encodeDeployData({ abi, bytecode: bytecode as Hex, args });

type Node = ReturnType<typeof connect>;

/**
 * Puts a contract at a chosen address as its constructor leaves it: the runtime code is what a call of the creation
 * code returns (immutables included), and the storage is what a real deployment of it wrote.
 */
async function place(node: Node, address: Address, data: Hex): Promise<void> {
  const [from] = await node.getAddresses();
  if (from === undefined) throw new Error("anvil offers no account to deploy from");
  await node.setBalance({ address: from, value: parseEther("10000") });
  const { accessList } = await node.createAccessList({ account: from, data });
  const hash = await node.sendTransaction({ account: from, data, gas: MAX_TRANSACTION_GAS, chain: null });
  await node.mine({ blocks: 1 });
  const { contractAddress } = await node.waitForTransactionReceipt({ hash, pollingInterval: 50 });
  if (contractAddress == null) throw new Error(`the contract for ${address} was not deployed`);
  const code = await node.getCode({ address: contractAddress });
  await node.setCode({ address, bytecode: code ?? "0x" });
  for (const { storageKeys } of accessList) {
    for (const index of storageKeys) {
      const value = await node.getStorageAt({ address: contractAddress, slot: index });
      await node.setStorageAt({ address, index, value: value ?? `0x${"0".repeat(64)}` });
    }
  }
}

async function answers(probe: () => Promise<unknown>): Promise<void> {
  for (let tries = 0; ; tries++) {
    try {
      await probe();
      return;
    } catch (error) {
      if (tries >= 200) throw error;
      await new Promise((resolve) => setTimeout(resolve, 50));
    }
  }
}

async function stopProcess(child: ChildProcess): Promise<void> {
  if (child.exitCode !== null || child.signalCode !== null) return;
  const gone = new Promise((resolve) => child.once("exit", resolve));
  child.kill("SIGTERM");
  const forced = setTimeout(() => child.kill("SIGKILL"), STOP_MS);
  await gone;
  clearTimeout(forced);
}
