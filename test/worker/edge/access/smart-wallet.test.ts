// Tokens owned by contracts: their keepers sign, and the chain says whether that counts (ERC-1271, ERC-6492). And of plain
// accounts: of each signature one spelling only.
import { secp256k1 } from "@noble/curves/secp256k1.js";
import { type Abi, type Address, encodeFunctionData, getAddress, type Hex, serializeErc6492Signature } from "viem";
import { beforeEach, expect, test } from "vitest";
import { type Credentials, fixedHeaders, freshHeaders, type Signer, transfer } from "../../../world/agent.ts";
import artifacts from "../../../world/contracts/artifacts.json";
import { agent, chain, deployer } from "../../chain.ts";
import { buyAndRun, type Deployment, deploy } from "../../deployment.ts";
import { addRpcFault, clearRpcFaults } from "../../faults.ts";

const API = "https://api.example";
const factoryAbi = artifacts.SmartWalletFactory.abi as Abi;

let world: Deployment;
let tokenId: number;
let factory: Address;
let wallet: Address;

beforeEach(async () => {
  await chain.node.setAutomine(true);
  const clients = chain.wallet(deployer);
  const bytecode = artifacts.SmartWalletFactory.bytecode as Hex;
  const hash = await clients.deployContract({ abi: factoryAbi, bytecode });
  factory = (await chain.reader.waitForTransactionReceipt({ hash })).contractAddress ?? "0x";
  const of = { address: factory, abi: factoryAbi, functionName: "addressOf", args: [agent(2).address] } as const;
  wallet = (await chain.reader.readContract(of)) as Address;
  world = await deploy({ edge: { WALLET_FACTORIES: factory } });
  tokenId = await buyAndRun(world, 0);
  await giveToken(wallet);
});

async function giveToken(to: Address): Promise<void> {
  await transfer(chain, agent(0), to, tokenId);
  await world.scan();
  await chain.mine(1);
}

const deployData = (keeper: Address) => encodeFunctionData({ abi: factoryAbi, functionName: "deploy", args: [keeper] });
async function deployWallet(keeper: Address): Promise<void> {
  const hash = await chain.wallet(deployer).sendTransaction({ to: factory, data: deployData(keeper) });
  await chain.reader.waitForTransactionReceipt({ hash });
  await chain.mine(1);
}
/** Signs as a wallet that is not deployed yet does. */
const counterfactual = (keeper: number): Signer => ({
  signMessage: async (message) =>
    serializeErc6492Signature({
      address: factory,
      data: deployData(agent(keeper).address),
      signature: await agent(keeper).signMessage(message),
    }),
});
async function ask(headers: Record<string, string>, path = `/credentials/${tokenId}`, method = "GET") {
  const answer = await world.request(path, { method, headers });
  const body = (await answer.json()) as Credentials & { code?: string };
  return { status: answer.status, code: body.code, key: body.ssh?.privateKey ?? null };
}

test("a deployed wallet's keeper gets the key, by either form", async () => {
  await deployWallet(agent(2).address);
  expect(await ask(await fixedHeaders(agent(2), tokenId))).toMatchObject({ status: 200, key: expect.any(String) });
  expect(await ask(await freshHeaders(API, agent(2), tokenId))).toMatchObject({ status: 200, key: expect.any(String) });
});

test("a wallet that is not deployed yet gets the key, by either form", async () => {
  expect(await ask(await fixedHeaders(counterfactual(2), tokenId))).toMatchObject({
    status: 200,
    key: expect.any(String),
  });
  const again = await ask(await freshHeaders(API, counterfactual(2), tokenId));
  expect(again).toMatchObject({ status: 200, key: expect.any(String) });
});

test("its keeper's plain signature is told to deploy it first: it was told that it does not own the token", async () => {
  const keeper = agent(2);
  const headers = await fixedHeaders(keeper, tokenId);
  const answer = await world.request(`/credentials/${tokenId}`, { headers });
  const { code, error } = (await answer.json()) as { code: string; error: string };
  expect([answer.status, code]).toEqual([403, "not_owner"]);
  expect(error).toContain("has to be deployed first");
  await deployWallet(keeper.address);
  expect(await ask(headers)).toMatchObject({ status: 200 });
});

test("nobody else does: not another keeper, not the seller, not another wallet's deployment", async () => {
  const refused = { status: 403, code: "not_owner", key: null };
  expect(await ask(await fixedHeaders(counterfactual(3), tokenId))).toEqual(refused);
  expect(await ask(await fixedHeaders(agent(0), tokenId))).toEqual(refused);
  // Before its deployment the keeper's bare signature proves nothing.
  expect(await ask(await fixedHeaders(agent(2), tokenId))).toEqual(refused);
  await deployWallet(agent(2).address);
  expect(await ask(await fixedHeaders(agent(3), tokenId))).toEqual(refused);
  expect(await ask({ authorization: `Bearer 0x${"ab".repeat(200)}` })).toEqual(refused);
});

test("no factory runs that is not known, and the sentence says so (hard case 43)", async () => {
  const other = await deploy();
  const own = await buyAndRun(other, 1);
  await transfer(chain, agent(1), wallet, own);
  await other.scan();
  await chain.mine(1);
  // Whoever asked a node about it would get no answer.
  await addRpcFault({ kind: "down", includes: "64926492" });
  const answer = await other.request(`/credentials/${own}`, { headers: await fixedHeaders(counterfactual(2), own) });
  expect(answer.status).toBe(403);
  expect(await answer.json()).toMatchObject({
    code: "not_owner",
    error: `Whoever signed does not own token ${own}. The signature names a factory that is not known here, ${getAddress(factory)}: deploy the smart wallet first.`,
  });
});

test("a wallet that is deployed answers for itself: the factory that its signature names does not run (hard case 43)", async () => {
  await deployWallet(agent(2).address);
  const bare = await deploy();
  const own = await buyAndRun(bare, 1);
  await transfer(chain, agent(1), wallet, own);
  await bare.scan();
  await chain.mine(1);
  await addRpcFault({ kind: "down", includes: "64926492" });
  const headers = await fixedHeaders(counterfactual(2), own);
  expect((await bare.request(`/credentials/${own}`, { headers })).status).toBe(200);
});

test("a contract is asked within a cap of gas, and one that burns it says no (hard case 43)", async () => {
  // Says yes where at most 3,000,000 gas are left; then one that never ends.
  const frugal = `0x5a63002dc6c0106033577f1626ba7e${"00".repeat(28)}60005260206000f35b60006000fd` as const;
  const address: Address = `0x${"c0de".repeat(10)}`;
  await chain.node.setCode({ address, bytecode: frugal });
  const other = await deploy();
  const own = await buyAndRun(other, 1);
  await transfer(chain, agent(1), address, own);
  await other.scan();
  await chain.mine(1);
  const headers = { authorization: `Bearer 0x${"ab".repeat(100)}` };
  const status = async () => (await other.request(`/credentials/${own}`, { headers })).status;
  expect(await status()).toBe(200);
  await chain.node.setCode({ address, bytecode: "0x5b600056" });
  expect(await status()).toBe(403);
});

test("bytes that no plain account can have signed are for its contract to read, however many they are", async () => {
  const yes = `0x7f1626ba7e${"00".repeat(28)}60005260206000f3` as const;
  await chain.node.setCode({ address: wallet, bytecode: yes });
  for (const length of [64, 65, 66]) {
    for (const byte of ["00", "ff"])
      expect(await ask({ authorization: `Bearer 0x${byte.repeat(length)}` }), `${length} ${byte}`).toMatchObject({
        status: 200,
      });
  }
});

test("a wallet's fresh signature is used up once, and its keeper can acknowledge", async () => {
  await deployWallet(agent(2).address);
  const headers = await freshHeaders(API, agent(2), tokenId);
  expect((await ask(headers)).status).toBe(200);
  expect(await ask(headers)).toMatchObject({ status: 401, code: "nonce_used" });
  const forAck = await freshHeaders(API, agent(2), tokenId, "/ack");
  expect((await ask(forAck, `/credentials/${tokenId}/ack`, "POST")).status).toBe(200);
});

test("one node that calls a contract's signature valid is not believed", async () => {
  await deployWallet(agent(2).address);
  const stranger = { authorization: `Bearer 0x${"ab".repeat(200)}` };
  const TRUE = `0x${"0".repeat(63)}1`;
  // The check alone: the read of the token, which names no signature, goes through as it is.
  await addRpcFault({ kind: "rewrite", method: "eth_call", includes: "abababab", result: TRUE });
  expect(await ask(stranger)).toMatchObject({ status: 403, code: "not_owner" });
});

test.each([
  ["that shows no code", true, "0x"],
  ["that shows code where there is none", false, "0x6000"],
])("one node %s turns no wallet's owner away", async (_what, isThere, code) => {
  if (isThere) await deployWallet(agent(2).address);
  await addRpcFault({ kind: "rewrite", method: "eth_getCode", result: code });
  const headers = await fixedHeaders(isThere ? agent(2) : counterfactual(2), tokenId);
  expect((await ask(headers)).status).toBe(200);
});

test("nodes that do not answer make it 503, not somebody else's signature", async () => {
  const fewer = await deploy({ edge: { RPC_URLS: world.edge.RPC_URLS[0] ?? "", WALLET_FACTORIES: factory } });
  const own = await buyAndRun(fewer, 0);
  await transfer(chain, agent(0), wallet, own);
  await fewer.scan();
  await chain.mine(1);
  const headers = await fixedHeaders(counterfactual(2), own);
  const status = async () => (await fewer.request(`/credentials/${own}`, { headers })).status;
  await addRpcFault({ kind: "down", includes: "64926492" });
  expect(await status()).toBe(503);
  await clearRpcFaults();
  expect(await status()).toBe(200);
});

test("the signature's twin with the high s is refused (malleable), and so is another length", async () => {
  const { authorization = "" } = await fixedHeaders(agent(0), tokenId);
  const hex = authorization.slice("Bearer 0x".length);
  const order = secp256k1.Point.CURVE().n;
  const s = (order - BigInt(`0x${hex.slice(64, 128)}`)).toString(16).padStart(64, "0");
  const v = hex.slice(128) === "1b" ? "1c" : "1b";
  const twin = `Bearer 0x${hex.slice(0, 64)}${s}${v}`;
  expect(await ask({ authorization: twin })).toMatchObject({ status: 401, code: "signature_invalid" });
  for (const wrong of [hex.slice(4), `${hex}a`, "", "00".repeat(8_001)]) {
    expect(await ask({ authorization: `Bearer 0x${wrong}` })).toMatchObject({ status: expect.toBeOneOf([400, 401]) });
  }
});

test("REQUIRE_FRESH_SIGNATURES turns the fixed form off", async () => {
  const strict = await deploy({ edge: { REQUIRE_FRESH_SIGNATURES: "true" } });
  const own = await buyAndRun(strict, 0);
  const request = async (headers: Record<string, string>) => {
    const answer = await strict.request(`/credentials/${own}`, { headers });
    return [answer.status, ((await answer.json()) as { code?: string }).code];
  };
  expect(await request(await fixedHeaders(agent(0), own))).toEqual([401, "fresh_signature_required"]);
  expect(await request(await freshHeaders(API, agent(0), own))).toEqual([200, undefined]);
});
